"""How many steps a training takes, and which row comes when: by passes over the rows, or by a number of tokens.

Rows and settings -> a plan and an order, both known before anything is trained. By hand:
`python -c "from rsd.training_steps import plan_steps; ..."`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsd.training_rows import TrainingRows, read_training_rows


@dataclass(frozen=True)
class Plan:
    """Rows of an epoch that are used and left out, steps an epoch and in all, and those of the warm-up."""

    rows: int
    left_out: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int


def plan_steps(rows: int, settings: Mapping[str, Any], steps: int | None = None) -> Plan:
    """The steps that `rows` rows make: those of `epochs` passes, or `steps`.

    Raises ValueError where there would be none, or batches of another size than asked.
    """
    batch, micro, gpus = settings["batch_size"], settings["micro_batch_size"], settings["gpus"]
    if batch % (micro * gpus):
        times = f" x training.gpus = {gpus}" if gpus > 1 else ""
        raise ValueError(
            f"training.batch_size = {batch} is no multiple of training.micro_batch_size = {micro}{times}; "
            "choose values that divide it"
        )
    left_out = _left_out(rows, settings)
    steps_per_epoch = math.ceil((rows - left_out) / batch)
    if steps is None:
        steps = steps_per_epoch * settings["epochs"]
    return Plan(
        rows=rows - left_out,
        left_out=left_out,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        warmup_steps=math.ceil(settings["warmup_ratio"] * steps),
    )


def _left_out(rows: int, settings: Mapping[str, Any]) -> int:
    """Rows of each epoch that make no whole batch; ValueError where no other is left."""
    left_out = rows % settings["batch_size"] if settings["drop_last"] else 0
    if rows == left_out:
        raise ValueError(
            f"{rows} training rows make no batch of training.batch_size = {settings['batch_size']}, so no step would "
            "be taken; lower batch_size, or write training.drop_last: false"
        )
    return left_out


# --- a number of tokens ----------------------------------------------------------------------------------------------


def tokens_seen(rows: Path, settings: Mapping[str, Any], seed: int) -> int:
    """The tokens with loss that a training sees in all its epochs, exactly: rows that it leaves out are not counted.

    `settings`: its block_size, overlong, batch_size, drop_last and epochs; `seed`: its training seed.
    """
    data = read_training_rows(rows, block_size=settings["block_size"], overlong=settings["overlong"])
    order = EpochOrder(len(data), _left_out(len(data), settings), seed)
    return sum(int(_tokens(data, order, epoch).sum()) for epoch in range(settings["epochs"]))


def plan_tokens(data: TrainingRows, settings: Mapping[str, Any], seed: int, wanted: int) -> Plan:
    """As many steps, at least one, as come nearest to `wanted` tokens with loss; of two that do, the fewer.

    A step is a whole batch, so up to half a batch's tokens may be missing or too many. The epochs are those of any
    training, with the same rows left out (drop_last); the last one ends where the steps do.
    """
    plan = plan_steps(len(data), settings, steps=1)
    order = EpochOrder(len(data), plan.left_out, seed)
    seen = np.zeros(0, dtype=np.int64)
    for epoch in itertools.count():
        tokens = _tokens(data, order, epoch)
        steps = np.add.reduceat(tokens, np.arange(0, len(tokens), settings["batch_size"]))
        seen = np.concatenate((seen, (seen[-1] if len(seen) else 0) + np.cumsum(steps)))
        if seen[-1] >= wanted:
            break
    return plan_steps(len(data), settings, steps=int(np.abs(seen - wanted).argmin()) + 1)


def _tokens(data: TrainingRows, order: EpochOrder, epoch: int) -> np.ndarray:
    """Tokens with loss of the rows that an epoch visits, in its order: [rows] int64."""
    order.set_epoch(epoch)
    lengths = np.array([len(data.tokens[n]) - data.prompt_lengths[n] for n in order], dtype=np.int64)
    return lengths


# --- order -----------------------------------------------------------------------------------------------------------


class EpochOrder(torch.utils.data.Sampler[int]):
    """Row numbers, in an order that follows from (seed, epoch) alone; the last `left_out` of an epoch's order stay out.

    Not torch's sampler in accelerate's wrapping: that one shuffles epoch e of seed s by s + e, so that neighbouring
    seeds see the same orders one epoch apart. And transformers drops incomplete micro-batches, not batches.
    """

    def __init__(self, rows: int, left_out: int, seed: int) -> None:
        self.rows, self.left_out, self.seed, self.epoch = rows, left_out, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch, also on resuming in the middle of one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        keys = np.random.default_rng([self.seed, self.epoch]).random(self.rows)
        return iter(np.argsort(keys, kind="stable")[: len(self)].tolist())

    def __len__(self) -> int:
        return self.rows - self.left_out
