"""The intervals: hand-computed values, other programs' values, and laws. Coverage is simulated in test_coverage.py."""

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


def test_a_benchmark_that_nobody_solves_is_not_known_to_be_unsolvable() -> None:
    (estimate,) = columns(np.zeros(30))
    # Clopper and Pearson for 0 of 30: 1 - 0.025^(1/30) = 11.57 %.
    assert estimate.interval(0.95, (0, 1)) == pytest.approx((0, 0.1157), abs=1e-4)


def test_a_score_can_be_moved_by_problems_of_a_kind_that_was_not_seen() -> None:
    (estimate,) = columns([0.5] + [0.0] * 29)
    low, high = estimate.interval(0.95, (0, 1)) or (math.nan, math.nan)
    share = 1 - 0.025 ** (1 / 30)
    assert low == 0
    assert high == pytest.approx(1 / 60 + share * (1 - 1 / 60))
    # Of many problems there is no such kind, and the resamples decide.
    (estimate,) = columns(np.random.default_rng(0).random(2000))
    assert estimate.interval(0.95, (0, 1)) == estimate.interval(0.95)


def test_over_several_benchmarks_an_unseen_kind_has_to_hide_in_all_of_them() -> None:
    zeros = [columns(np.zeros(30), name)[0] for name in ("one", "two", "three")]
    assert statistics.mean(zeros).interval(0.95, (0, 1)) == pytest.approx((0, 1 - 0.025 ** (1 / 90)))


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


# --- t intervals ---------------------------------------------------------------------------------------------------

PROBLEMS = arrays(np.float64, st.integers(2, 25), elements=SCORES)
SAMPLES = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(2, 6)), elements=st.sampled_from([0.0, 1.0]))


def test_on_one_benchmark_it_is_the_paired_t_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    new, old = np.random.default_rng(5).normal(size=(2, 17)) * [[1.0], [0.7]] + 0.3
    theirs = stats.ttest_rel(new, old).confidence_interval(0.9)
    assert statistics.mean_interval([new - old], 0.9, None) == pytest.approx(tuple(theirs))


def test_over_two_benchmarks_it_is_welchs_t_interval() -> None:
    # The mean of two means is half the difference of one from the other's opposite.
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(6)
    first, second = rng.normal(size=9), 3 * rng.normal(size=25) + 1
    theirs = stats.ttest_ind(first, -second, equal_var=False).confidence_interval(0.95)
    assert statistics.mean_interval([first, second], 0.95, None) == pytest.approx([end / 2 for end in theirs])


def test_over_fixed_problems_it_is_welchs_t_interval_with_every_problem_a_group() -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = np.random.default_rng(7).normal(size=(2, 6)) * [[1.0], [4.0]]
    theirs = stats.ttest_ind(first, -second, equal_var=False).confidence_interval(0.95)
    assert statistics.mean_interval([np.stack([first, second])], 0.95, None) == pytest.approx([e / 2 for e in theirs])


def test_a_standard_error_of_fixed_problems_is_the_textbooks_by_hand() -> None:
    # Two problems of three samples: variances 1/3 and 0, so (1/3 / 3) / 2^2.
    known = statistics.precision([np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])])
    assert known
    assert known.error == pytest.approx(math.sqrt(1 / 36))
    assert known.degrees == pytest.approx(2)


def test_one_sample_a_problem_leaves_fixed_problems_undetermined() -> None:
    assert statistics.mean_interval([np.array([[0.0], [1.0]])], 0.95, (0, 1)) is None
    assert statistics.mean_interval([np.ones((3, 4)), np.ones((3, 1))], 0.95, (0, 1)) is None
    assert statistics.mean_interval([], 0.95, (0, 1)) is None


def test_one_problem_says_nothing_of_others_but_much_of_itself() -> None:
    samples = np.array([[0.0, 1.0, 1.0, 0.0]])
    assert statistics.precision([samples.mean(axis=1)]) is None
    assert statistics.precision([samples]) is not None


def test_samples_that_all_agree_are_not_known_to_agree_always() -> None:
    solved = np.array([[1.0] * 8, [0.0] * 8, [0.0] * 8])
    share = 1 - 0.025 ** (1 / 24)
    assert statistics.mean_interval([solved], 0.95, (0, 1)) == pytest.approx((1 / 3 - share, 1 / 3 + share))
    assert statistics.mean_interval([np.zeros((30, 64))], 0.95, (0, 1)) == pytest.approx((0, 1 - 0.025 ** (1 / 1920)))
    assert statistics.mean_interval([np.zeros((30, 64))], 0.95, None) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=6), st.integers(2, 5))
def test_no_way_to_share_out_other_samples_goes_unseen_more_often_than_allowed(
    shares: list[float], repeats: int
) -> None:
    _, high = statistics.mean_interval([np.zeros((len(shares), repeats))], 0.9, (0, 1)) or (0, math.nan)
    if np.mean(shares) > high:
        assert math.prod((1 - share) ** repeats for share in shares) <= 0.05 + 1e-12


def test_no_difference_on_any_problem_is_not_known_to_be_zero() -> None:
    low, high = statistics.mean_interval([np.zeros(4)], 0.95, (-1, 1)) or (math.nan, math.nan)
    assert (low, high) == pytest.approx((-(1 - 0.025 ** (1 / 4)), 1 - 0.025 ** (1 / 4)))
    assert statistics.mean_interval([np.zeros(4)], 0.95, None) is None
    assert statistics.mean_interval([np.zeros(4), np.ones(9)], 0.95, (0, 1)) == pytest.approx(
        (0.5 - (share := 1 - 0.025 ** (1 / 8)) / 2, 0.5 + share / 2)
    )


@settings(max_examples=60, deadline=None)
@given(st.one_of(PROBLEMS, SAMPLES), st.floats(0.01, 100), st.floats(-100, 100), st.randoms())
def test_a_t_interval_holds_its_mean_moves_with_it_and_ignores_all_order(
    values: np.ndarray, scale: float, shift: float, shuffle: object
) -> None:
    found = statistics.mean_interval([values], 0.95, (0, 1))
    assert found
    assert 0 <= found[0] <= values.mean() + 1e-12
    assert values.mean() - 1e-12 <= found[1] <= 1
    moved = statistics.mean_interval([scale * values + shift], 0.95, (shift, scale + shift))
    assert moved == pytest.approx([scale * end + shift for end in found], abs=1e-7 * (scale + abs(shift)))
    order = list(range(values.shape[-1]))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    assert statistics.mean_interval([values[::-1][..., order]], 0.95, (0, 1)) == pytest.approx(found)


def test_pairing_by_problem_and_by_sample_sees_what_unpaired_numbers_cannot() -> None:
    rng = np.random.default_rng(11)
    chance = rng.beta(0.6, 1.4, size=(200, 1))
    noise = rng.random((200, 8))
    new, old = ((noise < chance + gain).astype(float) for gain in (0.05, 0.0))
    for together, apart in (
        ([new - old], [new - old[:, ::-1]]),
        ([(new - old).mean(axis=1)], [(new - old[::-1]).mean(axis=1)]),
    ):
        paired, unpaired = statistics.precision(together), statistics.precision(apart)
        assert paired
        assert unpaired
        assert paired.error < 0.6 * unpaired.error


# --- ratios --------------------------------------------------------------------------------------------------------


def test_the_ratio_of_two_means_agrees_with_fiellers_formula_by_hand() -> None:
    over, under = np.array([2.0, 3.0, 4.0]), np.array([1.0, 2.0, 2.0])
    # Variances of the means 1/3 and 1/9, covariance 1/6; the difference's variance 1/9, two degrees of freedom.
    t = 4.302653
    a, b, c = (5 / 3) ** 2 - t * t / 9, 3 * 5 / 3 - t * t / 6, 9 - t * t / 3
    root = math.sqrt(b * b - a * c)
    assert statistics.ratio_interval([over], [under], 0.95) == pytest.approx(((b - root) / a, (b + root) / a), rel=1e-5)


PAIRS = st.tuples(st.integers(2, 12), st.integers(2, 5), st.integers(0, 2**32 - 1))


@settings(max_examples=80, deadline=None)
@given(PAIRS, st.booleans())
def test_a_ratio_holds_just_the_ratios_that_fit_and_agrees_with_the_difference(
    size: tuple[int, int, int], fixed: bool
) -> None:
    problems, repeats, seed = size
    rng = np.random.default_rng(seed)
    new, old = (rng.random((2, problems, repeats)) < rng.random((2, 1, 1))).astype(float)
    if not fixed:
        new, old = new.mean(axis=1), old.mean(axis=1)
    found = statistics.ratio_interval([new], [old], 0.9)
    apart = statistics.mean_interval([new - old], 0.9, None)
    if found is None or apart is None:
        return
    assert found[0] <= new.mean() / old.mean() <= found[1]
    assert (found[0] > 1, found[1] < 1) == (apart[0] > 0, apart[1] < 0)
    known = statistics.precision([new - old])
    assert known
    for ratio, within in ((found[0], True), (found[1], True), (2 * found[1] + 1, False)):
        error = math.sqrt(max(0.0, statistics.covariance([new - ratio * old], [new - ratio * old])))
        slack = 1e-6 * (1 + abs(ratio))
        assert (abs((new - ratio * old).mean()) <= known.quantile(0.95) * error + slack) == within


def test_any_ratio_fits_where_the_base_could_solve_nothing() -> None:
    old = np.zeros((30, 8))
    old[0, 0] = 1
    assert statistics.ratio_interval([old + 1], [old], 0.95) is None
    assert statistics.ratio_interval([old], [old], 0.95) is None


def test_a_covariance_with_oneself_is_the_squared_standard_error() -> None:
    values = [np.random.default_rng(1).random((5, 4)), np.random.default_rng(2).random((7, 3))]
    known = statistics.precision(values)
    assert known
    assert statistics.covariance(values, values) == pytest.approx(known.error**2)
