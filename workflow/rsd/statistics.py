"""Intervals for benchmark scores: the bootstrap over problems. Arrays in, numbers out; no files, no settings.

Every interval here speaks of *problems like these*: the problems of a benchmark are taken as a sample, and are drawn
again with replacement, each with all of its samples from all models and training seeds (a cluster bootstrap). Two
models are therefore compared on the same problems (paired). The benchmarks themselves, the trained models and the
number of samples a problem are held fixed; how much another training seed would change is said by the standard
deviation between seeds, not by these intervals.

The steps: `resampled_means` turns columns of per-problem values into their means in each resample; the caller computes
its estimate from the means (a difference, a ratio, a mean of tasks) in every resample at once; `bca_interval` reads the
interval off. The same estimate on `leave_one_out_means` gives the influence of each problem.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

# Elements of one block of resampling weights: 32 MB.
BLOCK = 4_000_000
NORMAL = NormalDist()


def generator(seed: int, name: str) -> np.random.Generator:
    """The random stream of one benchmark: it depends on the seed and the name, not on what else is compared."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")])


def resampled_means(values: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Column means of `values` [problems, columns] in each resample of the problems -> [resamples, columns].

    All columns see the same resampled problems, which is what pairs them.
    """
    problems = len(values)
    means = np.empty((resamples, values.shape[1]))
    rows = max(1, BLOCK // problems)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        weights = rng.multinomial(problems, np.full(problems, 1 / problems), size=count)  # [count, problems]
        means[start : start + count] = weights @ values / problems
    return means


def leave_one_out_means(values: Floats) -> Floats:
    """Column means of `values` [problems, columns] without each problem in turn -> [problems, columns].

    With a single problem nothing is left: NaN.
    """
    problems = len(values)
    if problems == 1:
        return np.full_like(values, np.nan)
    return (values.sum(axis=0) - values) / (problems - 1)


def bca_interval(
    estimate: float, replicates: Floats, left_out: Sequence[Floats], confidence: float
) -> Interval | None:
    """The bias-corrected and accelerated bootstrap interval (Efron 1987; Davison and Hinkley 1997, section 5.3.2).

    `replicates` [resamples]: the estimate in every resample; `left_out`: for each benchmark that enters the estimate,
    the estimate without each of its problems [problems]. A replicate that is undefined (a relative change where the
    resampled base solved nothing) counts as beyond both ends, so that it can only widen the interval. None where the
    estimate or an end is not determined by the data.
    """
    if not math.isfinite(estimate):
        return None
    undefined = np.isnan(replicates)
    tolerance = 1e-12 * max(1.0, abs(estimate))
    below = np.count_nonzero(replicates < estimate - tolerance)
    # Scores are discrete: replicates equal to the estimate count half on either side.
    equal = np.count_nonzero(np.abs(replicates - estimate) <= tolerance)
    defined = len(replicates) - np.count_nonzero(undefined)
    if defined == 0:
        return None
    share = (below + equal / 2) / defined
    bias = NORMAL.inv_cdf(min(max(share, 0.5 / defined), 1 - 0.5 / defined))
    acceleration = _acceleration(left_out)
    if acceleration is None:
        return None
    ends = []
    for side, worst in (((1 - confidence) / 2, -np.inf), ((1 + confidence) / 2, np.inf)):
        shifted = bias + NORMAL.inv_cdf(side)
        level = NORMAL.cdf(bias + shifted / (1 - acceleration * shifted))
        ends.append(_quantile(np.where(undefined, worst, replicates), level))
    low, high = ends
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _quantile(values: Floats, level: float) -> float:
    """The value at `level`, linear between order statistics; infinite where one of the two is."""
    position = level * (len(values) - 1)
    lower, upper = math.floor(position), math.ceil(position)
    low, high = np.partition(values, [lower, upper])[[lower, upper]]
    if lower == upper or low == high:
        return float(low)
    return float(low + (position - lower) * (high - low))


def _acceleration(left_out: Sequence[Floats]) -> float | None:
    """How fast the spread changes with the value, from the influence of each problem; None where it is undefined."""
    influences = []
    for values in left_out:
        if not np.isfinite(values).all():
            return None
        # The empirical influence of a problem, over the number of problems of its benchmark.
        influences.append((values.mean() - values) * (len(values) - 1) / len(values))
    joined = np.concatenate(influences)
    spread = float((joined**2).sum())
    return float((joined**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def constant_interval(value: float, low: float, high: float, problems: int, confidence: float) -> Interval:
    """The interval of a mean where every problem has the same `value`, which no resampling can tell apart from sure.

    The values lie in [low, high]. If a share q of problems like these had another value, all `problems` of them would
    agree with probability (1 - q)^problems; q is taken as large as the confidence allows (Clopper and Pearson's bound,
    "the rule of three" for 95 %), and the others at the extremes.
    """
    q = 1 - ((1 - confidence) / 2) ** (1 / problems)
    return value - q * (value - low), value + q * (high - value)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation between training seeds (n - 1 in the denominator); None for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
