"""`rsd power`: the smallest difference that a configured experiment can see, before anything has run.

Configuration -> a printed table, and JSON where asked for. The design is the configuration's: problems, samples a
problem, training seeds, the comparisons of its question. What no design says is assumed, shown, and can be changed by
options.

The model: a sample of a problem is right with the problem's chance. Of the variance a (1 - a) of one sample of a model
of accuracy a, the share `between` is variance of the chances between problems, the rest is drawn anew with each sample.
The chances of two models on the same problem correlate by `correlation`, their samples are independent. With n
problems, k samples, and s and t training seeds, the variance of a difference is

    these problems        (1 - between) a (1 - a) (1 / (k s) + 1 / (k t)) / n
    problems like these   the same + 2 between a (1 - a) (1 - correlation) / n
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd import config as settings_of
from rsd import question
from rsd.config import Config, stated_problems
from rsd.formatting import given, number, signed
from rsd.runtime import write_json
from rsd.scores import MEAN
from rsd.significance import smallest_difference
from rsd.statistics import Precision

RESULTS = Path("results")
# Of all accuracies the one that asks for most.
WORST = 50.0

Numbers = Mapping[str | None, float]


@dataclass(frozen=True)
class Task:
    """A benchmark of the design: problems, samples a problem, and the assumed accuracy and variance split."""

    problems: int
    repeats: int
    accuracy: float  # share
    between: float


def run_power(
    config: Config, *, accuracy: Numbers, between: Numbers, correlation: float, power: float, output: Path | None
) -> str:
    """The text to print; `output` takes the numbers as JSON.

    `accuracy` (per cent) and `between` (share) are by task, under None for all others. Raises ValueError for an
    assumption that is impossible or of an unknown task, for a task whose number of problems is not known, and where
    there is nothing to compare.
    """
    check_assumptions(config, accuracy, between, correlation, power)
    settings = settings_of.compare_settings(config)
    pairs = question.asked(settings)
    if not pairs:
        raise ValueError("the configuration runs one arm, so there is no difference to see; add one to run.arms")
    levels, sources = assumed_accuracies(config, accuracy)
    tasks = {
        name: Task(
            count_problems(config, name, RESULTS),
            config["tasks"][name]["repeats"],
            levels[name] / 100,
            between.get(name, between[None]),
        )
        for name in config["run"]["tasks"]
    }
    facts = {
        "experiment": config["experiment"],
        "confidence": settings["confidence"],
        "power": power,
        "correlation": correlation,
        "tasks": {name: vars(task) | {"accuracy_from": sources[name]} for name, task in tasks.items()},
        "comparisons": [
            {
                "arm": arm,
                "against": against,
                "seeds": [len(settings["arms"][name]["seeds"]) for name in (arm, against)],
                "trained": [bool(settings["arms"][name]["traces"]) for name in (arm, against)],
                "published": published_difference(config, arm, against),
                "smallest": smallest_of(tasks, settings, (arm, against), correlation, power),
            }
            for arm, against in pairs
        ],
    }
    if output is not None:
        write_json(output, facts)
    return _text(facts)


def check_assumptions(config: Config, accuracy: Numbers, between: Numbers, correlation: float, power: float) -> None:
    """ValueError naming the option, its value and its bounds."""
    for option, values, least, greatest in (("--accuracy", accuracy, 0, 100), ("--between", between, 0, 1)):
        for task, value in values.items():
            if task is not None and task not in config["run"]["tasks"]:
                raise ValueError(f"{option} {task}={value:g}: not in run.tasks; name one of {_listed(config)}")
            # At the ends nothing would vary, or no chance be shared out.
            if not least < value < greatest:
                raise ValueError(f"{option} {value:g}: expected a number between {least} and {greatest}; correct it")
    if not -1 <= correlation <= 1:
        raise ValueError(f"--correlation {correlation:g}: expected a number from -1 to 1; correct it")
    if not 0.5 <= power < 1:
        raise ValueError(f"--power {power:g}: expected a number from 0.5 to below 1; correct it")


def _listed(config: Config) -> str:
    return ", ".join(config["run"]["tasks"])


def assumed_accuracies(config: Config, accuracy: Numbers) -> tuple[dict[str, float], dict[str, str]]:
    """The accuracy of each task in per cent, and where it comes from: the option, the published one, the worst case."""
    published = config["reference"]["accuracy"].get(config["run"]["base"], {})
    levels, sources = {}, {}
    for task in config["run"]["tasks"]:
        if task in accuracy or None in accuracy:
            levels[task], sources[task] = accuracy.get(task, accuracy.get(None, math.nan)), "--accuracy"
        elif 0 < published.get(task, 0) < 100:
            levels[task], sources[task] = published[task], f"reference.accuracy.{config['run']['base']}"
        else:
            levels[task], sources[task] = WORST, "not known: the worst case"
    return levels, sources


def count_problems(config: Config, task: str, results: Path) -> int:
    """How many problems of a task the experiment uses; ValueError with the remedy where that is not known yet."""
    prepared = results / config["experiment"] / "data" / "benchmarks" / f"{task}.jsonl"
    if config["tasks"][task]["problems"] is None and prepared.exists():
        known = sum(1 for _ in prepared.open(encoding="utf-8"))
        return min(known, config["tasks"][task]["limit"] or known)
    if (stated := stated_problems(config, task)) is None:
        raise ValueError(
            f"tasks.{task}.problems: missing, and {prepared} is not there yet, so the number of problems is not known; "
            "write it into the configuration, or prepare the benchmark first (snakemake --cores 1 data)"
        )
    return stated


def published_difference(config: Config, arm: str, against: str) -> float | None:
    """The published difference of the mean of the tasks in points; None where it is not known for just these tasks."""
    base, tasks = config["run"]["base"], config["run"]["tasks"]
    published = config["reference"]["accuracy"].get(base, {})
    if set(published) != set(tasks):
        return None
    changes = config["reference"]["mean_relative_change"] | {base: 0.0}
    if arm not in changes or against not in changes:
        return None
    return (changes[arm] - changes[against]) / 100 * sum(published.values()) / len(published)


# --- the design ----------------------------------------------------------------------------------------------------


def task_precision(task: Task, seeds: Sequence[int], correlation: float) -> tuple[Precision, Precision | None]:
    """The precision of a difference (shares) for problems like these and for these problems.

    The second is None for one sample a problem, whose interval cannot be determined.
    """
    variance = task.accuracy * (1 - task.accuracy)
    drawn = (1 - task.between) * variance * sum(1 / (task.repeats * count) for count in seeds) / task.problems
    chosen = 2 * task.between * variance * (1 - correlation) / task.problems
    like = Precision(math.sqrt(drawn + chosen), task.problems - 1)
    if task.repeats < 2:
        return like, None
    return like, Precision(math.sqrt(drawn), task.problems * (task.repeats - 1))


def mean_precision(parts: Sequence[Precision | None]) -> Precision | None:
    """The precision of the mean of independent tasks (Satterthwaite 1946); None where that of one is."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    variances = [(part.error / len(parts)) ** 2 for part in known]
    squared = sum(variance**2 / part.degrees for variance, part in zip(variances, known, strict=True))
    return Precision(math.sqrt(sum(variances)), sum(variances) ** 2 / squared)


def smallest_of(
    tasks: Mapping[str, Task], settings: Mapping[str, Any], pair: question.Pair, correlation: float, power: float
) -> dict[str, dict[str, float | None]]:
    """Task, or `mean` -> the smallest difference in points for `fixed` (these problems) and `like` (like these)."""
    seeds = [len(settings["arms"][name]["seeds"]) for name in pair]
    both = {name: task_precision(task, seeds, correlation) for name, task in tasks.items()}
    like: dict[str, Precision | None] = {
        name: part[0] if tasks[name].problems > 1 else None for name, part in both.items()
    }
    fixed = {name: part[1] for name, part in both.items()}
    for parts in (like, fixed):
        parts[MEAN] = mean_precision(list(parts.values()))

    def points(known: Precision | None) -> float | None:
        return 100 * smallest_difference(known, settings["confidence"], power) if known else None

    return {name: {"fixed": points(fixed[name]), "like": points(like[name])} for name in like}


# --- the text ------------------------------------------------------------------------------------------------------


def _text(facts: Mapping[str, Any]) -> str:
    lines = [
        f"The smallest true difference in accuracy that experiment {facts['experiment']} would see, in points:",
        f"its {100 * facts['confidence']:g} % interval leaves out 0 with a probability of {100 * facts['power']:g} %. "
        "The last column decides the question.",
    ]
    for comparison in facts["comparisons"]:
        lines += ["", *_comparison_lines(comparison, facts["tasks"])]
    assumed = [("assumed", "accuracy (--accuracy)", "variance between problems (--between)")]
    assumed += [
        (
            f"  {name}",
            f"{given(100 * task['accuracy'])} % ({task['accuracy_from']})",
            f"{given(100 * task['between'])} %",
        )
        for name, task in facts["tasks"].items()
    ]
    correlation = f"correlation of two models' chances on a problem: {given(facts['correlation'])} (--correlation)"
    return "\n".join([*lines, "", *_aligned(assumed), "  " + correlation, "", *_seed_lines(facts["comparisons"])])


def _comparison_lines(comparison: Mapping[str, Any], tasks: Mapping[str, Any]) -> list[str]:
    rows = [(_title(comparison), "problems x samples", "these problems", "problems like these")]
    rows += [
        (f"  {name}", f"{task['problems']} x {task['repeats']}", *_cells(comparison["smallest"][name]))
        for name, task in tasks.items()
    ]
    if len(tasks) > 1:
        rows.append(("  mean of the tasks", "", *_cells(comparison["smallest"][MEAN])))
    lines = _aligned(rows)
    if comparison["published"] is not None:
        lines.append(f"  published: {signed(comparison['published'], 2)} points on the mean of the tasks")
    return lines


def _title(comparison: Mapping[str, Any]) -> str:
    return f"{comparison['arm']} against {comparison['against']}"


def _cells(smallest: Mapping[str, float | None]) -> tuple[str, str]:
    fixed, like = ("not determined" if smallest[key] is None else number(smallest[key], 2) for key in ("fixed", "like"))
    return fixed, like


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows in columns as wide as their widest cells, the first to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(cells)
        ).rstrip()
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]


def _seed_lines(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the table leaves out: other training seeds."""
    moved = []
    for comparison in comparisons:
        parts = [
            1 / seeds for seeds, trained in zip(comparison["seeds"], comparison["trained"], strict=True) if trained
        ]
        if parts:
            counts = " and ".join(map(str, comparison["seeds"]))
            moved.append(f"  {_title(comparison)}: {number(math.sqrt(sum(parts)), 2)} s ({counts} seeds)")
    if not moved:
        return ["No model of these comparisons is trained, so training seeds do not matter."]
    return [
        "All this is for the models as they come out of training. If another training seed moves an accuracy by s",
        "points (standard deviation; the run reports it), chance in training alone moves a difference by",
        *moved,
        "A claim about the method, and not just these models, needs a difference well above that too.",
    ]
