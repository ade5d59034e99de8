"""What really runs, with a stand-in for the stages: what a change reruns, interruption, the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from typing import Any

import pytest

from pipelines import SMALL, Pipeline, overlay
from rsd.manifest import MANIFEST

# The report shows the whole configuration, so that every change of it makes a new report.
SHOWN = {"report": 1, "write_config": 1}
TABLE = {"compare": 1, **SHOWN}
RSD = {"select_traces": 1, "train": 2, "evaluate": 4, **TABLE}
EVERY_ARM = {"select_traces": 2, "train": 4, "evaluate": 8, **TABLE}

JUDGE = {"evaluation": {"judge": {"url": "http://localhost:8000/v1", "model": "judge"}}}

# What is changed -> the overlay that does it, the jobs that run again (of 2 shards, 2 seeds, 2 tasks, 3 arms). Where
# nothing else is said, every evaluation is joined again.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "nothing": ({}, {}),
    "the threshold": ({"traces": {"rsd": {"threshold": 0.03}}}, {"generate_traces": 2, **RSD}),
    "the law's draws": ({"laws": {"authors-code": {"draws": 1}}}, {"generate_traces": 2, **RSD}),
    "the decoder's lanes": ({"traces": {"rsd": {"lanes": 8}}, "evaluation": {"lanes": 8}}, SHOWN),
    "the device": ({"device": "cpu"}, SHOWN),
    "the GPUs of a job": ({"models": {"teacher": {"gpus": 2}}, "training": {"gpus": 2}}, SHOWN),
    "the pick among kept attempts": ({"traces": {"rsd": {"select": {"pick": "first"}}}}, RSD),
    "a law that is not in use": ({"laws": {"paper-text": {"draws": 2}}}, SHOWN),
    "the epochs": ({"training": {"epochs": 3}}, {"train": 4, "evaluate": 8, **TABLE}),
    "one arm's epochs": ({"arms": {"rsd": {"training": {"epochs": 3}}}}, {"train": 2, "evaluate": 4, **TABLE}),
    "a benchmark's repeats": ({"tasks": {"aime24": {"repeats": 2}}}, {"evaluate": 5, **TABLE}),
    "the sampling of answers": ({"profiles": {"paper": {"temperature": 0.6}}}, {"evaluate": 10, **TABLE}),
    "a benchmark's limit": (
        {"tasks": {"aime24": {"limit": 3}}},
        {"prepare_benchmark": 1, "measure_overlap": 1, "evaluate": 5, **TABLE},
    ),
    "the number of problems": (
        {"problems": {"limit": 7}},
        {"prepare_problems": 1, "measure_overlap": 1, "generate_traces": 2, "convert_traces": 1, **EVERY_ARM},
    ),
    "a benchmark's shards": ({"tasks": {"aime24": {"shards": 2}}}, {"evaluate": 10, "collect_scores": 5, **TABLE}),
    "the backend": ({"evaluation": {"backend": "transformers"}}, {"evaluate": 10, **TABLE}),
    "a judge": (JUDGE, {"judge_samples": 10, "collect_scores": 10, **TABLE}),
    "what becomes of gated benchmarks, where there are none": ({"run": {"gated": "skip"}}, SHOWN),
    "a seed more": ({"run": {"seeds": [0, 1, 2]}}, {"train": 2, "evaluate": 4, **TABLE}),
    "an arm more": (
        {"run": {"arms": ["base", "direct", "rsd", "direct-full"]}},
        {"train": 2, "evaluate": 4, **TABLE},
    ),
    "an arm less": ({"run": {"arms": ["base", "rsd"]}}, TABLE),
    "the question": ({"question": {"comparisons": [["rsd", "base"]]}}, TABLE),
    "how many problems are expected": ({"tasks": {"aime24": {"problems": 31}}}, SHOWN),
    "the confidence": ({"report": {"confidence": 0.9}}, TABLE),
    "the problems on the page": ({"report": {"problems": 5, "tokens": 10, "megabytes": 1}}, SHOWN),
    "the title": ({"title": "another"}, SHOWN),
    "the mirror": ({"mirror": "/somewhere/else"}, SHOWN),
    "the jobs at once": ({"jobs_at_once": 1}, SHOWN),
}

# An edited source -> the jobs that run again.
EVALUATED = {"evaluate": 10, "compare": 1, "report": 1}
SOURCES: dict[str, dict[str, int]] = {
    "rsd/law.py": {"generate_traces": 2, "select_traces": 1, "train": 2, **EVALUATED},
    "rsd/selection.py": {"select_traces": 2, "train": 4, "evaluate": 8, "compare": 1, "report": 1},
    "rsd/train.py": {"train": 4, "evaluate": 8, "compare": 1, "report": 1},
    "rsd/evaluate.py": EVALUATED,
    "rsd/samples.py": EVALUATED,
    "rsd/collect.py": {"collect_scores": 10, "compare": 1, "report": 1},
    "rsd/judge.py": {},
    "rsd/overlap.py": {"measure_overlap": 1, "report": 1},
    "rsd/statistics.py": {"compare": 1, "report": 1},
    "rsd/significance.py": {"compare": 1, "report": 1},
    "rsd/power.py": {},
    "rsd/figures.py": {"report": 1},
    "rsd/templates/report.js": {"report": 1},
    "tasks/aime24.yaml": {"evaluate": 5, "compare": 1, "report": 1},
    "tasks/gsm8k.yaml": {},
    "rsd/hub.py": {},
    "rsd/pocket.py": {},
    "rsd/runtime.py": {},
    "rsd/cli.py": {},
}


def run_again(pipeline: Pipeline, *arguments: str, change: dict[str, Any] | None = None) -> dict[str, int]:
    """Without the token analyses, which have tests of their own (test_tokens.py)."""
    jobs = pipeline.plan(*arguments, config=overlay(SMALL, {"jobs_at_once": 4}, change or {}))
    return {name: count for name, count in jobs.items() if name != "analyse_tokens"}


def joined(jobs: dict[str, int]) -> dict[str, int]:
    return {"collect_scores": jobs["evaluate"], **jobs} if "evaluate" in jobs else jobs


@pytest.mark.parametrize("change", SETTINGS)
def test_a_changed_setting_runs_again_what_depends_on_it_and_nothing_else(finished: Pipeline, change: str) -> None:
    config, jobs = SETTINGS[change]
    assert run_again(finished, change=config) == joined(jobs)


@pytest.mark.parametrize("name", SOURCES)
def test_an_edited_source_runs_again_what_it_decides_and_nothing_else(finished: Pipeline, name: str) -> None:
    path = finished.tree / "workflow" / name
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n# edited\n", encoding="utf-8")
    try:
        assert run_again(finished) == joined(SOURCES[name])
    finally:
        path.write_text(before, encoding="utf-8")


def test_an_edit_of_a_source_can_be_waived(finished: Pipeline) -> None:
    path = finished.tree / "workflow" / "rsd" / "law.py"
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n# edited\n", encoding="utf-8")
    try:
        assert run_again(finished, "--rerun-triggers", "mtime", "input") == {}
    finally:
        path.write_text(before, encoding="utf-8")


def test_the_second_run_has_nothing_to_do(finished: Pipeline) -> None:
    output = finished.run("--cores", "4", config=overlay(SMALL, {"jobs_at_once": 4})).stdout
    assert "Nothing to be done" in output


def test_a_stage_runs_again_by_name_and_alone(finished: Pipeline) -> None:
    assert run_again(finished, "--forcerun", "generate_traces", "--until", "generate_traces") == {"generate_traces": 2}


def test_every_file_on_disk_is_made_by_a_rule(finished: Pipeline) -> None:
    results = finished.folder / "results"
    output = finished.run("--summary", config=overlay(SMALL, {"jobs_at_once": 4})).stdout
    declared = {line.split("\t")[0] for line in output.splitlines() if line.startswith("results/")}
    made = {str(path.relative_to(finished.folder)) for path in results.rglob("*") if path.is_file()}
    # A manifest stands for the files that it lists.
    for path in list(results.rglob(MANIFEST)):
        made -= {
            str((path.parent / name).relative_to(finished.folder)) for name in json.loads(path.read_text())["files"]
        }
    folders = tuple(f"results/paper/{name}/" for name in ("logs", "benchmarks", "report/figures", "report/tables"))
    assert {path for path in made - declared if not path.startswith(folders)} == set()


def test_snakemakes_own_report_holds_table_page_figures_traces_and_configuration(finished: Pipeline) -> None:
    page = finished.folder / "snakemake.html"
    finished.run("--report", str(page), config=overlay(SMALL, {"jobs_at_once": 4}))
    text = page.read_text(encoding="utf-8")
    tables, figures = ("comparison.csv", "accuracy.csv"), ("accuracy.svg", "lengths.svg")
    for name in (*tables, *figures, "report.html", "selection.json", "config.yaml"):
        assert name in text


def test_after_ctrl_c_the_next_run_goes_on_and_keeps_what_was_done(pipeline: Pipeline) -> None:
    config = overlay(SMALL, {"jobs_at_once": 1})
    environment = {**pipeline.variables(), "RSD_STUB_SLEEP": "60"}
    with subprocess.Popen(
        pipeline.command("--cores", "2", "traces", config=config),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        calls = pipeline.folder / "calls.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (calls.exists() and "generate-traces" in calls.read_text()):
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) != 0
    done = Counter(json.loads(line)[0] for line in calls.read_text().splitlines())
    assert done["generate-traces"] == 1
    assert not list(pipeline.folder.rglob("shard-*.parquet"))
    pipeline.run("--cores", "2", "traces", config=config)
    again = Counter(json.loads(line)[0] for line in calls.read_text().splitlines())
    assert again["prefetch-model"] == done["prefetch-model"]
    assert again["generate-traces"] == 1 + 2
    assert len(list(pipeline.folder.rglob("shard-*.parquet"))) == 3


def test_a_failed_stage_stops_the_run_and_names_its_log(pipeline: Pipeline) -> None:
    stub = pipeline.folder.with_name(pipeline.folder.name + "-bin")
    stub.mkdir()
    (stub / "rsd").write_text("#!/bin/sh\necho 'error: no space left; free some' >&2\nexit 1\n")
    (stub / "rsd").chmod(0o755)
    output = pipeline.run("--cores", "2", "--retries", "0", "data", config=SMALL, ok=False).stdout
    assert "error: no space left; free some" in output
    assert "results/paper/logs/prefetch_dataset/" in output
