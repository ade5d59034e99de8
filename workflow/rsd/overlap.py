"""Training problems that are benchmark problems too: word for word, or nearly.

problems.jsonl and benchmarks -> overlap.json with pairs of ids, never texts, since some benchmarks may not be shown. It
is measured and reported; nothing is removed. By hand: `rsd measure-overlap --help`.

Questions are compared as words: lower case, without white space, dollar signs and LaTeX spacing; a LaTeX command, a
number and any other sign are a word each. A pair is *exact* where all words are equal. It is *near* where at least half
of the shorter question's runs of 8 words are in the other one, or where the two sets of runs of 3 words have a Jaccard
similarity of at least 0.6 (for short questions, where one changed word breaks every run of 8). Runs of 8 words are what
open-r1 compares; it takes a single shared one as overlap, which on these data flags stock phrases only.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rsd.provenance import stamp
from rsd.records import read_jsonl, write_record

LOG = logging.getLogger(__name__)

LONG_RUN, SHORT_RUN = 8, 3  # words
MIN_CONTAINMENT, MIN_JACCARD = 0.5, 0.6

_LOOKS = re.compile(r"\\(?:[,;:! ()\[\]]|(?:q?quad|left|right)(?![a-z]))|[$~]")
_WORD = re.compile(r"\\?[a-z]+|\d+|[^\sa-z\d]")

Runs = frozenset[tuple[str, ...]]


def run_measure_overlap(
    *, problems: Path, benchmarks: Mapping[str, Path], settings: Mapping[str, Any], output: Path
) -> None:
    """Writes, for each benchmark (task -> file), the pairs (problem id, benchmark id) that are exact or near copies."""
    records = read_jsonl(problems)
    tasks = {}
    for task, path in benchmarks.items():
        others = read_jsonl(path)
        exact, near = compare(
            [(record["id"], record["question"]) for record in records],
            [(record["id"], record["question"]) for record in others],
        )
        tasks[task] = {"n_problems": len(others), "exact": exact, "near": near}
        LOG.info("%s: %d exact and %d near copies among %d problems", task, len(exact), len(near), len(records))
    report = {
        "n_problems": len(records),
        "method": {
            "near": f"share of the shorter question's runs of {LONG_RUN} words >= {MIN_CONTAINMENT}, "
            f"or Jaccard similarity of runs of {SHORT_RUN} words >= {MIN_JACCARD}"
        },
        "tasks": tasks,
        "provenance": stamp(settings, {"problems": problems, **benchmarks}),
    }
    write_record(output, report)


def compare(
    problems: Sequence[tuple[str, str]], others: Sequence[tuple[str, str]]
) -> tuple[list[list[str]], list[list[Any]]]:
    """(exact pairs of ids, near pairs with their score in [0, 1], best first) of two lists of (id, question)."""
    mine, theirs = ([words(question) for _, question in side] for side in (problems, others))
    same = defaultdict(list)
    for index, text in enumerate(theirs):
        same[text].append(index)
    exact = {(index, other) for index, text in enumerate(mine) for other in same[text]}
    scores: dict[tuple[int, int], float] = {}
    for length, score, least in ((LONG_RUN, containment, MIN_CONTAINMENT), (SHORT_RUN, jaccard, MIN_JACCARD)):
        for pair, shared, first, second in shared_runs(mine, theirs, length):
            value = score(shared, first, second)
            if value >= least and pair not in exact:
                scores[pair] = max(value, scores.get(pair, 0.0))
    near = [
        [problems[index][0], others[other][0], round(value, 4)]
        for (index, other), value in sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    ]
    return [[problems[index][0], others[other][0]] for index, other in sorted(exact)], near


def words(question: str) -> tuple[str, ...]:
    """The words of a question, without what changes only its look."""
    return tuple(_WORD.findall(_LOOKS.sub(" ", question.lower())))


def runs(text: Sequence[str], length: int) -> Runs:
    """All runs of `length` words; a shorter text is one run."""
    return frozenset(tuple(text[start : start + length]) for start in range(max(1, len(text) - length + 1)))


def shared_runs(
    mine: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]], length: int
) -> Iterator[tuple[tuple[int, int], int, int, int]]:
    """((index in mine, index in theirs), shared runs, runs of the one, runs of the other), where any is shared.

    By an inverted index: no pair without a shared run is looked at.
    """
    holders = defaultdict(list)
    sizes = []
    for other, text in enumerate(theirs):
        found = runs(text, length)
        sizes.append(len(found))
        for run in found:
            holders[run].append(other)
    for index, text in enumerate(mine):
        found = runs(text, length)
        counts = Counter(other for run in found for other in holders.get(run, ()))
        for other, shared in counts.items():
            yield (index, other), shared, len(found), sizes[other]


def containment(shared: int, first: int, second: int) -> float:
    """Share of the smaller set that is in the other."""
    return shared / min(first, second)


def jaccard(shared: int, first: int, second: int) -> float:
    """Size of the intersection over that of the union."""
    return shared / (first + second - shared)
