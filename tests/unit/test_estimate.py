"""`rsd estimate`: bounds and expectations from the same sums, where speeds come from, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rsd import config as c
from rsd import estimate
from rsd.cli import main
from rsd.needs import SLOWER, needs_of
from rsd.projection import project, start_seconds
from rsd.speeds import Speeds, measured, stated
from rsd.workload import jobs_of

ROOT = Path(__file__).parents[2]
PAPER = str(ROOT / "config.yaml")
POCKET = [PAPER, str(ROOT / "workflow" / "experiments" / "pocket.yaml")]
TRANSFER = [PAPER, str(ROOT / "workflow" / "experiments" / "transfer.yaml")]
NOWHERE = Path("no-such-folder")
SPEEDS = {"rsd": 1000.0, "student": 2000.0, "teacher": 500.0, "reading": 8000.0}
BENCH = {"speeds": SPEEDS, "trace_set": "rsd", "machine": "a GPU", "lanes": 32, "context": 4096, "emulation": None}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an empty folder, whatever lies in results/ here."""
    monkeypatch.setattr(estimate, "RESULTS", tmp_path / "results")


def facts(tmp_path: Path, *arguments: str, configs: list[str] | None = None) -> dict[str, Any]:
    path = tmp_path / "estimate.json"
    assert main(["estimate", *(configs or [PAPER]), *arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text(encoding="utf-8"))


def by_name(items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {item["what"]: item for item in items}


def bench_file(tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(BENCH | changes), encoding="utf-8")
    return str(path)


def test_the_papers_estimate_says_what_is_stated_what_is_a_bound_and_how_to_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = facts(tmp_path)
    assert sum(found["jobs"].values()) == 135
    assert found["expected"] is None
    assert found["downloads"] == 2 * (596_049_920 + 7_615_616_512)
    assert found["hours"]["at_most"] == sum(item["seconds"] + item["starts"] for item in found["at_most"]) / 3600
    # With one lane the pair's weights (16.4 GB) and little more.
    gpu = {entry["stage"]: entry["gpu_bytes"] for entry in found["needs"]}
    assert 16.4e9 < gpu["generate_traces"] < 24e9
    text = " ".join(capsys.readouterr().out.split())
    for wanted in (
        "135 jobs from an empty folder",
        "teacher: 7.62 G parameters (public)",
        "problems: training 1000, aime24 30",
        "GPU time of all jobs",
        "stated, not measured",
        "NVIDIA A100",
        "rsd bench",
        "a bound",
        "analysis rsd by rsd-seed0",
        "To download: 16.4 GB of models",
        "generate_traces 50",
    ):
        assert wanted in text, wanted


def test_typical_lengths_give_an_expectation_beside_the_bound(tmp_path: Path) -> None:
    found = facts(tmp_path, "--tokens", "3000", "--tokens", "direct=6000", "--tokens", "aime24=40000")
    most, expected = by_name(found["at_most"]), by_name(found["expected"])
    assert most.keys() == expected.keys()
    assert expected["traces rsd"]["tokens"] == 1000 * 16 * 3000
    assert most["traces rsd"]["tokens"] == 1000 * 16 * 7168
    # A row is as long as a trace of its set, and training cuts it at the block.
    assert expected["training direct"]["tokens"] == 3 * 15 * 1000 * 6000
    assert expected["training rsd"]["tokens"] == 3 * 15 * 1000 * 3000
    assert expected["analysis direct by student"]["tokens"] == 100 * 6000
    # No more than the limit, whatever somebody finds typical.
    assert expected["evaluation aime24"]["tokens"] == most["evaluation aime24"]["tokens"]
    assert expected["evaluation math500"]["tokens"] == 7 * 500 * 8 * 3000
    assert all(expected[what]["seconds"] <= most[what]["seconds"] for what in most)
    disk = found["disk"]
    assert disk["expected"]["trained models"] == disk["at_most"]["trained models"]
    assert disk["expected"]["samples"] < disk["at_most"]["samples"]


def test_measured_speeds_are_taken_from_the_file_of_the_bench(tmp_path: Path) -> None:
    found = facts(tmp_path, "--speeds", bench_file(tmp_path))
    items = by_name(found["at_most"])
    assert items["traces rsd"]["seconds"] == 1000 * 16 * 7168 / 1000
    assert items["evaluation aime24"]["seconds"] == 7 * 30 * 64 * 16384 / 2000
    assert items["training rsd"]["seconds"] == 4 * 3 * 15 * 1000 * 8192 / 8000
    assert (found["machine"], found["speeds"].startswith("measured by rsd bench")) == ("a GPU", True)


def test_a_speed_given_by_hand_goes_before_the_others_and_leaves_them(tmp_path: Path) -> None:
    stated_items = by_name(facts(tmp_path)["at_most"])
    items = by_name(facts(tmp_path, "--speed", "rsd=64", "--speed", "reading=128")["at_most"])
    assert items["traces rsd"]["seconds"] == 1000 * 16 * 7168 / 64
    assert items["training rsd"]["seconds"] == 4 * 3 * 15 * 1000 * 8192 / 128
    assert items["evaluation aime24"] == stated_items["evaluation aime24"]


def test_a_larger_model_than_the_measured_one_is_taken_for_slower(tmp_path: Path) -> None:
    config = c.load([Path(path) for path in TRANSFER])
    speed = measured(config, Speeds(**SPEEDS), ("student", "teacher"), NOWHERE)
    items = {item.what: item for item in project(config, speed, NOWHERE)}
    # Qwen3-1.7B has 1,720,574,976 parameters, Qwen3-0.6B 596,049,920.
    slower = 1_720_574_976 / 596_049_920
    assert items["training other-rsd"].seconds == pytest.approx(slower * items["training rsd"].seconds)
    assert items["traces rsd-other"].seconds > items["traces rsd"].seconds


def test_a_jobs_time_limit_and_the_estimate_come_from_the_same_sums(tmp_path: Path) -> None:
    config = c.load([Path(PAPER)])
    item = by_name(facts(tmp_path)["at_most"])["traces rsd"]
    shard = needs_of(config, "generate_traces", {"traces": "rsd"}, NOWHERE)
    assert shard.runtime == pytest.approx(10 + SLOWER * (item["seconds"] + item["starts"]) / 50 / 60, abs=1)
    work = jobs_of(config, "generate_traces", "rsd", NOWHERE).each
    assert work is not None
    assert item["seconds"] / 50 == pytest.approx(work.tokens / stated(config, NOWHERE)(work))
    assert item["starts"] == 50 * start_seconds(config, work, NOWHERE)


def test_problems_that_nobody_has_counted_are_a_guess_that_is_called_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("datasets: {s1k: {source: 'hf://some/other'}}\ntasks: {aime24: {problems: null}}\n")
    found = facts(tmp_path, configs=[PAPER, str(other)])
    assert found["problems"]["training"] == {"problems": 10_000, "known": False}
    assert not found["problems"]["aime24"]["known"]
    assert found["problems"]["math500"] == {"problems": 500, "known": True}
    assert "a guess for training, aime24" in capsys.readouterr().out


def test_calls_to_the_judge_are_counted_once_a_sample_and_none_of_a_gated_benchmark(tmp_path: Path) -> None:
    judge = tmp_path / "judge.yaml"
    judge.write_text("evaluation: {judge: {url: 'http://localhost/v1', model: m, samples: 2000}}\n")
    assert facts(tmp_path)["judge_calls"] == 0
    found = facts(tmp_path, configs=[PAPER, str(judge)])
    assert found["judge_calls"] == 7 * (30 * 64 + 30 * 64 + 2000)
    assert found["jobs"]["judge_samples"] == 21


def test_the_demo_is_minutes_on_a_core_and_downloads_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = facts(tmp_path, configs=POCKET)
    assert found["downloads"] == 0
    assert "making teacher" in by_name(found["at_most"])
    assert 60 < sum(item["seconds"] + item["starts"] for item in found["at_most"]) < 7200
    assert max(entry["mem_mb"] for entry in found["needs"]) < 3500
    assert {entry["gpu"] for entry in found["needs"]} == {0}
    assert "No model is downloaded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speed", "rds=3"], "--speed rds=3: expected one of rsd, student, teacher, reading"),
        (["--speed", "rsd=0"], "--speed rsd=0: expected tokens a second above 0"),
        (["--speed", "rsd=nan"], "--speed rsd=nan: expected tokens a second above 0"),
        (
            ["--tokens", "aime26=3"],
            "--tokens aime26=3: no trace set or task of this run; name one of direct, rsd, aime24",
        ),
        (["--tokens", "-1"], "--tokens -1: expected a number of tokens above 0"),
        (["--speeds", "none.json"], "--speeds none.json: no such file; `rsd bench CONFIG --json none.json` writes it"),
    ],
)
def test_what_cannot_be_is_refused_with_what_was_expected(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", PAPER, *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speeds": None}, "not what `rsd bench --json` writes"),
        ({"speeds": {"rsd": 1.0}}, "not what `rsd bench --json` writes"),
        ({"trace_set": "other"}, "measured with the pair of traces.other, which this configuration has not"),
    ],
)
def test_a_file_that_is_none_of_the_bench_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", PAPER, "--speeds", bench_file(tmp_path, **changes)]) == 1
    assert message in capsys.readouterr().err
