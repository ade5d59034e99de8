"""The report's view of the trace sets: how each was made, what became of its attempts, and how they are distributed.

selection.json (counts), verdicts.parquet (one row an attempt) and rows.parquet (the training rows) of each set. A set
made from another one has no attempts of its own; what is not there shows as missing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rsd import notes
from rsd.formatting import interval, number, share
from rsd.records import ROWS, VERDICTS, read_provenance, read_table

LOG = logging.getLogger(__name__)

Record = dict[str, Any]
Numbers = NDArray[np.float64]

# What became of an attempt, by the reasons of rsd.selection.
REASONS = {
    "kept": "kept: it became a training row",
    "not_shortest": "passed every rule, but was not the first of the shortest",
    "not_first": "passed every rule, but was not the first",
    "not_picked": "passed every rule, but another one was kept",
    "unfinished": "did not end its turn within the limit",
    "think_markers": "did not close its reasoning exactly once",
    "no_answer": "gave no final answer",
    "no_reference": "differs from a reference in prose, which rules cannot judge",
    "wrong_answer": "gave a wrong answer",
    "fallback_rate": "held too many of the student's own tokens",
}
METHODS = {
    "rsd": "reverse speculative decoding",
    "sample": "sampled from one model",
    "dataset": "the dataset's own traces",
    "select": "selected anew from another set's attempts",
    "filter": "another set's traces, filtered",
    "recode": "another set's traces, in other tokens",
}
# The methods that write tokens; the others take what is there.
GENERATED = ("rsd", "sample")


@dataclass(frozen=True)
class TraceFiles:
    """What is on disk of a trace set; `verdicts` (VERDICTS) and `rows` (ROWS without its tokens) are None if missing.

    `rows` has problem_id, attempt, kind, prompt_length and completion_length (tokens).
    """

    record: Record
    verdicts: pa.Table | None
    rows: pa.Table | None


def read_traces(folder: Path, record: Record) -> TraceFiles:
    """The files of the trace set in `folder`, whose selection.json is `record`.

    Raises ValueError naming a file that is there but damaged.
    """
    verdicts, rows = folder / "verdicts.parquet", folder / "rows.parquet"
    return TraceFiles(
        record,
        read_table(verdicts, VERDICTS) if verdicts.exists() else None,
        _read_rows(rows) if rows.exists() else None,
    )


def _read_rows(path: Path) -> pa.Table:
    table = read_table(path, ROWS)
    names = ["problem_id", "attempt", "kind"]
    lengths = {
        f"{part}_length": pc.list_value_length(table[f"{part}_tokens"]).cast(pa.int32())
        for part in ("prompt", "completion")
    }
    columns = [table[name] for name in names]
    return pa.table(dict(zip([*names, *lengths], [*columns, *lengths.values()], strict=True)))


def count_tokens(files: TraceFiles) -> int | None:
    """Tokens of all attempts together; None where the verdicts are missing."""
    return None if files.verdicts is None else int(pc.sum(files.verdicts["n_tokens"]).as_py() or 0)


def source_of(name: str, config: Record) -> str | None:
    """The trace set that one was made of; None for one that was made of no other."""
    source = config["traces"].get(name, {}).get("of")
    return None if source is None else str(source)


def root_of(name: str, config: Record) -> str:
    """The trace set whose tokens were written, of which a set was made over any number of steps: often itself."""
    source = source_of(name, config)
    return name if source is None else root_of(source, config)


# --- tables --------------------------------------------------------------------------------------------------------


def trace_view(name: str, record: Record, config: Record) -> Record:
    """A trace set: how it was made, and what became of its attempts, the most frequent first."""
    reasons = sorted(record.get("reasons", {}).items(), key=lambda item: (item[0] != "kept", -item[1], item[0]))
    method = config["traces"].get(name, {}).get("method")
    made = METHODS.get(method, method or "missing")
    source, root = source_of(name, config), root_of(name, config)
    return {
        "name": name,
        "method": method,
        "made": made if source is None else f"{made}, from {source}",
        "generated": config["traces"].get(root, {}).get("method") in GENERATED,
        "law": notes.law_text(root, config),
        "attempts": record.get("attempts"),
        "reasons": [{"label": REASONS.get(reason, reason), "count": count} for reason, count in reasons],
        "record": record,
    }


def laws_view(traces: Sequence[Record]) -> dict[str, list[str]]:
    """Each law in words, with the trace sets that ran it."""
    laws: dict[str, list[str]] = {}
    for entry in traces:
        if entry["law"]:
            laws.setdefault(entry["law"], []).append(entry["name"])
    return laws


def reasons_view(traces: Sequence[Record]) -> Record:
    """`sets`: those with more than one outcome of attempts; `rows`: (outcome, one (count or None, attempts) a set)."""
    sets = [entry for entry in traces if len(entry["reasons"]) > 1]
    labels = dict.fromkeys(reason["label"] for entry in sets for reason in entry["reasons"])
    counts = [{reason["label"]: reason["count"] for reason in entry["reasons"]} for entry in sets]
    rows = [
        (label, [(found.get(label), entry["attempts"]) for found, entry in zip(counts, sets, strict=True)])
        for label in labels
    ]
    return {"sets": sets, "rows": rows}


def trace_table(traces: Sequence[Record]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The measures of all trace sets: (heading, one (text, note) a set)."""
    table: dict[str, list[tuple[str, str]]] = {}
    for entry in traces:
        for heading, cell in _trace_cells(entry["record"], generated=entry["generated"]).items():
            table.setdefault(heading, []).append(cell)
    return list(table.items())


def _trace_cells(record: Record, generated: bool) -> dict[str, tuple[str, str]]:
    problems, tokens = record.get("problems", {}), record.get("tokens", {})
    fallback = record.get("fallback_rate") or {}
    everything = problems.get("all")

    def count(key: str) -> tuple[str, str]:
        return number(problems.get(key), 0), share(problems[key], everything) if key in problems and everything else ""

    def lengths(key: str) -> tuple[str, str]:
        if key in tokens and tokens[key] is None:
            return "none", ""
        found = tokens.get(key) or {}
        return number(found.get("p50"), 0), interval(found["p5"], found["p95"], 0) if found else ""

    def rate(key: str) -> tuple[str, str]:
        return (share(fallback.get(key), digits=2), "") if generated else ("does not apply", "")

    return {
        "Problems": (number(everything, 0), ""),
        "with a kept trace (solved)": count("solved"),
        "with a prefix only": count("prefix"),
        "left out": count("dropped"),
        "Attempts": (number(record.get("attempts"), 0), ""),
        "with the right answer": (share(record.get("correct_share")), ""),
        "Length of all attempts": lengths("attempts"),
        "Length of kept traces": lengths("kept"),
        "Length of training rows, with the prompt": lengths("rows"),
        "Student's own tokens (fallback), all attempts": rate("attempts"),
        "Student's own tokens (fallback), kept traces": rate("kept"),
        "Rows over the block size": (
            share(record.get("over_block_share")),
            f"of {number(record['block_size'], 0)} tokens" if "block_size" in record else "",
        ),
        "Kept traces that never end": (share(record.get("kept_unfinished_share")), ""),
    }


# --- distributions -------------------------------------------------------------------------------------------------


def attempt_lengths(files: TraceFiles) -> tuple[Numbers, Numbers]:
    """Tokens of (all attempts, those that became whole training rows).

    Without verdicts the rows alone; both empty where nothing is there.
    """
    if files.verdicts is not None:
        lengths = files.verdicts["n_tokens"].to_numpy().astype(float)
        return lengths, lengths[_kept(files.verdicts)]
    if files.rows is None:
        return np.empty(0), np.empty(0)
    whole = np.asarray(files.rows["kind"].to_pylist(), dtype=object) == "trace"
    lengths = files.rows["completion_length"].to_numpy().astype(float)[whole]
    return np.empty(0), lengths


def fallback_rates(files: TraceFiles) -> tuple[Numbers, Numbers]:
    """Share of the student's own tokens in (all attempts, kept attempts), in [0, 1]; empty without verdicts."""
    if files.verdicts is None:
        return np.empty(0), np.empty(0)
    rates = files.verdicts["fallback_rate"].to_numpy().astype(float)
    return rates, rates[_kept(files.verdicts)]


def right_attempts(files: TraceFiles) -> tuple[Numbers, int]:
    """(right attempts at each problem, the most attempts that any problem has); empty and 0 without verdicts."""
    if files.verdicts is None or files.verdicts.num_rows == 0:
        return np.empty(0), 0
    _, index = np.unique(np.asarray(files.verdicts["problem_id"].to_pylist(), dtype=str), return_inverse=True)
    correct = files.verdicts["correct"].to_numpy(zero_copy_only=False).astype(float)
    return np.bincount(index, weights=correct).astype(np.float64), int(np.bincount(index).max())


def _kept(verdicts: pa.Table) -> NDArray[np.bool_]:
    return verdicts["kept"].to_numpy(zero_copy_only=False).astype(bool)


def shard_stamps(folder: Path) -> list[Record]:
    """The provenance stamps of the shards that are there; costs are no reason to stop at one that cannot be read."""
    stamps = []
    for path in sorted(folder.glob("shard-*.parquet")):
        try:
            stamps.append(read_provenance(path, checked=False))
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            LOG.warning("%s has no readable provenance (%s); what it ran on is not known", path, error)
    return stamps
