"""Costs: whose they are, that nothing is counted twice, and what is said where they are not the whole truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rsd.report_costs import (
    Job,
    Part,
    Records,
    by_device,
    cost_parts,
    costs_view,
    device_of,
    read_jobs,
    trained_tokens,
    upstream,
)

GPU = "NVIDIA H100"
CONFIG: dict[str, Any] = {
    "run": {"arms": ["base", "direct", "direct-full", "rsd"], "seeds": [0, 1], "base": "base"},
    "models": {"student": {"source": "hf://a/b"}},
    "arms": {
        "base": {"model": "student", "traces": None},
        "direct": {"model": "student", "traces": "direct"},
        "direct-full": {"model": "student", "traces": "direct"},
        "rsd": {"model": "student", "traces": "rsd"},
    },
    "traces": {
        "direct": {"method": "dataset", "student": "student", "teacher": "teacher", "shards": 1},
        "rsd": {"method": "rsd", "student": "student", "teacher": "teacher", "shards": 2},
    },
}
ANSWERS = {"arms": {arm: {"label": arm.upper()} for arm in CONFIG["run"]["arms"]}}


def stamped(gpu: str | None, device: str = "auto", **values: Any) -> dict[str, Any]:
    return {**values, "provenance": {"settings": {"settings": {"device": device}}, "run": {"gpu": gpu, "python": "3"}}}


def training(resumed: int | None = None, seconds: float = 90.0) -> dict[str, Any]:
    return stamped(GPU, curve=[{"tokens": 7}, {"tokens": 5}], seconds=seconds, resumed_from_step=resumed)


def records(**changes: Any) -> Records:
    trained = [f"{arm}-seed{seed}" for arm in ("direct", "direct-full", "rsd") for seed in (0, 1)]
    measured = ["base-seed0", *trained]
    values: dict[str, Any] = {
        "devices": {"rsd": GPU, "direct": "CPU"},
        "trace_tokens": {"rsd": 1000, "direct": 400},
        "resumed_attempts": {"rsd": 0, "direct": 0},
        "trainings": {name: training() for name in trained},
        "scores": {f"{name}/aime24": stamped(None, "cpu", tokens=10, resumed_samples=0) for name in measured},
        "analyses": {"rsd/student": stamped(None, "cpu")},
    }
    return Records(**(values | changes))


JOBS = [
    Job("prefetch_model", ("x-1",), 5.0, 1.0),
    Job("generate_traces", ("rsd", "shard-000"), 100.0, 50.0),
    Job("generate_traces", ("rsd", "shard-001"), 60.0, 30.0),
    Job("convert_traces", ("direct",), 3.0, 3.0),
    Job("select_traces", ("rsd",), 2.0, 2.0),
    Job("select_traces", ("direct",), 1.0, 1.0),
    *(Job("train", (name,), 120.0, 100.0) for name in records().trainings),
    *(Job("evaluate", tuple(name.split("/")), 10.0, 9.0) for name in records().scores),
    Job("analyse_tokens", ("rsd", "student"), 4.0, 4.0),
    Job("report", (), 9.0, 9.0),
]


def parts(jobs: list[Job] = JOBS, **changes: Any) -> dict[tuple[str, str], Part]:
    return {(part.rule, part.owner): part for part in cost_parts(jobs, records(**changes), CONFIG)}


def test_every_job_is_counted_once_and_only_the_reports_own_is_not() -> None:
    found = parts()
    assert sum(part.seconds or 0 for part in found.values()) == sum(job.seconds or 0 for job in JOBS) - 9.0
    assert sum(part.jobs for part in found.values()) == len(JOBS) - 1
    assert costs_view(list(found.values()), ANSWERS, CONFIG)["total"] == {"CPU": 85.0, GPU: 880.0}


def test_what_a_job_ran_on_comes_from_the_records() -> None:
    found = parts()
    devices = {names: part.device for names, part in found.items()}
    assert devices["generate_traces", "rsd"] == devices["train", "rsd"] == GPU
    assert devices["evaluate", "rsd"] == devices["select_traces", "rsd"] == devices["prefetch_model", ""] == "CPU"
    assert parts(devices={})["generate_traces", "rsd"].device == "device not known"


@pytest.mark.parametrize(
    ("gpu", "setting", "expected"),
    [(GPU, "auto", GPU), (GPU, "cuda", GPU), (GPU, "cpu", "CPU"), (None, "auto", "CPU"), (None, "cuda", "GPU")],
)
def test_a_gpu_counts_where_it_was_there_and_wanted(gpu: str | None, setting: str, expected: str) -> None:
    assert device_of(stamped(gpu, setting)) == expected


def test_a_record_without_a_stamp_names_no_device() -> None:
    assert device_of({}) is None
    assert device_of({"provenance": {"settings": {}, "run": {"gpu": GPU}}}) is None


def test_tokens_are_summed_over_seeds_and_tasks() -> None:
    found = parts()
    assert found["generate_traces", "rsd"].generated == 1000
    assert found["convert_traces", "direct"].generated is None
    assert found["train", "rsd"].trained == 24
    assert found["evaluate", "rsd"].generated == 20
    assert trained_tokens({"curve": [{"tokens": 7}, {}]}) is None
    assert trained_tokens({}) is None
    assert trained_tokens({"supervised_tokens": {"seen": 5}, "curve": [{"tokens": 7}]}) == 5


def test_a_shared_trace_set_is_named_as_shared_and_counted_once() -> None:
    listed = cost_parts(JOBS, records(), CONFIG)
    view = costs_view(listed, ANSWERS, CONFIG)
    arms = {arm["arm"]: arm["stages"] for arm in view["arms"]}
    assert arms["direct"]["Traces"]["shared_with"] == ["direct-full"]
    assert arms["direct"]["Traces"]["seconds"] == arms["direct-full"]["Traces"]["seconds"] == 4.0
    assert arms["rsd"]["Traces"]["shared_with"] == []
    assert arms["rsd"]["Traces"]["devices"] == {GPU: 160.0, "CPU": 2.0}
    assert not arms["base"]["Traces"]["there"]
    assert by_device([part for part in listed if part.stage == "Traces"]) == {GPU: 160.0, "CPU": 6.0}
    assert view["generated"] == 1000 + 7 * 10
    assert view["trained"] == 6 * 12


def test_files_of_other_runs_in_the_same_folder_are_not_counted() -> None:
    stale = [
        Job("generate_traces", ("rsd", "shard-007"), 1e6, 1.0),
        Job("generate_traces", ("gone", "shard-000"), 1e6, 1.0),
        Job("train", ("rsd-seed9",), 1e6, 1.0),
        Job("evaluate", ("rsd-seed0", "math500"), 1e6, 1.0),
        Job("analyse_tokens", ("rsd", "other"), 1e6, 1.0),
    ]
    assert parts([*JOBS, *stale]) == parts()


def test_jobs_of_a_split_evaluation_count_for_their_arm() -> None:
    split = [Job("evaluate_shard", ("rsd-seed0", "aime24", f"shard-00{number}"), 1.0, 1.0) for number in range(3)]
    assert parts(split)["evaluate_shard", "rsd"].seconds == 3.0


def test_a_resumed_training_is_a_lower_bound_and_says_so() -> None:
    changed = dict(records().trainings) | {"rsd-seed1": training(resumed=100, seconds=500.0)}
    part = parts(trainings=changed)["train", "rsd"]
    assert part.at_least
    assert part.seconds == 590.0  # both loops, more than the 240 s of the benchmarks
    assert "rsd-seed1 went on from a checkpoint" in part.notes[0]
    assert not parts()["train", "rsd"].at_least


def test_a_model_put_in_its_place_in_seconds_costs_what_its_training_took() -> None:
    shorter = [Job(job.rule, job.names, 3.0, 3.0) if job.rule == "train" else job for job in JOBS]
    part = parts(shorter)["train", "rsd"]
    assert (part.seconds, part.at_least) == (180.0, True)
    assert "what was trained went on from a checkpoint" in part.notes[0]


def test_attempts_of_an_earlier_run_make_traces_a_lower_bound() -> None:
    part = parts(resumed_attempts={"rsd": 7})["generate_traces", "rsd"]
    assert part.at_least
    assert part.notes == ["7 attempts came from earlier runs, which are not in its seconds"]


def test_samples_of_an_earlier_run_make_an_evaluation_a_lower_bound() -> None:
    changed = dict(records().scores) | {"rsd-seed0/aime24": stamped(None, "cpu", tokens=10, resumed_samples=1200)}
    part = parts(scores=changed)["evaluate", "rsd"]
    assert part.at_least
    assert part.notes == ["1\u202f200 samples came from earlier runs, which are not in its seconds"]


def test_missing_benchmarks_are_a_lower_bound_or_a_missing_number() -> None:
    part = parts([job for job in JOBS if job.names != ("rsd", "shard-001")])["generate_traces", "rsd"]
    assert (part.seconds, part.at_least, part.notes) == (100.0, True, ["1 of 2 jobs left a benchmark"])
    without = parts([Job("train", ("rsd-seed0",), None, None), Job("train", ("rsd-seed1",), 3.0, 3.0)])
    assert without["train", "rsd"].seconds is None
    assert costs_view([], ANSWERS, CONFIG)["total"] == {}


def test_a_derived_set_brings_the_costs_of_the_one_that_it_comes_from() -> None:
    config = json.loads(json.dumps(CONFIG))
    config["traces"]["filtered"] = {"method": "filter", "of": "direct"}
    config["arms"]["direct-full"]["traces"] = "filtered"
    assert upstream("direct-full", config) == {
        ("Evaluation", "direct-full"),
        ("Training", "direct-full"),
        ("Traces", "filtered"),
        ("Traces", "direct"),
    }


def test_only_a_filter_asks_a_model_what_it_thinks_of_the_traces_of_another_set() -> None:
    jobs = [Job("derive_traces", ("filtered",), 5.0, 5.0), Job("derive_traces", ("recoded",), 5.0, 5.0)]
    found = parts(jobs, trace_tokens={"filtered": None, "recoded": None}, devices={"filtered": GPU})
    assert [part.device for part in found.values()] == [GPU, "CPU"]


def test_a_student_trained_here_brings_its_own_training_and_traces() -> None:
    config = json.loads(json.dumps(CONFIG))
    config["models"]["second"] = {"source": "trained://rsd/0"}
    config["traces"]["again"] = {"method": "rsd", "student": "second", "teacher": "teacher", "shards": 1}
    config["arms"]["again"] = {"model": "second", "traces": "again"}
    assert upstream("again", config) == {
        ("Evaluation", "again"),
        ("Training", "again"),
        ("Traces", "again"),
        ("Training", "rsd"),
        ("Traces", "rsd"),
    }


def test_benchmarks_are_read_from_disk_and_damaged_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "rsd-seed0.jsonl").write_text('{"s": 2.5, "cpu_time": 4}\n')
    (tmp_path / "train" / "rsd-seed1.jsonl").write_text('{"s": NaN, "cpu_time": "NA"}\n')
    (tmp_path / "train" / "rsd-seed2.jsonl").write_text("{")
    (tmp_path / "compare.jsonl").write_text('{"s": 1, "cpu_time": 1}\n{"s": 2, "cpu_time": 2}\n')
    assert read_jobs(tmp_path) == [
        Job("compare", (), 3.0, 3.0),
        Job("train", ("rsd-seed0",), 2.5, 4.0),
        Job("train", ("rsd-seed1",), None, None),
    ]
    assert read_jobs(tmp_path / "nothing") == []
