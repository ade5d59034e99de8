"""The summary against the definitions in plain Python, and the laws that any summary obeys."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.scoring import TokenScores
from rsd.token_summary import (
    RANK_EDGES,
    SURPRISAL_EDGES,
    Scored,
    by_position,
    frequent,
    histogram,
    is_improbable,
    quantiles,
    rank_surprisal_ratio,
    summarise,
    surprisal,
)

THRESHOLD = 0.01
SMALLEST = float(np.finfo(np.float32).tiny)
MOST = -math.log(SMALLEST)
PROBABILITIES = st.floats(0, 1, width=32) | st.sampled_from([0.0, 1.0, float(np.float32(0.01)), 1e-38])
ONE = st.tuples(st.integers(0, 300), PROBABILITIES, st.integers(1, 200_000), st.floats(0, 12, width=32), st.booleans())
SETS = st.lists(st.lists(ONE, max_size=12), max_size=5)


def scored(entries: list[Any], *, flags: bool = True) -> Scored:
    """A row of (token, probability, rank, entropy, fallback)."""
    columns = list(zip(*entries, strict=True)) if entries else [()] * 5
    scores = TokenScores(
        np.array(columns[1], dtype=np.float32),
        np.array(columns[2], dtype=np.int32),
        np.array(columns[3], dtype=np.float32),
    )
    return Scored(np.array(columns[0], dtype=np.int32), scores, np.array(columns[4], dtype=bool) if flags else None)


def summary(rows: list[Any], *, flags: bool = True, threshold: float = THRESHOLD) -> dict[str, Any]:
    return summarise([scored(row, flags=flags) for row in rows], threshold=threshold, spell=str)


def nats(probability: float) -> float:
    return -math.log(min(1.0, max(probability, SMALLEST)))


def mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def close(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, rel=1e-12)


def share(flags: list[bool]) -> float | None:
    return mean([float(flag) for flag in flags])


# --- definitions ------------------------------------------------------------------------------------------------------


@given(SETS)
def test_shares_means_and_counts_are_those_of_the_definition(rows: list[Any]) -> None:
    found = summary(rows)
    entries = [entry for row in rows for entry in row]
    low = [p < np.float32(THRESHOLD) for _, p, *_ in entries]
    surprisals = [nats(p) for _, p, *_ in entries]
    assert found["rows"] == len(rows)
    assert found["tokens"] == len(entries)
    assert found["improbable_share"] == share(low)
    assert found["mean_surprisal"] == close(mean(surprisals))
    assert found["mean_rank"] == close(mean([rank for _, _, rank, _, _ in entries]))
    assert found["mean_entropy"] == close(mean([entropy for *_, entropy, _ in entries]))
    assert found["fallback_share"] == share([flag for *_, flag in entries])
    assert found["improbable_fallback_share"] == share([e[4] for e, is_low in zip(entries, low, strict=True) if is_low])
    for bin_ in found["positions"]:
        here = [entry for row in rows for entry in row[bin_["start"] : bin_["stop"]]]
        assert bin_["tokens"] == len(here)
        assert bin_["improbable_share"] == share([p < np.float32(THRESHOLD) for _, p, *_ in here])
        assert bin_["mean_surprisal"] == close(mean([nats(p) for _, p, *_ in here]))
    counts = Counter(token for (token, *_), is_low in zip(entries, low, strict=True) if is_low)
    assert [(e["token"], e["count"]) for e in found["frequent_improbable"]] == sorted(
        counts.items(), key=lambda item: (-item[1], item[0])
    )[:50]


@given(SETS)
def test_the_rank_surprisal_ratio_is_that_of_the_paper(rows: list[Any]) -> None:
    filled = [row for row in rows if row]
    ranks = mean([mean([min(rank, 100) for _, _, rank, _, _ in row]) for row in filled])
    surprisals = mean([mean([nats(p) for _, p, *_ in row]) for row in filled])
    expected = ranks / surprisals if surprisals else None
    assert summary(rows)["rank_surprisal_ratio"] == (expected if expected is None else pytest.approx(expected))


def test_the_ratio_of_one_row_is_a_sum_over_a_sum_with_ranks_clipped_at_a_hundred() -> None:
    row = scored([(0, 0.5, 1, 0, False), (0, 0.25, 3, 0, False), (0, 2.0**-10, 5000, 0, False)])
    assert rank_surprisal_ratio([row.scores]) == pytest.approx((1 + 3 + 100) / (math.log(2) * (1 + 2 + 10)))


def test_every_row_counts_alike_in_the_ratio_of_a_set_however_long() -> None:
    short = scored([(0, 0.5, 1, 0, False)])
    long = scored([(0, 0.25, 9, 0, False)] * 7)
    expected = ((1 + 9) / 2) / (math.log(2) * (1 + 2) / 2)
    assert rank_surprisal_ratio([short.scores, long.scores]) == pytest.approx(expected)


def test_a_probability_of_just_the_threshold_is_not_below_it() -> None:
    """The decoder accepts p >= threshold in float32, where 0.01 is a little less than in float64."""
    edge = np.float32(0.01)
    assert is_improbable(np.array([edge, np.nextafter(edge, np.float32(0))]), 0.01).tolist() == [False, True]


def test_surprisal_is_never_infinite_nor_negative() -> None:
    values = np.array([0, 1e-45, SMALLEST, 1, np.nextafter(np.float32(1), np.float32(2))], dtype=np.float32)
    assert surprisal(values).tolist() == pytest.approx([MOST, MOST, MOST, 0, 0])
    assert round(MOST, 2) == 87.34


def test_positions_are_binned_by_powers_of_two_up_to_the_longest() -> None:
    def bins(length: int) -> list[tuple[int, int, int]]:
        positions = np.arange(length)
        found = by_position(positions, np.zeros(length), np.zeros(length, dtype=bool))
        return [(entry["start"], entry["stop"], entry["tokens"]) for entry in found]

    assert bins(0) == []
    assert bins(1) == [(0, 1, 1)]
    assert bins(2) == [(0, 1, 1), (1, 2, 1)]
    assert bins(5) == [(0, 1, 1), (1, 2, 1), (2, 4, 2), (4, 8, 1)]
    assert bins(8) == [(0, 1, 1), (1, 2, 1), (2, 4, 2), (4, 8, 4)]


def test_of_the_improbable_tokens_the_fifty_most_frequent_are_named_with_their_share_of_all() -> None:
    tokens = np.array([7] * 3 + [5] * 3 + [9] * 4 + list(range(100, 160)), dtype=np.int32)
    found = frequent(tokens, lambda token: f"<{token}>")
    assert len(found) == 50
    assert [(entry["token"], entry["piece"], entry["count"]) for entry in found[:4]] == [
        (9, "<9>", 4),
        (5, "<5>", 3),
        (7, "<7>", 3),
        (100, "<100>", 1),
    ]
    assert found[0]["share"] == 4 / len(tokens)


def test_bins_hold_their_lower_edge_and_the_last_all_that_is_more() -> None:
    assert histogram(np.array([1, 2, 3, 5, 6, 100, 101, 2_000_000]), RANK_EDGES)["counts"] == [
        *(1, 1, 2, 1, 0, 0, 1, 1, 0, 0, 1),
    ]
    found = histogram(np.array([0.0, 2.0**-10, 0.99, 1.0, MOST]), SURPRISAL_EDGES)
    assert found["edges"][:2] == [0.0, 2.0**-10]
    filled = {edge: count for edge, count in zip(found["edges"], found["counts"], strict=False) if count}
    assert filled == {0.0: 1, 2.0**-10: 1, 0.5: 1, 1.0: 1, 64.0: 1}


def test_quantiles_are_between_the_tokens() -> None:
    assert quantiles(np.arange(101)) == {"p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95}
    assert quantiles(np.array([1, 2])) == pytest.approx({"p5": 1.05, "p25": 1.25, "p50": 1.5, "p75": 1.75, "p95": 1.95})


# --- laws -------------------------------------------------------------------------------------------------------------


@given(SETS)
def test_all_tokens_are_counted_once_and_every_share_is_one(rows: list[Any]) -> None:
    found = summary(rows)
    tokens = found["tokens"]
    for name in ("surprisal", "rank"):
        assert sum(found[name]["counts"]) == tokens
        assert len(found[name]["counts"]) == len(found[name]["edges"]) - 1
        levels = [value for value in found["quantiles"][name].values() if value is not None]
        assert levels == sorted(levels)
        assert len(levels) == (5 if tokens else 0)
    assert sum(bin_["tokens"] for bin_ in found["positions"]) == tokens
    assert [bin_["stop"] for bin_ in found["positions"][:-1]] == [bin_["start"] for bin_ in found["positions"][1:]]
    shares = [found[name] for name in ("improbable_share", "fallback_share", "improbable_fallback_share")]
    shares += [bin_["improbable_share"] for bin_ in found["positions"]]
    shares += [entry["share"] for entry in found["frequent_improbable"]]
    assert all(value is None or 0 <= value <= 1 for value in shares)
    named = sum(entry["count"] for entry in found["frequent_improbable"])
    assert named <= round((found["improbable_share"] or 0) * tokens)
    json.dumps(found, allow_nan=False)


@given(SETS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_bit(rows: list[Any], random: Any) -> None:
    mixed = list(rows)
    random.shuffle(mixed)
    assert summary(mixed) == summary(rows)


@given(SETS, st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_a_higher_threshold_calls_no_fewer_tokens_improbable(rows: list[Any], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert (summary(rows, threshold=low)["improbable_share"] or 0) <= (
        summary(rows, threshold=high)["improbable_share"] or 0
    )


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_of_nothing_every_number_is_missing_and_none_is_zero(rows: list[Any]) -> None:
    found = summary(rows)
    assert found["tokens"] == 0
    for name in ("improbable_share", "mean_surprisal", "mean_rank", "mean_entropy", "rank_surprisal_ratio"):
        assert found[name] is None, name
    assert found["positions"] == found["frequent_improbable"] == []
    assert found["quantiles"]["rank"] == dict.fromkeys(("p5", "p25", "p50", "p75", "p95"))


def test_rows_that_nobody_knows_the_writers_of_have_no_fallback_share() -> None:
    found = summary([[(1, 0.001, 1, 0, True)]], flags=False)
    assert found["fallback_share"] is found["improbable_fallback_share"] is None
