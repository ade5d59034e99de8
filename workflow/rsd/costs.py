"""What a forward pass and the law cost on this machine, by the clock: the numbers that schedules are chosen from.

Measured at the start of a run, in seconds to half a minute: passes over a few to many tokens with short contexts, one
pass with a long context, and the law on made-up logits. Medians of a few runs after one that warms up.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from rsd.decode import Pair, decide
from rsd.lanes import ModelLanes
from rsd.law import Law
from rsd.schedule import Costs, PassCost
from rsd.vocabulary import Alignment

# Lanes of a measurement, and the context that the cost of reading a cache is told from.
MOST_LANES, LONG_CONTEXT, LONG_LANES = 64, 2048, 8
RUNS, SECONDS_A_POINT = 3, 1.0


def measure_costs(
    student: PreTrainedModel, teacher: PreTrainedModel, alignment: Alignment, law: Law, *, context: int, tokens: int
) -> Costs:
    """The costs of a pair, for passes of up to about `tokens` tokens and contexts of `context`."""
    return Costs(
        measure_pass(student, context=context, tokens=tokens),
        measure_pass(teacher, context=context, tokens=tokens),
        measure_law(student, teacher, alignment, law, tokens=tokens),
    )


def measure_pass(model: PreTrainedModel, *, context: int, tokens: int) -> PassCost:
    """What a pass of one model costs."""
    counts = _counts(tokens)
    lanes = ModelLanes(model, min(MOST_LANES, counts[-1]), min(context, 2 * counts[-1] // MOST_LANES + 8))
    seconds: list[float] = []
    for count in counts:
        rows = min(count, MOST_LANES)
        block = torch.zeros(rows, count // rows, dtype=torch.int64, device=lanes.device)
        seconds.append(_clock(partial(lanes.forward, block), lanes.device))
    del lanes
    return PassCost(tuple(counts), tuple(seconds), _cache_seconds(model, context))


def _cache_seconds(model: PreTrainedModel, context: int) -> float:
    """Seconds that one more token of context of one lane adds to a pass."""
    length = min(context, LONG_CONTEXT)
    lanes = ModelLanes(model, LONG_LANES, length)
    token = torch.zeros(LONG_LANES, 1, dtype=torch.int64, device=lanes.device)
    short = _clock(partial(lanes.forward, token), lanes.device)
    held = np.full(LONG_LANES, length - 2)
    lanes.advance(torch.from_numpy(held).to(lanes.device), held)
    long = _clock(partial(lanes.forward, token), lanes.device)
    return max(long - short, 0.0) / (LONG_LANES * length)


def measure_law(
    student: PreTrainedModel, teacher: PreTrainedModel, alignment: Alignment, law: Law, *, tokens: int
) -> PassCost:
    """What the law costs at so many positions, on logits of the models' sizes with a few dozen likely tokens each."""
    pair = Pair(None, None, alignment.to(student.device), law)  # type: ignore[arg-type]
    counts = _counts(tokens)
    sizes = [len(alignment.to_teacher), len(alignment.to_student)]
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(1, counts[-1], size, generator=generator).mul_(4).to(student.device) for size in sizes]
    seconds = []
    for count in counts:
        drafts = torch.zeros(1, count - 1, dtype=torch.int64, device=student.device)
        noise = torch.arange(count, device=student.device)
        ours, theirs = (entry[:, :count] for entry in logits)
        seconds.append(_clock(partial(decide, pair, ours, theirs, drafts, noise), student.device))
    return PassCost(tuple(counts), tuple(seconds))


def _counts(most: int) -> list[int]:
    """Powers of two up to at least `most`, at least 2."""
    return [1 << power for power in range(max(1, (most - 1).bit_length()) + 1)]


@torch.inference_mode()
def _clock(run: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a few runs; fewer where one takes long."""
    seconds: list[float] = []
    _timed(run, device)
    while len(seconds) < RUNS and (not seconds or sum(seconds) < SECONDS_A_POINT):
        seconds.append(_timed(run, device))
    return statistics.median(seconds)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
