"""What is counted about training rows, for selection.json: how many of which kind, how long, how many too long.

Numbers in, plain numbers out; lengths in tokens, shares in [0, 1].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
KINDS = ("trace", "prefix")


def count_kinds(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many rows are whole traces and how many are prefixes."""
    counts = Counter(row["kind"] for row in rows)
    return {kind: counts[kind] for kind in KINDS}


def lengths(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float] | None]:
    """Quantiles of the tokens of completions alone, and of whole rows with their prompts."""
    return {
        "completions": quantiles([len(row["completion_tokens"]) for row in rows]),
        "rows": quantiles(_totals(rows)),
    }


def over_block(rows: Sequence[Mapping[str, Any]], block_size: int) -> dict[str, Any]:
    """The smallest block size of the arms trained on the rows, and the share of these that exceed it.

    training.json counts those of each arm's own block size.
    """
    long = sum(length > block_size for length in _totals(rows))
    return {"block_size": block_size, "over_block_share": share(long, len(rows))}


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and quantiles, keys mean, p0, p5, ..., p100; None for no value."""
    if not len(values):
        return None
    named = {f"p{100 * q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}
    return {"mean": float(np.mean(values)), **named}


def share(part: float, whole: float) -> float | None:
    """`part` of `whole`; None where there is no whole."""
    return part / whole if whole else None


def _totals(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return [len(row["prompt_tokens"]) + len(row["completion_tokens"]) for row in rows]
