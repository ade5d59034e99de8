"""What the tokens of some rows look like to a model, in numbers: shares, means, distributions. Arrays in, JSON out.

Definitions (docs/method.md has them in words). A token of probability p, at temperature 1 given all before it:

    surprisal   -ln p in nats; p below the smallest normal float32 counts as that, so it is at most 87.34
    rank        1 + the number of strictly more probable tokens
    improbable  p < threshold, exactly where RSD would not accept it by its threshold
    entropy     of the distribution that it came from, in nats: the surprisal to be expected of the model's own token
    position    its number in the completion, from 0

Means, shares, histograms and quantiles are over all tokens of all rows together. Nothing here depends on the order of
the rows, to the last bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd.scoring import TokenScores

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SMALLEST = float(np.finfo(np.float32).tiny)
# Nats: 0, 2^-10, 2^-9, ..., 2^7; the smallest probability has 87.34.
SURPRISAL_EDGES = (0.0, *(2.0**power for power in range(-10, 8)))
# Ranks 1, 2, 3-5, 6-10, 11-20 (what the authors' code looks at), 21-50, 51-100 (where the ratio clips), and so on.
RANK_EDGES = (1, 2, 3, 6, 11, 21, 51, 101, 1_001, 10_001, 100_001, 1_000_001)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_FREQUENT = 50
# Ranks above this count as this in the rank-surprisal ratio (arXiv 2601.14249).
LARGEST_RANK = 100


@dataclass(frozen=True)
class Scored:
    """A completion and what a model makes of it; every array has one entry a token.

    tokens    [n] int32
    scores    see `scoring.TokenScores`
    fallback  [n] bool: the student's own token, not the teacher's proposal; None where RSD did not write the row
    """

    tokens: NDArray[np.int32]
    scores: TokenScores
    fallback: NDArray[np.bool_] | None = None


def summarise(rows: Sequence[Scored], *, threshold: float, spell: Callable[[int], str]) -> dict[str, Any]:
    """The numbers of a trace set under a model; `spell` shows a token id to people.

    rows, tokens            how many
    threshold               probability below which a token is improbable, in [0, 1]
    improbable_share        of all tokens
    mean_surprisal, mean_rank, mean_entropy   over all tokens; nats, ranks as they are, nats
    rank_surprisal_ratio    see `rank_surprisal_ratio`
    fallback_share          tokens that came by fallback, of all; None where RSD did not write the rows
    improbable_fallback_share   tokens that came by fallback, of the improbable ones; None likewise
    positions               see `by_position`
    frequent_improbable     see `frequent`
    surprisal, rank         histograms, see `histogram`
    quantiles               of surprisal and rank over all tokens, p5 to p95, linear between two tokens

    A share, mean, ratio or quantile of nothing is None.
    """
    tokens = _joined([row.tokens for row in rows], np.int32)
    probability = _joined([row.scores.probability for row in rows], np.float32)
    rank = _joined([row.scores.rank for row in rows], np.int32)
    entropy = _joined([row.scores.entropy for row in rows], np.float32)
    positions = _joined([np.arange(len(row.tokens)) for row in rows], np.int64)
    nats, improbable = surprisal(probability), is_improbable(probability, threshold)
    flags = [row.fallback for row in rows if row.fallback is not None]
    # All rows of a set were made alike.
    fallback = _joined(flags, np.bool_) if flags and len(flags) == len(rows) else None
    return {
        "rows": len(rows),
        "tokens": len(tokens),
        "threshold": threshold,
        "improbable_share": _mean(improbable),
        "mean_surprisal": _mean(nats),
        "mean_rank": _mean(rank),
        "mean_entropy": _mean(entropy),
        "rank_surprisal_ratio": rank_surprisal_ratio([row.scores for row in rows]),
        "fallback_share": None if fallback is None else _mean(fallback),
        "improbable_fallback_share": None if fallback is None else _mean(fallback[improbable]),
        "positions": by_position(positions, nats, improbable),
        "frequent_improbable": frequent(tokens[improbable], spell),
        "surprisal": histogram(nats, SURPRISAL_EDGES),
        "rank": histogram(rank, RANK_EDGES),
        "quantiles": {"surprisal": quantiles(nats), "rank": quantiles(rank)},
    }


def surprisal(probability: NDArray[np.float32]) -> Floats:
    """-ln p in nats, in [0, 87.34]."""
    # A softmax may round to a little more than 1, and what is too small for a float32 to 0.
    return -np.log(np.clip(probability.astype(np.float64), SMALLEST, 1.0))


def is_improbable(probability: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """[n] bool: is p below the threshold? Compared in float32, as the decoder's accept rule does (p >= threshold)."""
    return probability < np.float32(threshold)


def rank_surprisal_ratio(rows: Sequence[TokenScores]) -> float | None:
    """RSR of a set of rows, arXiv 2601.14249: mean over rows of the mean clipped rank, over the mean over rows of the
    mean surprisal.

    For a single row it is the sum of min(rank, 100) over the sum of surprisals. Small is better for a student, by that
    paper: tokens of high rank that are yet improbable. Rows without a token are left out; None where nothing is
    surprising at all.
    """
    filled = [row for row in rows if len(row.rank)]
    ranks = math.fsum(float(np.minimum(row.rank, LARGEST_RANK).mean()) for row in filled)
    nats = math.fsum(float(surprisal(row.probability).mean()) for row in filled)
    return ranks / nats if nats > 0 else None


def by_position(positions: Ints, nats: Floats, improbable: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Share and mean by position in bins [start, stop): 0, 1, 2-3, 4-7, ... up to the longest completion.

    Every bin holds tokens of the rows that are that long, so later ones speak of long rows alone.
    """
    edges = [0, 1]
    while len(positions) and edges[-1] <= positions.max():
        edges.append(2 * edges[-1])
    found = []
    for start, stop in itertools.pairwise(edges):
        here = (positions >= start) & (positions < stop)
        found.append(
            {
                "start": start,
                "stop": stop,
                "tokens": int(here.sum()),
                "improbable_share": _mean(improbable[here]),
                "mean_surprisal": _mean(nats[here]),
            }
        )
    return found if len(positions) else []


def frequent(improbable: NDArray[np.int32], spell: Callable[[int], str]) -> list[dict[str, Any]]:
    """The 50 most frequent of the improbable tokens, with their share of all of them; of equals the lower id first."""
    ids, counts = np.unique(improbable, return_counts=True)
    order = np.lexsort((ids, -counts))[:MOST_FREQUENT]
    return [
        {
            "token": int(ids[index]),
            "piece": spell(int(ids[index])),
            "count": int(counts[index]),
            "share": int(counts[index]) / len(improbable),
        }
        for index in order
    ]


def histogram(values: NDArray[Any], edges: Sequence[float]) -> dict[str, list[Any]]:
    """Counts of [edge, next edge), one fewer than edges; the last bin also holds all that is more."""
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return {"edges": list(edges), "counts": np.bincount(bins, minlength=len(edges) - 1).tolist()}


def quantiles(values: NDArray[Any]) -> Mapping[str, float | None]:
    """p5, p25, p50, p75, p95."""
    found = np.quantile(values, QUANTILES).tolist() if len(values) else [None] * len(QUANTILES)
    return {f"p{100 * level:g}": value for level, value in zip(QUANTILES, found, strict=True)}


def _mean(values: NDArray[Any]) -> float | None:
    # An exact sum does not depend on the order of the rows.
    return math.fsum(values.tolist()) / len(values) if len(values) else None


def _joined(arrays: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=dtype), *arrays]).astype(dtype)
