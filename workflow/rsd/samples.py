"""What a sample is worth: generations -> one SAMPLES row each, and the means over them.

Called by the task files (workflow/tasks/) from inside lm-eval, and again over all shards of a benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rsd import grading, prompts

FILTER = "every-sample"  # the name of the task files' filter, which keeps them all

Row = dict[str, Any]


class Generation(str):
    """A generated text that knows its length in tokens and why it ended.

    lm-eval hands strings from the model to the scoring, and nothing beside them. As a string with two attributes the
    facts about a sample stay with its text, whatever happens to the order on the way.
    """

    n_tokens: int
    finish: str  # end_of_turn | length

    def __new__(cls, text: str, n_tokens: int, finish: str) -> Generation:
        """`finish` is end_of_turn or length."""
        self = super().__new__(cls, text)
        self.n_tokens = n_tokens
        self.finish = finish
        return self

    def __getnewargs__(self) -> tuple[str, int, str]:  # type: ignore[override]
        # What copy and pickle rebuild it from.
        return str(self), self.n_tokens, self.finish


def score_problem(doc: Mapping[str, Any], results: Sequence[Sequence[Generation]]) -> dict[str, Any]:
    """All samples of one problem (the task's `process_results`): its metrics, and under `samples` one row each."""
    (generations,) = results
    rows = grade_samples(doc["id"], doc["answer"], generations, doc["format"])
    return {**summarise(rows), "samples": rows}


def grade_samples(
    problem_id: str, reference: str, generations: Sequence[Generation], format: Mapping[str, Any]
) -> list[Row]:
    """One SAMPLES row a generation, in order.

    A generation that was cut at the length limit has no answer, even where an answer seems to stand in it: it is wrong,
    and counted as cut.
    """
    format = dict(format)
    rows = []
    verdicts: dict[str | None, tuple[bool, bool]] = {None: (False, False)}
    for repeat, generation in enumerate(generations):
        text = str(generation)
        answer = prompts.extract_answer(text, format) if generation.finish == "end_of_turn" else None
        if answer not in verdicts:
            verdicts[answer] = grading.grade(answer, reference), grading.exact_match(answer, reference)
        correct, exact = verdicts[answer]
        row = {
            "problem_id": problem_id,
            "repeat": repeat,
            "answer": answer,
            "correct": correct,
            "exact": exact,
            "n_tokens": generation.n_tokens,
            "finish": generation.finish,
            "think_closed": prompts.think_closed(text, format),
            "text": text,
        }
        rows.append(row)
    return rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over samples; shares in [0, 1]. ValueError without a sample.

    avg: right by math verification; exact: right as a string; cut: stopped by the length limit; think_closed: reasoning
    closed; answered: finished with an extractable answer; tokens: generated tokens.
    """
    if not rows:
        raise ValueError("no sample was scored; look for an empty benchmark or a task without repeats")
    return {
        "avg": _mean(row["correct"] for row in rows),
        "exact": _mean(row["exact"] for row in rows),
        "cut": _mean(row["finish"] == "length" for row in rows),
        "think_closed": _mean(row["think_closed"] for row in rows),
        "answered": _mean(row["answer"] is not None for row in rows),
        "tokens": _mean(row["n_tokens"] for row in rows),
    }


def _mean(values: Iterator[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def count_samples(rows_of_problems: Sequence[Sequence[Row]]) -> int:
    """How many samples were scored (the task's aggregation of `samples`)."""
    return sum(len(rows) for rows in rows_of_problems)


def check_metrics(rows: Sequence[Row], harness: Mapping[str, Any]) -> dict[str, float]:
    """The metrics over all rows; RuntimeError where they are not what lm-eval got from its means over problems."""
    metrics = summarise(rows)
    for name, value in [*metrics.items(), ("samples", len(rows))]:
        theirs = harness.get(f"{name},{FILTER}")
        if theirs is None or not math.isclose(theirs, value, rel_tol=1e-9, abs_tol=1e-12):
            raise RuntimeError(
                f"{name}: {value} over all samples, but lm-eval reports {theirs}; a sample was lost or counted twice, "
                "so no score is written; use the lm-eval version of the lock"
            )
    return metrics
