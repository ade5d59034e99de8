"""Tests of sampled frequencies with a known false-alarm rate."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import chi2

# Cells with a smaller expected count are put together: there the chi-squared law is no good approximation.
LEAST_EXPECTED = 10.0


def assert_frequencies(counts: Sequence[int], probabilities: Sequence[float], *, false_alarm: float) -> None:
    """Pearson's test of `counts` against `probabilities`; a right sampler fails with probability `false_alarm`.

    A cell of probability zero must be empty.
    """
    total = sum(counts)
    rare_count, rare_expected, statistic, cells = 0, 0.0, 0.0, 0
    for count, probability in zip(counts, probabilities, strict=True):
        expected = probability * total
        if probability <= 0:
            assert count == 0, f"{count} draws of something that cannot come"
        elif expected < LEAST_EXPECTED:
            rare_count, rare_expected = rare_count + count, rare_expected + expected
        else:
            statistic, cells = statistic + (count - expected) ** 2 / expected, cells + 1
    if rare_expected >= LEAST_EXPECTED:
        statistic, cells = statistic + (rare_count - rare_expected) ** 2 / rare_expected, cells + 1
    elif rare_count:
        # A Poisson tail, generously.
        assert rare_count < rare_expected + 10 * (1 + rare_expected**0.5), (
            f"{rare_count} draws, {rare_expected} expected"
        )
    if cells > 1:
        assert statistic < chi2.isf(false_alarm, cells - 1), f"chi-squared {statistic:.1f} over {cells} cells"
