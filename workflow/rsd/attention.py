"""Attention over lanes: grouped queries against the live part of each lane's cache, without copying keys.

The query heads that share a key head stand beside each other as more query rows of it, so keys and values are read
once. One of these functions is registered with transformers for each kind of machine:

    EXACT   CPU, float32: plain matrix products, whose sums do not depend on neighbours, padding or width
    FUSED   elsewhere: torch's fused attention
    TRITON  CUDA: a kernel that reads each lane as far as it is written (attention_triton.py)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

EXACT, FUSED, TRITON = "rsd_exact", "rsd_fused", "rsd_triton"
# Below it the kernel's tiles do not fit into a multiprocessor.
LEAST_CAPABILITY = (8, 0)
# Rows of queries come in such multiples, and lengths of caches: there matrix products keep their order of summation.
QUERY_MULTIPLE, LENGTH_MULTIPLE = 4, 256


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not below `value`."""
    return -(-value // multiple) * multiple


def visibility(starts: Tensor, width: int, live: int) -> Tensor:
    """Which entries each new token sees: bool [rows, 1, width, live], where `starts` [rows] entries came before."""
    last = starts[:, None] + torch.arange(width, device=starts.device)  # [rows, width]
    return torch.arange(live, device=starts.device) <= last[:, None, :, None]


def exact_mask(visible: Tensor, shared: int) -> Tensor:
    """`visible` [rows, 1, width, live] for `exact_attention`: 0 or -inf, float32, [rows, 1, query rows, live].

    `shared`: query heads to a key head; the width is repeated for each and padded to QUERY_MULTIPLE.
    """
    rows, _, width, live = visible.shape
    mask = torch.zeros(rows, 1, round_up(shared * width, QUERY_MULTIPLE), live)
    hidden = ~visible.expand(rows, shared, width, live).reshape(rows, 1, shared * width, live)
    mask[:, :, : shared * width].masked_fill_(hidden, float("-inf"))
    return mask


def exact_attention(
    module: torch.nn.Module, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention in plain matrix products.

    `query` [rows, heads, width, size]; `keys` [rows, groups, size, live], transposed, and `values`
    [rows, groups, live, size]; `mask` as `exact_mask` makes it -> [rows, width, heads, size]. All float32.
    """
    rows, heads, width, size = query.shape
    groups, live = values.shape[1], values.shape[2]
    used, padded = heads // groups * width, mask.shape[2]
    stacked = query.new_zeros(rows, groups, padded, size)
    torch.mul(query.reshape(rows, groups, used, size), scaling, out=stacked[:, :, :used])
    weights = torch.matmul(stacked, keys).add_(mask)
    weights = weights.sub_(weights.amax(dim=-1, keepdim=True)).exp_()
    # Sums over a cache are made piece by piece of one length, since a longer product has another order of summation;
    # pieces that a lane does not reach add zeros.
    total = weights.unflatten(-1, (-1, LENGTH_MULTIPLE)).sum(dim=-1).cumsum(dim=-1)[..., -1:]
    out = torch.matmul(weights[..., :LENGTH_MULTIPLE], values[:, :, :LENGTH_MULTIPLE])
    for start in range(LENGTH_MULTIPLE, live, LENGTH_MULTIPLE):
        piece = slice(start, start + LENGTH_MULTIPLE)
        out += torch.matmul(weights[..., piece], values[:, :, piece])
    out = out.div_(total)[:, :, :used]
    return out.reshape(rows, heads, width, size).transpose(1, 2).contiguous(), None


def fused_attention(
    module: torch.nn.Module, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """torch's fused attention: `query` [rows, heads, width, size], `keys` and `values` [rows, groups, live, size],
    `mask` bool [rows, 1, width, live] -> [rows, width, heads, size]."""
    rows, heads, width, size = query.shape
    groups = values.shape[1]
    shared = heads // groups
    stacked = query.reshape(rows, groups, shared * width, size)
    repeated = mask.expand(rows, shared, width, -1).reshape(rows, 1, shared * width, -1)
    out = torch.nn.functional.scaled_dot_product_attention(stacked, keys, values, attn_mask=repeated, scale=scaling)
    return out.reshape(rows, heads, width, size).transpose(1, 2).contiguous(), None


def triton_attention(
    module: torch.nn.Module, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """The kernel of `attention_triton`: `keys` and `values` are the whole cache [rows, groups, length, size]; `mask`
    [rows, 1, 1, 1] int64 holds how many entries came before, since that is all it needs."""
    from rsd.attention_triton import lane_attention

    # Triton starts a kernel on the current device, wherever its tensors are.
    with torch.cuda.device_of(query):
        return lane_attention(query, keys, values, mask.flatten(), scaling), None


ATTENTION: dict[str, Callable[..., tuple[Tensor, None]]] = {
    EXACT: exact_attention,
    FUSED: fused_attention,
    TRITON: triton_attention,
}
for _name, _function in ATTENTION.items():
    AttentionInterface.register(_name, _function)


def choose_attention(device: torch.device, dtype: torch.dtype) -> str:
    """The best of the three for a model on `device` with weights of `dtype`."""
    if device.type == "cpu" and dtype == torch.float32:
        return EXACT
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY:
        return TRITON if importlib.util.find_spec("triton") else FUSED
    return FUSED
