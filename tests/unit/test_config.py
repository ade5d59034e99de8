"""The configuration: bad ones are refused by a message that helps, every key is documented and decides something."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rsd import config as c
from rsd import lineage
from rsd.cli import build_parser, main
from rsd.compare import MEAN, paper_accuracy, paper_relative_change

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "config.yaml"
SCHEMA = c.load_schema()


def paper(**changes: Any) -> c.Config:
    """config.yaml with `changes` laid over it, not validated."""
    return c.merge(yaml.safe_load(PAPER.read_text(encoding="utf-8")), changes)


# --- bad configurations ---------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"tittle": "x"}, r"tittle = 'x': unknown key; did you mean 'title'\?"),
    "an unknown key deep inside": (
        {"traces": {"rsd": {"treshold": 0.01}}},
        r"traces\.rsd\.treshold = 0\.01: unknown key; did you mean 'threshold'\?",
    ),
    "an unknown key in an arm's training": (
        {"arms": {"rsd": {"training": {"epoch": 3}}}},
        r"arms\.rsd\.training\.epoch = 3: unknown key; did you mean 'epochs'\?",
    ),
    "text where a number is due": (
        {"traces": {"rsd": {"threshold": "0.01"}}},
        r"traces\.rsd\.threshold = '0\.01': expected number, found str; write the number without quotes",
    ),
    "a number where text is due": ({"title": 3}, r"title = 3: expected string, found int; correct it"),
    "a fraction where a whole number is due": (
        {"training": {"epochs": 1.5}},
        r"training\.epochs = 1\.5: expected integer, found float",
    ),
    "a threshold above 1": (
        {"traces": {"rsd": {"threshold": 1.01}}},
        r"traces\.rsd\.threshold = 1\.01: expected a value >= 0 and <= 1",
    ),
    "a negative threshold": (
        {"traces": {"rsd": {"threshold": -0.1}}},
        r"traces\.rsd\.threshold = -0\.1: expected a value >= 0 and <= 1",
    ),
    "a method that does not exist": (
        {"traces": {"rsd": {"method": "rds"}}},
        r"traces\.rsd\.method = 'rds': did you mean 'rsd'\? expected one of: dataset, filter, recode, rsd, sample",
    ),
    "an arm with an unknown trace set": (
        {"arms": {"rsd": {"traces": "rds"}}},
        r"arms\.rsd\.traces = 'rds': no such entry in traces; did you mean 'rsd'\?",
    ),
    "an arm with an unknown model": (
        {"arms": {"base": {"model": "studnet"}}},
        r"arms\.base\.model = 'studnet': no such entry in models; did you mean 'student'\?",
    ),
    "a model with an unknown prompt": (
        {"models": {"student": {"prompt": "boxd"}}},
        r"models\.student\.prompt = 'boxd': no such entry in prompts; did you mean 'boxed'\?",
    ),
    "a trace set with an unknown law": (
        {"traces": {"rsd": {"law": "authors"}}},
        r"traces\.rsd\.law = 'authors': no such entry in laws; .*authors-code",
    ),
    "an unknown arm to run": ({"run": {"arms": ["base", "rsdd"]}}, r"run\.arms\[1\] = 'rsdd': no such entry in arms"),
    "an unknown benchmark to run": (
        {"run": {"tasks": ["aime42"]}},
        r"run\.tasks\[0\] = 'aime42': no such entry in tasks; did you mean 'aime2[45]'\?",
    ),
    "a base that is not run": (
        {"run": {"arms": ["rsd"], "base": "base"}},
        r"run\.base = 'base': not in run\.arms; expected one of: rsd",
    ),
    "a task with an unknown dataset": (
        {"tasks": {"aime24": {"dataset": "aime"}}},
        r"tasks\.aime24\.dataset = 'aime': no such entry in datasets",
    ),
    "an unknown evaluation profile": (
        {"evaluation": {"profile": "qwem"}},
        r"evaluation\.profile = 'qwem': no such entry in profiles; did you mean 'qwen'\?",
    ),
    "traces as long as the context": (
        {"traces": {"rsd": {"max_new_tokens": 8192}}},
        r"traces\.rsd\.max_new_tokens = 8192: leaves no room for a prompt in traces\.rsd\.context = 8192 tokens",
    ),
    "a micro-batch that does not divide the batch": (
        {"training": {"micro_batch_size": 3}},
        r"batch_size = 16 is no multiple of micro_batch_size = 3",
    ),
    "dataset traces where the dataset has none": (
        {"problems": {"dataset": "aime24"}},
        r"traces\.direct\.method = 'dataset': the dataset of problems has no traces of its own",
    ),
    "a trace format that wants a part which the dataset lacks": (
        {"datasets": {"s1k": {"columns": {"thinking": None}}}},
        r"format\.dataset_trace = .*wants \{thinking\}, of which the dataset of problems has no column; name it in "
        r"datasets\.s1k\.columns\.thinking",
    ),
    "several attempts at a dataset's one trace": (
        {"traces": {"direct": {"attempts": 4}}},
        r"traces\.direct\.attempts = 4: a dataset has one trace a problem; write 1",
    ),
    "not a number": (
        {"traces": {"rsd": {"threshold": float("nan")}}},
        r"traces\.rsd\.threshold = nan: expected a finite number; correct it",
    ),
    "an infinite number in an arm's training": (
        {"arms": {"rsd": {"training": {"learning_rate": float("inf")}}}},
        r"arms\.rsd\.training\.learning_rate = inf: expected a finite number; correct it",
    ),
    "a number in a list that is none": (
        {"run": {"seeds": [0, float("nan")]}},
        r"run\.seeds\.1 = nan: expected a finite number; correct it",
    ),
    "an expression that is none": (
        {"datasets": {"s1k": {"remove": "("}}},
        r"datasets\.s1k\.remove = '\(': expected a regular expression \(.+\); correct it",
    ),
    "a prefix longer than any trace": (
        {"traces": {"rsd": {"select": {"prefix_tokens": 7169}}}},
        r"traces\.rsd\.select\.prefix_tokens = 7169: expected at most traces\.rsd\.max_new_tokens = 7168.*; lower",
    ),
    "a published accuracy of an unknown arm": (
        {"reference": {"accuracy": {"bsae": {}}}},
        r"reference\.accuracy\.bsae = 'bsae': no such entry in arms; did you mean 'base'\?",
    ),
    "a published accuracy at an unknown task": (
        {"reference": {"accuracy": {"base": {"aime42": 1}}}},
        r"reference\.accuracy\.base\.aime42 = 'aime42': no such entry in tasks; did you mean 'aime2[45]'\?",
    ),
    "a published change of an unknown arm": (
        {"reference": {"mean_relative_change": {"rds": 1}}},
        r"reference\.mean_relative_change\.rds = 'rds': no such entry in arms; did you mean 'rsd'\?",
    ),
    "a prompt without the question": ({"prompts": {"boxed": "Hello"}}, r"prompts\.boxed = 'Hello': "),
    "a source that is none": (
        {"models": {"student": {"source": "Qwen/Qwen3-0.6B"}}},
        r"models\.student\.source = 'Qwen/Qwen3-0\.6B': .*hf://ORG/NAME@REVISION",
    ),
    "a name that is a path": ({"experiment": "../elsewhere"}, r"experiment = '\.\./elsewhere': "),
    "a name that the folders of results need": (
        {"experiment": "models"},
        r"experiment = 'models': this folder of results/ is taken; choose another name",
    ),
    "a token analysis of an unknown trace set": (
        {"analysis": {"also": [{"traces": "dierct", "reader": "teacher"}]}},
        r"analysis\.also\[0\]\.traces = 'dierct': no such entry in traces; did you mean 'direct'\?",
    ),
    "a token analysis under a model that is not trained": (
        {"analysis": {"also": [{"traces": "direct", "reader": "rsd-seed7"}]}},
        r"analysis\.also\[0\]\.reader = 'rsd-seed7': neither in models nor a model that this run trains; did you mean "
        r"'rsd-seed[012]'\?",
    ),
    "a token analysis under an arm that is not trained": (
        {"analysis": {"also": [{"traces": "direct", "reader": "base-seed0"}]}},
        r"analysis\.also\[0\]\.reader = 'base-seed0': neither in models",
    ),
    "a token analysis without a reader": (
        {"analysis": {"also": [{"traces": "direct"}]}},
        r"analysis\.also\.0\.reader: missing; add it",
    ),
    "a token analysis of no problem": (
        {"analysis": {"problems": 0}},
        r"analysis\.problems = 0: expected a value >= 1; choose a value in it \(.*null for all",
    ),
    "a model called like a trained one": (
        {"models": {"rsd-seed0": {"source": "hf://some/model", "prompt": "boxed"}}},
        r"models\.rsd-seed0: this is what the arm rsd trained with seed 0 is called; choose another name",
    ),
    "a judge without its model": (
        {"evaluation": {"judge": {"url": "http://localhost:8000/v1"}}},
        r"evaluation\.judge\.model: missing; add it",
    ),
    "a key in the judge's address": (
        {"evaluation": {"judge": {"url": "https://me:sk-secret@judge/v1", "model": "m"}}},
        r"evaluation\.judge\.url: not of the form .*; correct it \(Address up to",
    ),
    "a key in place of its variable's name": (
        {"evaluation": {"judge": {"url": "https://judge/v1", "model": "m", "key_variable": "sk-secret"}}},
        r"evaluation\.judge\.key_variable: not of the form .*; correct it \(Name of the environment variable",
    ),
    "a backend that there is not": (
        {"evaluation": {"backend": "vlm"}},
        r"evaluation\.backend = 'vlm': did you mean 'vllm'\? expected one of: rsd, transformers, vllm",
    ),
    "benchmarks that are all gated and skipped": (
        {"run": {"tasks": ["gpqa_diamond"], "gated": "skip"}},
        r"run\.gated = 'skip': leaves no benchmark of run\.tasks = \['gpqa_diamond'\]; add one that is not gated",
    ),
    "skipped benchmarks written by hand": (
        {"run": {"skipped_tasks": ["gpqa_diamond"]}},
        r"run\.skipped_tasks = \['gpqa_diamond'\]: filled in by `run: \{gated: skip\}` alone; remove it",
    ),
    "a skipped benchmark that is not gated": (
        {"run": {"skipped_tasks": ["aime24"], "gated": "skip"}},
        r"run\.skipped_tasks = \['aime24'\]: 'aime24' is no gated benchmark; remove the key",
    ),
    "the same seed twice": ({"run": {"seeds": [1, 1]}}, r"run\.seeds = \[1, 1\]: "),
    "no benchmark": ({"run": {"tasks": []}}, r"run\.tasks = \[\]: "),
    "a question about an arm that there is not": (
        {"question": {"comparisons": [["rsd", "base"], ["rsd", "dircet"]]}},
        r"question\.comparisons\[1\] = 'dircet': no such entry in arms; did you mean 'direct'\?",
    ),
    "a question about one arm": (
        {"question": {"comparisons": [["rsd", "rsd"]]}},
        r"question\.comparisons\.0 = \['rsd', 'rsd'\]: ",
    ),
    "a question that compares nothing": ({"question": {"comparisons": []}}, r"question\.comparisons = \[\]: "),
    "too few flips for a p-value": ({"report": {"flips": 10}}, r"report\.flips = 10: expected a value >= 1000"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_configuration_is_refused_by_key_value_expectation_and_remedy(name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        c.validate(paper(**changes))


@pytest.mark.parametrize("key", SCHEMA["required"])
def test_a_missing_required_key_is_named(key: str) -> None:
    config = paper()
    del config[key]
    with pytest.raises(ValueError, match=rf"{key}: missing; add it"):
        c.validate(config)


def test_a_key_that_got_into_the_configuration_is_not_told_on() -> None:
    for judge in ({"url": "https://me:sk-secret@judge/v1"}, {"url": "https://judge/v1", "key_variable": "sk-secret"}):
        with pytest.raises(ValueError, match="not of the form") as caught:
            c.validate(paper(evaluation={"judge": {"model": "m", **judge}}))
        assert "sk-secret" not in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="unknown key") as caught:
        c.validate(paper(tittle="x", seed=-1, device="gpu"))
    assert len(str(caught.value).splitlines()) == 1 + 3


def test_a_file_that_is_no_mapping_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match=r"list\.yaml: expected a mapping of settings, found list"):
        c.load([PAPER, tmp_path / "list.yaml"])


def test_the_command_line_tells_a_bad_configuration_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text("tittle: x\n")
    assert main(["config", str(PAPER), str(tmp_path / "bad.yaml")]) == 1
    assert "did you mean 'title'?" in capsys.readouterr().err


# --- good ones ------------------------------------------------------------------------------------------------------


def test_the_papers_configuration_is_valid_and_says_what_the_paper_says() -> None:
    config = c.load([PAPER])
    assert config["traces"]["rsd"]["threshold"] == 0.01
    assert config["training"]["learning_rate"] == 1e-5
    assert config["run"]["arms"] == ["base", "direct", "rsd"]


def test_validation_is_idempotent_and_leaves_its_argument_alone() -> None:
    given_config = paper()
    before = copy.deepcopy(given_config)
    once = c.validate(given_config)
    assert given_config == before
    assert c.validate(once) == once


def test_a_merged_configuration_survives_yaml_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    config = c.load([PAPER])
    assert main(["config", str(PAPER)]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == config
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize("number", [1e-5, 1e-4, 0.01, 1e16, 3, 0, -1.5e-300])
def test_a_number_in_the_settings_reaches_a_stage_as_that_number(number: float) -> None:
    words = ["write-config", "--settings", json.dumps({"x": number}), "--output", "o"]
    assert build_parser().parse_args(words).settings == {"x": number}


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3))
def test_any_text_in_the_settings_reaches_a_stage_as_it_was_written(settings: dict[str, str]) -> None:
    words = ["write-config", "--settings", json.dumps(settings), "--output", "o"]
    assert build_parser().parse_args(words).settings == settings


JSON_TREES = st.recursive(
    st.integers(0, 3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), JSON_TREES, max_size=3)


@given(MAPPINGS, MAPPINGS)
def test_every_value_of_an_overlay_wins_and_every_other_value_stays(below: Any, over: Any) -> None:
    merged = c.merge(below, over)
    assert c.merge(below, {}) == below
    assert c.merge(merged, over) == merged
    for path, value in leaves(over):
        node: Any = merged
        for key in path:
            node = node[key]
        # An empty mapping adds nothing to a mapping.
        assert node == value or value == {}
    assert merged.keys() == below.keys() | over.keys()


# --- evaluation ----------------------------------------------------------------------------------------------------


def test_the_papers_profile_is_that_of_the_paper_with_the_prompt_of_training() -> None:
    config = c.load([PAPER])
    settings = c.evaluation_settings(config, "rsd", "aime24")
    assert settings["profile"] == "paper"
    assert settings["sampling"] == {"temperature": 0.7, "top_p": 0.95, "top_k": 0}
    assert settings["context"] == 16384
    assert settings["model"]["prompt"] == c.traces_settings(config, "rsd")["student"]["prompt"]
    assert settings["model"]["prompt"].startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")
    assert settings["model"]["prompt"].endswith("<|im_start|>assistant\n<think>")
    assert settings["format"] == c.traces_settings(config, "rsd")["format"]
    # An empty profile is the paper's, too.
    assert c.validate(paper(profiles={"own": {}}))["profiles"]["own"] == config["profiles"]["paper"]


def test_the_profile_qwen_is_that_of_qwens_model_card_without_a_system_message() -> None:
    settings = c.evaluation_settings(c.validate(paper(evaluation={"profile": "qwen"})), "rsd", "aime24")
    assert settings["profile"] == "qwen"
    assert settings["sampling"] == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert settings["context"] == 32768
    assert "<|im_start|>system" not in settings["model"]["prompt"]
    assert settings["model"]["prompt"].startswith("<|im_start|>user\n{question}\n")
    assert settings["model"]["prompt"].endswith("<|im_start|>assistant\n<think>")


def test_the_full_profile_takes_as_many_samples_as_a_difference_of_a_point_needs() -> None:
    config = c.load([PAPER])
    repeats = {task: c.evaluation_settings(config, "base", task)["repeats"] for task in config["run"]["tasks"]}
    assert repeats == {"aime24": 64, "aime25": 64, "gpqa_diamond": 16, "math500": 8}


def test_gated_benchmarks_can_be_left_out_and_are_remembered() -> None:
    config = c.validate(paper(run={"gated": "skip"}))
    assert config["run"]["tasks"] == ["aime24", "aime25", "math500"]
    assert config["run"]["skipped_tasks"] == c.compare_settings(config)["skipped_tasks"] == ["gpqa_diamond"]
    assert "gpqa_diamond" not in c.used_datasets(config)
    assert c.validate(config) == config
    again = c.validate(c.merge(config, {"run": {"tasks": ["gpqa_diamond", "math500"]}}))
    assert (again["run"]["tasks"], again["run"]["skipped_tasks"]) == (["math500"], ["gpqa_diamond"])


def test_where_nothing_is_gated_nothing_is_skipped() -> None:
    tasks = ["aime24", "math500"]
    for gated in ("skip", "required"):
        run = c.validate(paper(run={"gated": gated, "tasks": tasks}))["run"]
        assert (run["tasks"], run["skipped_tasks"]) == (tasks, [])
    assert c.load([PAPER])["run"]["tasks"] == ["aime24", "aime25", "gpqa_diamond", "math500"]


def test_the_papers_mean_is_shown_beside_a_mean_of_the_same_benchmarks_alone() -> None:
    changes: dict[str, Any] = {"reference": {"mean_relative_change": {"rsd": 4.9}}}
    for gated, mean, change in (("required", 25.95, 4.9), ("skip", None, None)):
        settings = c.compare_settings(c.validate(paper(**changes, run={"gated": gated})))
        found = paper_accuracy(settings, "base", MEAN)
        assert found == (mean if mean is None else pytest.approx(mean))
        assert paper_relative_change(settings, "rsd") == change
        assert paper_accuracy(settings, "base", "math500") == 65.4


def test_a_judge_gets_no_gated_benchmark_unless_that_is_wanted() -> None:
    judge = {"url": "http://localhost:8000/v1", "model": "m"}
    assert c.judged_tasks(c.load([PAPER])) == []
    config = c.validate(paper(evaluation={"judge": judge}))
    assert c.judged_tasks(config) == ["aime24", "aime25", "math500"]
    config = c.validate(paper(evaluation={"judge": {**judge, "send_gated": True}}))
    assert c.judged_tasks(config) == config["run"]["tasks"]


# --- what runs -----------------------------------------------------------------------------------------------------


def test_a_run_uses_the_models_and_datasets_of_its_arms_and_tasks_alone() -> None:
    config = c.load([PAPER])
    # The catalogue's order, not the run's.
    assert c.used_models(config) == ["teacher", "student"]
    assert c.used_models(config, "student") == ["student"]
    assert c.used_models(config, "teacher") == ["teacher"]
    assert c.used_datasets(config) == ["s1k", "aime24", "aime25", "math500", "gpqa_diamond"]
    small = c.validate(paper(run={"arms": ["base", "direct"], "tasks": ["math500", "aime25"]}))
    assert c.used_models(small) == ["student"]
    assert c.used_models(small, "teacher") == []
    assert c.used_datasets(small) == ["s1k", "aime25", "math500"]


def test_a_model_that_is_only_measured_is_used_as_student_and_one_alone_has_no_teacher() -> None:
    own = {
        "traces": {"own": {"method": "sample"}},
        "arms": {"own": {"model": "student", "traces": "own"}, "teacher": {"model": "teacher"}},
    }
    alone = c.validate(paper(**own, run={"arms": ["base", "own"]}))
    assert c.used_models(alone) == ["student"]
    measured = c.validate(paper(**own, run={"arms": ["base", "teacher"]}))
    assert c.used_models(measured) == c.used_models(measured, "student") == ["teacher", "student"]


def test_token_analyses_read_every_trained_set_before_and_after_training_each_once() -> None:
    config = c.validate(
        paper(
            arms={"again": {"model": "student", "traces": "rsd"}},
            run={"arms": ["base", "direct", "rsd", "again"], "seeds": [5, 6]},
            analysis={"also": [{"traces": "rsd", "reader": "direct-seed6"}, {"traces": "rsd", "reader": "student"}]},
        )
    )
    assert c.token_analyses(config) == [
        ("direct", "student"),
        ("direct", "direct-seed5"),
        ("rsd", "student"),
        ("rsd", "rsd-seed5"),
        ("rsd", "again-seed5"),
        ("rsd", "direct-seed6"),
    ]
    alone = c.validate(paper(run={"arms": ["base"]}))
    assert c.token_analyses(alone) == []


def test_a_reader_is_a_model_as_it_came_or_a_trained_arm() -> None:
    config = c.validate(paper())
    assert c.split_reader(config, "student") == ("student", None)
    assert c.split_reader(config, "direct-full-seed12") == ("direct-full", 12)
    for name in ("base-seed0", "rsd", "rsd-seed", "rsd-seedx", "nobody-seed0", "-seed0"):
        with pytest.raises(KeyError):
            c.split_reader(config, name)


def test_what_only_a_token_analysis_needs_is_among_the_models_of_a_run() -> None:
    also = [{"traces": "own", "reader": "third"}]
    config = c.validate(
        paper(
            models={name: {"source": f"hf://some/{name}", "prompt": "boxed"} for name in ("second", "third", "fourth")},
            traces={"own": {"method": "rsd", "student": "second", "teacher": "teacher"}},
            run={"arms": ["base"]},
            analysis={"also": also},
        )
    )
    assert c.used_models(config) == ["teacher", "student", "second", "third"]
    # One that only reads is no student.
    assert c.used_models(config, "student") == ["student", "second"]


def test_a_prefix_longer_than_any_trace_is_no_matter_where_unsolved_problems_are_dropped() -> None:
    c.validate(paper(traces={"rsd": {"select": {"prefix_tokens": 7169, "unsolved": "drop"}}}))


@pytest.mark.parametrize(
    ("arms", "size"),
    [(["base", "direct"], 8192), (["base", "direct-full"], 32768), (["base", "direct-full", "direct"], 8192)],
)
def test_selection_is_told_the_smallest_block_size_of_the_arms_that_train_on_it(arms: list[str], size: int) -> None:
    config = c.validate(paper(run={"arms": arms}))
    assert c.select_settings(config, "direct")["block_size"] == size
    assert c.select_settings(config, "rsd")["block_size"] == 8192


# --- every key ------------------------------------------------------------------------------------------------------


def schema_properties(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of the schema by path, references followed; `*` stands for a name of the user's."""
    if "$ref" in node:
        target = SCHEMA["$defs"][node["$ref"].removeprefix("#/$defs/")]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    if path:
        yield path, node
    for name, child in node.get("properties", {}).items():
        yield from schema_properties(child, f"{path}.{name}".lstrip("."))
    others = node.get("additionalProperties")
    if isinstance(others, dict):
        yield from schema_properties(others, f"{path}.*".lstrip("."))


PROPERTIES = dict(schema_properties(SCHEMA))


def test_every_key_is_documented() -> None:
    silent = [
        path
        for path, node in PROPERTIES.items()
        # An entry of a catalogue is described where the catalogue is, a fixed choice of words by its words.
        if not path.endswith("*") and not node.get("description") and node.get("type") != "object"
    ]
    assert silent == []


def test_every_object_is_closed() -> None:
    for path, node in [("(top level)", SCHEMA), *PROPERTIES.items()]:
        if node.get("type") == "object" and not re.fullmatch(r"arms\.\*\.training", path):
            assert "additionalProperties" in node, path


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from leaves(child, (*path, key))
    else:
        yield path, value


def changed(config: c.Config, path: tuple[str, ...]) -> c.Config:
    """`config` with another value at `path`, of about the same kind."""
    config = copy.deepcopy(config)
    node = config
    for key in path[:-1]:
        node = node[key]
    value = node[path[-1]]
    if isinstance(value, bool):
        node[path[-1]] = not value
    elif isinstance(value, int | float):
        node[path[-1]] = value + 1
    elif isinstance(value, str):
        node[path[-1]] = value + "x"
    elif isinstance(value, list):
        node[path[-1]] = [*value, "x"]
    elif isinstance(value, dict):
        node[path[-1]] = {"x": 1}
    else:
        node[path[-1]] = 1
    return config


def decisions(config: c.Config) -> Any:
    """Everything that Snakemake takes from the configuration, but for the full copy that the report shows."""
    run = config["run"]
    try:
        sets = c.trace_sets(config)
        return [
            [(c.model_key(config, name), c.prefetch_settings(config, "models", name)) for name in config["models"]],
            [
                (c.dataset_key(config, name), c.prefetch_settings(config, "datasets", name))
                for name in config["datasets"]
            ],
            [c.pocket_settings(config, f"pocket://{make}") for make in ("student", "student-b", "teacher", "train")],
            [c.problems_settings(config), c.compare_settings(config)],
            [c.benchmark_settings(config, task) for task in run["tasks"]],
            [
                c.derive_settings(config, name)
                if config["traces"][name]["method"] in lineage.DERIVED
                else (c.traces_settings(config, name), c.select_settings(config, name))
                for name in sets
            ],
            [c.shard_names(config, name) for name in sets],
            [(c.training_settings(config, arm), c.arm_seeds(config, arm)) for arm in run["arms"]],
            [c.evaluation_settings(config, arm, task) for arm in run["arms"] for task in run["tasks"]],
            [(*pair, c.analysis_settings(config, *pair)) for pair in c.token_analyses(config)],
            [c.task_shard_names(config, task) for task in run["tasks"]],
            [c.judge_settings(config, task) for task in c.judged_tasks(config)],
            {**c.report_settings(config), "config": None},
        ]
    except (KeyError, AttributeError, TypeError) as error:
        return repr(error)


def test_every_key_decides_something() -> None:
    # All branches at once: every method, a prompt from the profile, and without it.
    extra: dict[str, Any] = {
        "traces": {
            "own": {"method": "sample"},
            "filtered": {"method": "filter", "of": "direct"},
            "recoded": {"method": "recode", "of": "filtered"},
        },
        "arms": {
            "own": {"model": "student", "traces": "own"},
            "recoded": {"model": "student", "traces": "recoded", "training": {"tokens_of": "rsd"}},
        },
        "run": {"arms": ["base", "direct", "rsd", "own", "direct-full", "recoded"]},
        "reference": {"mean_relative_change": {"rsd": 4.9}},
    }
    used: set[str] = set()
    unused: dict[str, str] = {}
    judge = {"url": "http://localhost:8000/v1", "model": "m"}
    for profile in ("paper", "qwen"):
        config = c.validate(paper(**extra, evaluation={"profile": profile, "judge": judge}))
        before = decisions(config)
        for path, _ in leaves(config):
            pattern = schema_path(path)
            if decisions(changed(config, path)) != before:
                used.add(pattern)
            else:
                unused[pattern] = ".".join(path)
    # What the rules and the report read from the whole configuration.
    elsewhere = {
        "jobs_at_once": "workflow/rules/common.smk",
        "run.gated": "workflow/rsd/config.py",
        "models.*.parameters": "workflow/rsd/sizes.py",
    }
    for pattern, file in elsewhere.items():
        assert pattern.rpartition(".")[2] in (ROOT / file).read_text(encoding="utf-8"), f"{file} ignores {pattern}"
    assert {pattern: where for pattern, where in unused.items() if pattern not in used} == {
        pattern: where for pattern, where in unused.items() if pattern in elsewhere
    }


def schema_path(path: tuple[str, ...]) -> str:
    """The path with the user's names replaced by `*`."""
    found = ""
    for key in path:
        step = f"{found}.{key}".lstrip(".")
        found = step if step in PROPERTIES else f"{found}.*".lstrip(".")
    return found


def test_planning_needs_neither_torch_nor_the_data_libraries() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import rsd.cli, rsd.config, rsd.stages, rsd.provenance; "
        "print(sorted({'torch', 'transformers', 'trl', 'datasets', 'lm_eval', 'pyarrow'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(ROOT / "workflow")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
