"""Stage compare: the samples of every model -> one tidy table of scores, differences, intervals and tests.

scores/<arm>-seed<k>/<task>.parquet -> comparison.csv (all numbers) and comparison.json (the question and its answers).

Each row of the table is one number: `arm`, `against` (the arm that it is compared with, else empty), `seed` (a training
seed, or `all`), `task` (or `mean`, the unweighted mean of the tasks, as in the paper), `metric`, `value`; its interval
`low` to `high` for problems like these and `fixed_low` to `fixed_high` for these problems, both for these trained
models (`rsd.statistics`); of a difference over all seeds `p` by sign flips and `p_holm` corrected for all that was
tested (`rsd.significance`); `n_problems`, `n_samples` (of `arm`), and the `paper`'s value. Empty means missing or
undefined, never zero. A sample file that is not there leaves its rows empty with n = 0, and so every mean that it
belongs to: a mean of a part is never shown as the whole.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from rsd import question, significance, statistics
from rsd.checksums import checked_path, verify
from rsd.metrics import METRICS, Cell, read_cell
from rsd.provenance import stamp
from rsd.records import REMEDY, write_record
from rsd.scores import ALL_SEEDS, MEAN, MISSING, Difference, Key, Scores, by_problem, difference, score_table
from rsd.statistics import Estimate, Floats

LOG = logging.getLogger(__name__)

POINTS = (-100.0, 100.0)
POWER = 0.8  # of the smallest difference
NONE = (None, None)

# (arm, against, task) -> p and its correction; None where samples are missing
Tests = Mapping[tuple[str, str, str], tuple[float | None, float | None]]


@dataclass(frozen=True)
class Row:
    """One number of the comparison table; None is an empty cell."""

    arm: str
    against: str
    seed: str
    task: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    fixed_low: float | None
    fixed_high: float | None
    p: float | None
    p_holm: float | None
    n_problems: int
    n_samples: int
    paper: float | None


class Numbers(NamedTuple):
    """Value and intervals of a row."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    fixed_low: float | None = None
    fixed_high: float | None = None


def run_compare(*, scores: Path, settings: dict[str, Any], output: Path, summary: Path) -> None:
    """Compares the arms of `settings` (config.compare_settings) on the samples below the folder `scores`.

    Raises ValueError for samples that cannot be compared: an unreadable file, no rows, one sample twice, or two models
    measured on different problems of a task.
    """
    files = sample_files(Path(scores), settings)
    cells = {key: read_cell(path) for key, path in files.items() if path.exists()}
    missing = [f"{arm}-seed{seed}/{task}" for arm, seed, task in files if (arm, seed, task) not in cells]
    for name in missing:
        LOG.warning("%s has no samples; its cells stay empty", name)
    table = score_table(cells, settings)
    rows = [*score_rows(table, settings), *difference_rows(table, settings)]
    with checked_path(output) as temporary:
        temporary.write_text(to_csv(rows), encoding="utf-8")
    inputs = {"/".join(key): files[key] for key in cells}
    write_record(
        Path(summary),
        summarise(rows, cells, settings)
        | {"missing": missing, "provenance": stamp(settings, inputs, settings["seed"])},
    )
    LOG.info("%d numbers from %d sample files, %d files missing", len(rows), len(cells), len(missing))


def sample_files(scores: Path, settings: Mapping[str, Any]) -> dict[Key, Path]:
    """Where the samples of every arm, seed and task of the settings should be."""
    return {
        (arm, str(seed), task): scores / f"{arm}-seed{seed}" / f"{task}.parquet"
        for arm, entry in settings["arms"].items()
        for seed in entry["seeds"]
        for task in settings["tasks"]
    }


# --- rows ----------------------------------------------------------------------------------------------------------


def score_rows(table: Mapping[Key, Scores], settings: Mapping[str, Any]) -> Iterator[Row]:
    """The metrics of every arm, seed and task, and the deviation of its accuracy between seeds."""
    tasks = [*settings["tasks"], MEAN]
    for arm, entry in settings["arms"].items():
        seeds = [str(seed) for seed in entry["seeds"]]
        for seed, task in itertools.product([*seeds, ALL_SEEDS], tasks):
            scores = table.get((arm, seed, task), MISSING)
            for metric, definition in METRICS.items():
                published = paper_accuracy(settings, arm, task) if (seed, metric) == (ALL_SEEDS, "accuracy") else None
                numbers = _score(scores, metric, definition.support, settings["confidence"])
                yield _row((arm, "", seed, task, metric), numbers, scores, paper=published)
        for task in tasks:
            values = [_point(table.get((arm, seed, task), MISSING).estimates.get("accuracy")) for seed in seeds]
            scores = table.get((arm, ALL_SEEDS, task), MISSING)
            yield _row((arm, "", ALL_SEEDS, task, "seed_sd"), Numbers(_deviation(values)), scores)


def difference_rows(table: Mapping[Key, Scores], settings: Mapping[str, Any]) -> Iterator[Row]:
    """The differences of every pair of arms, for each seed and task, and their deviation between seeds."""
    tasks = [*settings["tasks"], MEAN]
    tests = run_tests(table, settings)
    for arm, against in question.pairs(settings):
        deviations: dict[str, list[float | None]] = {task: [] for task in tasks}
        seeds = [*question.paired_seeds(settings, arm, against), (ALL_SEEDS, ALL_SEEDS)]
        for (seed, other), task in itertools.product(seeds, tasks):
            scores = table.get((arm, seed, task), MISSING)
            found = difference(scores, table.get((against, other, task), MISSING))
            # Both have the same seed, unless one was not trained.
            shown = seed if settings["arms"][arm]["traces"] else other
            yield from _pair_rows((arm, against, shown, task), found, scores, tests, settings)
            if seed != ALL_SEEDS:
                deviations[task].append(found.points if found else None)
        for task in tasks:
            scores = table.get((arm, ALL_SEEDS, task), MISSING)
            yield _row((arm, against, ALL_SEEDS, task, "seed_sd"), Numbers(_deviation(deviations[task])), scores)


def _pair_rows(
    names: tuple[str, str, str, str],
    found: Difference | None,
    scores: Scores,
    tests: Tests,
    settings: Mapping[str, Any],
) -> Iterator[Row]:
    """The rows of one difference: in points, relative, and over all seeds the smallest that could have been seen."""
    arm, against, seed, task = names
    confidence = settings["confidence"]
    scores = scores if found else MISSING
    p, p_holm = tests[arm, against, task] if seed == ALL_SEEDS else (None, None)
    points = _points(found, confidence) if found else Numbers()
    yield _row((*names, "difference_points"), points, scores, p=p, p_holm=p_holm)
    published = None
    if (seed, task) == (ALL_SEEDS, MEAN) and against == settings["base"]:
        published = paper_relative_change(settings, arm)
    relative = _relative(found, confidence) if found else Numbers()
    yield _row((*names, "relative_change"), relative, scores, paper=published)
    if seed == ALL_SEEDS:
        seen = _smallest(found.problems, confidence) if found else None
        yield _row((*names, "smallest_difference"), Numbers(seen), scores)
        seen = _smallest(found.samples, confidence) if found else None
        yield _row((*names, "smallest_difference_fixed"), Numbers(seen), scores)


def _row(
    names: tuple[str, str, str, str, str],
    numbers: Numbers,
    scores: Scores,
    *,
    p: float | None = None,
    p_holm: float | None = None,
    paper: float | None = None,
) -> Row:
    return Row(*names, *numbers, p, p_holm, scores.n_problems, scores.n_samples, paper)


def _score(scores: Scores, metric: str, support: tuple[float, float] | None, confidence: float) -> Numbers:
    """Value and intervals of a metric; an undefined value has none."""
    estimate = scores.estimates.get(metric)
    if estimate is None or _point(estimate) is None:
        return Numbers()
    fixed = statistics.mean_interval(scores.samples.get(metric, ()), confidence, support)
    return Numbers(estimate.point, *(estimate.interval(confidence, support) or NONE), *(fixed or NONE))


def _points(found: Difference, confidence: float) -> Numbers:
    like, fixed = (statistics.mean_interval(values, confidence, POINTS) for values in (found.problems, found.samples))
    return Numbers(found.points, *(like or NONE), *(fixed or NONE))


def _relative(found: Difference, confidence: float) -> Numbers:
    def change(over: Sequence[Floats], under: Sequence[Floats]) -> tuple[float | None, float | None]:
        ratios = statistics.ratio_interval(over, under, confidence)
        return (100 * (ratios[0] - 1), 100 * (ratios[1] - 1)) if ratios else NONE

    if found.relative is None:
        return Numbers()
    like = change(by_problem(found.over), by_problem(found.under))
    return Numbers(found.relative, *like, *change(found.over, found.under))


def _smallest(values: Sequence[Floats], confidence: float) -> float | None:
    """The true difference that this run would have seen with a power of 80 %, by its own standard error."""
    known = statistics.precision(values)
    return significance.smallest_difference(known, confidence, POWER) if known else None


def run_tests(table: Mapping[Key, Scores], settings: Mapping[str, Any]) -> Tests:
    """The p-value of every comparison on every task and on the mean, over all seeds, and its correction."""
    found: dict[tuple[str, str, str], tuple[float | None, float | None]] = {}
    for family in question.families(settings, MEAN):
        values = [_p_value(*test, table, settings) for test in family]
        found |= dict(zip(family, zip(values, significance.holm(values), strict=True), strict=True))
    if len(settings["tasks"]) == 1:
        found |= {(arm, against, settings["tasks"][0]): both for (arm, against, _), both in found.items()}
    return found


def _p_value(
    arm: str, against: str, task: str, table: Mapping[Key, Scores], settings: Mapping[str, Any]
) -> float | None:
    found = difference(*(table.get((name, ALL_SEEDS, task), MISSING) for name in (arm, against)))
    if found is None:
        return None
    rng = statistics.generator(settings["seed"], f"{arm} against {against} on {task}")
    return significance.sign_flip_p(found.problems, settings["flips"], rng)


def _deviation(values: Sequence[float | None]) -> float | None:
    """The deviation between seeds; None where one of them is missing."""
    present = [value for value in values if value is not None]
    return statistics.spread(present) if len(present) == len(values) else None


def _point(estimate: Estimate | None) -> float | None:
    return estimate.point if estimate and math.isfinite(estimate.point) else None


def paper_accuracy(settings: Mapping[str, Any], arm: str, task: str) -> float | None:
    """The published accuracy, per cent; for the mean, of the published values, if they are of exactly these tasks."""
    published = settings["reference"]["accuracy"].get(arm, {})
    if task != MEAN:
        return published.get(task)
    return sum(published.values()) / len(published) if published and set(published) == set(settings["tasks"]) else None


def paper_relative_change(settings: Mapping[str, Any], arm: str) -> float | None:
    """The published change of the mean, per cent of the base; only where this run's tasks are the published ones."""
    tasks = {task for accuracies in settings["reference"]["accuracy"].values() for task in accuracies}
    return settings["reference"]["mean_relative_change"].get(arm) if tasks == set(settings["tasks"]) else None


# --- files ---------------------------------------------------------------------------------------------------------


def summarise(rows: Sequence[Row], cells: Mapping[Key, Cell], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The question, and for each pair of arms the difference of the mean over tasks with its verdict."""
    primary, others = question.families(settings, MEAN)
    return {
        "base": settings["base"],
        "arms": settings["arms"],
        "tasks": {task: _task_size(task, cells) for task in settings["tasks"]},
        "confidence": settings["confidence"],
        "resamples": settings["resamples"],
        "question": question.describe(settings),
        "tests": {
            "flips": settings["flips"],
            "family": question.family_text(settings),
            "primary": len(primary),
            "others": len(others),
        },
        "comparisons": [_answer(rows, arm, against) for arm, against in question.pairs(settings)],
    }


def _task_size(task: str, cells: Mapping[Key, Cell]) -> dict[str, Any]:
    sizes = [(len(cell.problems), len(cell.repeats)) for key, cell in cells.items() if key[2] == task]
    problems, samples = sizes[0] if sizes else (None, None)
    return {"problems": problems, "samples_a_problem": samples}


def _answer(rows: Sequence[Row], arm: str, against: str) -> dict[str, Any]:
    found = {(row.metric, row.seed): row for row in rows if (row.arm, row.against, row.task) == (arm, against, MEAN)}
    accuracy = {
        row.arm: row.value
        for row in rows
        if (row.against, row.seed, row.task, row.metric) == ("", ALL_SEEDS, MEAN, "accuracy")
    }
    points, change = found["difference_points", ALL_SEEDS], found["relative_change", ALL_SEEDS]
    by_seed = [
        row.value for (metric, seed), row in found.items() if metric == "difference_points" and seed != ALL_SEEDS
    ]
    return {
        "arm": arm,
        "against": against,
        "verdict": question.verdict(points.value, points.low, points.high),
        "accuracy": accuracy[arm],
        "accuracy_against": accuracy[against],
        "difference_points": {"value": points.value, "low": points.low, "high": points.high},
        "fixed": {"low": points.fixed_low, "high": points.fixed_high},
        "p": points.p,
        "p_holm": points.p_holm,
        "relative_change": {"value": change.value, "low": change.low, "high": change.high, "paper": change.paper},
        "difference_by_seed": by_seed,
        "seed_sd": found["seed_sd", ALL_SEEDS].value,
        "smallest_difference": found["smallest_difference", ALL_SEEDS].value,
        "smallest_difference_fixed": found["smallest_difference_fixed", ALL_SEEDS].value,
    }


def to_csv(rows: Sequence[Row]) -> str:
    """The table as CSV; numbers with ten digits, empty cells for None."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    for row in rows:
        values = [getattr(row, field.name) for field in fields(Row)]
        writer.writerow(
            "" if value is None else f"{value:.10g}" if isinstance(value, float) else value for value in values
        )
    return text.getvalue()


def read_comparison(path: Path) -> list[Row]:
    """The rows of comparison.csv; ValueError naming the file and the remedy where it is another kind of file."""
    verify(path)
    names = [field.name for field in fields(Row)]
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != names:
            raise ValueError(f"{path} has the columns {reader.fieldnames}, expected {names}; {REMEDY}")
        records = list(reader)
    return [_parse(record) for record in records]


def _parse(record: Mapping[str, str]) -> Row:
    def number(name: str) -> float | None:
        return float(record[name]) if record[name] else None

    return Row(
        arm=record["arm"],
        against=record["against"],
        seed=record["seed"],
        task=record["task"],
        metric=record["metric"],
        value=number("value"),
        low=number("low"),
        high=number("high"),
        fixed_low=number("fixed_low"),
        fixed_high=number("fixed_high"),
        p=number("p"),
        p_holm=number("p_holm"),
        n_problems=int(record["n_problems"]),
        n_samples=int(record["n_samples"]),
        paper=number("paper"),
    )


def read_summary(path: Path) -> dict[str, Any]:
    """comparison.json; ValueError naming the file and the remedy where it is no JSON object."""
    try:
        verify(Path(path))
        summary = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON ({error}); {REMEDY}") from error
    if not isinstance(summary, dict) or "comparisons" not in summary:
        raise ValueError(f"{path} is not the summary of a comparison; {REMEDY}")
    return summary
