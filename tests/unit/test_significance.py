"""The tests of differences against published examples, against scipy, and by the law that their p-values must keep."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rsd import significance, statistics
from rsd.significance import holm, sign_flip_p, smallest_difference
from rsd.statistics import Precision

# Darwin's maize: heights of cross-fertilised less self-fertilised plants, 15 pairs, in eighths of an inch.
DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=np.float64)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# --- sign flips ----------------------------------------------------------------------------------------------------


def test_fishers_analysis_of_darwins_maize() -> None:
    # Fisher (1935), The Design of Experiments, section 21: 863 of the 32768 sums of one sign are as great.
    assert sign_flip_p([DARWIN], 1000, rng()) == 2 * 863 / 32768


def test_all_patterns_of_a_few_problems_are_counted_as_a_loop_would() -> None:
    first, second = np.array([0.3, -0.1, 0.0, 0.2]), np.array([0.5, 0.1])
    observed = abs(first.mean() + second.mean()) / 2
    extreme = 0
    for signs in itertools.product((1, -1), repeat=6):
        extreme += abs((first * signs[:4]).mean() + (second * signs[4:]).mean()) / 2 >= observed - 1e-12
    assert sign_flip_p([first, second], 1000, rng()) == pytest.approx(extreme / 64)


@pytest.mark.parametrize("problems", [12, 30])
def test_scipys_permutation_test_finds_the_same(problems: int) -> None:
    values = np.random.default_rng(3).normal(0.4, 1, size=problems)
    theirs = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=20_000, alternative="two-sided", rng=1
    ).pvalue
    # Both are random from 2^20 patterns on: within five standard deviations of their difference.
    slack = 5 * math.sqrt(2 * theirs * (1 - theirs) / 20_000) if problems > significance.EXACT else 1e-12
    assert sign_flip_p([values], 20_000, rng()) == pytest.approx(theirs, abs=slack)


def test_random_patterns_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = sign_flip_p([DARWIN], 1000, rng())
    monkeypatch.setattr(significance, "EXACT", 0)
    monkeypatch.setattr(significance, "BLOCK", 1000)  # several blocks
    found = sign_flip_p([DARWIN], 50_000, rng())
    assert found == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 50_000))


def test_a_random_p_is_never_zero_and_counts_the_observed_pattern() -> None:
    assert sign_flip_p([np.ones(100)], 1000, rng()) == 1 / 1001


def test_no_difference_is_no_evidence() -> None:
    assert sign_flip_p([np.zeros(40), np.zeros(3)], 1000, rng()) == 1
    # Nor is a rounding error beside a difference.
    noisy = np.concatenate([np.full(40, 1e-17), [0.5, -0.25, 0.125]])
    assert sign_flip_p([noisy], 1000, rng()) == sign_flip_p([noisy[40:]], 1000, rng())


def test_problems_of_a_small_benchmark_weigh_more() -> None:
    small, large = np.full(5, 0.1), np.tile([0.1, -0.1], 50)
    assert sign_flip_p([small, large], 5000, rng()) < sign_flip_p([np.concatenate([small, large])], 5000, rng())


def test_nothing_to_test_is_an_error() -> None:
    for strata in ([], [np.array([])]):
        with pytest.raises(ValueError, match="no paired differences to test"):
            sign_flip_p(strata, 1000, rng())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-8, 8), min_size=1, max_size=12), st.floats(0.001, 1000), st.randoms())
def test_a_p_value_ignores_order_direction_and_unit(values: list[int], unit: float, shuffle: object) -> None:
    plain = sign_flip_p([np.array(values, dtype=np.float64)], 1000, rng())
    shuffle.shuffle(values)  # type: ignore[attr-defined]
    assert 0 < plain <= 1
    assert sign_flip_p([-unit * np.array(values)], 1000, rng()) == pytest.approx(plain)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_under_chance_alone_no_level_is_passed_more_often_than_it_says(values: list[int]) -> None:
    # Over all sign patterns of the same data, which chance makes equally likely: exact, no simulation.
    found = [
        sign_flip_p([np.array(values) * np.array(signs, dtype=np.float64)], 1000, rng())
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    for level in {*found, 0.05}:
        assert np.mean(np.array(found) <= level) <= level + 1e-12


# --- Holm ----------------------------------------------------------------------------------------------------------


def test_holms_correction_of_published_examples() -> None:
    # Wikipedia, "Holm-Bonferroni method"; and R's documentation of p.adjust by way of package Dmisc.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.042, 0.001, 0.031, 0.014, 0.007]) == pytest.approx([0.062, 0.005, 0.062, 0.042, 0.028])


def test_a_test_that_could_not_be_made_still_counts() -> None:
    assert holm([0.01, None, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06)]
    assert holm([None]) == [None]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_its_step_down_procedure_rejects(values: list[float]) -> None:
    corrected = holm(values)
    for level in (0.01, 0.05, 0.2):
        rejected: set[int] = set()
        for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
            if (len(values) - rank) * values[place] > level:
                break
            rejected.add(place)
        assert {place for place, value in enumerate(corrected) if value is not None and value <= level} == rejected


# --- the smallest difference ---------------------------------------------------------------------------------------


def test_the_textbooks_number_of_standard_errors() -> None:
    # 1.960 + 0.842 for many degrees of freedom, 2.045 + 0.854 for 29 (printed tables).
    assert smallest_difference(Precision(1.0, math.inf), 0.95, 0.8) == pytest.approx(2.8016, abs=1e-4)
    assert smallest_difference(Precision(2.0, 29), 0.95, 0.8) == pytest.approx(2 * 2.8990, abs=1e-3)


@pytest.mark.parametrize(("problems", "power"), [(8, 0.8), (30, 0.8), (30, 0.95)])
def test_it_is_seen_as_often_as_it_says_by_the_exact_law(problems: int, power: float) -> None:
    # The noncentral t distribution; the textbook's formula is within a point of it.
    degrees = problems - 1
    shift = smallest_difference(Precision(1.0, degrees), 0.95, power)
    limit = stats.t.ppf(0.975, degrees)
    seen = stats.nct.sf(limit, degrees, shift) + stats.nct.cdf(-limit, degrees, shift)
    assert seen == pytest.approx(power, abs=0.01)


def test_the_interval_leaves_out_zero_as_often_as_the_smallest_difference_says() -> None:
    # 3000 runs: within 4 standard deviations of the simulation (0.7 %) and a point for the formula.
    draws = np.random.default_rng(2).normal(size=(3000, 30))
    shift = smallest_difference(Precision(1 / math.sqrt(30), 29), 0.95, 0.8)
    seen = 0
    for values in draws:
        low, high = statistics.mean_interval([values + shift], 0.95, None) or (0.0, 0.0)
        seen += low > 0 or high < 0
    assert seen / 3000 == pytest.approx(0.8, abs=0.01 + 4 * math.sqrt(0.16 / 3000))
