"""The attention kernel against a naive reference in float64: compiled where there is a GPU, else interpreted.

Without a GPU (triton is not among the CPU's packages): pip install triton; pytest tests/unit/test_attention_triton.py
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

INTERPRETED = not torch.cuda.is_available()
DEVICE = "cpu" if INTERPRETED else "cuda"

with pytest.MonkeyPatch.context() as environment:
    # Read where a kernel is defined, triton's own ones included; other tests must not inherit it.
    environment.setenv("TRITON_INTERPRET", str(int(INTERPRETED)))
    triton = pytest.importorskip("triton")
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

    attention = importlib.import_module("rsd.attention_triton")

if {INTERPRETED} != {isinstance(kernel, InterpretedFunction) for kernel in (attention._attend, triton.language.max)}:
    pytest.skip("triton was imported before, for the other mode; run this file alone", allow_module_level=True)
versions = [tuple(map(int, module.__version__.split(".")[:2])) for module in (triton, np)]
if INTERPRETED and versions[0] < (3, 7) and versions[1] >= (2, 4):
    pytest.skip("the interpreter of triton before 3.7 has no loops with numpy 2.4 and later", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero encountered in log2:RuntimeWarning")

# The largest relative error of a rounding: half a unit in the last place, but the interpreter cuts bf16 off.
ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8}


@pytest.fixture(autouse=True, scope="module")
def _interpreter() -> Iterator[None]:
    """It keeps bf16 as 16-bit integers and multiplies those in tl.dot; here, the numbers that they stand for."""
    dot = InterpreterBuilder.create_dot
    narrow, wide = triton.language.bfloat16, triton.language.float32

    def create_dot(self, a, b, *rest):
        return dot(self, *(self.cast_impl(x, wide) if x.dtype == narrow else x for x in (a, b)), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", str(int(INTERPRETED)))  # parts of triton are imported at the first launch
        patch.setattr(InterpreterBuilder, "create_dot", create_dot)
        yield


def reference(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scaling: float) -> Tensor:
    """The definition, one query at a time: [rows, width, heads, size] float64 on the CPU."""
    query, keys, values = (tensor.double().cpu() for tensor in (query, keys, values))
    rows, heads, width, size = query.shape
    out = torch.zeros(rows, width, heads, size, dtype=torch.float64)
    for row, length in enumerate(lengths.tolist()):
        for head in range(heads):
            group = head // (heads // keys.shape[1])
            for token in range(width):
                seen = min(length + token + 1, keys.shape[2])
                weights = (keys[row, group, :seen] @ query[row, head, token] * scaling).softmax(0)
                out[row, token, head] = weights @ values[row, group, :seen]
    return out


def lanes(
    lengths: Sequence[int],
    *,
    capacity: int,
    heads: int = 4,
    groups: int = 2,
    width: int = 1,
    size: int = 64,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Arguments of `lane_attention`: strided slices of larger tensors, NaN and inf wherever nothing may be read."""
    generator = torch.Generator().manual_seed(0)
    rows = len(lengths)
    query = torch.randn(rows, width, heads, size, generator=generator).to(DEVICE, dtype).transpose(1, 2)
    caches = []
    for dead in (float("nan"), float("inf")):
        cache = torch.full((2, rows + 2, groups, capacity + 7, size), dead)
        for row, length in enumerate(lengths):
            live = min(length + width, capacity)
            cache[1, row + 1, :, :live] = torch.randn(groups, live, size, generator=generator)
        caches.append(cache.to(DEVICE, dtype)[1, 1:-1, :, :capacity])
    return query, *caches, torch.tensor(lengths, device=DEVICE), size**-0.5


def check(arguments: tuple[Tensor, Tensor, Tensor, Tensor, float], out: Tensor | None = None) -> None:
    """float32 to 1e-5. In 16 bits each weight and then the output is rounded, and products are exact: the error is at
    most one rounding of the mean absolute value, and one of the output, which is not larger than that."""
    query, keys, values, lengths, scaling = arguments
    out = attention.lane_attention(*arguments) if out is None else out
    rows, heads, width, size = query.shape
    assert out.shape == (rows, width, heads, size)
    assert out.is_contiguous()
    assert out.dtype == query.dtype
    tolerance = torch.tensor(1e-5)
    if query.dtype != torch.float32:
        tolerance = tolerance + 2 * ROUNDING[query.dtype] * reference(query, keys, values.abs(), lengths, scaling)
    error = (out.cpu().double() - reference(*arguments)).abs()
    assert (error <= tolerance).all(), f"error up to {error.max()}"  # NaN is not <=


def split(monkeypatch: pytest.MonkeyPatch, splits: int) -> None:
    monkeypatch.setattr(attention, "split_count", lambda *_: splits)


@pytest.mark.parametrize(
    ("heads", "groups", "width", "size"),
    [
        (2, 2, 1, 64),
        (4, 2, 3, 80),
        (3, 1, 5, 64),
        (4, 1, 1, 80),
        (7, 1, 5, 64),
        (14, 2, 1, 32),
        (8, 1, 3, 16),
        (2, 2, 17, 64),
        (3, 1, 17, 80),
        (2, 1, 3, 96),
        (2, 1, 1, 128),
        (2, 1, 3, 256),
    ],
)
def test_each_query_sees_its_lane_up_to_itself(heads, groups, width, size):
    check(lanes([0, 37, 150 - width], capacity=150, heads=heads, groups=groups, width=width, size=size))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "width", "size"), [(2, 1, 64), (7, 5, 64), (6, 17, 80)])
def test_half_precision_costs_two_roundings(dtype, heads, width, size):
    check(lanes([0, 100, 200 - width], capacity=200, heads=heads, groups=1, width=width, size=size, dtype=dtype))


@pytest.mark.parametrize("splits", [1, 2, 3, 20])
@pytest.mark.parametrize("width", [1, 3])
def test_splits_change_nothing_not_even_for_lanes_shorter_than_them(splits, width, monkeypatch):
    split(monkeypatch, splits)
    check(lanes([0, 31, 32, 95, 600 - width], capacity=600, width=width, groups=1, heads=2))


def test_splits_change_nothing_in_half_precision(monkeypatch):
    arguments = lanes([0, 64, 500], capacity=600, width=2, dtype=torch.bfloat16)
    for splits in (1, 5):
        split(monkeypatch, splits)
        check(arguments)


def test_queries_of_one_tile_may_end_in_different_splits(monkeypatch):
    # 40 tokens from an empty lane: the first ones see nothing of the later splits.
    split(monkeypatch, 2)
    check(lanes([0, 3], capacity=128, heads=1, groups=1, width=40, size=16))


def test_memory_that_is_not_written_is_not_read(monkeypatch):
    empty = torch.empty

    def poisoned(*shape, **options):
        return empty(*shape, **options).fill_(float("nan"))

    arguments = lanes([0, 40, 290], capacity=300, width=3)
    split(monkeypatch, 4)
    monkeypatch.setattr(torch, "empty", poisoned)
    out = attention.lane_attention(*arguments)
    monkeypatch.undo()
    check(arguments, out)


def test_a_lane_does_not_see_beyond_the_cache():
    # A lane that is not in use may have any length up to the end.
    check(lanes([48, 49, 50], capacity=50, width=3))


def test_strides_do_not_matter():
    query, keys, values, lengths, scaling = lanes([5, 60], capacity=90, width=3)
    check((query.contiguous(), keys.contiguous(), values.contiguous(), lengths, scaling))
    columns_apart = query.transpose(2, 3).contiguous().transpose(2, 3)
    entries_apart = values.transpose(1, 2).contiguous().transpose(1, 2)
    check((columns_apart, keys, entries_apart, lengths, scaling))


def test_large_scores_do_not_overflow(monkeypatch):
    query, keys, *rest = lanes([0, 200], capacity=256, width=2)
    for splits in (1, 3):
        split(monkeypatch, splits)
        out = attention.lane_attention(query * 1e3, keys, *rest)
        expected = reference(query * 1e3, keys, *rest)
        # Scores of some thousands have errors of 1e-4 or so in float32.
        assert (out.cpu().double() - expected).abs().max() < 1e-2


def test_nan_in_a_lane_stays_in_its_lane(monkeypatch):
    arguments = lanes([40, 300], capacity=320)
    clean = attention.lane_attention(*arguments)
    arguments[1][1, :, 200] = float("nan")
    for splits in (1, 3):
        split(monkeypatch, splits)
        out = attention.lane_attention(*arguments)
        assert out[1].isnan().all()
        assert (out[0] - clean[0]).abs().max() < 1e-5


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 130), min_size=1, max_size=3),
    shared=st.integers(1, 8),
    groups=st.integers(1, 2),
    width=st.integers(1, 9),
    size=st.sampled_from([16, 32, 80]),
    splits=st.integers(1, 5),
)
def test_any_shape_is_attended_as_defined(lengths, shared, groups, width, size, splits):
    with pytest.MonkeyPatch.context() as patch:
        split(patch, splits)
        check(lanes(lengths, capacity=131, heads=shared * groups, groups=groups, width=width, size=size))


@given(programs=st.integers(1, 3000), capacity=st.integers(1, 200_000), processors=st.integers(1, 200))
def test_splits_fill_the_gpu_as_far_as_the_cache_is_long(programs, capacity, processors):
    splits = attention.split_count(programs, capacity, processors)
    assert 1 <= splits <= attention.MOST_SPLITS
    if splits > 1:
        assert programs * splits <= 4 * processors
        assert capacity // splits >= 256
    more_is_allowed = splits < attention.MOST_SPLITS and capacity // (splits + 1) >= 256
    assert programs * splits >= 2 * processors or not more_is_allowed


def test_tensors_that_do_not_fit_are_refused():
    query, keys, values, lengths, scaling = lanes([3], capacity=8, heads=4, groups=2)
    for wrong, message in [
        ((query.half(), keys, values, lengths), "dtype"),
        ((query, keys, values[:, :, 1:], lengths), "shaped"),
        ((query[:, :3], keys, values, lengths), "evenly"),
        ((query, keys.mT.contiguous().mT, values, lengths), "contiguous"),
    ]:
        with pytest.raises(ValueError, match=message):
            attention.lane_attention(*wrong, scaling)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 5])
def test_a_cuda_graph_follows_the_lengths(width, dtype):
    full = lanes([2000 - width] * 4, capacity=2000, width=width, heads=6, groups=2, dtype=dtype)
    query, keys, values, lengths, scaling = full
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        attention.lane_attention(*full)  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention.lane_attention(*full)
    for now in ([0, 1, 500, 1990], [1995 - width, 64, 63, 0], [7, 7, 7, 7]):
        lengths.copy_(torch.tensor(now))
        graph.replay()
        torch.cuda.synchronize()
        check((query, keys, values, lengths, scaling), out)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_nothing_waits_for_the_gpu():
    arguments = lanes([3, 700], capacity=1000)
    attention.lane_attention(*arguments)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = attention.lane_attention(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    check(arguments, out)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or torch.cuda.mem_get_info()[0] < 8e9, reason="needs a GPU with 8 GB to spare")
def test_a_cache_may_have_more_than_two_to_the_31_elements():
    rows, groups, capacity, size = 5, 2, 2**22, 64
    cache = torch.empty(rows, groups, capacity, size, dtype=torch.bfloat16, device=DEVICE)  # 5.4 GB
    query, keys, values, lengths, scaling = lanes([100] * rows, capacity=101, dtype=torch.bfloat16)
    cache[:, :, :101], cache[:, :, 200:301] = keys, values
    check((query, cache[:, :, :101], cache[:, :, 200:301], lengths, scaling))
