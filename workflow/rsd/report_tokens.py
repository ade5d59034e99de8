"""The report's view of the token analyses: how probable the tokens of each trace set are to a reader.

One JSON record a trace set and reader (a model of the catalogue before training, or ARM-seedK after it); without any
the report has no such section.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Record = dict[str, Any]
Analyses = Mapping[tuple[str, str], Record]

# The most frequent improbable tokens that are shown of a set.
FREQUENT = 12


def tokens_view(analyses: Analyses, config: Record, answers: Record) -> Record:
    """What the templates show: one entry a set and reader, and one a set with its most frequent improbable tokens."""
    entries: list[Record] = [
        {
            "traces": traces,
            "reader": reader,
            "label": reader_label(reader, config, answers),
            "after": is_trained(reader, config),
            "record": record,
            "there": bool(record),
        }
        for (traces, reader), record in analyses.items()
    ]
    thresholds = sorted({record["threshold"] for record in analyses.values() if record.get("threshold") is not None})
    frequent = [
        {**entry, "pieces": entry["record"]["frequent_improbable"][:FREQUENT]}
        for entry in entries
        if not entry["after"] and entry["record"].get("frequent_improbable")
    ]
    problems = {record.get("problems") for record in analyses.values() if record.get("problems") is not None}
    return {"entries": entries, "thresholds": thresholds, "frequent": frequent, "problems": sorted(problems)}


def is_trained(reader: str, config: Record) -> bool:
    """Whether a reader is a model that this run trained (ARM-seedK), not one of the catalogue."""
    return reader not in config["models"] and "-seed" in reader


def reader_label(reader: str, config: Record, answers: Record) -> str:
    """A reader in words: `student (before training)`, or `SFT on RSD traces, seed 0 (after training)`."""
    if not is_trained(reader, config):
        return f"{reader} (before training)"
    arm, _, seed = reader.rpartition("-seed")
    label = answers["arms"].get(arm, {}).get("label", arm)
    return f"{label}, seed {seed} (after training)"


def survival(histogram: Record | None) -> list[tuple[float, float]]:
    """(edge, share of the tokens at or above it) of a histogram {"edges", "counts"}; [] where there is none.

    `counts` may have one bin an edge (the last one open) or one less.
    """
    edges, counts = (list((histogram or {}).get(key) or []) for key in ("edges", "counts"))
    total = sum(counts)
    if not total or len(edges) not in (len(counts), len(counts) + 1):
        return []
    points, left = [], total
    for edge, count in zip(edges, counts, strict=False):
        points.append((float(edge), left / total))
        left -= count
    return points


def positions(record: Record, key: str) -> list[tuple[float, float]]:
    """(middle of a stretch of positions, `key` there) for the stretches of an analysis that have tokens."""
    return [
        ((part["start"] + part["stop"]) / 2, part[key])
        for part in record.get("positions") or []
        if part.get("tokens") and part.get(key) is not None
    ]
