"""Intervals for benchmark scores: the bootstrap over problems. Arrays in, numbers out; no files, no settings.

Every interval here speaks of *problems like these*: the problems of a benchmark are taken as a sample, and are drawn
again with replacement, each with all of its samples from all models and training seeds (a cluster bootstrap). Two
models are therefore compared on the same problems (paired). The benchmarks themselves, the trained models and the
number of samples a problem are held fixed; how much another training seed would change is said by the standard
deviation between seeds, not by these intervals.

The steps: `column_means` turns columns of per-problem values into `Estimate`s; `combine` computes any function of them
(a ratio, a difference, a mean of benchmarks) in all resamples at once; `Estimate.interval` reads the interval off.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Estimate:
    """A number computed from per-problem values, and what it would have been for other problems.

    point       the number itself, NaN where it is undefined
    replicates  [resamples] float64: the number in each resample of the problems
    left_out    benchmark -> [problems] float64: the number without each of its problems in turn
    """

    point: float
    replicates: Floats
    left_out: Mapping[str, Floats]

    def interval(self, confidence: float, support: tuple[float, float] | None = None) -> Interval | None:
        """The interval with that coverage, within `support` (the least and greatest possible value of a problem).

        None where the data do not determine it: an undefined estimate, or one that is equal in every resample while
        its support is not known.
        """
        if not math.isfinite(self.point):
            return None
        if np.isfinite(self.replicates).all() and np.ptp(self.replicates) <= _rounding(self.point):
            if support is None:
                return None
            # Of several benchmarks, the smallest one says least.
            problems = min(len(values) for values in self.left_out.values())
            return constant_interval(self.point, *support, problems, confidence)
        return bca_interval(self.point, self.replicates, list(self.left_out.values()), confidence)


def column_means(name: str, values: Floats, resamples: int, seed: int) -> list[Estimate]:
    """The mean of each column of `values` [problems, columns] of the benchmark `name`.

    All columns see the same resampled problems, which is what pairs them.
    """
    replicates = resampled_means(values, resamples, generator(seed, name)).T.copy()
    left_out = leave_one_out_means(values).T.copy()
    means = values.mean(axis=0)
    return [
        Estimate(float(mean), column, {name: without})
        for mean, column, without in zip(means, replicates, left_out, strict=True)
    ]


def combine(function: Callable[..., Floats], *estimates: Estimate) -> Estimate:
    """`function` of several estimates, applied elementwise; a division by zero gives an undefined (NaN) value.

    Estimates on one benchmark are paired by its problems; those on different benchmarks are independent.
    """
    names = dict.fromkeys(name for estimate in estimates for name in estimate.left_out)

    def apply(values: Sequence[Floats]) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(function(*values), dtype=np.float64)

    point = float(apply([np.float64(estimate.point) for estimate in estimates]))
    return Estimate(
        point if math.isfinite(point) else math.nan,
        apply([estimate.replicates for estimate in estimates]),
        {name: apply([estimate.left_out.get(name, estimate.point) for estimate in estimates]) for name in names},
    )


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The unweighted mean of estimates: over seeds, or over benchmarks."""
    return combine(lambda *values: sum(values) / len(values), *estimates)


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


def bca_interval(estimate: float, replicates: Floats, left_out: Sequence[Floats], confidence: float) -> Interval | None:
    """The bias-corrected and accelerated bootstrap interval (Efron 1987; Davison and Hinkley 1997, section 5.3.2).

    `replicates` [resamples]: the estimate in every resample; `left_out`: for each benchmark that enters the estimate,
    the estimate without each of its problems [problems]. A replicate that is undefined (a relative change where the
    resampled base solved nothing) counts as beyond both ends, so that it can only widen the interval. None where the
    estimate or an end is not determined by the data.
    """
    acceleration = _acceleration(left_out)
    undefined = np.isnan(replicates)
    defined = len(replicates) - np.count_nonzero(undefined)
    if not math.isfinite(estimate) or acceleration is None or defined == 0:
        return None
    tolerance = _rounding(estimate)
    below = np.count_nonzero(replicates < estimate - tolerance)
    # Scores are discrete: replicates equal to the estimate count half on either side.
    equal = np.count_nonzero(np.abs(replicates - estimate) <= tolerance)
    share = (below + equal / 2) / defined
    bias = NORMAL.inv_cdf(min(max(share, 0.5 / defined), 1 - 0.5 / defined))
    ends = []
    for side, beyond in (((1 - confidence) / 2, -np.inf), ((1 + confidence) / 2, np.inf)):
        shifted = bias + NORMAL.inv_cdf(side)
        level = NORMAL.cdf(bias + shifted / max(1 - acceleration * shifted, 1e-9))
        ends.append(_quantile(np.where(undefined, beyond, replicates), level))
    low, high = ends
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _rounding(value: float) -> float:
    """Differences up to this are rounding."""
    return 1e-9 * max(1.0, abs(value))


def _quantile(values: Floats, level: float) -> float:
    """The value at `level`, linear between order statistics; not finite where one of the two is not."""
    position = level * (len(values) - 1)
    lower, upper = math.floor(position), math.ceil(position)
    low, high = (float(value) for value in np.partition(values, [lower, upper])[[lower, upper]])
    return low if low == high else low + (position - lower) * (high - low)


def _acceleration(left_out: Sequence[Floats]) -> float | None:
    """How fast the spread changes with the value, from the influence of each problem; None where it is undefined."""
    influences = []
    for values in left_out:
        if not np.isfinite(values).all():
            return None
        # The empirical influence of a problem, over the number of problems of its benchmark.
        influences.append((values.mean() - values) * (len(values) - 1) / len(values))
    joined = np.concatenate(influences)
    squares = float((joined**2).sum())
    return float((joined**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0


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
