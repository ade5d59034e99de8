"""How many steps a number of tokens makes: against adding up batch by batch, and under the seed of the other arm."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.records import ROWS, write_table
from rsd.training_rows import TrainingRows, read_training_rows
from rsd.training_steps import EpochOrder, Plan, plan_steps, plan_tokens, tokens_seen

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=25)


def rows_of(lengths: list[int]) -> TrainingRows:
    """Rows with one token of prompt and so many of completion."""
    return TrainingRows([np.zeros(1 + length, dtype=np.int64) for length in lengths], [1] * len(lengths), {})


def write_rows(path: Path, lengths: list[int]) -> Path:
    rows = [
        {"problem_id": str(n), "attempt": 0, "kind": "trace", "prompt_tokens": [1], "completion_tokens": [2] * length}
        for n, length in enumerate(lengths)
    ]
    write_table(path, rows, ROWS, {})
    return path


def batches(lengths: list[int], batch: int, drop_last: bool, seed: int) -> Iterator[int]:
    """The tokens of one batch after the other, epoch after epoch without an end, from the definition."""
    left_out = len(lengths) % batch if drop_last else 0
    order = EpochOrder(len(lengths), left_out, seed)
    for epoch in itertools.count():
        order.set_epoch(epoch)
        rows = [lengths[n] for n in order]
        for start in range(0, len(rows), batch):
            yield sum(rows[start : start + batch])


def chosen(batch: int, drop_last: bool, **more: Any) -> dict[str, Any]:
    return {"batch_size": batch, "micro_batch_size": 1, "gpus": 1, "drop_last": drop_last, "warmup_ratio": 0.1, **more}


@given(LENGTHS, st.integers(1, 6), st.booleans(), st.integers(0, 9), st.integers(1, 1500))
def test_no_other_number_of_steps_comes_nearer_to_the_wanted_tokens(
    lengths: list[int], batch: int, drop_last: bool, seed: int, wanted: int
) -> None:
    if drop_last and len(lengths) < batch:
        with pytest.raises(ValueError, match=r"make no batch"):
            plan_tokens(rows_of(lengths), chosen(batch, drop_last), seed, wanted)
        return
    plan = plan_tokens(rows_of(lengths), chosen(batch, drop_last), seed, wanted)
    seen = list(itertools.accumulate(itertools.islice(batches(lengths, batch, drop_last, seed), plan.steps + 50)))
    misses = [abs(tokens - wanted) for tokens in seen]
    assert misses[plan.steps - 1] == min(misses)
    assert all(miss > min(misses) for miss in misses[: plan.steps - 1]), "of two, the fewer"
    largest = max(itertools.islice(batches(lengths, batch, drop_last, seed), plan.steps + 1))
    assert min(misses) <= largest / 2 or plan.steps == 1
    per_epoch = len(lengths) // batch if drop_last else math.ceil(len(lengths) / batch)
    assert (plan.steps_per_epoch, plan.warmup_steps) == (per_epoch, math.ceil(0.1 * plan.steps))


@given(LENGTHS, st.integers(1, 6), st.booleans(), st.integers(0, 9), st.integers(1, 4), st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_the_tokens_of_the_other_arm_are_those_of_its_own_batches(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    batch: int,
    drop_last: bool,
    seed: int,
    epochs: int,
    block: int,
) -> None:
    path = write_rows(tmp_path_factory.mktemp("rows") / "rows.parquet", lengths)
    theirs = chosen(batch, drop_last, epochs=epochs, block_size=block, overlong="truncate")
    if drop_last and len(lengths) < batch:
        with pytest.raises(ValueError, match=r"make no batch"):
            tokens_seen(path, theirs, seed)
        return
    cut = [min(length, block - 1) for length in lengths]
    steps = plan_steps(len(lengths), theirs).steps
    assert tokens_seen(path, theirs, seed) == sum(itertools.islice(batches(cut, batch, drop_last, seed), steps))


@given(LENGTHS, st.integers(1, 5), st.integers(0, 9), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_an_arm_that_takes_its_own_number_of_tokens_takes_its_own_steps(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], batch: int, seed: int, epochs: int
) -> None:
    path = write_rows(tmp_path_factory.mktemp("rows") / "rows.parquet", lengths)
    own = chosen(batch, False, epochs=epochs, block_size=50, overlong="error")
    data = read_training_rows(path, block_size=50, overlong="error")
    assert plan_tokens(data, own, seed, tokens_seen(path, own, seed)) == plan_steps(len(data), own)


def test_another_seed_leaves_other_rows_out_and_so_sees_other_tokens(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", [1, 2, 4, 8, 16, 32, 64])
    theirs = chosen(4, True, epochs=3, block_size=99, overlong="error")
    assert len({tokens_seen(path, theirs, seed) for seed in range(8)}) > 3


def test_a_plan_by_passes_is_that_many_epochs() -> None:
    assert plan_steps(11, chosen(4, True, epochs=3)) == Plan(8, 3, 2, 6, 1)
    assert plan_steps(11, chosen(4, False, epochs=3)) == Plan(11, 0, 3, 9, 1)
