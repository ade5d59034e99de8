"""From samples to metrics: hand-computed values, naive definitions, and the laws of avg@k, pass@k and maj@k."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsd.metrics import COLUMNS, METRICS, Cell, duplicates, majority, read_cell, sampled
from rsd.records import SAMPLES, write_table

# One problem's samples: (answer, right). The verdict need not follow from the answer's text.
ANSWERS = st.sampled_from([None, "7", " 7.", "$7$", "8", "1/2", "0.5", "$", "north"])
SAMPLE = st.tuples(ANSWERS, st.booleans()).map(lambda pair: (pair[0], pair[1] and pair[0] is not None))


def row(problem: str, repeat: int, **values: Any) -> dict[str, Any]:
    return {
        "problem_id": problem,
        "repeat": repeat,
        "answer": None,
        "correct": False,
        "exact": False,
        "n_tokens": 10,
        "finish": "end_of_turn",
        "think_closed": True,
        "text": f"{problem} {repeat}",
    } | values


def cell(path: Path, rows: list[dict[str, Any]]) -> Cell:
    write_table(path / "task.parquet", rows, SAMPLES, {})
    return read_cell(path / "task.parquet")


def metric(found: Cell, name: str) -> float:
    means = dict(zip(COLUMNS, found.values.mean(axis=0), strict=True))
    return METRICS[name].unit * means[METRICS[name].over] / means[METRICS[name].under]


# --- definitions ---------------------------------------------------------------------------------------------------


def test_all_metrics_of_three_problems_by_hand(tmp_path: Path) -> None:
    right = {"answer": "7", "correct": True, "exact": True}
    rows = [
        # Half right by value, none by string; the vote is tied between a right and a wrong answer.
        row("a", 0, answer="0.5", correct=True, n_tokens=20),
        row("a", 1, answer="3"),
        row("a", 2, answer="1/2", correct=True),
        row("a", 3, answer="3.", text="a 1"),  # the text of an earlier sample
        row("b", 0, **right),
        row("b", 1, **right),
        row("b", 2, answer="8"),
        row("b", 3, finish="length", think_closed=False, n_tokens=90),
        row("c", 0, finish="length", think_closed=False, text="same"),
        row("c", 1, finish="length", text="same"),
        row("c", 2, text="same"),
        row("c", 3),
    ]
    found = cell(tmp_path, rows)
    expected = {
        "accuracy": 100 * (1 / 2 + 1 / 2) / 3,
        "exact_accuracy": 100 * (1 / 2) / 3,
        "pass_at_k": 100 * 2 / 3,
        "maj_at_k": 100 * (0 + 1 + 0) / 3,  # a: two votes for 3, one each for 0.5 and 1/2
        "accuracy_finished": 100 * 4 / 9,
        "cut_share": 25,
        "think_closed_share": 100 * 10 / 12,
        "extractable_share": 100 * 7 / 12,
        "duplicate_share": 100 * (1 + 0 + 2) / 12,
        "mean_tokens": (10 * 10 + 20 + 90) / 12,
    }
    assert {name: metric(found, name) for name in METRICS} == pytest.approx(expected)
    assert (found.problems, found.repeats, found.n_samples) == (["a", "b", "c"], [0, 1, 2, 3], 12)


@pytest.mark.parametrize(
    ("samples", "share"),
    [
        ([("7", 1), ("7", 1), ("8", 0)], 1.0),
        ([("7", 1), ("8", 0)], 0.5),  # tied
        ([("7", 1), ("8", 0), ("9", 0)], 1 / 3),
        ([("7", 1), (" 7. ", 1), ("8", 0), ("9", 0), ("$8$", 0), ("8", 0)], 0.0),
        ([(None, 0), (None, 0), (None, 0), ("7", 1)], 1.0),  # who gives no answer does not vote
        ([("$", 0), ("$", 0), ("7", 1)], 1.0),  # nor who gives an empty one
        ([(None, 0), (None, 0)], 0.0),
        ([("1/2", 1), ("0.5", 1), ("3", 0)], 2 / 3),  # a vote does not know that they are equal
        ([("x", 1), ("x", 0), ("y", 0)], 0.5),  # one answer, judged both ways
    ],
)
def test_the_majority_by_hand(samples: list[tuple[str | None, int]], share: float) -> None:
    answers, right = zip(*samples, strict=True)
    assert majority(answers, right) == pytest.approx(share)


@pytest.mark.parametrize(("texts", "share"), [("a", 0), ("ab", 0), ("aa", 1 / 2), ("abab", 1 / 2), ("aaab", 1 / 2)])
def test_a_duplicate_has_the_text_of_an_earlier_sample(texts: str, share: float) -> None:
    earlier = [text in texts[:place] for place, text in enumerate(texts)]
    assert duplicates(list(texts)) == pytest.approx(sum(earlier) / len(texts)) == pytest.approx(share)


# --- laws ----------------------------------------------------------------------------------------------------------


def scores(samples: list[list[tuple[str | None, bool]]]) -> dict[str, float]:
    """avg@k, pass@k and maj@k of problems, each a list of (answer, right), by the code of the stage."""
    problems = [([answer for answer, _ in problem], [float(right) for _, right in problem]) for problem in samples]
    return {
        "avg": float(np.mean([np.mean(right) for _, right in problems])),
        "pass": float(np.mean([max(right) for _, right in problems])),
        "maj": float(np.mean([majority(answers, right) for answers, right in problems])),
    }


BENCHMARK = st.integers(1, 5).flatmap(
    lambda k: st.lists(st.lists(SAMPLE, min_size=k, max_size=k), min_size=1, max_size=4)
)


@given(BENCHMARK, st.randoms())
def test_no_score_depends_on_the_order_of_samples_or_on_doubling_them_all(
    samples: list[list[tuple[str | None, bool]]], shuffle: Any
) -> None:
    before = scores(samples)
    shuffled = [shuffle.sample(problem, len(problem)) for problem in shuffle.sample(samples, len(samples))]
    assert scores(shuffled) == pytest.approx(before, abs=1e-12)
    assert scores([problem * 2 for problem in samples]) == pytest.approx(before, abs=1e-12)


@given(BENCHMARK)
def test_pass_is_at_least_average_and_majority_and_all_are_one_for_one_sample(
    samples: list[list[tuple[str | None, bool]]],
) -> None:
    found = scores(samples)
    assert found["pass"] >= found["avg"] - 1e-12
    assert found["pass"] >= found["maj"] - 1e-12
    # An empty answer ("$") is never right in the pipeline; here it may be drawn so.
    first = [problem[:1] for problem in samples if problem[0] != ("$", True)]
    if first:
        alone = scores(first)
        assert alone["avg"] == alone["pass"] == pytest.approx(alone["maj"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BENCHMARK, st.randoms())
def test_a_file_is_read_in_any_order(
    tmp_path: Path, samples: list[list[tuple[str | None, bool]]], shuffle: Any
) -> None:
    rows = [
        row(f"p{number}", repeat, answer=answer, correct=right)
        for number, problem in enumerate(samples)
        for repeat, (answer, right) in enumerate(problem)
    ]
    found = cell(tmp_path, shuffle.sample(rows, len(rows)))
    expected = scores(samples)
    for name, key in (("accuracy", "avg"), ("pass_at_k", "pass"), ("maj_at_k", "maj")):
        assert metric(found, name) == pytest.approx(100 * expected[key])
    assert found.column("correct").tolist() == [[float(right) for _, right in problem] for problem in samples]


def test_metrics_of_samples_are_means_of_them_and_the_others_are_not_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        row(str(problem), repeat, answer="7", correct=bool(rng.random() < 0.4), n_tokens=int(rng.integers(99)))
        | ({"finish": "length", "answer": None, "correct": False} if rng.random() < 0.3 else {})
        for problem in range(6)
        for repeat in range(5)
    ]
    found = cell(tmp_path, rows)
    assert set(METRICS) - set(sampled(found)) == {"pass_at_k", "maj_at_k", "duplicate_share"}
    for name, values in sampled(found).items():
        assert values.shape == (6, 5)
        assert values.mean() == pytest.approx(metric(found, name))


def test_a_tangent_tells_how_a_ratio_moves(tmp_path: Path) -> None:
    """The accuracy among finished, with one more right finished sample in a great many: a derivative."""
    right, cut = {"answer": "7", "correct": True}, {"finish": "length"}
    rows = [row("a", 0, **right), row("a", 1), row("a", 2, **cut), row("a", 3, **cut)]
    values = sampled(cell(tmp_path, rows))["accuracy_finished"][0]
    # Weight w more of the first sample: (1 + w) / (2 + w), by its derivative at 0, times the samples.
    for place, (over, under) in enumerate([(1, 1), (0, 1), (0, 0), (0, 0)]):
        step = 1e-6
        moved = 100 * (1 + step * over) / (2 + step * under)
        assert values[place] == pytest.approx(50 + 4 * (moved - 50) / step, abs=1e-3)


def test_an_accuracy_among_finished_of_nothing_finished_is_no_mean_of_samples(tmp_path: Path) -> None:
    found = cell(tmp_path, [row("a", 0, finish="length"), row("a", 1, finish="length")])
    assert "accuracy_finished" not in sampled(found)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers", [{"a": [0, 1], "b": [0]}, {"a": [0, 1], "b": [0, 2]}, {"a": [0], "b": [0, 1, 2], "c": [0, 1]}]
)
def test_problems_with_other_samples_than_the_rest_are_refused(tmp_path: Path, numbers: dict[str, list[int]]) -> None:
    rows = [row(problem, repeat) for problem, repeats in numbers.items() for repeat in repeats]
    with pytest.raises(ValueError, match=r"task\.parquet holds \d to \d samples a problem, .*; delete the file"):
        cell(tmp_path, rows)
