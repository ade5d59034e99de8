"""Attention over lanes in plain torch: right to rounding, and on the CPU in float32 the same bits whatever the shape.

The kernel for GPUs has a file of its own, test_attention_triton.py.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rsd.attention import (
    EXACT,
    FUSED,
    LENGTH_MULTIPLE,
    QUERY_MULTIPLE,
    TRITON,
    choose_attention,
    exact_attention,
    exact_mask,
    fused_attention,
    round_up,
    triton_attention,
    visibility,
)

GARBAGE = 1e30  # what a hidden entry may hold: anything finite whose products are finite
LONGEST = 4096


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cache(rows: int, groups: int, size: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values [rows, groups, length, size]."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, groups, length, size, generator=generator) for _ in range(2))


def queries(rows: int, heads: int, width: int, size: int) -> Tensor:
    return torch.randn(rows, heads, width, size, generator=torch.Generator().manual_seed(1))


def exact(query: Tensor, keys: Tensor, values: Tensor, starts: Tensor, live: int) -> Tensor:
    """`exact_attention` as the lanes call it: on the live part of a cache that is longer, with transposed keys."""
    rows, heads, width, size = query.shape
    transposed = keys.transpose(2, 3).contiguous()[:rows, :, :, :live]
    mask = exact_mask(visibility(starts, width, live), heads // keys.shape[1])
    return exact_attention(None, query, transposed, values[:rows, :, :live], mask, size**-0.5)[0]


def fused(query: Tensor, keys: Tensor, values: Tensor, starts: Tensor, live: int) -> Tensor:
    rows, _, width, size = query.shape
    visible = visibility(starts, width, live)
    return fused_attention(None, query, keys[:rows, :, :live], values[:rows, :, :live], visible, size**-0.5)[0]


def naive(query: Tensor, keys: Tensor, values: Tensor, starts: Tensor) -> Tensor:
    """The definition in float64, one query at a time: [rows, width, heads, size]."""
    rows, heads, width, size = query.shape
    out = torch.zeros(rows, width, heads, size, dtype=torch.float64)
    for row in range(rows):
        for head in range(heads):
            group = head // (heads // keys.shape[1])
            for token in range(width):
                seen = int(starts[row]) + token + 1
                scores = keys[row, group, :seen].double() @ query[row, head, token].double() * size**-0.5
                out[row, token, head] = scores.softmax(0) @ values[row, group, :seen].double()
    return out


def with_garbage(keys: Tensor, values: Tensor, starts: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The same cache with huge numbers of both signs in every entry that no query sees."""
    keys, values = keys.clone(), values.clone()
    for row, start in enumerate(starts.tolist()):
        for tensor in (keys, values):
            hidden = tensor[row, :, start + width :]
            hidden.copy_(torch.where(hidden > 0, GARBAGE, -GARBAGE))
    return keys, values


@pytest.mark.parametrize("attention", [exact, fused])
@pytest.mark.parametrize("shared", [1, 2, 3, 7])
@pytest.mark.parametrize("width", [1, 2, 5, 12])
def test_it_is_attention_over_what_each_lane_holds(attention, shared, width):
    """Outputs are means of values of order 1, so 1e-5 is some tens of roundings in float32."""
    groups, size, live = 2, 16, 256
    starts = torch.tensor([0, 3, 100, 128, 256 - width])
    keys, values = cache(5, groups, size, 300)
    query = queries(5, groups * shared, width, size)
    out = attention(query, *with_garbage(keys, values, starts, width), starts, live)
    assert out.shape == (5, width, groups * shared, size)
    assert out.is_contiguous()
    assert (out.double() - naive(query, keys, values, starts)).abs().max() < 1e-5


def test_fused_attention_in_bfloat16_is_right_to_its_rounding():
    """Weights and output are rounded to 2^-8 of themselves: at most so much of the mean absolute value, twice."""
    starts, width, live = torch.tensor([0, 77, 120]), 3, 128
    keys, values = (tensor.bfloat16() for tensor in cache(3, 2, 16, 128))
    query = queries(3, 6, width, 16).bfloat16()
    out = fused(query, keys, values, starts, live)
    assert out.dtype == torch.bfloat16
    bound = 2 * 2**-8 * naive(query, keys, values.abs(), starts) + 1e-5
    assert ((out.double() - naive(query, keys, values, starts)).abs() <= bound).all()


def token_by_token(query: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """One lane alone, one token at a time, each with the shortest live part: [width, heads, size]."""
    out = []
    for token in range(query.shape[2]):
        live, now = round_up(start + token + 1, LENGTH_MULTIPLE), slice(token, token + 1)
        out.append(exact(query[:, :, now], keys, values, torch.tensor([start + token]), live)[0, 0])
    return torch.stack(out)


@given(
    groups=st.integers(1, 3),
    shared=st.sampled_from([1, 2, 3, 7]),
    size=st.sampled_from([8, 16, 64]),
    width=st.sampled_from([1, 2, 3, 5, 12, 40]),
    start=st.integers(0, 700),
    longer=st.integers(0, 3),
    rows=st.integers(1, 5),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_a_token_has_the_same_bits_whatever_the_block_the_live_length_and_the_neighbours(
    groups, shared, size, width, start, longer, rows, data
):
    row, length = data.draw(st.integers(0, rows - 1)), 2048
    keys, values = cache(rows, groups, size, length, seed=start)
    query = queries(rows, groups * shared, width, size)
    live = round_up(start + width, LENGTH_MULTIPLE) + longer * LENGTH_MULTIPLE
    starts = torch.randint(0, live - width + 1, (rows,), generator=torch.Generator().manual_seed(start))
    starts[row] = start
    together = exact(query, *with_garbage(keys, values, starts, width), starts, live)[row]
    mine = slice(row, row + 1)
    assert torch.equal(together, token_by_token(query[mine], keys[mine], values[mine], start))


@pytest.mark.parametrize(("groups", "shared", "size"), [(1, 3, 64), (2, 7, 128), (3, 1, 64)])
def test_a_token_has_the_same_bits_in_the_longest_contexts_on_one_thread_or_two(groups, shared, size):
    keys, values = cache(2, groups, size, LONGEST)
    width = 5
    query = queries(2, groups * shared, width, size)
    for start in (5, 1000, LONGEST - width):
        alone = token_by_token(query[:1], keys[:1], values[:1], start)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for live in {round_up(start + width, LENGTH_MULTIPLE), 2048, LONGEST}:
                if live >= start + width:
                    together = exact(query, keys, values, torch.tensor([start, 3]), live)[0]
                    assert torch.equal(together, alone), (start, threads, live)
        torch.set_num_threads(1)


def test_a_lane_sees_its_own_past_and_nothing_else():
    visible = visibility(torch.tensor([0, 2]), width=3, live=6)
    assert visible.shape == (2, 1, 3, 6)
    assert visible[0, 0].tolist() == [[column <= token for column in range(6)] for token in range(3)]
    assert visible[1, 0].tolist() == [[column <= 2 + token for column in range(6)] for token in range(3)]


@pytest.mark.parametrize(("shared", "width", "padded"), [(1, 1, 4), (2, 2, 4), (3, 2, 8), (7, 1, 8), (7, 12, 84)])
def test_a_mask_repeats_the_block_for_each_query_head_and_sees_everything_where_it_is_padded(shared, width, padded):
    starts = torch.tensor([4, 0])
    visible, mask = visibility(starts, width, 128), exact_mask(visibility(starts, width, 128), shared)
    assert mask.shape == (2, 1, padded, 128)
    assert padded % QUERY_MULTIPLE == 0
    for head in range(shared):
        block = mask[:, :, head * width : (head + 1) * width]
        assert torch.equal(block == 0, visible)
        assert torch.equal(block == float("-inf"), ~visible)
    assert (mask[:, :, shared * width :] == 0).all()


def test_rounding_up_gives_the_least_multiple():
    assert [round_up(value, 4) for value in (0, 1, 4, 5, 8)] == [0, 4, 4, 8, 8]


def test_transformers_knows_the_three():
    ours = {EXACT: exact_attention, FUSED: fused_attention, TRITON: triton_attention}
    assert {name: ALL_ATTENTION_FUNCTIONS[name] for name in ours} == ours


def test_a_cpu_is_exact_in_float32_alone():
    cpu = torch.device("cpu")
    assert choose_attention(cpu, torch.float32) == EXACT
    assert {choose_attention(cpu, dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64)} == {FUSED}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("capability", "triton", "expected"),
    [((8, 0), True, TRITON), ((9, 0), True, TRITON), ((9, 0), False, FUSED), ((7, 5), True, FUSED)],
)
def test_a_gpu_takes_the_kernel_where_it_is_able_to_and_there_is_triton(
    monkeypatch, dtype, capability, triton, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if triton else None)
    assert choose_attention(torch.device("cuda"), dtype) == expected
