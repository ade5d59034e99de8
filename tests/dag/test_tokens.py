"""The token analysis in the plan: which sets under which readers, and what a change reruns."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from pipelines import SMALL, Pipeline, overlay, shell_commands

ALL = {"jobs_at_once": 4}
# direct and rsd, each under the student and under what training on it made.
PAIRS = {("direct", "student"), ("direct", "direct-seed0"), ("rsd", "student"), ("rsd", "rsd-seed0")}


@pytest.fixture(scope="module")
def analysed(finished: Pipeline) -> Pipeline:
    """The small paper with its token analyses, run to the end."""
    finished.run("--cores", "4", "tokens", config=overlay(SMALL, ALL))
    return finished


def run_again(pipeline: Pipeline, change: dict[str, Any] | None = None) -> dict[str, int]:
    return dict(pipeline.plan("tokens", config=overlay(SMALL, ALL, change or {})))


def pairs(pipeline: Pipeline, change: dict[str, Any] | None = None) -> set[tuple[str, str]]:
    output = pipeline.run("--dry-run", "--printshellcmds", "tokens", config=overlay(SMALL, change or {})).stdout
    commands = [command for command in shell_commands(output) if "analyse-tokens" in command]
    found = [json.loads(command.partition("--settings '")[2].partition("'")[0]) for command in commands]
    return {(settings["traces"], settings["reader"]) for settings in found}


def test_every_trained_set_is_read_before_and_after_training_by_the_first_seed(pipeline: Pipeline) -> None:
    assert pairs(pipeline) == PAIRS
    assert pipeline.plan("tokens", config=overlay(SMALL, {"run": {"seeds": [3, 4]}})) == Counter(
        prefetch_model=2,
        prefetch_dataset=1,
        prepare_problems=1,
        generate_traces=2,
        convert_traces=1,
        select_traces=2,
        train=2,
        analyse_tokens=4,
    )


def test_settings_choose_the_readers(pipeline: Pipeline) -> None:
    assert pairs(pipeline, {"analysis": {"after": False}}) == {("direct", "student"), ("rsd", "student")}
    assert pairs(pipeline, {"analysis": {"before": False}}) == {("direct", "direct-seed0"), ("rsd", "rsd-seed0")}
    also = [{"traces": "direct", "reader": "rsd-seed1"}, {"traces": "rsd", "reader": "student"}]
    assert pairs(pipeline, {"analysis": {"also": also}}) == PAIRS | {("direct", "rsd-seed1")}
    none = {"analysis": {"before": False, "after": False}}
    assert pipeline.plan("tokens", config=overlay(SMALL, none)) == {}


def test_a_set_and_a_model_that_nothing_else_needs_are_made_and_fetched(pipeline: Pipeline) -> None:
    extra = {
        "models": {"another": {"source": "hf://some/model", "prompt": "boxed"}},
        "traces": {"own": {"method": "sample", "student": "another"}},
        "analysis": {"before": False, "after": False, "also": [{"traces": "own", "reader": "another"}]},
    }
    jobs = pipeline.plan("tokens", config=overlay(SMALL, extra))
    assert jobs == Counter(
        prefetch_model=1, prefetch_dataset=1, prepare_problems=1, generate_traces=1, select_traces=1, analyse_tokens=1
    )
    assert pipeline.plan("downloads", config=overlay(SMALL, extra))["prefetch_model"] == 3


def test_any_pair_can_be_asked_for_by_its_file(pipeline: Pipeline) -> None:
    jobs = pipeline.plan("results/paper/tokens/direct/rsd-seed7.json", config=SMALL)
    assert (jobs["train"], jobs["analyse_tokens"]) == (1, 1)
    pipeline.run("--dry-run", "results/paper/tokens/direct/base-seed0.json", config=SMALL, ok=False)


def test_only_sets_that_rsd_wrote_are_asked_who_wrote_each_token(pipeline: Pipeline) -> None:
    output = pipeline.run("--dry-run", "--printshellcmds", "tokens", config=SMALL).stdout
    commands = [command for command in shell_commands(output) if "analyse-tokens" in command]
    assert len(commands) == 4
    for command in commands:
        assert ("--shards" in command) == ("/traces/rsd/rows.parquet" in command)
        assert command.count("shard-") == (2 if "--shards" in command else 0)


CHANGES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "nothing": ({}, {}),
    "the threshold of the analysis": ({"analysis": {"threshold": 0.1}}, {"analyse_tokens": 4}),
    "its problems": ({"analysis": {"problems": None}}, {"analyse_tokens": 4}),
    "its readers": ({"analysis": {"after": False}}, {}),
    "a reader more": ({"analysis": {"also": [{"traces": "rsd", "reader": "direct-seed1"}]}}, {"analyse_tokens": 1}),
    "a reader's dtype": (
        {"models": {"student": {"dtype": "float32"}}},
        {"generate_traces": 2, "convert_traces": 1, "select_traces": 2, "train": 2, "analyse_tokens": 4},
    ),
    "the threshold of RSD": (
        {"traces": {"rsd": {"threshold": 0.03}}},
        {"generate_traces": 2, "select_traces": 1, "train": 1, "analyse_tokens": 2},
    ),
    "one arm's epochs": ({"arms": {"rsd": {"training": {"epochs": 3}}}}, {"train": 1, "analyse_tokens": 1}),
    "a benchmark's repeats": ({"tasks": {"aime24": {"repeats": 2}}}, {}),
    "the device": ({"device": "cpu"}, {}),
    "the jobs at once": ({"jobs_at_once": 1}, {}),
    "the title": ({"title": "another"}, {}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_analyses_again_what_depends_on_it_and_nothing_else(analysed: Pipeline, change: str) -> None:
    config, jobs = CHANGES[change]
    assert run_again(analysed, config) == jobs


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("rsd/token_summary.py", {"analyse_tokens": 4}),
        ("rsd/scoring.py", {"analyse_tokens": 4}),
        ("rsd/pieces.py", {"analyse_tokens": 4}),
        ("rsd/evaluate.py", {}),
    ],
)
def test_an_edited_source_analyses_again_and_nothing_else(analysed: Pipeline, name: str, jobs: dict[str, int]) -> None:
    path = analysed.tree / "workflow" / name
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n# edited\n", encoding="utf-8")
    try:
        assert run_again(analysed) == jobs
    finally:
        path.write_text(before, encoding="utf-8")


def test_a_changed_analysis_makes_no_trace_training_or_score_again(analysed: Pipeline) -> None:
    jobs = analysed.plan("all", "tokens", config=overlay(SMALL, ALL, {"analysis": {"threshold": 0.1}}))
    # The report shows the whole configuration.
    assert jobs == Counter(analyse_tokens=4, report=1, write_config=1)
