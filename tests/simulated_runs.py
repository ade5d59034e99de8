"""How often intervals hold the truth and tests raise a false alarm, by simulation; docs/method.md quotes the numbers.

Two equally good models answer the same benchmarks: each problem has a chance of success that both models share with
probability CORRELATION, else each has its own from the same Beta distribution. So the true chances correlate by
CORRELATION, their mean is exactly the accuracy asked for, and no difference between the models is real for problems
like these, while there is one on the very problems that were drawn.

With a gain, a share of the problems, picked at random, gives the first model that part of what it lacks there.

By hand, the table of docs/method.md (about half an hour): PYTHONPATH=workflow python tests/simulated_runs.py 4000
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np

from rsd import significance, statistics
from rsd.statistics import Floats, Interval

CORRELATION = 0.7
CONFIDENCE = 0.95
SHARE = (0.0, 1.0)
DIFFERENCE = (-1.0, 1.0)


@dataclass(frozen=True)
class Task:
    """A benchmark: how many problems and samples, its mean accuracy, and which share of a sample's variance lies
    between problems."""

    problems: int
    repeats: int
    accuracy: float
    between: float


@dataclass(frozen=True)
class Design:
    """What is simulated: benchmarks, and on which share of the problems the first model gains which part."""

    tasks: tuple[Task, ...]
    share: float = 0.0
    gain: float = 0.0

    @property
    def accuracy(self) -> float:
        """Of the first model on problems like these, the mean of the tasks."""
        return sum(task.accuracy for task in self.tasks) / len(self.tasks) + self.difference

    @property
    def difference(self) -> float:
        """Of the two models, likewise."""
        return self.share * self.gain * sum(1 - task.accuracy for task in self.tasks) / len(self.tasks)


AIME24, AIME25 = Task(30, 64, 0.027, 0.6), Task(30, 64, 0.109, 0.6)
GPQA, MATH = Task(198, 16, 0.248, 0.3), Task(500, 8, 0.654, 0.6)
DESIGNS = {
    "AIME 2024, k = 64": Design((AIME24,)),
    "AIME 2024, k = 16": Design((Task(30, 16, 0.027, 0.6),)),
    "AIME 2025, k = 64": Design((AIME25,)),
    "AIME 2025, k = 16": Design((Task(30, 16, 0.109, 0.6),)),
    "GPQA-Diamond, k = 16": Design((GPQA,)),
    "MATH-500, k = 8": Design((MATH,)),
    "MATH-500, k = 2": Design((Task(500, 2, 0.654, 0.6),)),
    "mean of the four": Design((AIME24, AIME25, GPQA, MATH)),
    "AIME 2025, half the rest gained on 5 %": Design((AIME25,), 0.05, 0.5),
    "mean of the four, half the rest gained on 5 %": Design((AIME24, AIME25, GPQA, MATH), 0.05, 0.5),
    "mean of the four, a tenth of it on 30 %": Design((AIME24, AIME25, GPQA, MATH), 0.3, 0.1),
}
# What is simulated -> what the rate should be.
CLAIMS = {
    "accuracy, problems like these": 0.95,
    "difference, problems like these": 0.95,
    "accuracy, these problems": 0.95,
    "difference, these problems": 0.95,
    "relative change, these problems": 0.95,
    "accuracy among finished, these problems": 0.95,
    "false alarms of the sign-flip test": 0.05,
}


def chances(rng: np.random.Generator, task: Task, size: int | None = None) -> Floats:
    """Chances of success of problems with the task's mean and share of variance between problems."""
    strength = (1 - task.between) / task.between
    return rng.beta(task.accuracy * strength, (1 - task.accuracy) * strength, size=size or task.problems)


def two_models(rng: np.random.Generator, task: Task, design: Design) -> tuple[Floats, Floats]:
    """The chances of two models on the same problems, [problems] each; equally good ones but for the gain."""
    shared, first, second = (chances(rng, task) for _ in range(3))
    same = rng.random(task.problems) < CORRELATION
    new, old = np.where(same, shared, first), np.where(same, shared, second)
    eased = rng.random(task.problems) < design.share
    return np.where(eased, new + design.gain * (1 - new), new), old


def draw(rng: np.random.Generator, chance: Floats, repeats: int) -> Floats:
    """Samples [problems, repeats] of zeros and ones."""
    return (rng.random((len(chance), repeats)) < chance[:, None]).astype(np.float64)


def holds(interval: Interval | None, truth: float) -> bool:
    """Whether the interval is there and holds the truth."""
    return interval is not None and interval[0] <= truth <= interval[1]


def simulate(design: Design, rounds: int, resamples: int, flips: int, seed: int = 0) -> dict[str, float | None]:
    """The rates of CLAIMS over `rounds` simulated runs.

    None where no interval was given in any of them, and for the false alarms where there is something to find.
    """
    tasks = design.tasks
    right: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for number in range(rounds):
        rng = np.random.default_rng([seed, number])
        true = [two_models(rng, task, design) for task in tasks]
        new, old = (
            [draw(rng, pair[model], task.repeats) for pair, task in zip(true, tasks, strict=True)] for model in (0, 1)
        )
        finished = [draw(rng, np.full(task.problems, 0.8), task.repeats) for task in tasks]
        is_there: dict[str, tuple[Interval | None, float]] = {}

        # As in scores.py: all columns of a benchmark resampled together, then functions of them.
        columns = [
            statistics.column_means(f"task {place}", np.stack([a.mean(1), b.mean(1)], axis=1), resamples, number)
            for place, (a, b) in enumerate(zip(new, old, strict=True))
        ]
        accuracy = statistics.mean([pair[0] for pair in columns])
        is_there["accuracy, problems like these"] = accuracy.interval(CONFIDENCE, SHARE), design.accuracy

        differences = [a - b for a, b in zip(new, old, strict=True)]
        by_problem = [values.mean(axis=1) for values in differences]
        is_there["difference, problems like these"] = (
            statistics.mean_interval(by_problem, CONFIDENCE, DIFFERENCE),
            design.difference,
        )
        here = [float(np.mean([pair[model].mean() for pair in true])) for model in (0, 1)]
        is_there["accuracy, these problems"] = statistics.mean_interval(new, CONFIDENCE, SHARE), here[0]
        is_there["difference, these problems"] = (
            statistics.mean_interval(differences, CONFIDENCE, DIFFERENCE),
            here[0] - here[1],
        )
        ratio = statistics.ratio_interval(new, old, CONFIDENCE)
        if ratio is not None:
            is_there["relative change, these problems"] = ratio, here[0] / here[1]
        tangent = []
        for a, done in zip(new, finished, strict=True):
            share = (a * done).mean() / done.mean()
            tangent.append(share + (a * done - share * done) / done.mean())
        if any(values.any() for values in tangent):
            # Whether a sample finishes has nothing to do with whether it is right.
            is_there["accuracy among finished, these problems"] = (
                statistics.mean_interval(tangent, CONFIDENCE, SHARE),
                here[0],
            )
        for name, (interval, truth) in is_there.items():
            tried[name] += 1
            right[name] += holds(interval, truth)

        if design.difference:
            continue
        p = significance.sign_flip_p(by_problem, flips, rng)
        tried["false alarms of the sign-flip test"] += 1
        right["false alarms of the sign-flip test"] += p <= 1 - CONFIDENCE
    return {name: right[name] / tried[name] if tried[name] else None for name in CLAIMS}


def main(rounds: int) -> None:
    """Prints one line a design, in per cent."""
    print("| | " + " | ".join(CLAIMS) + " |\n|" + "---|" * (len(CLAIMS) + 1))
    for name, design in DESIGNS.items():
        found = simulate(design, rounds, resamples=1000, flips=1000)
        cells = ["" if value is None else f"{100 * value:.1f}" for value in found.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
