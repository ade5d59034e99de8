"""Shards become one: nothing is lost, counted twice or mixed; how far rules and a judge agree."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluations import cut, problem, said, settings_with
from rsd.collect import agreement, join, run_collect_scores, runs_of
from rsd.provenance import stamp
from rsd.records import JUDGEMENTS, SAMPLES, read_provenance, read_table, write_jsonl, write_table
from rsd.samples import grade_samples, summarise

FORMAT = settings_with()["format"]


def samples_of(number: int, repeats: int) -> list[dict[str, Any]]:
    """Some right, some wrong, some cut, different for every problem."""
    answers = [
        cut("a</think>", 30 + repeat)
        if (number + repeat) % 3 == 0
        else said(f"a</think>\\boxed{{{number + 1 + repeat % 2}}}", 10 * number + repeat)
        for repeat in range(repeats)
    ]
    return grade_samples(problem(number)["id"], problem(number)["answer"], answers, FORMAT)


class Shards:
    """The files of an evaluation of `problems` problems in some shards, as `rsd evaluate` writes them."""

    def __init__(self, folder: Path, *, problems: int = 5, shards: int = 2, repeats: int = 3) -> None:
        self.folder = folder
        self.settings = settings_with(shards=shards, repeats=repeats)
        self.benchmark = folder / "pocket.jsonl"
        write_jsonl(self.benchmark, [problem(number) for number in range(1, problems + 1)])
        self.rows = [row for number in range(1, problems + 1) for row in samples_of(number, repeats)]
        self.paths = [folder / "pocket" / f"shard-{shard:03d}.parquet" for shard in range(shards)]
        for shard in range(shards):
            numbers = range(1 + shard, problems + 1, shards)
            self.write(shard, [row for number in numbers for row in samples_of(number, repeats)])

    def write(
        self,
        shard: int,
        rows: Sequence[dict[str, Any]],
        run: dict[str, Any] | None = None,
        facts: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        evaluation = {"lm_eval": "0.4.13", "task_version": 1.0 if rows else None, "seconds": 1.5, "resumed_samples": 1}
        provenance = stamp(self.settings | settings, {"benchmark": self.benchmark}, 0)
        provenance["run"] |= run or {}
        write_table(self.paths[shard], rows, SAMPLES, {**provenance, "evaluation": evaluation | (facts or {})})

    def change(self, shard: int, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        self.write(shard, change(read_table(self.paths[shard], SAMPLES).to_pylist()))

    def collect(self, judge: Path | None = None, **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        samples, scores = self.folder / "out" / "pocket.parquet", self.folder / "out" / "pocket.json"
        run_collect_scores(
            benchmark=self.benchmark,
            shards=self.paths,
            judge=judge,
            settings=self.settings | changes,
            samples=samples,
            scores=scores,
        )
        return read_table(samples, SAMPLES).to_pylist(), json.loads(scores.read_text(encoding="utf-8"))


# --- joining -------------------------------------------------------------------------------------------------------


@given(problems=st.integers(1, 7), repeats=st.integers(1, 4), shards=st.integers(1, 9))
def test_joined_shards_are_the_unsplit_samples_and_have_their_scores(problems: int, repeats: int, shards: int) -> None:
    numbers = range(1, problems + 1)
    whole = [row for number in numbers for row in samples_of(number, repeats)]
    parts = [
        [row for number in numbers[shard::shards] for row in samples_of(number, repeats)] for shard in range(shards)
    ]
    tables = [pa.Table.from_pylist(rows, schema=SAMPLES) for rows in parts]
    joined = join(tables, [problem(number)["id"] for number in numbers], repeats).to_pylist()
    assert joined == whole
    assert summarise(joined) == summarise(whole)


def test_the_scores_say_what_was_joined(tmp_path: Path) -> None:
    shards = Shards(tmp_path, problems=5, shards=2)
    rows, scores = shards.collect()
    assert rows == shards.rows
    assert scores["metrics"] == summarise(shards.rows)
    assert (scores["n_problems"], scores["repeats"], scores["shards"]) == (5, 3, 2)
    assert scores["tokens"] == sum(row["n_tokens"] for row in shards.rows)
    assert (scores["seconds"], scores["resumed_samples"]) == (3.0, 2)
    assert scores["lm_eval"] == {"version": "0.4.13", "task_version": 1.0}
    assert scores["provenance"] == read_provenance(tmp_path / "out" / "pocket.parquet")
    assert scores["provenance"]["settings"] == read_provenance(shards.paths[0])["settings"]


def test_shards_without_a_problem_are_no_mistake(tmp_path: Path) -> None:
    shards = Shards(tmp_path, problems=2, shards=4)
    rows, scores = shards.collect()
    assert rows == shards.rows
    assert scores["lm_eval"]["task_version"] == 1.0


FAULTS: dict[str, tuple[Callable[[list[dict[str, Any]]], list[dict[str, Any]]], str]] = {
    "a sample less": (lambda rows: rows[1:], "1 samples are missing, problem 0*1, repeat 0 first"),
    "a sample twice": (lambda rows: [*rows, rows[2]], "1 samples are there twice, problem 0*1, repeat 2 first"),
    "a repeat too many": (
        lambda rows: [*rows, {**rows[0], "repeat": 3}],
        "1 samples are not of this benchmark, problem 0*1, repeat 3 first",
    ),
    "another benchmark's problem": (
        lambda rows: [*rows, {**rows[0], "problem_id": "x"}],
        "1 samples are not of this benchmark, problem x",
    ),
    "a problem in the place of another": (
        lambda rows: [{**row, "problem_id": problem(2)["id"]} for row in rows],
        "there twice",
    ),
    "nothing": (lambda rows: [], "9 samples are missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sample_that_is_lost_doubled_or_foreign_stops_the_join(tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    shards = Shards(tmp_path)
    shards.change(0, change)
    with pytest.raises(ValueError, match=rf"pocket: .*{message}.*; delete .*pocket and run again"):
        shards.collect()
    assert not (tmp_path / "out").exists()


def test_fewer_files_than_shards_are_refused(tmp_path: Path) -> None:
    shards = Shards(tmp_path, shards=3)
    shards.paths.pop()
    with pytest.raises(ValueError, match=r"2 shards, expected tasks\.pocket\.shards = 3; name them all"):
        shards.collect()


@pytest.mark.parametrize("change", [{"sampling": {"temperature": 0.1}}, {"backend": "vllm"}, {"seed": 7}])
def test_shards_of_different_settings_are_not_mixed(tmp_path: Path, change: dict[str, Any]) -> None:
    shards = Shards(tmp_path)
    shards.write(1, read_table(shards.paths[1], SAMPLES).to_pylist(), **change)
    with pytest.raises(ValueError, match="were made with different settings or inputs; delete"):
        shards.collect()


def test_shards_may_have_been_made_at_another_speed_and_in_other_places(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    rows = read_table(shards.paths[1], SAMPLES).to_pylist()
    shards.write(1, rows, {"gpu": "H100", "finished_unix": 4e9}, lanes=99, device="cuda", jobs_at_once=3)
    joined, scores = shards.collect()
    assert joined == shards.rows
    assert scores["provenance"]["run"]["gpu"] == "H100"
    assert [run["gpu"] for run in scores["provenance"]["other_runs"]] == [
        read_provenance(shards.paths[0])["run"]["gpu"]
    ]


def test_runs_that_differ_in_time_alone_count_as_one() -> None:
    run = {"commit": "c", "python": "3", "packages": {}, "machine": "m", "gpu": None, "finished_unix": 1.0}
    later = run | {"finished_unix": 2.0}
    assert runs_of([{"run": run}, {"run": later}]) == {"run": later}


def test_samples_of_another_version_of_the_benchmark_are_refused(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    write_jsonl(shards.benchmark, [problem(number, question="?") for number in range(1, 6)])
    with pytest.raises(ValueError, match="holds samples of another version of the benchmark; delete"):
        shards.collect()


# --- the judge -----------------------------------------------------------------------------------------------------


def naive_kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """By the definition: (observed - expected) / (1 - expected), expected from every pairing of the two columns."""
    observed = sum(rules == judge for rules, judge in pairs) / len(pairs)
    expected = sum(rules == judge for rules, _ in pairs for _, judge in pairs) / len(pairs) ** 2
    return None if expected == 1 else (observed - expected) / (1 - expected)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["right", "wrong", "unparsable"])), max_size=30))
def test_agreement_is_that_of_the_definition(pairs: list[tuple[bool, str]]) -> None:
    found = agreement(pairs)
    clear = [(rules, verdict == "right") for rules, verdict in pairs if verdict != "unparsable"]
    assert found["judged"] == len(clear) == sum(found["table"].values())
    assert found["unparsable"] == len(pairs) - len(clear)
    if not clear:
        assert found["agreement"] is None
        assert found["kappa"] is None
        return
    assert found["agreement"] == sum(rules == judge for rules, judge in clear) / len(clear)
    expected = naive_kappa(clear)
    assert found["kappa"] == (expected if expected is None else pytest.approx(expected, abs=1e-12))


def test_kappa_of_a_published_table() -> None:
    # Cohen's coefficient of 20 / 5 / 10 / 15 (50 grant proposals, two readers) is 0.4.
    pairs = [(True, "right")] * 20 + [(True, "wrong")] * 5 + [(False, "right")] * 10 + [(False, "wrong")] * 15
    found = agreement(pairs)
    assert math.isclose(found["kappa"], 0.4, abs_tol=1e-12)
    assert found["agreement"] == 0.7
    assert found["table"] == {"right_right": 20, "right_wrong": 5, "wrong_right": 10, "wrong_wrong": 15}


def write_judgements(path: Path, verdicts: Sequence[tuple[str, int, str]]) -> Path:
    rows = [{"problem_id": key, "repeat": repeat, "verdict": verdict, "reply": ""} for key, repeat, verdict in verdicts]
    write_table(path, rows, JUDGEMENTS, stamp({"model": "judge-1"}, {}, 0))
    return path


def test_verdicts_stand_beside_the_rules_and_change_no_score(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    plain_rows, plain = shards.collect()
    first, second, third = shards.rows[:3]
    judge = write_judgements(
        tmp_path / "judge.parquet",
        [
            (first["problem_id"], first["repeat"], "right" if first["correct"] else "wrong"),
            (second["problem_id"], second["repeat"], "wrong" if second["correct"] else "right"),
            (third["problem_id"], third["repeat"], "unparsable"),
        ],
    )
    rows, scores = shards.collect(judge)
    opinion = scores.pop("judge")
    assert rows == plain_rows
    assert scores == plain
    assert (opinion["model"], opinion["judged"], opinion["unparsable"], opinion["agreement"]) == ("judge-1", 2, 1, 0.5)


def test_a_verdict_on_a_sample_that_there_is_not_is_refused(tmp_path: Path) -> None:
    judge = write_judgements(tmp_path / "judge.parquet", [("x", 0, "right")])
    with pytest.raises(ValueError, match=r"judge\.parquet judges problem x, repeat 0, which was not sampled"):
        Shards(tmp_path).collect(judge)


def test_the_settings_of_the_tests_are_those_of_the_stage() -> None:
    from rsd import config

    real = config.evaluation_settings(config.load([config.ROOT / "config.yaml"]), "base", "math500")
    assert copy.deepcopy(settings_with()).keys() == real.keys()
