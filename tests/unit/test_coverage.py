"""Do the intervals hold the truth as often as they claim, and do the tests keep their level? By simulated runs.

Simulations are seeded, so they cannot fail by chance. A bound is the least rate that docs/method.md reports for any
design, less four standard deviations of the simulation's binomial error: a method that keeps that rate would pass with
another seed but for one time in 30,000.
"""

from __future__ import annotations

import math

import pytest

from simulated_runs import CLAIMS, DESIGNS, Design, Task, simulate

# The least rate of any design in docs/method.md.
LEAST = {
    "accuracy, problems like these": 0.94,
    "difference, problems like these": 0.94,
    "accuracy, these problems": 0.94,
    "difference, these problems": 0.94,
    "relative change, these problems": 0.91,
    "accuracy among finished, these problems": 0.94,
}
ALARMS = "false alarms of the sign-flip test"


def bound(rate: float, rounds: int) -> float:
    return 4 * math.sqrt(rate * (1 - rate) / rounds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("design", "rounds"),
    [
        ("AIME 2024, k = 64", 500),
        ("AIME 2024, k = 16", 500),
        ("AIME 2025, k = 16", 500),
        ("MATH-500, k = 8", 120),
        ("mean of the four", 120),
        ("mean of the four, half the rest gained on 5 %", 120),
    ],
)
def test_every_interval_and_the_test_keep_what_they_claim(design: str, rounds: int) -> None:
    found = simulate(DESIGNS[design], rounds, resamples=300, flips=1000, seed=1)
    assert found.keys() == CLAIMS.keys()
    for name, least in LEAST.items():
        assert (found[name] or 0) >= least - bound(least, rounds), name
    assert (found[ALARMS] or 0) <= 0.05 + bound(0.05, rounds)


def test_intervals_for_these_problems_are_no_wider_than_they_must_be() -> None:
    """Where the normal law holds, the rate is the claim on both sides; the test's too."""
    rounds = 1000
    found = simulate(Design((Task(40, 8, 0.5, 0.3),)), rounds, resamples=100, flips=1000, seed=2)
    for name in ("accuracy, these problems", "difference, these problems", "difference, problems like these"):
        assert found[name] == pytest.approx(0.95, abs=bound(0.95, rounds)), name
    assert found[ALARMS] == pytest.approx(0.05, abs=bound(0.05, rounds))


@pytest.mark.parametrize("repeats", [2, 3])
def test_few_samples_make_wide_intervals_and_not_wrong_ones(repeats: int) -> None:
    rounds = 600
    found = simulate(Design((Task(6, repeats, 0.4, 0.5),)), rounds, resamples=100, flips=1000, seed=3)
    for name in ("accuracy, these problems", "difference, these problems"):
        assert (found[name] or 0) >= 0.95 - bound(0.95, rounds), name
