"""What is counted about rows: exact values, and nothing where there is nothing to count."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rsd.counting import count_kinds, lengths, over_block, quantiles, share

ROWS = [
    {"kind": "trace", "prompt_tokens": [1, 2], "completion_tokens": [3, 4, 5]},
    {"kind": "prefix", "prompt_tokens": np.array([1]), "completion_tokens": np.array([3])},
    {"kind": "trace", "prompt_tokens": [1, 2, 3], "completion_tokens": [4]},
]


def test_kinds_and_lengths_are_those_of_the_rows() -> None:
    assert count_kinds(ROWS) == {"trace": 2, "prefix": 1}
    assert count_kinds([]) == {"trace": 0, "prefix": 0}
    found = lengths(ROWS)
    assert (found["completions"]["mean"], found["completions"]["p100"]) == (5 / 3, 3.0)  # type: ignore[index]
    assert (found["rows"]["p0"], found["rows"]["p50"], found["rows"]["p100"]) == (2.0, 4.0, 5.0)  # type: ignore[index]
    assert lengths([]) == {"completions": None, "rows": None}


def test_a_row_of_just_the_block_size_is_not_over_it() -> None:
    assert over_block(ROWS, 4) == {"block_size": 4, "over_block_share": 1 / 3}
    assert over_block(ROWS, 5) == {"block_size": 5, "over_block_share": 0.0}
    assert over_block([], 5) == {"block_size": 5, "over_block_share": None}


@given(st.lists(st.integers(0, 10**6), max_size=30))
def test_quantiles_rise_from_the_smallest_value_to_the_largest(values: list[int]) -> None:
    found = quantiles(values)
    if not values:
        assert found is None
        return
    assert found is not None
    assert list(found) == ["mean", "p0", "p5", "p25", "p50", "p75", "p95", "p100"]
    steps = [found[key] for key in list(found)[1:]]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (min(values), max(values))


def test_a_share_of_nothing_is_none() -> None:
    assert share(1, 4) == 0.25
    assert share(0, 0) is None
