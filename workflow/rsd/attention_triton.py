"""Attention over lanes in Triton: every lane of the cache is read exactly as far as it is written.

Queries, cache, lengths of the lanes -> the attention's output. The query heads that share a key head are rows of one
tile, so that keys are neither copied nor read once a head. A long context is divided among several programs ("splits"),
whose results a second kernel merges, so that one lane fills a GPU too. Lengths are read on the device, and the launch
depends on shapes alone: a CUDA graph may capture it (after a first call of the same shapes, which compiles).

Checked against plain torch in Triton's interpreter, on a CPU (tests/unit/test_attention_triton.py), and compiled, but
not run, for compute capabilities 8.0 to 12.0. No timing of it has been made on a GPU.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Programs to aim at for each multiprocessor: enough to hide the wait for memory, and to even out unlike lanes.
PROGRAMS_PER_PROCESSOR = 4
# A split shorter than this would cost more in merging than it saves in reading.
LEAST_SPLIT = 256
# The merging kernel holds a number of each split at once.
MOST_SPLITS = 128
# Where the tensors are on the CPU, in the interpreter: as if on an H100.
INTERPRETED_PROCESSORS = 132


def lane_attention(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scaling: float) -> Tensor:
    """Causal attention of the newest `width` tokens of each lane.

    `query` [rows, heads, width, size] bf16, f16 or f32, of any strides; `keys`, `values` [rows, groups, length, size]
    of the same dtype, the new tokens already stored, last dimension contiguous; `lengths` [rows] int64: entries that
    each lane held before them -> [rows, width, heads, size] contiguous. Token j of a lane sees the entries before
    min(lengths + j + 1, length); query head h reads key head h // (heads // groups). What lies beyond is never read.
    """
    rows, heads, width, size = query.shape
    groups, capacity = keys.shape[1:3]
    _check(query, keys, values, lengths)
    queries = heads // groups * width
    padded_size = max(16, triton.next_power_of_2(size))
    # What fits into registers and shared memory (99 KB); float32 is multiplied by plain cores, which hold less.
    side = max(16, min(64, (2048 if query.dtype == torch.float32 else 8192) // padded_size))
    tile, block = min(side, max(16, triton.next_power_of_2(queries))), side
    tiles = triton.cdiv(queries, tile)
    splits = split_count(rows * groups * tiles, capacity, _processors(query.device))
    out = torch.empty(rows, width, heads, size, dtype=query.dtype, device=query.device)
    parts, logsums = out, out
    if splits > 1:
        parts = torch.empty(splits, rows, width, heads, size, dtype=torch.float32, device=query.device)
        logsums = torch.empty(splits, rows, width, heads, dtype=torch.float32, device=query.device)
    _attend[rows * groups, tiles, splits](
        query,
        keys,
        values,
        lengths,
        parts,
        logsums,
        *query.stride(),
        *keys.stride()[:3],
        *values.stride()[:3],
        scaling * math.log2(math.e),  # the softmax is taken to base 2
        width,
        capacity,
        heads=heads,
        groups=groups,
        size=size,
        padded_size=padded_size,
        tile=tile,
        block=block,
        split=splits > 1,
        num_warps=4,
        num_stages=3,
    )
    if splits > 1:
        merge, padded_splits = _merge[rows * width * heads, triton.cdiv(size, 32)], triton.next_power_of_2(splits)
        merge(parts, logsums, out, splits, size=size, columns=32, padded_splits=padded_splits, num_warps=2)
    return out


def split_count(programs: int, capacity: int, processors: int) -> int:
    """Into how many parts each lane's entries are divided, where `programs` would attend without a division."""
    wanted = PROGRAMS_PER_PROCESSOR * processors // programs
    return max(1, min(wanted, capacity // LEAST_SPLIT, MOST_SPLITS))


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _check(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
    if not query.dtype == keys.dtype == values.dtype or keys.shape != values.shape:
        kinds = [f"{tensor.dtype} {list(tensor.shape)}" for tensor in (query, keys, values)]
        raise ValueError(f"query, keys and values of {kinds}: expected one dtype, and keys shaped as values")
    if query.shape[1] % keys.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads cannot share {keys.shape[1]} key heads evenly")
    if keys.stride(3) != 1 or values.stride(3) != 1 or not lengths.is_contiguous():
        raise ValueError("the last dimension of keys and values, and lengths, must be contiguous")


@triton.jit
def _attend(
    query: tl.tensor,  # [rows, heads, width, size]
    keys: tl.tensor,  # [rows, groups, capacity, size]
    values: tl.tensor,  # [rows, groups, capacity, size]
    lengths: tl.tensor,  # [rows] int64
    parts: tl.tensor,  # [splits, rows, width, heads, size], float32, or the output where there is one split
    logsums: tl.tensor,  # [splits, rows, width, heads] float32: log2 of the sum of the exponentials
    query_row: tl.tensor,
    query_head: tl.tensor,
    query_token: tl.tensor,
    query_column: tl.tensor,
    key_row: tl.tensor,
    key_group: tl.tensor,
    key_entry: tl.tensor,
    value_row: tl.tensor,
    value_group: tl.tensor,
    value_entry: tl.tensor,
    scaling: tl.tensor,
    width: tl.tensor,
    capacity: tl.tensor,
    heads: tl.constexpr,
    groups: tl.constexpr,
    size: tl.constexpr,
    padded_size: tl.constexpr,
    tile: tl.constexpr,
    block: tl.constexpr,
    split: tl.constexpr,
) -> None:
    """One tile of queries of one lane and key head, over one split of the entries that the tile sees."""
    # int64, since a cache may have more than 2^31 elements; one head of a lane has not.
    row = (tl.program_id(0) // groups).to(tl.int64)
    group = (tl.program_id(0) % groups).to(tl.int64)
    shared: tl.constexpr = heads // groups
    # Queries are numbered token by token, so that those of a tile see about as many entries.
    number = tl.program_id(1) * tile + tl.arange(0, tile)  # [tile]
    token = number // shared
    column = tl.arange(0, padded_size)
    real = (token < width)[:, None] & (column < size)[None, :]  # [tile, padded_size]
    query_base = query + row * query_row + group * shared * query_head
    offsets = (number % shared)[:, None] * query_head + token[:, None] * query_token + column[None, :] * query_column
    queries = tl.load(query_base + offsets, mask=real, other=0.0)

    held = tl.load(lengths + row).to(tl.int32)
    newest = tl.minimum(((tl.program_id(1) + 1) * tile - 1) // shared, width - 1)  # token of this tile
    live = tl.minimum(held + newest + 1, capacity)
    limit = tl.minimum(held + token + 1, live)  # [tile]: entries that each query sees
    share = tl.cdiv(tl.cdiv(live, tl.num_programs(2)), block) * block
    first = tl.program_id(2) * share
    end = tl.minimum(first + share, live)  # not above `first` where the splits before had enough for all

    key_base = keys + row * key_row + group * key_group + first.to(tl.int64) * key_entry
    value_base = values + row * value_row + group * value_group + first.to(tl.int64) * value_entry
    lane = tl.arange(0, block)
    peak = tl.full([tile], float("-inf"), tl.float32)
    total = tl.zeros([tile], tl.float32)
    mixed = tl.zeros([tile, padded_size], tl.float32)
    for start in range(first, end, block):
        entry = start + lane
        # Masked loads, since what lies beyond the lane's end may be NaN, and 0 * NaN would be, too.
        written = (entry < end)[:, None] & (column < size)[None, :]  # [block, padded_size]
        key = tl.load(key_base + lane[:, None] * key_entry + column[None, :], mask=written, other=0.0)
        scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * scaling  # [tile, block]
        scores = tl.where(entry[None, :] < limit[:, None], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        # A query that has seen nothing so far has no peak; -inf - -inf would be NaN.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp2(peak - base)
        weights = tl.exp2(scores - base[:, None])
        value = tl.load(value_base + lane[:, None] * value_entry + column[None, :], mask=written, other=0.0)
        total = total * shrink + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(value.dtype), value, mixed * shrink[:, None], input_precision="ieee")
        peak = higher
        key_base += block * key_entry
        value_base += block * value_entry

    splits_before = tl.program_id(2).to(tl.int64) * (tl.num_programs(0) // groups)
    place = ((splits_before + row) * width + token) * heads + group * shared + number % shared  # [tile]
    if split:
        tl.store(logsums + place, peak + tl.log2(total), mask=token < width)  # -inf for what has seen nothing
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    # A split without entries writes no values: its -inf keeps them from being read.
    real &= first < end
    tl.store(parts + place[:, None] * size + column[None, :], mixed.to(parts.dtype.element_ty), mask=real)


@triton.jit
def _merge(
    parts: tl.tensor,  # [splits, queries, size] float32
    logsums: tl.tensor,  # [splits, queries] float32
    out: tl.tensor,  # [queries, size]
    splits: tl.tensor,
    size: tl.constexpr,
    columns: tl.constexpr,
    padded_splits: tl.constexpr,
) -> None:
    """Some columns of one query's output: the mean of its parts, weighted by their sums of exponentials."""
    split = tl.arange(0, padded_splits)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    place = split.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)  # [padded_splits]
    logsum = tl.load(logsums + place, mask=split < splits, other=float("-inf"))
    # The first split always holds an entry that the query sees, so that the largest is not -inf.
    filled = (logsum > float("-inf"))[:, None] & (column < size)[None, :]
    part = tl.load(parts + place[:, None] * size + column[None, :], mask=filled, other=0.0)  # [padded_splits, columns]
    weight = tl.exp2(logsum - tl.max(logsum, 0))
    mixed = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + tl.program_id(0).to(tl.int64) * size + column, mixed.to(out.dtype.element_ty), mask=column < size)
