"""What is counted of the samples of one model on one benchmark: a sample file -> arrays, and the metrics over them.

A metric is a ratio of two means over problems, each problem the mean over its k samples, or a number of its k samples
together (pass@k, the majority's answer, duplicates). Every problem has the same k samples, numbered alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from rsd.grading import normalise
from rsd.records import REMEDY, SAMPLES, read_table
from rsd.statistics import Floats

PER_CENT = (0.0, 100.0)

# Columns with a value for each sample.
SAMPLE_COLUMNS = (
    "one",
    "correct",
    "exact",
    "cut",
    "think_closed",
    "extractable",
    "tokens",
    "finished",
    "finished_correct",
)
# Columns with a value for each problem, of its k samples together.
PROBLEM_COLUMNS = ("any_correct", "majority", "duplicates")
COLUMNS = (*SAMPLE_COLUMNS, *PROBLEM_COLUMNS)


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
    "pass_at_k": Metric("any_correct", "one", 100, PER_CENT),
    "maj_at_k": Metric("majority", "one", 100, PER_CENT),
    "accuracy_finished": Metric("finished_correct", "finished", 100, None),  # among samples that ended their turn
    "cut_share": Metric("cut", "one", 100, PER_CENT),  # stopped by the length limit
    "think_closed_share": Metric("think_closed", "one", 100, PER_CENT),
    "extractable_share": Metric("extractable", "one", 100, PER_CENT),
    "duplicate_share": Metric("duplicates", "one", 100, PER_CENT),
    "mean_tokens": Metric("tokens", "one", 1, None),
}


@dataclass(frozen=True)
class Cell:
    """The samples of one model on one task, problems in the order of their ids, samples in that of their numbers.

    problems  their ids
    repeats   the numbers of the samples, the same for every problem
    samples   [problems, repeats, SAMPLE_COLUMNS] float64
    outcomes  [problems, PROBLEM_COLUMNS] float64
    """

    problems: list[str]
    repeats: list[int]
    samples: Floats
    outcomes: Floats

    @property
    def n_samples(self) -> int:
        """All samples of all problems."""
        return len(self.problems) * len(self.repeats)

    @property
    def values(self) -> Floats:
        """[problems, COLUMNS]: the value of each problem."""
        return np.concatenate([self.samples.mean(axis=1), self.outcomes], axis=1)

    def column(self, name: str) -> Floats:
        """[problems, repeats]: one of SAMPLE_COLUMNS."""
        return self.samples[:, :, SAMPLE_COLUMNS.index(name)]


def read_cell(path: Path) -> Cell:
    """The samples of a file of SAMPLES, in any order.

    Raises ValueError naming the file where it holds none, one twice, or not the same numbers for every problem.
    """
    table = read_table(path, SAMPLES)
    if table.num_rows == 0:
        raise ValueError(f"{path} holds no samples; {REMEDY}")
    problems, index = np.unique(np.asarray(table["problem_id"].to_pylist(), dtype=str), return_inverse=True)
    repeat = table["repeat"].to_numpy()
    if len(np.unique(np.stack([index, repeat]), axis=1).T) != table.num_rows:
        raise ValueError(f"{path} holds a sample (problem_id, repeat) twice; {REMEDY}")
    counts = np.bincount(index)
    order = np.lexsort((repeat, index))
    numbers = repeat[order].reshape(len(problems), -1) if len(set(counts)) == 1 else None
    if numbers is None or (numbers != numbers[0]).any():
        raise ValueError(
            f"{path} holds {counts.min()} to {counts.max()} samples a problem, not the same numbers of each; {REMEDY}"
        )
    shape = numbers.shape
    samples = np.stack([column[order].reshape(shape) for column in _sample_columns(table)], axis=2)
    texts, answers = (np.asarray(table[name].to_pylist(), dtype=object) for name in ("text", "answer"))
    outcomes = [
        (right.max(), majority(answered, right), duplicates(written))
        for right, answered, written in zip(
            samples[:, :, SAMPLE_COLUMNS.index("correct")],
            answers[order].reshape(shape),
            texts[order].reshape(shape),
            strict=True,
        )
    ]
    return Cell(problems.tolist(), numbers[0].tolist(), samples, np.asarray(outcomes, dtype=np.float64))


def _sample_columns(table: pa.Table) -> list[Floats]:
    """The columns of SAMPLE_COLUMNS, in the order of the table."""

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
    return [columns[name] for name in SAMPLE_COLUMNS]


def sampled(cell: Cell) -> dict[str, Floats]:
    """The metrics that are means of samples: for each the values [problems, repeats] whose mean it is.

    A ratio of two means, as the accuracy among finished samples, is taken at its tangent: a sample counts as what the
    ratio would be if all were like it, to first order. Left out are pass@k, maj@k and duplicates, which one sample has
    not and of which a problem shows one outcome only, and a ratio over nothing.
    """
    found = {}
    for name, metric in METRICS.items():
        if metric.over not in SAMPLE_COLUMNS:
            continue
        over, under = cell.column(metric.over), cell.column(metric.under)
        if metric.under == "one":
            found[name] = metric.unit * over
        elif (mean := under.mean()) > 0:
            ratio = over.mean() / mean
            found[name] = metric.unit * (ratio + (over - ratio * under) / mean)
    return found


def majority(answers: Sequence[str | None], correct: Sequence[float]) -> float:
    """maj@k of one problem: how right the most frequent answer of its k samples is, in [0, 1].

    Two answers are the same where `grading.normalise` makes the same text of them; the verdicts have no part in it,
    since a vote must not know the reference: 1/2 and 0.5 are two answers, right or wrong. A sample without an answer,
    or with one of which nothing is left, does not vote. The result is the share of right samples among those who gave
    the answer with the most votes; answers with equally many share the credit, each in equal parts. 0 where nobody
    votes.
    """
    votes: dict[str, list[float]] = {}
    for answer, right in zip(answers, correct, strict=True):
        text = normalise(answer) if answer is not None else ""
        if text:
            votes.setdefault(text, []).append(float(right))
    most = max(map(len, votes.values()), default=0)
    first = [math.fsum(rights) / most for rights in votes.values() if len(rights) == most]
    return math.fsum(first) / len(first) if first else 0.0


def duplicates(texts: Sequence[str]) -> float:
    """The share of a problem's samples whose text is that of an earlier sample of the problem."""
    return 1 - len(set(texts)) / len(texts)
