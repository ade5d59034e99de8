"""Captured passes give what eager ones give. On a CPU with a stand-in for CUDA graphs, which replays by computing anew
on the same buffers, as a graph does; on a GPU with real ones."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
import pytest
import torch
from test_decode import LAW, requests
from torch import Tensor

from pairs import END, STUDENT_SIZE, TEACHER_SIZE, tiny_alignment, tiny_model
from rsd.decode import generate_rsd
from rsd.graphs import WIDEST, GraphedForward, bucket
from rsd.lanes import ModelLanes
from rsd.schedule import LOCK_STEP, Schedule, Scheduler

CPU = torch.device("cpu")
CONTEXT = 200


class Graph:
    """What was called while it was recorded, and the buffers that this read and wrote."""

    def __init__(self):
        self.recorded, self.replays = None, 0

    def pool(self):
        return "pool"

    def replay(self):
        forward, arguments, output = self.recorded
        output.copy_(forward(*arguments))
        self.replays += 1


class Stream:
    def __init__(self, device=None):
        self.waited_for = []

    def wait_stream(self, other):
        self.waited_for.append(other)


class Cuda:
    """Stands in for torch.cuda: who was captured, in which pool, and on which stream what ran."""

    def __init__(self, monkeypatch):
        self.graphs, self.pools, self.capturing = [], [], None
        self.main = self.current = Stream()
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)

    @contextlib.contextmanager
    def graph(self, graph, pool=None):
        self.graphs.append(graph), self.pools.append(pool)
        self.capturing = graph
        try:
            yield
        finally:
            self.capturing = None

    @contextlib.contextmanager
    def stream(self, stream):
        self.current = stream
        yield
        self.current = self.main

    def watched(self, forward):
        """`forward`, recorded by a graph that is being captured, with a note of each call."""
        calls = []

        def call(tokens: Tensor, starts: Tensor) -> Tensor:
            output = forward(tokens, starts)
            if self.capturing is not None:
                self.capturing.recorded = forward, (tokens, starts), output
            side = "side" if self.current is not self.main else "main"
            calls.append((tuple(tokens.shape), "capture" if self.capturing is not None else side))
            return output

        return call, calls


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def plain(tokens: Tensor, starts: Tensor) -> Tensor:
    """Logits [rows, width, 3] that tell tokens and starts apart."""
    return torch.stack((tokens, starts[:, None] + torch.arange(tokens.shape[1]), tokens * 7 + starts[:, None]), dim=-1)


def inputs(rows: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 24, (rows, width), generator=generator),
        torch.randint(0, 100, (rows,), generator=generator),
    )


def test_buckets_are_powers_of_two_up_to_16_and_multiples_of_16_beyond():
    assert [bucket(rows) for rows in (1, 2, 3, 4, 5, 8, 9, 16)] == [1, 2, 4, 4, 8, 8, 16, 16]
    assert [bucket(rows) for rows in (17, 32, 33, 100, 512)] == [32, 32, 48, 112, 512]
    assert all(bucket(bucket(rows)) == bucket(rows) >= rows for rows in range(1, 600))


def test_a_replay_gives_what_the_eager_pass_gives_for_any_rows_and_inputs(cuda):
    graphed = GraphedForward(plain, CPU, spare=300)
    graphed.forward, _ = cuda.watched(plain)
    for seed, (rows, width) in enumerate([(4, 1), (3, 1), (4, 1), (2, 5), (1, 1), (17, 2), (3, 1), (30, 2)]):
        tokens, starts = inputs(rows, width, seed)
        assert torch.equal(graphed(tokens, starts), plain(tokens, starts)), (rows, width)
    assert sum(graph.replays for graph in cuda.graphs) == 8


def test_an_output_outlives_the_next_replay(cuda):
    graphed = GraphedForward(plain, CPU, spare=300)
    graphed.forward, _ = cuda.watched(plain)
    first, second = inputs(4, 1, seed=1), inputs(4, 1, seed=2)
    logits = graphed(*first)
    graphed(*second)
    assert torch.equal(logits, plain(*first))


def test_added_rows_read_token_0_at_the_start_of_lanes_that_are_not_active(cuda):
    graphed = GraphedForward(plain, CPU, spare=300)
    graphed.forward, _ = cuda.watched(plain)
    graphed(*inputs(4, 2))
    graphed(*inputs(3, 2, seed=1))
    _, (tokens, starts), _ = cuda.graphs[0].recorded
    assert torch.equal(tokens[:3], inputs(3, 2, seed=1)[0])
    assert tokens[3].tolist() == [0, 0]
    assert starts[3] == 0


def test_each_shape_is_captured_once_after_a_warm_up_on_a_stream_of_its_own(cuda):
    graphed = GraphedForward(plain, CPU, spare=300)
    graphed.forward, calls = cuda.watched(plain)
    for _ in range(3):
        for rows, width in [(3, 1), (4, 1), (4, 5), (5, 1)]:
            graphed(*inputs(rows, width))
    assert [call for call in calls if call[1] == "capture"] == [
        ((4, 1), "capture"),
        ((4, 5), "capture"),
        ((8, 1), "capture"),
    ]
    assert {call[1] for call in calls} == {"side", "capture"}
    assert calls[-1] == ((8, 1), "capture")
    assert calls.count(((4, 1), "side")) >= 1
    # The graphs share one pool of memory: the first one's.
    assert cuda.pools == [None, "pool", "pool"]


def test_capturing_touches_nothing_but_the_spare_entries(cuda):
    graphed = GraphedForward(plain, CPU, spare=300)
    seen = []
    graphed.forward, _ = cuda.watched(lambda tokens, starts: seen.append(starts.clone()) or plain(tokens, starts))
    graphed._capture(4, 3)
    assert len(seen) > 1
    assert all(starts.tolist() == [300] * 4 for starts in seen)


def test_wide_passes_are_eager(cuda):
    graphed = GraphedForward(plain, CPU, spare=300)
    graphed.forward, calls = cuda.watched(plain)
    for width in (WIDEST, WIDEST + 1):
        tokens, starts = inputs(2, width)
        assert torch.equal(graphed(tokens, starts), plain(tokens, starts))
    assert calls[-1] == ((2, WIDEST + 1), "main")
    assert list(graphed.graphs) == [(2, WIDEST)]


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted"), torch.OutOfMemoryError("out of memory")])
def test_where_capturing_fails_passes_go_on_eagerly_with_one_warning(cuda, monkeypatch, caplog, error):
    attempts = []

    def fail(graph, pool=None):
        attempts.append(graph)
        raise error

    monkeypatch.setattr(torch.cuda, "graph", fail)
    graphed = GraphedForward(plain, CPU, spare=300)
    with caplog.at_level(logging.WARNING):
        for rows, width in [(4, 1), (4, 1), (2, 3)]:
            tokens, starts = inputs(rows, width)
            assert torch.equal(graphed(tokens, starts), plain(tokens, starts))
    assert len(attempts) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"no CUDA graph of 4 rows and 1 tokens ({error}); going on without graphs"
    ]


def test_lanes_give_the_same_bits_graphed_or_not(cuda):
    """A model's lanes as on a GPU: a graph reads the whole cache, and rows are added to fill it."""
    model = tiny_model(1, STUDENT_SIZE)
    eager, lanes = (ModelLanes(model, 4, CONTEXT) for _ in range(2))
    forward, calls = cuda.watched(lanes._model_forward)
    lanes.graphed = GraphedForward(forward, CPU, lanes.cache.length - WIDEST)
    generator = np.random.default_rng(0)
    for side in (eager, lanes):
        for lane in range(3):
            side.fill(lane, list(range(2, 12 + lane)))
    for count, width in [(3, 1), (3, 4), (2, 1), (3, 1), (1, 1), (1, 12), (2, 40)]:
        tokens = torch.from_numpy(generator.integers(0, STUDENT_SIZE, (count, width)))
        assert torch.equal(lanes.forward(tokens), eager.forward(tokens)), (count, width)
        for side in (eager, lanes):
            side.advance(torch.tensor([1] * count), np.array([1] * count))
    assert [call for call in calls if call[1] == "main"] == [((2, 40), "main")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("schedule", [LOCK_STEP, Schedule("student", 4), Schedule("teacher", 4)], ids=lambda s: s.name)
def test_a_gpu_decodes_the_same_tokens_from_graphs_and_eagerly(monkeypatch, schedule):
    """In float32; the kernels of a graph are the eager ones but for the rows that fill it, so numbers are equal to
    rounding, and a token differs with a probability of about 1e-6 each: 1e-4 for all of them."""

    def decode():
        torch.manual_seed(0)
        models = [tiny_model(1, STUDENT_SIZE).cuda(), tiny_model(2, TEACHER_SIZE, width=48, layers=3).cuda()]
        completions = generate_rsd(
            *models, tiny_alignment(), requests(7), law=LAW, end_of_turn=END, context=90, max_new_tokens=20, lanes=4,
            scheduler=Scheduler.fixed(schedule),
        )  # fmt: skip
        return {completion.index: completion for completion in completions}

    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(1) or replay(graph))
    graphed = decode()
    if not replays:
        pytest.skip("this GPU decodes without graphs")
    count = len(replays)
    monkeypatch.setattr(GraphedForward, "__call__", lambda self, tokens, starts: self.forward(tokens, starts))
    eager = decode()
    assert len(replays) == count
    for index, completion in eager.items():
        assert completion.tokens.tolist() == graphed[index].tokens.tolist()
        np.testing.assert_allclose(completion.p_student, graphed[index].p_student, rtol=1e-3)
        np.testing.assert_allclose(completion.p_teacher, graphed[index].p_teacher, rtol=1e-3)
