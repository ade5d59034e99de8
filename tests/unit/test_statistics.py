"""The intervals: hand-computed values, laws, and simulations of coverage and of the false-alarm rate."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rsd import statistics
from rsd.statistics import Estimate

SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


def columns(values: np.ndarray, name: str = "task", resamples: int = 400, seed: int = 0) -> list[Estimate]:
    values = np.asarray(values, dtype=np.float64)
    return statistics.column_means(name, values.reshape(len(values), -1), resamples, seed)


def difference(first: Estimate, second: Estimate) -> Estimate:
    return statistics.combine(lambda a, b: a - b, first, second)


# --- means ---------------------------------------------------------------------------------------------------------


def test_replicates_of_two_problems_are_all_means_of_two_draws() -> None:
    (estimate,) = columns([0.0, 1.0], resamples=2000)
    values, counts = np.unique(estimate.replicates, return_counts=True)
    np.testing.assert_allclose(values, [0, 0.5, 1])
    # Binomial(2, 1/2): 1/4, 1/2, 1/4; each within five standard deviations.
    np.testing.assert_allclose(counts / 2000, [0.25, 0.5, 0.25], atol=5 * math.sqrt(0.25 / 2000))


def test_columns_are_resampled_together() -> None:
    first, second = columns(np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]))
    np.testing.assert_allclose(first.replicates + second.replicates, 1.0)


def test_blocks_of_resamples_all_hold_means_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BLOCK", 12)
    (estimate,) = columns([2.0, 3.0, 4.0, 5.0], resamples=1001)
    assert estimate.replicates.min() >= 2
    assert estimate.replicates.max() <= 5
    assert abs(estimate.replicates.mean() - 3.5) < 0.15


def test_the_bootstrap_deviation_of_a_mean_is_the_textbook_one() -> None:
    values = np.random.default_rng(1).random(50)
    (estimate,) = columns(values, resamples=20_000)
    assert estimate.replicates.std() == pytest.approx(values.std() / math.sqrt(50), rel=0.03)


def test_the_stream_of_a_benchmark_does_not_depend_on_the_others() -> None:
    values = np.arange(6.0)
    alone = columns(values, "math500")[0]
    beside = columns(np.stack([values, values[::-1]], axis=1), "math500")[0]
    np.testing.assert_allclose(alone.replicates, beside.replicates)
    assert not np.array_equal(alone.replicates, columns(values, "aime24")[0].replicates)
    assert not np.array_equal(alone.replicates, columns(values, "math500", seed=1)[0].replicates)


# --- intervals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("problems", "quantile"), [(5, 2.776445), (10, 2.262157), (30, 2.045230)])
def test_levels_are_those_of_the_published_formula(problems: int, quantile: float) -> None:
    # Hesterberg (2015): the normal distribution at sqrt(n / (n - 1)) times the t quantile, here from printed tables.
    level = NormalDist().cdf(-math.sqrt(problems / (problems - 1)) * quantile)
    assert statistics.expanded_level(problems, 0.95) == pytest.approx(level, abs=1e-6)


def test_for_many_problems_it_is_the_percentile_interval() -> None:
    found = statistics.percentile_interval(np.arange(-5000.0, 5001.0), 10**9, 0.9)
    assert found == pytest.approx((-4500, 4500), abs=1)


def test_ends_are_order_statistics_moved_outwards() -> None:
    # Level 0.05 of 12 replicates: between the first and the second, so the first.
    assert statistics.percentile_interval(np.arange(12.0), 10**9, 0.9) == (0.0, 11.0)


def test_the_interval_of_a_mean_agrees_with_the_t_interval_where_that_is_right() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(3).normal(size=15)
    (estimate,) = columns(values, resamples=40_000)
    theirs = stats.t.interval(0.95, 14, values.mean(), values.std(ddof=1) / math.sqrt(15))
    assert estimate.interval(0.95) == pytest.approx(theirs, abs=0.06)


def test_a_difference_and_the_relative_change_agree_in_their_signs() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        new, old = columns(rng.random((40, 2)) < [0.16, 0.05], resamples=1000)
        relative = statistics.combine(lambda a, b: 100 * (a - b) / b, new, old).interval(0.95)
        points = difference(new, old).interval(0.95)
        if relative and points:
            assert np.sign(relative).tolist() == np.sign(points).tolist()


def test_a_benchmark_that_nobody_solves_is_not_known_to_be_unsolvable() -> None:
    (estimate,) = columns(np.zeros(30))
    # Clopper and Pearson for 0 of 30: 1 - 0.025^(1/30) = 11.57 %.
    assert estimate.interval(0.95, (0, 1)) == pytest.approx((0, 0.1157), abs=1e-4)


def test_no_difference_on_any_problem_is_not_known_to_be_zero() -> None:
    solved = np.array([1.0, 0.0, 1.0, 0.0])
    equal = difference(*columns(np.stack([solved, solved], axis=1)))
    low, high = equal.interval(0.95, (-1, 1)) or (math.nan, math.nan)
    assert low == pytest.approx(-high)
    assert high == pytest.approx(1 - 0.025 ** (1 / 4))


def test_a_constant_without_known_limits_has_no_interval() -> None:
    assert columns(np.full(5, 3.0))[0].interval(0.95) is None


def test_a_ratio_over_nothing_is_undefined() -> None:
    zero, one = columns(np.array([[0.0, 1.0], [0.0, 0.0]]))
    ratio = statistics.combine(lambda a, b: a / b, one, zero)
    assert math.isnan(ratio.point)
    assert ratio.interval(0.95) is None


def test_undefined_replicates_only_widen_an_interval() -> None:
    replicates = np.linspace(-1, 1, 1001)
    narrow = statistics.percentile_interval(replicates, 100, 0.9)
    some = replicates.copy()
    some[::100] = np.nan
    wide = statistics.percentile_interval(some, 100, 0.9)
    assert narrow
    assert wide
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    some[::5] = np.nan
    assert statistics.percentile_interval(some, 100, 0.9) is None


def test_one_problem_tells_nothing_of_others() -> None:
    assert columns([0.25])[0].interval(0.95) is None
    assert statistics.percentile_interval(np.arange(9.0), 1, 0.95) is None
    assert columns([1.0])[0].interval(0.95, (0, 1)) == pytest.approx((0.025, 1))


def test_the_deviation_between_seeds_needs_two() -> None:
    assert statistics.spread([1.0]) is None
    assert statistics.spread([1.0, 3.0]) == pytest.approx(math.sqrt(2))


# --- laws ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, st.integers(4, 25), elements=SCORES))
def test_an_interval_lies_within_the_possible_values_and_around_the_mean(values: np.ndarray) -> None:
    (estimate,) = columns(values)
    low, high = estimate.interval(0.95, (0, 1)) or (math.nan, math.nan)
    assert -1e-9 <= low <= estimate.point + 1e-9
    assert estimate.point - 1e-9 <= high <= 1 + 1e-9


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(2, 25), st.just(2)), elements=SCORES))
def test_a_difference_is_antisymmetric(values: np.ndarray) -> None:
    first, second = columns(values)
    there, back = difference(first, second), difference(second, first)
    assert there.point == -back.point
    forward, backward = there.interval(0.95, (-1, 1)), back.interval(0.95, (-1, 1))
    assert forward
    assert backward
    assert forward == pytest.approx((-backward[1], -backward[0]), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float64, st.integers(2, 25), elements=SCORES),
    st.floats(0.01, 1000),
    st.floats(-1000, 1000),
)
def test_an_interval_moves_and_scales_with_its_values(values: np.ndarray, scale: float, shift: float) -> None:
    plain = columns(values)[0].interval(0.9, (0, 1))
    moved = columns(scale * values + shift)[0].interval(0.9, (shift, scale + shift))
    assert plain
    assert moved
    assert moved == pytest.approx([scale * end + shift for end in plain], abs=1e-6 * (scale + abs(shift)))


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, st.integers(3, 25), elements=SCORES))
def test_more_confidence_is_never_a_narrower_interval(values: np.ndarray) -> None:
    (estimate,) = columns(values)
    inner, outer = estimate.interval(0.8, (0, 1)), estimate.interval(0.95, (0, 1))
    assert inner
    assert outer
    assert outer[0] <= inner[0] + 1e-12
    assert inner[1] <= outer[1] + 1e-12


def test_the_mean_of_benchmarks_weighs_them_equally_whatever_their_size() -> None:
    small, large = columns([0.0, 1.0], "small")[0], columns([1.0, 1.0, 1.0, 0.0] * 5, "large")[0]
    average = statistics.mean([small, large])
    assert average.point == pytest.approx((0.5 + 0.75) / 2)
    np.testing.assert_allclose(average.replicates, (small.replicates + large.replicates) / 2)
    assert average.problems == 2


# --- simulations ---------------------------------------------------------------------------------------------------
# Seeded, so they cannot fail by chance; the bounds say what the method must keep.


def coverage(truth: float, draw: object, rounds: int = 400) -> float:
    """The share of simulated experiments whose 95 % interval holds the truth."""
    inside = 0
    for number in range(rounds):
        found = draw(np.random.default_rng([7, number])).interval(0.95, (-1, 1))  # type: ignore[operator]
        inside += found is not None and found[0] <= truth <= found[1]
    return inside / rounds


def chances(rng: np.random.Generator, problems: int, mean: float = 0.3) -> np.ndarray:
    """Chances of success that differ between problems."""
    return rng.beta(0.6, 0.6 * (1 - mean) / mean, size=problems)


def test_intervals_of_an_accuracy_cover_the_truth_about_as_often_as_they_claim() -> None:
    def accuracy(rng: np.random.Generator) -> Estimate:
        return columns(rng.binomial(8, chances(rng, 60)) / 8)[0]

    assert 0.92 <= coverage(0.3, accuracy) <= 0.98


def test_equal_models_are_told_apart_about_as_often_as_the_confidence_allows() -> None:
    def between_equals(rng: np.random.Generator) -> Estimate:
        chance = chances(rng, 60)
        return difference(*columns(np.stack([rng.binomial(8, chance), rng.binomial(8, chance)], axis=1) / 8))

    # The false-alarm rate is one minus the coverage of zero: 5 % is claimed.
    assert 0.92 <= coverage(0.0, between_equals) <= 0.98


def test_means_of_benchmarks_of_different_sizes_are_covered_too() -> None:
    def average(rng: np.random.Generator) -> Estimate:
        parts = []
        for name, problems in (("small", 30), ("large", 120)):
            chance = chances(rng, problems)
            pair = np.stack([rng.binomial(4, chance), rng.binomial(4, chance)], axis=1) / 4
            parts.append(difference(*columns(pair, name)))
        return statistics.mean(parts)

    assert 0.92 <= coverage(0.0, average) <= 0.98


def test_false_alarms_stay_near_the_claim_on_thirty_hard_problems() -> None:
    # Like AIME 2024: 2.7 % solved, 64 samples a problem, and models that are good at different problems.
    def between_equals(rng: np.random.Generator) -> Estimate:
        ability = np.log(chances(rng, 30, 0.027) + 1e-12)
        both = [1 / (1 + np.exp(-ability - 0.3 * rng.normal(size=30))) for _ in range(2)]
        return difference(*columns(np.stack([rng.binomial(64, chance) for chance in both], axis=1) / 64))

    assert 0.92 <= coverage(0.0, between_equals) <= 0.98


def test_pairing_by_problem_sees_what_unpaired_samples_cannot() -> None:
    rng = np.random.default_rng(11)
    chance = chances(rng, 200)
    better = np.clip(chance + 0.05, 0, 1)
    values = np.stack([better, chance], axis=1)
    paired = difference(*columns(values))
    unpaired = difference(columns(better, "one")[0], columns(chance, "other")[0])
    paired_interval, unpaired_interval = paired.interval(0.95, (-1, 1)), unpaired.interval(0.95, (-1, 1))
    assert paired_interval
    assert unpaired_interval
    assert paired_interval[0] > 0
    assert unpaired_interval[0] < 0
