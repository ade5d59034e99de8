"""The smallest difference before the run: its formulas against simulated runs, and what the command says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd import config as configuration
from rsd import power, statistics
from rsd.cli import main
from rsd.power import Task, mean_precision, task_precision
from simulated_runs import chances, draw

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "config.yaml"
POCKET = ROOT / "workflow" / "experiments" / "pocket.yaml"
HOME = {"between": {None: 0.5}, "accuracy": {}, "correlation": 0.8, "power": 0.8, "output": None}


def paper(**changes: Any) -> configuration.Config:
    return configuration.validate(configuration.merge(configuration.load([PAPER]), changes))


def differences(task: Task, seeds: tuple[int, int], correlation: float, rng: np.random.Generator) -> np.ndarray:
    """[problems, samples]: the difference of two equally good models, each over the samples of its seeds."""
    shared, *own = (chances(rng, task) for _ in range(3))
    same = rng.random(task.problems) < correlation
    new, old = (
        np.mean([draw(rng, np.where(same, shared, mine), task.repeats) for _ in range(count)], axis=0)
        for mine, count in zip(own, seeds, strict=True)
    )
    return new - old


# --- formulas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "seeds", "correlation"),
    [
        (Task(30, 16, 0.11, 0.4), (3, 1), 0.8),
        (Task(50, 4, 0.3, 0.5), (1, 1), 0.0),
        (Task(60, 8, 0.65, 0.6), (3, 3), 0.7),
    ],
)
def test_both_standard_errors_are_those_of_simulated_runs(
    task: Task, seeds: tuple[int, int], correlation: float
) -> None:
    rounds = 4000
    rng = np.random.default_rng(0)
    runs = [differences(task, seeds, correlation, rng) for _ in range(rounds)]
    like, fixed = task_precision(task, seeds, correlation)
    assert fixed
    spread = np.std([values.mean() for values in runs])
    # A standard deviation over R runs is known to 1 / sqrt(2 R) of itself (more with heavy tails): 4.5 of these, twice.
    assert spread == pytest.approx(like.error, rel=9 / math.sqrt(2 * rounds))
    within = [known.error**2 for values in runs if (known := statistics.precision([values]))]
    assert sum(within) / rounds == pytest.approx(fixed.error**2, rel=0.02)


def test_the_smallest_difference_is_seen_as_often_as_it_says() -> None:
    task, seeds, correlation = Task(198, 16, 0.25, 0.3), (3, 1), 0.8
    like, fixed = task_precision(task, seeds, correlation)
    assert fixed
    rng, rounds = np.random.default_rng(1), 2000
    seen = np.zeros(2)
    for _ in range(rounds):
        like_values = differences(task, seeds, correlation, rng).mean(axis=1)
        # Models of equal chances on every problem: no difference on these problems either.
        fixed_values = differences(task, seeds, 1.0, rng)
        for place, (known, values) in enumerate(((like, like_values), (fixed, fixed_values))):
            shift = power.smallest_difference(known, 0.95, 0.8)
            low, high = statistics.mean_interval([values + shift], 0.95, None) or (0.0, 0.0)
            seen[place] += low > 0 or high < 0
    # 4 standard deviations of the simulation (0.9 %), and a point for the formula.
    assert seen / rounds == pytest.approx([0.8, 0.8], abs=0.01 + 4 * math.sqrt(0.16 / rounds))


@given(
    st.integers(2, 500),
    st.integers(2, 64),
    st.floats(0.01, 0.99),
    st.floats(0.01, 0.99),
    st.floats(-1, 1),
)
def test_more_of_anything_is_never_worse(n: int, k: int, accuracy: float, between: float, correlation: float) -> None:
    task = Task(n, k, accuracy, between)
    like, fixed = task_precision(task, (1, 1), correlation)
    assert fixed
    assert like.error >= fixed.error * (1 - 1e-12)
    for better, seeds in (
        (Task(n + 1, k, accuracy, between), (1, 1)),
        (Task(n, k + 1, accuracy, between), (1, 1)),
        (task, (2, 1)),
    ):
        for before, after in zip((like, fixed), task_precision(better, seeds, correlation), strict=True):
            assert after
            assert after.error <= before.error
    # Samples without end leave only the choice of problems.
    endless, _ = task_precision(Task(n, 10**9, accuracy, between), (1, 1), correlation)
    chosen = 2 * between * accuracy * (1 - accuracy) * (1 - correlation) / n
    assert endless.error == pytest.approx(math.sqrt(chosen), rel=1e-3, abs=1e-4)


def test_the_mean_of_tasks_has_the_error_of_independent_tasks() -> None:
    parts = [statistics.Precision(3.0, 29), statistics.Precision(4.0, 29)]
    both = mean_precision(parts)
    assert both
    assert both.error == pytest.approx(2.5)
    assert both.degrees == pytest.approx(625 * 29 / (81 + 256))
    assert mean_precision([*parts, None]) is None


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_papers_design_is_printed_with_its_assumptions_and_without_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["power", str(PAPER), "--json", str(tmp_path / "power.json")]) == 0
    said = capsys.readouterr().out
    facts = json.loads((tmp_path / "power.json").read_text())
    assert [(entry["arm"], entry["against"]) for entry in facts["comparisons"]] == [("rsd", "base"), ("rsd", "direct")]
    for part in ("30 x 64", "198 x 16", "500 x 8", "2.7 % (reference.accuracy.base)", "(--correlation)", "0.58 s"):
        assert part in said
    mean = facts["comparisons"][0]["smallest"]["mean"]
    assert f"{mean['fixed']:.2f}" in said
    assert f"{mean['like']:.2f}" in said
    # By hand for MATH-500 against the base: 8 samples of 3 seeds against 8 of one, half of 0.654 x 0.346 within; t
    # quantiles of 3500 and 499 degrees of freedom, 1.9606 + 0.8418 and 1.9647 + 0.8424.
    variance = 0.654 * 0.346 / 2
    fixed = math.sqrt(variance * (1 / 24 + 1 / 8) / 500)
    like = math.sqrt(fixed**2 + 2 * variance * 0.2 / 500)
    found = facts["comparisons"][0]["smallest"]["math500"]
    assert found == pytest.approx({"fixed": 280.24 * fixed, "like": 280.71 * like}, rel=1e-3)
    # 4.9 % and 25.4 % of 25.95.
    assert [entry["published"] for entry in facts["comparisons"]] == pytest.approx([1.27155, 6.5913])
    assert [path.name for path in tmp_path.iterdir()] == ["power.json"]


def test_options_change_the_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--accuracy", "40", "--accuracy", "aime24=10", "--between", "gpqa_diamond=0.3", "--correlation", "0.25"]
    assert main(["power", str(PAPER), *words, "--power", "0.9"]) == 0
    said = capsys.readouterr().out
    for part in ("aime24            10 % (--accuracy)", "40 % (--accuracy)", "30 %", "0.25 (--corr", "of 90 %"):
        assert part in said


def test_one_sample_a_problem_is_not_determined_for_these_problems() -> None:
    said = power.run_power(configuration.load([PAPER, POCKET]), **HOME)
    assert "1024 x 1  not determined" in said
    assert "50 % (not known: the worst case)" in said
    assert "mean of the tasks" not in said


def test_untrained_models_have_no_training_seeds() -> None:
    config = configuration.load([PAPER, POCKET])
    config["question"]["comparisons"] = [["teacher", "base"]]
    assert "No model of these comparisons is trained" in power.run_power(config, **HOME)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accuracy", "aime42=3"], "--accuracy aime42=3: not in run.tasks; name one of aime24, aime25"),
        (["--accuracy", "0"], "--accuracy 0: expected a number between 0 and 100; correct it"),
        (["--between", "1"], "--between 1: expected a number between 0 and 1"),
        (["--correlation", "1.5"], "--correlation 1.5: expected a number from -1 to 1"),
        (["--power", "0.2"], "--power 0.2: expected a number from 0.5 to below 1"),
    ],
)
def test_an_impossible_assumption_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["power", str(PAPER), *words]) == 1
    assert message in capsys.readouterr().err


def test_an_assumption_that_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["power", str(PAPER), "--accuracy", "aime24=high"])
    assert "expected NUMBER or TASK=NUMBER, found 'aime24=high'" in capsys.readouterr().err


def test_a_single_arm_leaves_nothing_to_compare() -> None:
    config = paper(run={"arms": ["base"]})
    with pytest.raises(ValueError, match="runs one arm"):
        power.run_power(config, **HOME)


# --- how many problems ---------------------------------------------------------------------------------------------


def test_the_number_of_problems_is_configured_prepared_or_unknown(tmp_path: Path) -> None:
    config = paper()
    assert power.count_problems(config, "math500", tmp_path) == 500
    config["tasks"]["math500"]["limit"] = 40
    assert power.count_problems(config, "math500", tmp_path) == 40
    config["tasks"]["math500"] |= {"problems": None, "limit": None}
    with pytest.raises(ValueError, match=r"tasks\.math500\.problems: missing, .*snakemake --cores 1 data"):
        power.count_problems(config, "math500", tmp_path)
    prepared = tmp_path / "paper" / "data" / "benchmarks" / "math500.jsonl"
    prepared.parent.mkdir(parents=True)
    prepared.write_text("{}\n" * 7)
    assert power.count_problems(config, "math500", tmp_path) == 7
    prepared.unlink()
    config["tasks"]["math500"]["limit"] = 3
    assert power.count_problems(config, "math500", tmp_path) == 3


def test_the_published_difference_is_of_just_the_published_tasks() -> None:
    assert power.published_difference(paper(), "direct", "base") == pytest.approx(-0.205 * 25.95)
    assert power.published_difference(paper(), "direct-full", "base") is None
    fewer = paper(run={"tasks": ["aime24", "math500"]})
    assert power.published_difference(fewer, "rsd", "base") is None
