"""From sample files to the comparison table: hand-computed numbers, what is missing, what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from rsd import significance, statistics
from rsd.compare import Row, read_comparison, read_summary, run_compare
from rsd.metrics import METRICS
from rsd.records import SAMPLES, read_table, write_table
from synthetic_results import PAPER_ACCURACY, problem_id, write_samples, write_scores

YES, NO = True, False


def arm(label: str = "", traces: str | None = None, seeds: Sequence[int] = (0,)) -> dict[str, Any]:
    """An arm of the settings; its trace set is named after its method."""
    method = {"direct": "dataset", "own": "sample"}.get(traces or "", traces)
    return {"label": label, "traces": traces, "method": method, "seeds": list(seeds)}


def compare_settings(**changes: Any) -> dict[str, Any]:
    settings = {
        "arms": {
            "base": arm("Base"),
            "rsd": arm("RSD", "rsd", [0, 1]),
        },
        "base": "base",
        "question": {"text": "", "comparisons": None},
        "tasks": ["one", "two"],
        "reference": {"accuracy": {}, "mean_relative_change": {}},
        "confidence": 0.95,
        "resamples": 200,
        "flips": 1000,
        "seed": 0,
    }
    return settings | changes


def write_small(folder: Path) -> None:
    """Task one: two problems of two samples; task two: four problems of one sample."""
    for name, one, two in (
        ("base-seed0", [[YES, NO], [NO, NO]], [[YES], [NO], [NO], [YES]]),
        ("rsd-seed0", [[YES, YES], [NO, NO]], [[YES], [YES], [NO], [YES]]),
        ("rsd-seed1", [[YES, YES], [YES, NO]], [[YES], [NO], [NO], [YES]]),
    ):
        write_samples(folder / name / "one.parquet", np.array(one))
        write_samples(folder / name / "two.parquet", np.array(two))


def compare(tmp_path: Path, settings: dict[str, Any]) -> list[Row]:
    output, summary = tmp_path / "comparison.csv", tmp_path / "comparison.json"
    run_compare(scores=tmp_path / "scores", settings=settings, output=output, summary=summary)
    return read_comparison(output)


def find(rows: list[Row], arm: str, metric: str, *, seed: str = "all", task: str = "mean", against: str = "") -> Row:
    (row,) = (
        row
        for row in rows
        if (row.arm, row.against, row.seed, row.task, row.metric) == (arm, against, seed, task, metric)
    )
    return row


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    write_small(tmp_path / "scores")
    return compare(tmp_path, compare_settings())


# --- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "seed", "task", "expected"),
    [
        ("base", "0", "one", 25.0),
        ("base", "all", "one", 25.0),
        ("base", "all", "two", 50.0),
        ("base", "all", "mean", 37.5),
        ("rsd", "0", "one", 50.0),
        ("rsd", "1", "one", 75.0),
        ("rsd", "all", "one", 62.5),
        ("rsd", "all", "two", 62.5),
        ("rsd", "1", "mean", 62.5),
        ("rsd", "all", "mean", 62.5),
    ],
)
def test_accuracies_are_means_of_samples_then_of_seeds_then_of_tasks(
    rows: list[Row], arm: str, seed: str, task: str, expected: float
) -> None:
    assert find(rows, arm, "accuracy", seed=seed, task=task).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("seed", "task", "points", "relative"),
    [
        ("0", "one", 25.0, 100.0),
        ("1", "two", 0.0, 0.0),
        ("all", "one", 37.5, 150.0),
        ("all", "mean", 25.0, 200 / 3),  # of the mean, not the mean of the relative changes
    ],
)
def test_differences_are_in_points_and_relative_to_the_base(
    rows: list[Row], seed: str, task: str, points: float, relative: float
) -> None:
    where: dict[str, Any] = {"seed": seed, "task": task, "against": "base"}
    assert find(rows, "rsd", "difference_points", **where).value == pytest.approx(points)
    assert find(rows, "rsd", "relative_change", **where).value == pytest.approx(relative)


def test_deviation_between_seeds_is_that_of_their_accuracies_and_of_their_differences(rows: list[Row]) -> None:
    # Task one: 50 and 75.
    assert find(rows, "rsd", "seed_sd", task="one").value == pytest.approx(25 / math.sqrt(2))
    assert find(rows, "rsd", "seed_sd", task="one", against="base").value == pytest.approx(25 / math.sqrt(2))
    assert find(rows, "base", "seed_sd", task="one").value is None


def test_counts_are_of_problems_and_of_samples(rows: list[Row]) -> None:
    for row, counts in (
        (find(rows, "base", "accuracy", task="one"), (2, 4)),
        (find(rows, "rsd", "accuracy", task="one"), (2, 8)),
        (find(rows, "rsd", "accuracy", seed="1"), (6, 8)),
        (find(rows, "rsd", "accuracy"), (6, 16)),
        (find(rows, "rsd", "difference_points", against="base"), (6, 16)),
    ):
        assert (row.n_problems, row.n_samples) == counts


def test_the_table_has_every_metric_once_for_every_arm_seed_and_task(rows: list[Row]) -> None:
    keys = [(row.arm, row.against, row.seed, row.task, row.metric) for row in rows]
    assert len(keys) == len(set(keys))
    for arm, seeds in (("base", ["0", "all"]), ("rsd", ["0", "1", "all"])):
        for seed in seeds:
            for task in ("one", "two", "mean"):
                assert {
                    row.metric for row in rows if (row.arm, row.against, row.seed, row.task) == (arm, "", seed, task)
                } >= set(METRICS)


def test_cut_samples_and_lengths_are_counted(tmp_path: Path) -> None:
    correct = np.array([[YES, NO, NO, NO], [NO, NO, NO, NO]])
    cut = np.array([[NO, YES, NO, NO], [YES, NO, NO, NO]])
    write_samples(tmp_path / "scores" / "base-seed0" / "one.parquet", correct, cut=cut)
    settings = compare_settings(tasks=["one"], arms={"base": arm()})
    table = compare(tmp_path, settings)
    found = {metric: find(table, "base", metric, task="one").value for metric in METRICS}
    assert found == pytest.approx(
        {
            "accuracy": 12.5,
            "exact_accuracy": 12.5,
            "cut_share": 25,
            "think_closed_share": 75,
            "extractable_share": 75,
            "mean_tokens": 100.5,
            "accuracy_finished": 100 / 6,
            "pass_at_k": 50,
            "maj_at_k": 0,
            "duplicate_share": 0,
        }
    )


def test_accuracy_among_finished_is_undefined_where_nothing_finished(tmp_path: Path) -> None:
    nothing = np.zeros((3, 2), dtype=bool)
    write_samples(tmp_path / "scores" / "base-seed0" / "one.parquet", nothing, cut=~nothing)
    settings = compare_settings(tasks=["one"], arms={"base": arm()})
    row = find(compare(tmp_path, settings), "base", "accuracy_finished", task="one")
    assert (row.value, row.low, row.high) == (None, None, None)


def test_relative_change_of_a_base_that_solves_nothing_is_empty_and_the_difference_is_not(tmp_path: Path) -> None:
    for name, solved in (("base-seed0", 0), ("rsd-seed0", 3), ("rsd-seed1", 2)):
        write_samples(tmp_path / "scores" / name / "one.parquet", np.arange(8)[:, None] < solved)
    table = compare(tmp_path, compare_settings(tasks=["one"]))
    relative = find(table, "rsd", "relative_change", task="one", against="base")
    assert (relative.value, relative.low, relative.high) == (None, None, None)
    assert find(table, "rsd", "difference_points", task="one", against="base").value == pytest.approx(31.25)
    assert "inf" not in (tmp_path / "comparison.csv").read_text()
    assert "nan" not in (tmp_path / "comparison.csv").read_text()


def test_an_arm_that_solves_nothing_may_still_solve_something(tmp_path: Path) -> None:
    write_samples(tmp_path / "scores" / "base-seed0" / "one.parquet", np.zeros((30, 4), dtype=bool))
    settings = compare_settings(tasks=["one"], arms={"base": arm()})
    row = find(compare(tmp_path, settings), "base", "accuracy", task="one")
    assert (row.value, row.low) == (0, 0)
    assert row.high == pytest.approx(11.57, abs=0.01)


def test_intervals_hold_their_values_and_stay_possible(tmp_path: Path) -> None:
    tasks = {"one": (40, 4), "two": (60, 2)}
    accuracy = {"base": {"one": 10, "two": 60}, "rsd": {"one": 12, "two": 70}}
    write_scores(tmp_path / "scores", tasks, accuracy, {"base": [0], "rsd": [0, 1]})
    for row in compare(tmp_path, compare_settings()):
        if row.metric in ("seed_sd", "smallest_difference", "smallest_difference_fixed"):
            continue
        assert row.value is not None
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.value <= row.high
        if row.metric.endswith(("accuracy", "share", "at_k", "finished")):
            assert 0 <= row.low <= row.high <= 100
        if row.metric in ("pass_at_k", "maj_at_k", "duplicate_share"):
            assert (row.fixed_low, row.fixed_high) == (None, None)
        elif row.metric != "mean_tokens":  # whose samples all agree here
            assert row.fixed_low is not None
            assert row.fixed_high is not None
            assert row.fixed_low <= row.value <= row.fixed_high


def test_a_real_difference_is_found_and_equal_models_are_not_told_apart(tmp_path: Path) -> None:
    tasks = {"one": (200, 8)}
    accuracy = {"base": {"one": 30}, "direct": {"one": 30}, "rsd": {"one": 40}}
    write_scores(tmp_path / "scores", tasks, accuracy, {"base": [0], "direct": [0], "rsd": [0]})
    arms = {name: arm(name, None if name == "base" else name) for name in accuracy}
    compare(tmp_path, compare_settings(arms=arms, tasks=["one"], resamples=1000))
    summary = read_summary(tmp_path / "comparison.json")
    assert {(entry["arm"], entry["against"]): entry["verdict"] for entry in summary["comparisons"]} == {
        ("direct", "base"): "undecided",
        ("rsd", "base"): "higher",
        ("rsd", "direct"): "higher",
    }


# --- intervals and tests -------------------------------------------------------------------------------------------


def arrays(folder: Path, arm: str, seed: int, task: str) -> np.ndarray:
    """[problems, repeats] of a sample file, in per cent."""
    table = read_table(folder / "scores" / f"{arm}-seed{seed}" / f"{task}.parquet", SAMPLES).sort_by(
        [("problem_id", "ascending"), ("repeat", "ascending")]
    )
    problems = len(set(table["problem_id"].to_pylist()))
    return 100 * table["correct"].to_numpy(zero_copy_only=False).astype(float).reshape(problems, -1)


@pytest.fixture
def larger(tmp_path: Path) -> tuple[Path, list[Row]]:
    tasks = {"one": (20, 4), "two": (50, 3)}
    accuracy = {"base": {"one": 20, "two": 60}, "direct": {"one": 25, "two": 50}, "rsd": {"one": 30, "two": 62}}
    write_scores(tmp_path / "scores", tasks, accuracy, {"base": [0], "direct": [0, 1], "rsd": [0, 1]})
    return tmp_path, compare(tmp_path, larger_settings())


def larger_settings(**changes: Any) -> dict[str, Any]:
    arms = {"base": arm(), "direct": arm("", "direct", [0, 1]), "rsd": arm("", "rsd", [0, 1])}
    return compare_settings(arms=arms, **changes)


@pytest.mark.parametrize("task", ["one", "two", "mean"])
@pytest.mark.parametrize("against", ["base", "direct"])
def test_both_intervals_of_a_difference_are_those_of_the_samples(
    larger: tuple[Path, list[Row]], against: str, task: str
) -> None:
    folder, rows = larger
    seeds = [0, 1] if against == "direct" else [0]
    samples = [
        np.mean([arrays(folder, "rsd", seed, name) for seed in (0, 1)], axis=0)
        - np.mean([arrays(folder, against, seed, name) for seed in seeds], axis=0)
        for name in (["one", "two"] if task == "mean" else [task])
    ]
    row = find(rows, "rsd", "difference_points", task=task, against=against)
    like = statistics.mean_interval([values.mean(axis=1) for values in samples], 0.95, (-100, 100))
    fixed = statistics.mean_interval(samples, 0.95, (-100, 100))
    assert row.value == pytest.approx(np.mean([values.mean() for values in samples]))
    assert (row.low, row.high) == pytest.approx(like)
    assert (row.fixed_low, row.fixed_high) == pytest.approx(fixed)


def test_a_relative_change_and_its_difference_agree_in_their_signs(larger: tuple[Path, list[Row]]) -> None:
    for points in larger[1]:
        if points.metric != "difference_points":
            continue
        relative = find(
            larger[1], points.arm, "relative_change", seed=points.seed, task=points.task, against=points.against
        )
        for ends in (("low", "high"), ("fixed_low", "fixed_high")):
            if getattr(relative, ends[0]) is not None:
                for end in ends:
                    assert np.sign(getattr(relative, end)) == np.sign(getattr(points, end))


def test_p_values_are_those_of_the_paired_problems_and_corrected_in_two_families(
    larger: tuple[Path, list[Row]],
) -> None:
    folder, rows = larger
    new, old = ([arrays(folder, name, 0, "one").mean(axis=1) for name in names] for names in (["rsd"], ["base"]))
    new[0] = np.mean([arrays(folder, "rsd", seed, "one").mean(axis=1) for seed in (0, 1)], axis=0)
    found = find(rows, "rsd", "difference_points", task="one", against="base")
    theirs = stats.permutation_test(
        (new[0] - old[0],), np.mean, permutation_type="samples", n_resamples=200_000, rng=0
    ).pvalue
    assert found.p == pytest.approx(theirs, abs=5 * math.sqrt(theirs / 1000))
    tested = {(row.arm, row.against, row.task): row for row in rows if row.p is not None}
    assert len(tested) == 3 * 3
    assert all(row.metric == "difference_points" and row.seed == "all" for row in tested.values())
    primary = [("rsd", "base", "mean"), ("rsd", "direct", "mean")]
    for family in (primary, [test for test in tested if test not in primary]):
        corrected = significance.holm([tested[test].p for test in family])
        assert [tested[test].p_holm for test in family] == pytest.approx(corrected)
    summary = read_summary(folder / "comparison.json")
    assert (summary["tests"]["flips"], summary["tests"]["primary"], summary["tests"]["others"]) == (1000, 2, 7)


def test_a_p_value_does_not_depend_on_what_else_is_compared(larger: tuple[Path, list[Row]]) -> None:
    folder, rows = larger
    arms = {"base": arm(), "rsd": arm("", "rsd", [0, 1])}
    alone = compare(folder, compare_settings(arms=arms, tasks=["two", "one"]))
    for task in ("one", "two", "mean"):
        where: dict[str, Any] = {"task": task, "against": "base"}
        both = [find(table, "rsd", "difference_points", **where) for table in (alone, rows)]
        # But for the mean, whose problems come in another order.
        assert both[0].p == pytest.approx(both[1].p, abs=0.05 if task == "mean" else 0)


def test_the_smallest_difference_is_that_of_the_standard_errors(larger: tuple[Path, list[Row]]) -> None:
    for row in larger[1]:
        if row.metric == "difference_points" and row.seed == "all":
            names = {"task": row.task, "against": row.against}
            for metric, low, high in (
                ("smallest_difference", row.low, row.high),
                ("smallest_difference_fixed", row.fixed_low, row.fixed_high),
            ):
                seen = find(larger[1], row.arm, metric, **names).value
                assert seen is not None
                assert low is not None
                assert high is not None
                # (t[0.975] + t[0.8]) over t[0.975]: from 1.39 for 10 degrees of freedom to 1.43 for many.
                assert 1.39 < seen / ((high - low) / 2) < 1.43


def test_one_sample_a_problem_says_nothing_of_other_samples(tmp_path: Path) -> None:
    for name in ("base-seed0", "rsd-seed0", "rsd-seed1"):
        write_samples(tmp_path / "scores" / name / "one.parquet", np.arange(9)[:, None] < len(name) // 3)
    table = compare(tmp_path, compare_settings(tasks=["one"]))
    assert all((row.fixed_low, row.fixed_high) == (None, None) for row in table)
    assert find(table, "rsd", "smallest_difference_fixed", against="base").value is None
    assert find(table, "rsd", "accuracy").low is not None


def test_of_a_single_task_the_mean_is_the_task(larger: tuple[Path, list[Row]]) -> None:
    rows = compare(larger[0], larger_settings(tasks=["one"]))
    for row in rows:
        if row.task == "one":
            twin = find(rows, row.arm, row.metric, seed=row.seed, against=row.against)
            assert replace(twin, task="one", paper=None) == replace(row, paper=None)


def test_a_question_the_other_way_round_turns_its_rows(larger: tuple[Path, list[Row]]) -> None:
    folder, rows = larger
    asked = {"text": "", "comparisons": [["base", "rsd"]]}
    turned = compare(folder, larger_settings(question=asked))
    for seed in ("0", "1", "all"):
        for task in ("one", "mean"):
            there = find(turned, "base", "difference_points", seed=seed, task=task, against="rsd")
            back = find(rows, "rsd", "difference_points", seed=seed, task=task, against="base")
            assert there.value == pytest.approx(-(back.value or 0))
            assert (there.low, there.high) == pytest.approx((-(back.high or 0), -(back.low or 0)))
    keys = [(row.arm, row.against, row.seed, row.task, row.metric) for row in turned]
    assert len(keys) == len(set(keys))


# --- pairs ---------------------------------------------------------------------------------------------------------


def test_trained_arms_are_compared_seed_by_seed(tmp_path: Path) -> None:
    for name, solved in (
        ("base-seed0", 1),
        ("direct-seed0", 2),
        ("direct-seed1", 4),
        ("rsd-seed0", 5),
        ("rsd-seed1", 6),
    ):
        write_samples(tmp_path / "scores" / name / "one.parquet", np.arange(10)[:, None] < solved)
    arms = {
        "base": arm(),
        "direct": arm("", "direct", [0, 1]),
        "rsd": arm("", "rsd", [0, 1]),
    }
    table = compare(tmp_path, compare_settings(arms=arms, tasks=["one"]))
    found = [
        find(table, "rsd", "difference_points", seed=seed, task="one", against="direct").value
        for seed in ("0", "1", "all")
    ]
    assert found == pytest.approx([30, 20, 25])
    assert find(table, "rsd", "seed_sd", task="one", against="direct").value == pytest.approx(10 / math.sqrt(2))


# --- what is missing -----------------------------------------------------------------------------------------------


def test_a_missing_file_leaves_its_rows_empty_and_every_mean_that_needs_it(tmp_path: Path, rows: list[Row]) -> None:
    (tmp_path / "scores" / "rsd-seed1" / "two.parquet").unlink()
    table = compare(tmp_path, compare_settings())
    assert [row.metric for row in table] == [row.metric for row in rows]
    for where in (
        {"seed": "1", "task": "two"},
        {"seed": "all", "task": "two"},
        {"seed": "1", "task": "mean"},
        {"seed": "all", "task": "mean"},
    ):
        for against, metric in (("", "accuracy"), ("base", "difference_points"), ("base", "relative_change")):
            row = find(table, "rsd", metric, against=against, **where)
            numbers = (row.value, row.low, row.high, row.fixed_low, row.fixed_high, row.p, row.p_holm)
            assert (*numbers, row.n_problems, row.n_samples) == (*[None] * 7, 0, 0)
    assert find(table, "rsd", "seed_sd", task="two").value is None
    assert find(table, "rsd", "accuracy", task="one").value == pytest.approx(62.5)
    assert find(table, "base", "accuracy").value == pytest.approx(37.5)
    summary = read_summary(tmp_path / "comparison.json")
    assert summary["missing"] == ["rsd-seed1/two"]
    assert summary["comparisons"][0]["verdict"] == "missing"


def test_an_empty_folder_gives_a_table_of_empty_cells(tmp_path: Path) -> None:
    table = compare(tmp_path, compare_settings())
    assert table
    assert all(row.value is None and row.n_samples == 0 for row in table)
    assert len(read_summary(tmp_path / "comparison.json")["missing"]) == 6


def test_samples_of_an_earlier_config_are_left_alone(tmp_path: Path, rows: list[Row]) -> None:
    write_samples(tmp_path / "scores" / "old-seed0" / "one.parquet", np.array([[YES]]))
    write_samples(tmp_path / "scores" / "base-seed0" / "three.parquet", np.array([[YES]]))
    assert compare(tmp_path, compare_settings()) == rows


# --- what is refused -----------------------------------------------------------------------------------------------


def test_models_measured_on_different_problems_are_refused(tmp_path: Path) -> None:
    write_small(tmp_path / "scores")
    write_samples(tmp_path / "scores" / "rsd-seed1" / "one.parquet", np.array([[YES, NO]] * 3))
    with pytest.raises(ValueError, match=r"rsd-seed1/one and base-seed0/one hold samples of different problems"):
        compare(tmp_path, compare_settings())


def test_models_with_other_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    write_small(tmp_path / "scores")
    write_samples(tmp_path / "scores" / "rsd-seed1" / "one.parquet", np.array([[YES, NO, NO]] * 2))
    with pytest.raises(ValueError, match=r"hold different samples of each problem \(3 and 2\)"):
        compare(tmp_path, compare_settings())


def test_a_sample_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    write_small(tmp_path / "scores")
    path = tmp_path / "scores" / "rsd-seed0" / "one.parquet"
    table = read_table(path, SAMPLES)
    write_table(path, pa.concat_tables([table, table.slice(0, 1)]), SAMPLES, {})
    with pytest.raises(ValueError, match=r"one\.parquet holds a sample .* twice; delete the file"):
        compare(tmp_path, compare_settings())


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "scores" / "base-seed0" / "one.parquet", [], SAMPLES, {})
    with pytest.raises(ValueError, match=r"one\.parquet holds no samples; delete the file"):
        compare(tmp_path, compare_settings())


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    write_small(tmp_path / "scores")
    path = tmp_path / "scores" / "rsd-seed0" / "two.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"two\.parquet is damaged"):
        compare(tmp_path, compare_settings())


def test_another_csv_file_is_no_comparison(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv has the columns"):
        read_comparison(tmp_path / "other.csv")


# --- the same numbers ----------------------------------------------------------------------------------------------


def test_the_order_of_samples_changes_nothing(tmp_path: Path, rows: list[Row]) -> None:
    path = tmp_path / "scores" / "rsd-seed0" / "two.parquet"
    table = read_table(path, SAMPLES)
    write_table(path, table.take(list(reversed(range(table.num_rows)))), SAMPLES, {})
    assert compare(tmp_path, compare_settings()) == rows


def test_the_same_samples_give_the_same_bytes_and_another_seed_other_intervals(tmp_path: Path) -> None:
    write_small(tmp_path / "scores")
    compare(tmp_path, compare_settings())
    first = (tmp_path / "comparison.csv").read_bytes()
    compare(tmp_path, compare_settings())
    assert (tmp_path / "comparison.csv").read_bytes() == first
    compare(tmp_path, compare_settings(seed=1))
    assert (tmp_path / "comparison.csv").read_bytes() != first


def test_an_interval_does_not_depend_on_what_else_is_compared(tmp_path: Path, rows: list[Row]) -> None:
    alone = compare(tmp_path, compare_settings(tasks=["two"]))
    assert find(alone, "rsd", "accuracy", task="two") == find(rows, "rsd", "accuracy", task="two")


# --- the paper's values --------------------------------------------------------------------------------------------

REFERENCE = {
    "accuracy": {"base": {"one": 10.0, "two": 60.0}},
    "mean_relative_change": {"rsd": 4.9},
}


def paper_cells(rows: list[Row]) -> dict[tuple[str, ...], float]:
    return {(row.arm, row.seed, row.task, row.metric): row.paper for row in rows if row.paper is not None}


def test_published_values_stand_beside_the_numbers_that_they_are_about(tmp_path: Path) -> None:
    write_small(tmp_path / "scores")
    assert paper_cells(compare(tmp_path, compare_settings(reference=REFERENCE))) == {
        ("base", "all", "one", "accuracy"): 10.0,
        ("base", "all", "two", "accuracy"): 60.0,
        ("base", "all", "mean", "accuracy"): 35.0,
        ("rsd", "all", "mean", "relative_change"): 4.9,
    }


@pytest.mark.parametrize("tasks", [["one"], ["one", "two", "three"]])
def test_a_published_mean_is_not_shown_beside_a_mean_of_other_tasks(tmp_path: Path, tasks: list[str]) -> None:
    write_small(tmp_path / "scores")
    shown = paper_cells(compare(tmp_path, compare_settings(reference=REFERENCE, tasks=tasks)))
    assert ("base", "all", "one", "accuracy") in shown
    assert not [key for key in shown if key[2] == "mean"]


def test_a_published_value_is_shown_where_our_own_is_missing(tmp_path: Path) -> None:
    assert len(paper_cells(compare(tmp_path, compare_settings(reference=REFERENCE)))) == 4


# --- summary -------------------------------------------------------------------------------------------------------


def test_the_summary_holds_the_answer_and_where_it_comes_from(tmp_path: Path, rows: list[Row]) -> None:
    summary = json.loads((tmp_path / "comparison.json").read_text())
    (answer,) = summary["comparisons"]
    row = find(rows, "rsd", "difference_points", against="base")
    assert answer["accuracy"] == pytest.approx(62.5)
    assert answer["accuracy_against"] == pytest.approx(37.5)
    assert list(answer["difference_points"].values()) == pytest.approx([row.value, row.low, row.high])
    assert answer["difference_by_seed"] == pytest.approx([25, 25])
    assert answer["fixed"] == {"low": row.fixed_low, "high": row.fixed_high}
    assert (answer["p"], answer["p_holm"]) == (row.p, row.p_holm)
    smallest = find(rows, "rsd", "smallest_difference", against="base")
    assert answer["smallest_difference"] == pytest.approx(smallest.value)
    assert summary["question"]["comparisons"] == [["rsd", "base"]]
    assert "95 % interval, for problems like these" in summary["question"]["rule"]
    assert summary["tests"]["flips"] == 1000
    assert summary["tasks"] == {
        "one": {"problems": 2, "samples_a_problem": 2},
        "two": {"problems": 4, "samples_a_problem": 1},
    }
    inputs = summary["provenance"]["settings"]["inputs"]
    assert set(inputs) == {
        f"{arm}/{seed}/{task}" for arm, seed in (("base", 0), ("rsd", 0), ("rsd", 1)) for task in ("one", "two")
    }


def test_a_broken_summary_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(ValueError, match=r"comparison\.json is no valid JSON"):
        read_summary(tmp_path / "comparison.json")


def test_synthetic_samples_have_the_accuracies_asked_for(tmp_path: Path) -> None:
    write_scores(tmp_path, {"math500": (500, 8)}, PAPER_ACCURACY, {"base": [0], "direct": [0], "rsd": [0]})
    table = read_table(tmp_path / "rsd-seed0" / "math500.parquet", SAMPLES)
    assert np.mean(table["correct"].to_pylist()) == pytest.approx(0.673, abs=0.03)
    assert table["problem_id"][0].as_py() == problem_id(0)
