"""Stage compare: the samples of every model -> one tidy table of scores, differences and intervals.

scores/<arm>-seed<k>/<task>.parquet -> comparison.csv (all numbers) and comparison.json (the answers, in short).

Each row of the table is one number: `arm`, `against` (the arm that it is compared with, else empty), `seed` (a training
seed, or `all`), `task` (or `mean`, the unweighted mean of the tasks, as in the paper), `metric`, `value`, the interval
`low` to `high`, `n_problems`, `n_samples` (of `arm`), and the `paper`'s value. Empty means missing or undefined, never
zero. A sample file that is not there leaves its rows empty with n = 0, and so every mean that it belongs to: a mean of
a part is never shown as the whole.

Intervals speak of problems like these, for these trained models (`rsd.statistics` says it in full).
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
from typing import Any

import numpy as np
import pyarrow as pa

from rsd import statistics
from rsd.provenance import stamp
from rsd.records import REMEDY, SAMPLES, read_table
from rsd.runtime import write_json, write_text
from rsd.statistics import Estimate, Floats

LOG = logging.getLogger(__name__)

ALL_SEEDS = "all"
MEAN = "mean"
PER_CENT = (0.0, 100.0)
POINTS = (-100.0, 100.0)

# Per-problem columns, each the mean over the problem's samples.
COLUMNS = ("one", "correct", "exact", "cut", "think_closed", "extractable", "tokens", "finished", "finished_correct")


@dataclass(frozen=True)
class Metric:
    """A ratio of two column means, times `unit`; `support` holds the values that one problem can have."""

    over: str
    under: str
    unit: float
    support: tuple[float, float] | None


METRICS = {
    "accuracy": Metric("correct", "one", 100, PER_CENT),  # avg@k, per cent
    "exact_accuracy": Metric("exact", "one", 100, PER_CENT),  # the same by plain string comparison
    "cut_share": Metric("cut", "one", 100, PER_CENT),  # stopped by the length limit
    "think_closed_share": Metric("think_closed", "one", 100, PER_CENT),
    "extractable_share": Metric("extractable", "one", 100, PER_CENT),
    "mean_tokens": Metric("tokens", "one", 1, None),
    "accuracy_finished": Metric("finished_correct", "finished", 100, None),  # among samples that ended their turn
}


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
    n_problems: int
    n_samples: int
    paper: float | None


@dataclass(frozen=True)
class Cell:
    """The samples of one model on one task: `values` [problems, COLUMNS], problems in the order of their ids."""

    problems: list[str]
    values: Floats
    n_samples: int


@dataclass(frozen=True)
class Scores:
    """Estimates of one arm, seed (or all) and task (or mean), by metric; empty where samples are missing."""

    estimates: Mapping[str, Estimate]
    n_problems: int
    n_samples: int


MISSING = Scores({}, 0, 0)
# arm, seed or `all`, task or `mean`
Key = tuple[str, str, str]


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
    write_text(Path(output), to_csv(rows))
    inputs = {"/".join(key): files[key] for key in cells}
    write_json(
        Path(summary),
        summarise(rows, cells, settings)
        | {"missing": missing, "provenance": stamp(settings, inputs, settings["seed"])},
    )
    LOG.info("%d numbers from %d sample files, %d files missing", len(rows), len(cells), len(missing))


# --- samples -------------------------------------------------------------------------------------------------------


def sample_files(scores: Path, settings: Mapping[str, Any]) -> dict[Key, Path]:
    """Where the samples of every arm, seed and task of the settings should be."""
    return {
        (arm, str(seed), task): scores / f"{arm}-seed{seed}" / f"{task}.parquet"
        for arm, entry in settings["arms"].items()
        for seed in entry["seeds"]
        for task in settings["tasks"]
    }


def read_cell(path: Path) -> Cell:
    """The per-problem means of a sample file; ValueError naming the file where it is empty or holds a sample twice."""
    table = read_table(path, SAMPLES)
    if table.num_rows == 0:
        raise ValueError(f"{path} holds no samples; {REMEDY}")
    problems, index = np.unique(np.asarray(table["problem_id"].to_pylist(), dtype=str), return_inverse=True)
    repeat = table["repeat"].to_numpy()
    if len(np.unique(np.stack([index, repeat]), axis=1).T) != table.num_rows:
        raise ValueError(f"{path} holds a sample (problem_id, repeat) twice; {REMEDY}")
    samples = _sample_columns(table)
    counts = np.bincount(index)
    sums = np.stack([np.bincount(index, weights=column) for column in samples], axis=1)
    return Cell(problems.tolist(), sums / counts[:, None], table.num_rows)


def _sample_columns(table: pa.Table) -> list[Floats]:
    """The columns of COLUMNS for each sample."""

    def numbers(name: str) -> Floats:
        return table[name].to_numpy().astype(np.float64)

    finished = np.asarray(table["finish"].to_pylist()) != "length"
    correct = numbers("correct")
    columns = {
        "one": np.ones(table.num_rows),
        "correct": correct,
        "exact": numbers("exact"),
        "cut": 1.0 - finished,
        "think_closed": numbers("think_closed"),
        "extractable": np.asarray(table["answer"].is_valid()).astype(np.float64),
        "tokens": numbers("n_tokens"),
        "finished": finished.astype(np.float64),
        "finished_correct": correct * finished,
    }
    return [columns[name] for name in COLUMNS]


# --- estimates -----------------------------------------------------------------------------------------------------


def score_table(cells: Mapping[Key, Cell], settings: Mapping[str, Any]) -> dict[Key, Scores]:
    """The scores of every arm, each seed and all seeds, each task and the mean of the tasks."""
    table: dict[Key, Scores] = {}
    for task in settings["tasks"]:
        table |= _task_scores(task, {key: cell for key, cell in cells.items() if key[2] == task}, settings)
    for arm, entry in settings["arms"].items():
        seeds = [str(seed) for seed in entry["seeds"]]
        for task in settings["tasks"]:
            parts = [table.get((arm, seed, task), MISSING) for seed in seeds]
            table[arm, ALL_SEEDS, task] = _average(parts, problems=parts[0].n_problems)
        for seed in [*seeds, ALL_SEEDS]:
            parts = [table.get((arm, seed, task), MISSING) for task in settings["tasks"]]
            table[arm, seed, MEAN] = _average(parts, problems=sum(part.n_problems for part in parts))
    return table


def _task_scores(task: str, cells: Mapping[Key, Cell], settings: Mapping[str, Any]) -> dict[Key, Scores]:
    """The scores of every model on one task, all resampled together."""
    if not cells:
        return {}
    first, *others = cells
    for key in others:
        if cells[key].problems != cells[first].problems:
            raise ValueError(
                f"{key[0]}-seed{key[1]}/{task} and {first[0]}-seed{first[1]}/{task} hold samples of different problems "
                f"({len(cells[key].problems)} and {len(cells[first].problems)}), so they cannot be compared; delete "
                "the older one and run again"
            )
    values = np.concatenate([cell.values for cell in cells.values()], axis=1)
    columns = iter(statistics.column_means(task, values, settings["resamples"], settings["seed"]))
    table = {}
    for key, cell in cells.items():
        means = dict(zip(COLUMNS, itertools.islice(columns, len(COLUMNS)), strict=True))
        table[key] = Scores(
            {name: _ratio(metric, means) for name, metric in METRICS.items()}, len(cell.problems), cell.n_samples
        )
    return table


def _ratio(metric: Metric, means: Mapping[str, Estimate]) -> Estimate:
    return statistics.combine(lambda over, under: metric.unit * over / under, means[metric.over], means[metric.under])


def _average(parts: Sequence[Scores], problems: int) -> Scores:
    """The unweighted mean of scores; missing where one of them is."""
    if not all(part.estimates for part in parts):
        return MISSING
    estimates = {name: statistics.mean([part.estimates[name] for part in parts]) for name in METRICS}
    return Scores(estimates, problems, sum(part.n_samples for part in parts))


def differences(scores: Scores, against: Scores) -> dict[str, Estimate]:
    """The difference of two accuracies in points, and in per cent of the second; empty where one is missing."""
    if not scores.estimates or not against.estimates:
        return {}
    pair = scores.estimates["accuracy"], against.estimates["accuracy"]
    return {
        "difference_points": statistics.combine(lambda new, old: new - old, *pair),
        "relative_change": statistics.combine(lambda new, old: 100 * (new - old) / old, *pair),
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
                estimate = scores.estimates.get(metric)
                yield _row((arm, "", seed, task, metric), estimate, scores, definition.support, settings, published)
        for task in tasks:
            values = [_point(table.get((arm, seed, task), MISSING).estimates.get("accuracy")) for seed in seeds]
            yield _deviation_row((arm, "", task), values, table.get((arm, ALL_SEEDS, task), MISSING))


def difference_rows(table: Mapping[Key, Scores], settings: Mapping[str, Any]) -> Iterator[Row]:
    """The differences of every pair of arms, for each seed and task, and their deviation between seeds."""
    tasks = [*settings["tasks"], MEAN]
    for arm, against in pairs(settings):
        seeds = paired_seeds(settings, arm, against)
        deviations: dict[str, list[float | None]] = {task: [] for task in tasks}
        for (seed, other), task in itertools.product([*seeds, (ALL_SEEDS, ALL_SEEDS)], tasks):
            scores = table.get((arm, seed, task), MISSING)
            found = differences(scores, table.get((against, other, task), MISSING))
            for metric, support in (("difference_points", POINTS), ("relative_change", None)):
                published = None
                if (seed, task, metric) == (ALL_SEEDS, MEAN, "relative_change") and against == settings["base"]:
                    published = paper_relative_change(settings, arm)
                shown = scores if found else MISSING
                estimate = found.get(metric)
                yield _row((arm, against, seed, task, metric), estimate, shown, support, settings, published)
            if seed != ALL_SEEDS:
                deviations[task].append(_point(found.get("difference_points")))
        for task in tasks:
            yield _deviation_row((arm, against, task), deviations[task], table.get((arm, ALL_SEEDS, task), MISSING))


def pairs(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who is compared with whom: every arm with the base, then every trained arm with the trained ones before it."""
    others = [arm for arm in settings["arms"] if arm != settings["base"]]
    trained = [arm for arm in others if settings["arms"][arm]["traces"]]
    return [(arm, settings["base"]) for arm in others] + [
        (later, earlier) for earlier, later in itertools.combinations(trained, 2)
    ]


def paired_seeds(settings: Mapping[str, Any], arm: str, against: str) -> list[tuple[str, str]]:
    """(seed of `arm`, seed of `against`) that are compared: the same one, or the only one of an untrained arm."""
    other = [str(seed) for seed in settings["arms"][against]["seeds"]]
    trained = settings["arms"][against]["traces"]
    return [(str(seed), str(seed) if trained else other[0]) for seed in settings["arms"][arm]["seeds"]]


def _row(
    names: tuple[str, str, str, str, str],
    estimate: Estimate | None,
    scores: Scores,
    support: tuple[float, float] | None,
    settings: Mapping[str, Any],
    paper: float | None,
) -> Row:
    interval = estimate.interval(settings["confidence"], support) if estimate else None
    low, high = interval or (None, None)
    return Row(*names, _point(estimate), low, high, scores.n_problems, scores.n_samples, paper)


def _deviation_row(names: tuple[str, str, str], values: Sequence[float | None], scores: Scores) -> Row:
    arm, against, task = names
    present = [value for value in values if value is not None]
    deviation = statistics.spread(present) if len(present) == len(values) else None
    counts = (scores.n_problems, scores.n_samples)
    return Row(arm, against, ALL_SEEDS, task, "seed_sd", deviation, None, None, *counts, None)


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
    """What the report's answer needs: for each pair of arms, the difference of the mean over tasks and the verdict."""
    return {
        "base": settings["base"],
        "arms": settings["arms"],
        "tasks": {task: _task_size(task, cells) for task in settings["tasks"]},
        "confidence": settings["confidence"],
        "resamples": settings["resamples"],
        "comparisons": [_answer(rows, arm, against) for arm, against in pairs(settings)],
    }


def _task_size(task: str, cells: Mapping[Key, Cell]) -> dict[str, Any]:
    sizes = [(len(cell.problems), cell.n_samples / len(cell.problems)) for key, cell in cells.items() if key[2] == task]
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
        "verdict": verdict(points.value, points.low, points.high),
        "accuracy": accuracy[arm],
        "accuracy_against": accuracy[against],
        "difference_points": {"value": points.value, "low": points.low, "high": points.high},
        "relative_change": {"value": change.value, "low": change.low, "high": change.high, "paper": change.paper},
        "difference_by_seed": by_seed,
        "seed_sd": found["seed_sd", ALL_SEEDS].value,
    }


def verdict(value: float | None, low: float | None, high: float | None) -> str:
    """`higher` or `lower` if the interval of a difference leaves out 0, else `undecided`; `missing` without a value."""
    if value is None:
        return "missing"
    if low is not None and low > 0:
        return "higher"
    if high is not None and high < 0:
        return "lower"
    return "undecided"


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
        n_problems=int(record["n_problems"]),
        n_samples=int(record["n_samples"]),
        paper=number("paper"),
    )


def read_summary(path: Path) -> dict[str, Any]:
    """comparison.json; ValueError naming the file and the remedy where it is no JSON object."""
    try:
        summary = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON ({error}); {REMEDY}") from error
    if not isinstance(summary, dict) or "comparisons" not in summary:
        raise ValueError(f"{path} is not the summary of a comparison; {REMEDY}")
    return summary
