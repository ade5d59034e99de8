"""How many GPUs a job takes: said by the configuration and by the slice that the job gets, alike."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from pipelines import ROOT
from rsd import config as c
from rsd.cli import build_parser
from rsd.config_schema import merge
from rsd.gpus import STAGES, gpus_of, gpus_wanted, most_gpus

CHANGES: dict[str, Any] = {
    "models": {"teacher": {"gpus": 4}, "student": {"gpus": 2}},
    "training": {"gpus": 8},
    "traces": {
        "own": {"method": "sample"},
        "teachers": {"method": "sample", "sampled": "teacher"},
        "filtered": {"method": "filter", "of": "direct"},
        "recoded": {"method": "recode", "of": "direct"},
    },
    "arms": {"rsd": {"training": {"gpus": 1}}, "own": {"model": "student", "traces": "own"}},
}


@pytest.fixture(scope="module")
def config() -> c.Config:
    paper = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    return c.validate(merge(paper, CHANGES))


@pytest.mark.parametrize(
    ("stage", "name", "count"),
    [
        ("generate_traces", "rsd", 4),
        ("generate_traces", "own", 2),
        ("generate_traces", "teachers", 4),
        ("generate_traces", "direct", 0),
        ("derive_traces", "filtered", 2),
        ("derive_traces", "recoded", 0),
        ("train", "direct", 8),
        ("train", "rsd", 1),
        ("evaluate", "base", 2),
        ("analyse_tokens", "teacher", 4),
        ("analyse_tokens", "rsd-seed0", 2),
        ("compare", "", 0),
        ("make_pocket_model", "student", 0),
    ],
)
def test_a_job_takes_what_its_models_need(config: c.Config, stage: str, name: str, count: int) -> None:
    assert gpus_of(config, stage, name) == count
    slices = {
        "generate_traces": c.traces_settings,
        "derive_traces": c.derive_settings,
        "train": c.training_settings,
        "evaluate": lambda config, name: c.evaluation_settings(config, name, "aime24"),
        "analyse_tokens": lambda config, name: c.analysis_settings(config, "rsd", name),
    }
    if stage in slices:
        assert gpus_wanted(stage.replace("_", "-"), slices[stage](config, name)) == count
    on_the_cpu = {**copy.deepcopy(config), "device": "cpu"}
    assert gpus_of(on_the_cpu, stage, name) == 0


def test_the_largest_job_of_a_run_counts(config: c.Config) -> None:
    assert most_gpus(config) == 8
    assert most_gpus(config, [("evaluate", "base"), ("generate_traces", "own")]) == 2
    assert most_gpus({**config, "device": "cpu"}) == 0


def test_batches_that_cannot_be_shared_among_the_gpus_are_refused_by_name() -> None:
    paper = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match=r"batch_size = 16 is no multiple of micro_batch_size = 1 x gpus = 3"):
        c.validate(merge(paper, {"training": {"gpus": 3}}))
    c.validate(merge(paper, {"training": {"gpus": 8}}))


def test_every_stage_that_takes_gpus_is_a_command() -> None:
    parser = build_parser()
    for stage in STAGES:
        with pytest.raises(SystemExit) as stop:
            parser.parse_args([stage.replace("_", "-"), "--help"])
        assert stop.value.code == 0
