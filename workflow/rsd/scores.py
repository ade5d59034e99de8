"""The samples of all models -> the scores of every arm, seed and task, and the differences between two of them.

Each score is there twice: as an `Estimate` over resampled problems, for problems like these, and as the samples whose
mean it is, for these problems (`rsd.statistics` says what that means).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsd import statistics
from rsd.metrics import COLUMNS, METRICS, Cell, Metric, sampled
from rsd.statistics import Estimate, Floats

ALL_SEEDS = "all"
MEAN = "mean"

# arm, seed or `all`, task or `mean`
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Scores:
    """One arm, seed (or all) and task (or mean), by metric; empty where samples are missing.

    estimates  every metric, with its resamples of the problems
    samples    of the metrics that are means of samples (`metrics.sampled`): one array [problems, repeats] a benchmark,
               averaged over the training seeds
    """

    estimates: Mapping[str, Estimate]
    samples: Mapping[str, tuple[Floats, ...]]
    n_problems: int
    n_samples: int


MISSING = Scores({}, {}, 0, 0)


def score_table(cells: Mapping[Key, Cell], settings: Mapping[str, Any]) -> dict[Key, Scores]:
    """The scores of every arm, each seed and all seeds, each task and the mean of the tasks.

    `settings` is `config.compare_settings`. Raises ValueError for models that were measured on different samples.
    """
    table: dict[Key, Scores] = {}
    for task in settings["tasks"]:
        table |= _task_scores(task, {key: cell for key, cell in cells.items() if key[2] == task}, settings)
    for arm, entry in settings["arms"].items():
        seeds = [str(seed) for seed in entry["seeds"]]
        for task in settings["tasks"]:
            table[arm, ALL_SEEDS, task] = _over_seeds([table.get((arm, seed, task), MISSING) for seed in seeds])
        for seed in [*seeds, ALL_SEEDS]:
            parts = [table.get((arm, seed, task), MISSING) for task in settings["tasks"]]
            table[arm, seed, MEAN] = _over_tasks(parts)
    return table


def _task_scores(task: str, cells: Mapping[Key, Cell], settings: Mapping[str, Any]) -> dict[Key, Scores]:
    """The scores of every model on one task, all resampled together."""
    if not cells:
        return {}
    first, *others = cells
    for key in others:
        _check_same(cells[first], cells[key], f"{first[0]}-seed{first[1]}/{task}", f"{key[0]}-seed{key[1]}/{task}")
    values = np.concatenate([cell.values for cell in cells.values()], axis=1)
    columns = iter(statistics.column_means(task, values, settings["resamples"], settings["seed"]))
    table = {}
    for key, cell in cells.items():
        means = dict(zip(COLUMNS, itertools.islice(columns, len(COLUMNS)), strict=True))
        estimates = {name: _ratio(metric, means) for name, metric in METRICS.items()}
        samples = {name: (array,) for name, array in sampled(cell).items()}
        table[key] = Scores(estimates, samples, len(cell.problems), cell.n_samples)
    return table


def _check_same(first: Cell, second: Cell, first_name: str, second_name: str) -> None:
    what = None
    if first.problems != second.problems:
        what = f"samples of different problems ({len(second.problems)} and {len(first.problems)})"
    elif first.repeats != second.repeats:
        what = f"different samples of each problem ({len(second.repeats)} and {len(first.repeats)})"
    if what:
        raise ValueError(
            f"{second_name} and {first_name} hold {what}, so they cannot be compared; delete the older one "
            "and run again"
        )


def _ratio(metric: Metric, means: Mapping[str, Estimate]) -> Estimate:
    return statistics.combine(lambda over, under: metric.unit * over / under, means[metric.over], means[metric.under])


def _over_seeds(parts: Sequence[Scores]) -> Scores:
    """The unweighted mean of one arm's seeds on one task; missing where one of them is."""
    if not all(part.estimates for part in parts):
        return MISSING
    everywhere = set.intersection(*(set(part.samples) for part in parts))
    samples = {
        name: (np.mean([part.samples[name][0] for part in parts], axis=0),) for name in METRICS if name in everywhere
    }
    return Scores(_means(parts), samples, parts[0].n_problems, sum(part.n_samples for part in parts))


def _over_tasks(parts: Sequence[Scores]) -> Scores:
    """The unweighted mean of tasks; missing where one of them is."""
    if not all(part.estimates for part in parts):
        return MISSING
    everywhere = set.intersection(*(set(part.samples) for part in parts))
    samples = {
        name: tuple(array for part in parts for array in part.samples[name]) for name in METRICS if name in everywhere
    }
    return Scores(_means(parts), samples, sum(part.n_problems for part in parts), sum(part.n_samples for part in parts))


def _means(parts: Sequence[Scores]) -> dict[str, Estimate]:
    return {name: statistics.mean([part.estimates[name] for part in parts]) for name in METRICS}


@dataclass(frozen=True)
class Difference:
    """The accuracies of two models on the same samples, in per cent: one array [problems, repeats] a benchmark."""

    over: tuple[Floats, ...]
    under: tuple[Floats, ...]

    @property
    def points(self) -> float:
        """The first accuracy less the second, in points."""
        return statistics.mean_of_means(self.over) - statistics.mean_of_means(self.under)

    @property
    def relative(self) -> float | None:
        """The same in per cent of the second; None where that is 0."""
        under = statistics.mean_of_means(self.under)
        return 100 * self.points / under if under > 0 else None

    @property
    def samples(self) -> list[Floats]:
        """The differences of the samples, one array [problems, repeats] a benchmark, in points."""
        return [a - b for a, b in zip(self.over, self.under, strict=True)]

    @property
    def problems(self) -> list[Floats]:
        """The differences on each problem, one array [problems] a benchmark, in points."""
        return by_problem(self.samples)


def difference(scores: Scores, against: Scores) -> Difference | None:
    """What the accuracy of `scores` is more than that of `against`; None where one is missing."""
    if not scores.samples or not against.samples:
        return None
    return Difference(scores.samples["accuracy"], against.samples["accuracy"])


def by_problem(samples: Sequence[Floats]) -> list[Floats]:
    """The mean of each problem's samples, one array [problems] a benchmark."""
    return [values.mean(axis=1) for values in samples]
