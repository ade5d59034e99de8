"""Paired differences put to the test: sign flips, Holm's correction, the smallest difference that a design could see.

Arrays in, numbers out; no files, no settings. A *stratum* is one benchmark: the differences between two models on its
problems, [problems] float64, each averaged over samples and training seeds. The estimate is always the unweighted mean
of the strata's means, so that a single benchmark is the case of one stratum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rsd.statistics import BLOCK, Floats, Precision

# With up to so many problems that differ, all sign patterns are enumerated: half a million sums.
EXACT = 20
# What is equal but for rounding: a statistic to the observed one, a difference to 0 beside the greatest.
TOLERANCE = 1e-9


def sign_flip_p(strata: Sequence[Floats], flips: int, rng: np.random.Generator) -> float:
    """Two-sided p-value of the paired differences `strata` by flipping their signs (Fisher 1935, section 21).

    If two models are equally good at problems like these, it is a matter of chance which of them got the better score
    on a problem, so every pattern of signs is as likely as the observed one; p is the share of patterns whose mean
    difference is at least as far from 0. Problems without a difference have no sign and no part in it. Exact where at
    most EXACT problems differ; else (1 + b) / (1 + flips) for b of `flips` random patterns, which is a valid p-value
    for any number of them (Phipson and Smyth 2010). ValueError without a problem.
    """
    weighted = _weighted(strata)
    weighted = weighted[np.abs(weighted) > TOLERANCE * np.abs(weighted).max()]
    observed = abs(float(weighted.sum())) - TOLERANCE * float(np.abs(weighted).sum())
    if len(weighted) <= EXACT:
        return float(np.mean(np.abs(_all_sums(weighted)) >= observed))
    extreme = sum(int(np.sum(np.abs(sums) >= observed)) for sums in _random_sums(weighted, flips, rng))
    return (1 + extreme) / (1 + flips)


def _weighted(strata: Sequence[Floats]) -> Floats:
    """The differences times their weights in the estimate, which is the sum of the result."""
    if not strata or not all(len(differences) for differences in strata):
        raise ValueError("no paired differences to test; give at least one problem of every benchmark")
    return np.concatenate([differences / (len(differences) * len(strata)) for differences in strata])


def _all_sums(values: Floats) -> Floats:
    """The sums of `values` under all patterns of signs but for a common one, which no absolute value sees."""
    sums = np.zeros(1)
    for place, value in enumerate(values):
        sums = sums + value if place == 0 else np.concatenate([sums + value, sums - value])
    return sums


def _random_sums(values: Floats, flips: int, rng: np.random.Generator) -> list[Floats]:
    """The sums of `values` under `flips` random patterns of signs, in blocks."""
    octets = math.ceil(len(values) / 8)
    rows = max(1, BLOCK // len(values))
    blocks = []
    for start in range(0, flips, rows):
        count = min(rows, flips - start)
        bits = np.frombuffer(rng.bytes(count * octets), dtype=np.uint8).reshape(count, octets)
        negative = np.unpackbits(bits, axis=1, count=len(values)).astype(np.float64)
        blocks.append(values.sum() - 2 * negative @ values)
    return blocks


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) step-down correction of a family of p-values, in the order given.

    The chance of even one false alarm in the family stays below the level at which corrected values are read. None, a
    test that was planned and could not be made, stays None and counts as a member: a missing file makes no other result
    more certain.
    """
    order = sorted(
        (place for place, value in enumerate(p_values) if value is not None), key=lambda place: p_values[place] or 0.0
    )
    corrected: list[float | None] = [None] * len(p_values)
    greatest = 0.0
    for rank, place in enumerate(order):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * (p_values[place] or 0.0)))
        corrected[place] = greatest
    return corrected


def smallest_difference(known: Precision, confidence: float, power: float) -> float:
    """The true difference that is seen with probability `power`, in the unit of the standard error of `known`.

    Seen: its t interval of that confidence leaves out 0. The textbook's formula: (t[(1 + confidence) / 2] + t[power])
    times the standard error, with its degrees of freedom; infinite ones give the normal distribution.
    """
    return (known.quantile((1 + confidence) / 2) + known.quantile(power)) * known.error
