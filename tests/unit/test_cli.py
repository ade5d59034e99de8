"""The command line: settings arrive as they were sent, mistakes are said without a traceback."""

from __future__ import annotations

import argparse
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rsd import cli, config

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
CONFIG = config.ROOT / "config.yaml"


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_settings_arrive_as_they_were_sent(settings):
    assert cli._settings_value(json.dumps(settings, sort_keys=True)) == settings


def test_small_numbers_stay_numbers():
    """JSON writes 1e-05, which YAML would read as a string."""
    assert cli._settings_value(json.dumps({"learning_rate": 1.0e-5})) == {"learning_rate": 1.0e-5}


def test_settings_may_stand_in_a_file(tmp_path):
    (tmp_path / "settings.yaml").write_text("lanes: 4\n")
    assert cli._settings_value(f"@{tmp_path / 'settings.yaml'}") == {"lanes": 4}


@pytest.mark.parametrize("text", ["[1]", "3", "word"])
def test_settings_that_are_no_object_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a JSON object"):
        cli._settings_value(text)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("generate-traces", "rsd"),
        ("convert-traces", "direct"),
        ("select-traces", "rsd"),
        ("train", "direct-full"),
        ("evaluate", "rsd/math500"),
        ("collect-scores", "rsd/math500"),
        ("prefetch-model", "student"),
        ("prefetch-dataset", "s1k"),
        ("prepare-problems", None),
        ("prepare-benchmark", "aime24"),
        ("make-pocket-model", "student"),
        ("analyse-tokens", "direct/rsd-seed0"),
        ("compare", None),
        ("report", None),
    ],
)
def test_settings_of_every_stage_can_be_printed(stage, name, capsys):
    assert cli.main(["settings", stage, str(CONFIG), *(["--name", name] if name else [])]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_settings_of_a_trace_set_that_is_made_of_another_can_be_printed(capsys):
    controls = str(config.ROOT / "workflow" / "experiments" / "controls.yaml")
    assert cli.main(["settings", "derive-traces", str(CONFIG), controls, "--name", "direct-by-share"]) == 0
    assert json.loads(capsys.readouterr().out)["of"] == "direct"
    for stage, name in (("derive-traces", "rsd"), ("generate-traces", "direct-by-share")):
        assert cli.main(["settings", stage, str(CONFIG), controls, "--name", name]) == 1
        assert f"names nothing that {stage} works on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nonsense", None])
def test_settings_of_something_unknown_say_what_a_name_may_be(name, capsys):
    assert cli.main(["settings", "train", str(CONFIG), *(["--name", name] if name else [])]) == 1
    assert "names nothing that train works on; give an entry" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["direct", "direct/nobody", "nothing/student", "direct/base-seed0", None])
def test_a_token_analysis_of_something_unknown_says_what_a_name_may_be(name, capsys):
    assert cli.main(["settings", "analyse-tokens", str(CONFIG), *(["--name", name] if name else [])]) == 1
    assert "analyse-tokens: TRACES/READER" in capsys.readouterr().err


def test_settings_of_a_judge_can_be_printed_where_there_is_one(tmp_path, capsys):
    command = ["settings", "--name", "math500", "judge-samples", str(CONFIG)]
    assert cli.main(command) == 1
    assert "judge-samples: TASK, with a judge" in capsys.readouterr().err
    (tmp_path / "mine.yaml").write_text("evaluation: {judge: {url: 'http://localhost/v1', model: m}}\n")
    assert cli.main([*command, str(tmp_path / "mine.yaml")]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "m"


def test_config_prints_the_merged_configuration(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("traces: {rsd: {threshold: 0.03}}\n")
    assert cli.main(["config", str(CONFIG), str(tmp_path / "mine.yaml")]) == 0
    merged = yaml.safe_load(capsys.readouterr().out)
    assert merged["traces"]["rsd"]["threshold"] == 0.03
    assert merged["traces"]["rsd"]["attempts"] == 16


def test_a_misspelt_key_is_said_without_a_traceback(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("traces: {rsd: {treshold: 0.03}}\n")
    assert cli.main(["config", str(CONFIG), str(tmp_path / "mine.yaml")]) == 1
    error = capsys.readouterr().err
    assert "traces.rsd.treshold = 0.03: unknown key; did you mean 'threshold'?" in error
    assert "Traceback" not in error


def test_show_without_a_report_says_so(tmp_path, capsys):
    assert cli.main(["show", str(tmp_path)]) == 1
    assert "holds no report yet; run snakemake" in capsys.readouterr().err


def test_the_written_config_is_the_config_that_was_sent(tmp_path):
    settings = config.load([CONFIG])
    output = tmp_path / "config.yaml"
    assert cli.main(["write-config", "--settings", json.dumps(settings), "--output", str(output)]) == 0
    assert config.load([output]) == settings
