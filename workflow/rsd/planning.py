"""Before decoding starts: what memory it takes, how many lanes fit and pay, and what schedule is right.

Settings -> a plan, or an error that says what to lower; nothing is decoded here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rsd.attention import LENGTH_MULTIPLE, round_up
from rsd.costs import measure_costs, measure_pass
from rsd.decode import teacher_context
from rsd.graphs import bucket
from rsd.lanes import cache_bytes_per_token
from rsd.law import Law
from rsd.memory import free_bytes
from rsd.schedule import DRAFTERS, Agreement, Costs, Schedule, Scheduler, best_schedule, candidates, tokens_per_second
from rsd.split import is_split, layer_devices
from rsd.vocabulary import Alignment

LOG = logging.getLogger(__name__)
# Of the memory that is free, this much stays free; more lanes than this are never worth it.
RESERVE, MOST_LANES = 0.1, 512
# The fewest lanes are taken that reach this share of the best predicted speed.
GOOD_ENOUGH = 0.95
_LOGIT_COPIES = 4  # float32 logits, probabilities, and what they are made from


@dataclass(frozen=True)
class LaneBytes:
    """Bytes that one lane takes: keys and values of all models for a full context, what it has written, its logits."""

    cache: int
    written: int
    logits: int

    @property
    def total(self) -> int:
        """All together."""
        return self.cache + self.written + self.logits


def pair_lane_bytes(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    alignment: Alignment,
    *,
    context: int,
    max_new_tokens: int,
    block: int,
) -> LaneBytes:
    """What a lane of RSD takes whose rounds draft up to `block` tokens."""
    sides = [(student, context), (teacher, teacher_context(teacher, alignment, context))]
    return _lane_bytes(sides, max_new_tokens, block)


def single_lane_bytes(model: PreTrainedModel, *, context: int, max_new_tokens: int) -> LaneBytes:
    """What a lane of plain sampling takes."""
    return _lane_bytes([(model, context)], max_new_tokens, 1)


def _lane_bytes(sides: list[tuple[PreTrainedModel, int]], max_new_tokens: int, block: int) -> LaneBytes:
    cache = sum(cache_bytes_per_token(model) * round_up(context, LENGTH_MULTIPLE) for model, context in sides)
    vocabularies = sum(model.config.get_text_config().vocab_size for model, _ in sides)
    return LaneBytes(cache, (max_new_tokens + block) * 13, block * vocabularies * 4 * _LOGIT_COPIES)


def lanes_that_fit(
    wanted: int | None, each: LaneBytes, free: float, *, most: int, allocated: Callable[[int], int] = int
) -> int:
    """`wanted` lanes, or as many as fit where that is None, never more than `most`, the number of sequences.

    `allocated`: how many rows are allocated for so many lanes (those of a CUDA graph, on a GPU).

    Raises MemoryError where they do not fit, saying how many would and what to lower.
    """
    rows = int(free * (1 - RESERVE)) // each.total
    fit = rows
    while fit and allocated(fit) > rows:
        fit -= 1
    need = min(wanted or 1, most)
    if fit < need:
        raise MemoryError(
            f"no memory for {need} lanes: each takes {each.total / 1e9:.3g} GB ({each.cache / 1e9:.3g} GB of keys and "
            f"values for a full context), {free / 1e9:.3g} GB are free, of which a tenth is left alone, so {fit} fit; "
            + ("lower lanes, or leave it to the pipeline (lanes: null)" if fit else "lower context, or free memory")
        )
    return need if wanted else max(1, min(fit, most, MOST_LANES))


def plan_pair(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    alignment: Alignment,
    law: Law,
    *,
    context: int,
    max_new_tokens: int,
    sequences: int,
    lanes: int | None,
    schedule: str,
    block: int | None,
    sharers: int = 1,
) -> tuple[int, Scheduler]:
    """Lanes and scheduler for RSD of so many `sequences`; None and `auto` are chosen from measured costs.

    `sharers`: so many jobs share the free memory.
    """
    options = candidates(schedule, block)
    longest = max(option.block for option in options)
    each = pair_lane_bytes(student, teacher, alignment, context=context, max_new_tokens=max_new_tokens, block=longest)
    most = lanes_that_fit(
        lanes, each, _free([(student, context), (teacher, context)], each) / sharers, most=sequences,
        allocated=_rows(student.device),
    )  # fmt: skip
    if len(options) == 1 and lanes is not None:
        return most, Scheduler(options)
    costs = measure_costs(student, teacher, alignment, law, context=context, tokens=min(most * longest, 1024))
    if lanes is None:
        most = fewest_good_lanes(costs, options, most=most, length=context / 2)
    scheduler = Scheduler(options, costs)
    _tell(each, most, f"schedule by cost, at first {scheduler.preview(most, context / 2)}")
    return most, scheduler


def plan_single(
    model: PreTrainedModel,
    *,
    context: int,
    max_new_tokens: int,
    sequences: int,
    lanes: int | None,
    sharers: int = 1,
) -> int:
    """Lanes for plain sampling of one model; None is chosen from measured costs. `sharers` as in `plan_pair`."""
    each = single_lane_bytes(model, context=context, max_new_tokens=max_new_tokens)
    most = lanes_that_fit(
        lanes, each, _free([(model, context)], each) / sharers, most=sequences, allocated=_rows(model.device)
    )
    if lanes is None and most > 1:
        cost = measure_pass(model, context=context, tokens=most)
        speeds = {count: count / cost.predict(count, 1, context / 2) for count in _powers(most)}
        most = _fewest(speeds)
    _tell(each, most, "one model")
    return most


def fewest_good_lanes(costs: Costs, options: tuple[Schedule, ...], *, most: int, length: float) -> int:
    """The fewest lanes, at most `most`, whose predicted speed with contexts of `length` is nearly the best."""
    agreement = {drafter: Agreement() for drafter in DRAFTERS}
    speeds = {}
    for lanes in _powers(most):
        best = best_schedule(costs, agreement, options, lanes, length)
        speeds[lanes] = tokens_per_second(costs, agreement, best, lanes, length)
    return _fewest(speeds)


def _free(sides: list[tuple[PreTrainedModel, int]], each: LaneBytes) -> float:
    """Free memory in bytes; where layers are on several GPUs, that which the tightest of them is good for.

    All but keys and values is on the first.
    """
    first = sides[0][0].device
    if not any(is_split(model) for model, _ in sides):
        return free_bytes(first)
    cache = sum(cache_bytes_per_token(model) * context for model, context in sides)
    taken = {first: float(each.total - each.cache)}
    for model, context in sides:
        devices = layer_devices(model)
        for device in devices:
            share = cache_bytes_per_token(model) * context / len(devices) / cache
            taken[device] = taken.get(device, 0.0) + each.cache * share
    return min(free_bytes(device) * each.total / bytes_ for device, bytes_ in taken.items())


def _rows(device: torch.device) -> Callable[[int], int]:
    return bucket if device.type == "cuda" else int


def _fewest(speeds: dict[int, float]) -> int:
    return min(lanes for lanes, speed in speeds.items() if speed >= GOOD_ENOUGH * max(speeds.values()))


def _powers(most: int) -> list[int]:
    return [*(1 << power for power in range(most.bit_length()) if 1 << power < most), most]


def _tell(each: LaneBytes, lanes: int, how: str) -> None:
    LOG.info("%d lanes of %.3g GB each, %s", lanes, each.total / 1e9, how)
