"""Two intervals for every benchmark score and difference. Arrays in, numbers out; no files, no settings.

*Problems like these*: the problems of a benchmark are taken as a sample of all such problems, each with all of its
samples from all models and training seeds. Two models are compared on the same problems (paired).

*These problems*: the problems are all there is, and only the samples of each are taken as drawn, the samples of one
number from all models and training seeds together, since they may share their random numbers.

Both hold the benchmarks and the trained models fixed; how much another training seed would change is said by the
standard deviation between seeds, not by these intervals.

How, chosen by simulated coverage (docs/method.md): a score for problems like these, which is skewed near 0 and 100 %,
by resampling the problems (`column_means`, `combine`, `Estimate.interval`); all else by t intervals, whose standard
errors need no resampling: the variance between problems, or that between the samples of each problem.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

# Elements of one block of resampling weights: 32 MB.
BLOCK = 4_000_000


# --- scores, for problems like these -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A number computed from per-problem values, and what it would have been for other problems.

    point       the number itself, NaN where it is undefined
    replicates  [resamples] float64: the number in each resample of the problems, NaN where it is undefined
    problems    how many problems it rests on; of several benchmarks, those of the smallest, which says least
    benchmarks  the names of the benchmarks that it rests on
    """

    point: float
    replicates: Floats
    problems: int
    benchmarks: frozenset[str]

    def interval(self, confidence: float, support: tuple[float, float] | None = None) -> Interval | None:
        """The interval with that coverage; `support` is the least and greatest possible value of a problem.

        With a support it never ends nearer than where problems of a kind that is not among these could move the number
        (`unseen_interval`). None where the data do not determine it: an undefined estimate, a single problem, or an
        estimate that is equal in every resample while its support is not known.
        """
        if not math.isfinite(self.point):
            return None
        size = len(self.benchmarks) * self.problems
        unseen = unseen_interval(self.point, *support, size, confidence) if support else None
        if np.isfinite(self.replicates).all() and np.ptp(self.replicates) <= 1e-9 * max(1.0, abs(self.point)):
            return unseen
        found = percentile_interval(self.replicates, self.problems, confidence)
        if found and unseen:
            return min(found[0], unseen[0]), max(found[1], unseen[1])
        return found


def generator(seed: int, name: str) -> np.random.Generator:
    """The random stream of one benchmark: it depends on the seed and the name, not on what else is compared."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")])


def column_means(name: str, values: Floats, resamples: int, seed: int) -> list[Estimate]:
    """The mean of each column of `values` [problems, columns] of the benchmark `name`.

    All columns see the same resampled problems, which is what pairs them.
    """
    replicates = resampled_means(values, resamples, generator(seed, name)).T.copy()
    means = values.mean(axis=0)
    return [
        Estimate(float(point), column, len(values), frozenset([name]))
        for point, column in zip(means, replicates, strict=True)
    ]


def resampled_means(values: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Column means of `values` [problems, columns] in each resample of the problems -> [resamples, columns]."""
    problems = len(values)
    means = np.empty((resamples, values.shape[1]))
    rows = max(1, BLOCK // problems)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        weights = rng.multinomial(problems, np.full(problems, 1 / problems), size=count)  # [count, problems]
        means[start : start + count] = weights @ values / problems
    return means


def combine(function: Callable[..., Floats], *estimates: Estimate) -> Estimate:
    """`function` of several estimates, applied elementwise; a division of nothing by nothing is undefined (NaN).

    Estimates on one benchmark are paired by its problems; those on different benchmarks are independent.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        # As arrays, so that a division by zero is not an error here either.
        point = float(function(*(np.asarray(estimate.point) for estimate in estimates)))
        replicates = np.asarray(function(*(estimate.replicates for estimate in estimates)), dtype=np.float64)
    problems = min(estimate.problems for estimate in estimates)
    benchmarks = frozenset(name for estimate in estimates for name in estimate.benchmarks)
    return Estimate(point if math.isfinite(point) else math.nan, replicates, problems, benchmarks)


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The unweighted mean of estimates: over seeds, or over benchmarks."""
    return combine(lambda *values: sum(values) / len(values), *estimates)


def percentile_interval(replicates: Floats, problems: int, confidence: float) -> Interval | None:
    """The expanded percentile interval (Hesterberg 2015, The American Statistician 69:371).

    Between two order statistics of `replicates` [resamples]. Resamples of n problems spread too little by the factor
    sqrt((n - 1) / n), and know no more of their spread than a t distribution with n - 1 degrees of freedom; the levels
    are moved outwards for both. A replicate that is undefined counts as beyond both ends, so that it can only widen the
    interval. None for a single problem, and where an end is not determined.
    """
    if problems < 2:
        return None
    level = expanded_level(problems, confidence)
    last = len(replicates) - 1
    undefined = np.isnan(replicates)
    # Outwards to an order statistic.
    below, above = math.floor(level * last), math.ceil((1 - level) * last)
    low = float(np.partition(np.where(undefined, -np.inf, replicates), below)[below])
    high = float(np.partition(np.where(undefined, np.inf, replicates), above)[above])
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def expanded_level(problems: int, confidence: float) -> float:
    """The lower level of the expanded percentile interval; (1 - confidence) / 2 for many problems, less for few."""
    from scipy.special import ndtr, stdtrit

    quantile = stdtrit(problems - 1, (1 - confidence) / 2)
    return float(ndtr(math.sqrt(problems / (problems - 1)) * quantile))


def unseen_interval(value: float, least: float, greatest: float, problems: int, confidence: float) -> Interval:
    """Where a mean could be moved by problems of a kind that is not among the `problems` that were seen.

    If a share q of problems like these were of such a kind, none would be among them with probability
    (1 - q)^problems; q is taken as large as the confidence allows (Clopper and Pearson's bound, "the rule of three" for
    95 %), and the values of that share at the extremes, `least` or `greatest`. For 30 problems q is 11.6 %, for 500
    0.7 %. It is all that can be said where every problem has the same value. Over T benchmarks, `problems` is T times
    those of the smallest, which bounds the mean of their shares in the same way.
    """
    q = 1 - ((1 - confidence) / 2) ** (1 / problems)
    return value - q * (value - least), value + q * (greatest - value)


# --- means and their standard errors -------------------------------------------------------------------------------
# `values` holds one array a benchmark, [problems] for problems like these and [problems, repeats] for these problems.
# What is estimated is the unweighted mean of the benchmarks' means.


@dataclass(frozen=True)
class Precision:
    """The standard error of a mean, and how well it is known itself: its degrees of freedom."""

    error: float
    degrees: float

    def quantile(self, level: float) -> float:
        """The quantile of the t distribution."""
        from scipy.special import stdtrit

        return float(stdtrit(self.degrees, level))


def mean_of_means(values: Sequence[Floats]) -> float:
    """The unweighted mean of the benchmarks' means."""
    return math.fsum(float(array.mean()) for array in values) / len(values)


def precision(values: Sequence[Floats]) -> Precision | None:
    """The standard error of the mean of means: from the variance between problems, or that between their samples.

    Of [problems] the variance (n - 1 in the denominator) over n; of [problems, repeats] that of each problem (k - 1)
    over k, and those of all problems add up. Degrees of freedom after Satterthwaite (1946): few where few problems have
    nearly all of the variance, as on a benchmark of which most problems are always failed. None where that is not
    known: no benchmark, a single problem or one sample a problem, or no variance at all.
    """
    if not values or any(array.shape[-1] < 2 for array in values):
        return None
    total = squared = 0.0
    for array in values:
        drawn = array.shape[-1]
        others = array.size // drawn
        parts = array.var(axis=-1, ddof=1) / drawn / (others * len(values)) ** 2
        total += float(parts.sum())
        squared += float((parts**2).sum()) / (drawn - 1)
    error = math.sqrt(total)
    # Equal numbers leave a rounding error, no variance.
    if error <= 1e-9 * max(1.0, max(float(np.abs(array).max()) for array in values)):
        return None
    return Precision(error, total**2 / squared)


def covariance(first: Sequence[Floats], second: Sequence[Floats]) -> float:
    """The covariance of two means of means; problems, or samples of the same number, were drawn together."""
    total = 0.0
    for a, b in zip(first, second, strict=True):
        drawn = a.shape[-1]
        products = (a - a.mean(axis=-1, keepdims=True)) * (b - b.mean(axis=-1, keepdims=True))
        total += float(products.sum()) / ((drawn - 1) * drawn * (a.size // drawn * len(first)) ** 2)
    return total


def mean_interval(values: Sequence[Floats], confidence: float, support: tuple[float, float] | None) -> Interval | None:
    """The t interval of the mean of means, within `support`: the least and greatest value of a problem or sample.

    Without any variance: `unseen_interval` for problems like these, `agreeing_interval` for these problems. None where
    that needs a support that is not known, and for one sample a problem, which says nothing of others.
    """
    if not values or (values[0].ndim > 1 and any(array.shape[-1] < 2 for array in values)):
        return None
    value, known = mean_of_means(values), precision(values)
    least, greatest = support or (-math.inf, math.inf)
    if known is not None:
        half = known.quantile((1 + confidence) / 2) * known.error
        return max(least, value - half), min(greatest, value + half)
    if support is None or (values[0].ndim == 1 and any(np.ptp(array) > 1e-9 for array in values)):
        return None
    if values[0].ndim > 1:
        return agreeing_interval(values, least, greatest, confidence)
    return unseen_interval(value, least, greatest, len(values) * min(map(len, values)), confidence)


def agreeing_interval(samples: Sequence[Floats], least: float, greatest: float, confidence: float) -> Interval:
    """The interval of a mean where all samples of every problem agree, whose values lie in [least, greatest].

    If a share q of the samples of these problems had another value than their problem's, all N of them would agree with
    probability of at most (1 - q)^N (of all ways to spread the share over the problems, the even one is the likeliest
    to go unseen); q is taken as large as the confidence allows, and the others at the extremes. Over T benchmarks, N is
    T times the samples of the smallest, which bounds the mean of their shares in the same way.
    """
    value = mean_of_means(samples)
    size = len(samples) * min(values.size for values in samples)
    q = 1 - ((1 - confidence) / 2) ** (1 / size)
    top, bottom = max(float(values.max()) for values in samples), min(float(values.min()) for values in samples)
    return max(least, value - q * (top - least)), min(greatest, value + q * (greatest - bottom))


def ratio_interval(over: Sequence[Floats], under: Sequence[Floats], confidence: float) -> Interval | None:
    """Fieller's (1954) interval of the ratio of two means of means, `over` / `under`.

    All ratios r for which the mean of `over` - r `under` is within its t interval of 0. The t quantile is that of the
    difference of the two, so that this interval leaves out 1 just where `mean_interval` of the difference leaves out 0.
    None where the difference has no variance, and where `under` itself cannot be told from 0, for then any ratio fits.
    """
    known = precision([a - b for a, b in zip(over, under, strict=True)])
    if known is None:
        return None
    t = known.quantile((1 + confidence) / 2)
    a, b = mean_of_means(over), mean_of_means(under)
    lead = b * b - t * t * covariance(under, under)
    if lead <= 0:
        return None
    middle, last = a * b - t * t * covariance(over, under), a * a - t * t * covariance(over, over)
    root = math.sqrt(max(0.0, middle * middle - lead * last))
    return (middle - root) / lead, (middle + root) / lead


# --- training seeds ------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation between training seeds (n - 1 in the denominator); None for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
