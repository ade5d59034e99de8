"""Training: what the trainer is fed, the loss and its gradient, the steps, stopping and going on, what is written."""

from __future__ import annotations

import copy
import errno
import gc
import hashlib
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import rsd.train
from rsd.manifest import verify_manifest, write_manifest
from rsd.models import load_model, load_tokenizer, vocabulary_digest
from rsd.records import ROWS, write_table
from rsd.train import Conductor, make_trainer, run_train
from rsd.training_rows import IGNORED, TrainingRows, read_training_rows
from rsd.training_steps import EpochOrder, plan_steps, tokens_seen
from tiny import tiny_model_folder, tiny_tokenizer

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "tokens_of": None,
    "learning_rate": 1e-2,
    "batch_size": 4,
    "micro_batch_size": 2,
    "gpus": 1,
    "block_size": 64,
    "overlong": "error",
    "warmup_ratio": 0.0,
    "schedule": "cosine",
    "weight_decay": 1e-4,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "dtype": "float32",
    "gradient_checkpointing": False,
    "drop_last": True,
    "checkpoint_steps": 50,
    "device": "cpu",
}
VOCABULARY = len(tiny_tokenizer())


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Each trainer collects garbage among all imported modules; set aside, that takes no time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("base") / "model")


def random_rows(count: int, seed: int = 0, longest: int = 20) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {
            "problem_id": f"problem-{index}",
            "attempt": 0,
            "kind": "prefix" if index % 3 == 2 else "trace",
            "prompt_tokens": random.integers(VOCABULARY, size=random.integers(1, 8)).tolist(),
            "completion_tokens": random.integers(VOCABULARY, size=random.integers(1, longest)).tolist(),
        }
        for index in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_table(path, rows, ROWS, {})
    return path


def run(
    folder: Path,
    base: Path,
    rows: list[dict[str, Any]],
    seed: int = 0,
    tokens_of: Path | None = None,
    theirs: dict[str, Any] | None = None,
    **changed: Any,
) -> Path:
    output = folder / "trained" / f"arm-seed{seed}"
    path = folder / "rows.parquet"
    if not path.exists():
        write_rows(path, rows)
    run_train(
        model=base,
        rows=path,
        tokens_of=tokens_of,
        settings={**SETTINGS, **changed, "tokens_of": theirs},
        seed=seed,
        threads=1,
        output=output,
        work=folder / "work",
    )
    return output


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "training.json").read_text())


def weights(output: Path) -> str:
    return hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()


def trainer_for(folder: Path, base: Path, data: TrainingRows, **changed: Any) -> Any:
    chosen = {**SETTINGS, **changed}
    torch.set_num_threads(1)
    network = load_model(base, "float32", "cpu").requires_grad_(True)
    return make_trainer(network, data, plan_steps(len(data), chosen), chosen, 0, "cpu", load_tokenizer(base), folder)


# --- rows ------------------------------------------------------------------------------------------------------------


@st.composite
def row_lists(draw: st.DrawFn) -> list[dict[str, Any]]:
    ids = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)
    return [
        {
            "problem_id": str(index),
            "attempt": 0,
            "kind": draw(st.sampled_from(["trace", "prefix"])),
            "prompt_tokens": draw(ids),
            "completion_tokens": draw(ids),
        }
        for index in range(draw(st.integers(1, 8)))
    ]


@given(rows=row_lists(), block_size=st.integers(2, 26), overlong=st.sampled_from(["truncate", "drop"]))
@settings(max_examples=150, deadline=None)
def test_rows_are_cut_or_dropped_by_the_block_and_everything_is_counted(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], block_size: int, overlong: str
) -> None:
    path = write_rows(tmp_path_factory.mktemp("rows") / "rows.parquet", rows)
    expected = []
    for row in rows:
        prompt, completion = row["prompt_tokens"], row["completion_tokens"]
        if overlong == "drop" and len(prompt + completion) > block_size:
            continue
        if kept := completion[: max(block_size - len(prompt), 0)]:
            expected.append((prompt, kept))
    if not expected:
        with pytest.raises(ValueError, match=r"none of the \d+ rows is left.*raise block_size"):
            read_training_rows(path, block_size=block_size, overlong=overlong)
        return
    data = read_training_rows(path, block_size=block_size, overlong=overlong)
    assert [tokens.tolist() for tokens in data.tokens] == [prompt + kept for prompt, kept in expected]
    assert [data.labels(i).tolist() for i in range(len(data))] == [
        [IGNORED] * len(prompt) + kept for prompt, kept in expected
    ]
    too_long = sum(len(row["prompt_tokens"] + row["completion_tokens"]) > block_size for row in rows)
    assert data.counts == {
        "total": len(rows),
        "trace": sum(row["kind"] == "trace" for row in rows),
        "prefix": sum(row["kind"] == "prefix" for row in rows),
        "overlong": too_long,
        "truncated": too_long - (len(rows) - len(expected)),
        "dropped": len(rows) - len(expected),
        "used": len(expected),
        "supervised_tokens": sum(len(kept) for _, kept in expected),
        "total_tokens": sum(len(prompt + kept) for prompt, kept in expected),
        "longest": max(len(prompt + kept) for prompt, kept in expected),
    }


def test_overlong_rows_are_an_error_where_the_setting_says_so(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", random_rows(9, longest=30))
    longest = max(len(row["prompt_tokens"]) + len(row["completion_tokens"]) for row in random_rows(9, longest=30))
    read_training_rows(path, block_size=longest, overlong="error")
    with pytest.raises(ValueError, match=rf"1 of 9 rows exceed .*{longest - 1} tokens.*raise block_size.*truncate"):
        read_training_rows(path, block_size=longest - 1, overlong="error")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"completion_tokens": []}, "row 1 .problem problem-1.: no completion tokens"),
        ({"prompt_tokens": []}, "row 1 .*no prompt tokens"),
        ({"completion_tokens": [3, -1]}, "row 1 .*token id -1, expected ids from 0"),
        ({"kind": "praefix"}, "row 1 .*kind 'praefix', expected trace or prefix"),
        ({"completion_tokens": [3, None]}, "completion_tokens holds missing values"),
        ({"prompt_tokens": None}, "prompt_tokens holds missing values"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named_with_the_remedy(
    tmp_path: Path, fault: dict[str, Any], message: str
) -> None:
    rows = random_rows(3)
    rows[1] |= fault
    path = write_rows(tmp_path / "rows.parquet", rows)
    with pytest.raises(ValueError, match=rf"rows.parquet.*{message}.*run select_traces again"):
        read_training_rows(path, block_size=64, overlong="truncate")


def test_no_row_at_all_says_that_no_trace_was_kept_and_what_to_do(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", [])
    with pytest.raises(ValueError, match=r"no training rows: no trace .* kept.*select\.unsolved: prefix"):
        read_training_rows(path, block_size=64, overlong="truncate")


def test_a_cut_file_and_a_file_of_another_kind_are_refused(tmp_path: Path, base: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", random_rows(8))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"rows\.parquet is damaged \(\d+ bytes, .*run the same command again"):
        run(tmp_path, base, [])
    pq.write_table(pa.table({"text": ["no ids"]}), path)
    with pytest.raises(ValueError, match=r"has the columns \['text'\], expected"):
        run(tmp_path, base, [])


# --- order and steps -------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 200), batch=st.integers(1, 40), epochs=st.integers(1, 5), drop_last=st.booleans())
def test_steps_are_whole_batches_times_epochs(rows: int, batch: int, epochs: int, drop_last: bool) -> None:
    chosen = {
        **SETTINGS,
        "batch_size": batch,
        "micro_batch_size": 1,
        "epochs": epochs,
        "drop_last": drop_last,
        "warmup_ratio": 0.05,
    }
    if drop_last and rows < batch:
        with pytest.raises(ValueError, match=rf"{rows} training rows .*batch_size = {batch},.*drop_last: false"):
            plan_steps(rows, chosen)
        return
    plan = plan_steps(rows, chosen)
    assert plan.steps == (rows // batch if drop_last else -(-rows // batch)) * epochs
    assert (plan.rows, plan.left_out) == ((rows - rows % batch, rows % batch) if drop_last else (rows, 0))
    assert plan.warmup_steps == math.ceil(0.05 * plan.steps)


def test_a_batch_that_micro_batches_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size = 6 is no multiple of training\.micro_batch_size = 4"):
        plan_steps(12, {**SETTINGS, "batch_size": 6, "micro_batch_size": 4})


@given(rows=st.integers(1, 60), left_out=st.integers(0, 5), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_an_epoch_visits_every_row_once_but_those_left_out(rows: int, left_out: int, seed: int, epoch: int) -> None:
    order = EpochOrder(rows, min(left_out, rows), seed)
    order.set_epoch(epoch)
    visited = list(order)
    assert len(set(visited)) == len(visited) == len(order) == rows - min(left_out, rows)
    assert set(visited) <= set(range(rows))
    assert visited == list(order)


def test_no_two_seeds_and_epochs_share_an_order() -> None:
    # accelerate's seedable sampler shuffles by seed + epoch: epoch 1 of seed 0 is epoch 0 of seed 1.
    orders = set()
    for seed in range(5):
        order = EpochOrder(30, 0, seed)
        for epoch in range(5):
            order.set_epoch(epoch)
            orders.add(tuple(order))
    assert len(orders) == 25


@pytest.mark.parametrize(
    ("drop_last", "batch_sizes"),
    # transformers would drop the incomplete micro-batch and keep the incomplete batch.
    [(True, [4, 4]), (False, [4, 4, 3])],
)
def test_the_trainer_takes_the_planned_steps_with_the_planned_rows(
    tmp_path: Path, base: Path, drop_last: bool, batch_sizes: list[int]
) -> None:
    rows = random_rows(11)
    done = record(run(tmp_path, base, rows, epochs=3, drop_last=drop_last))
    assert done["steps"] == len(done["curve"]) == 3 * len(batch_sizes)
    assert done["rows"]["left_out_each_epoch"] == 11 - sum(batch_sizes)
    assert [entry["epoch"] for entry in done["curve"]][:: len(batch_sizes)][1:] == pytest.approx(
        [1 + 1 / len(batch_sizes), 2 + 1 / len(batch_sizes)]
    )
    expected = []
    order = EpochOrder(11, 11 - sum(batch_sizes), seed=0)
    for epoch in range(3):
        order.set_epoch(epoch)
        numbers = iter(list(order))
        for size in batch_sizes:
            expected.append(sum(len(rows[next(numbers)]["completion_tokens"]) for _ in range(size)))
    assert [entry["tokens"] for entry in done["curve"]] == expected


@pytest.mark.parametrize(
    ("schedule", "warmup_ratio"),
    [("cosine", 0.0), ("cosine", 0.3), ("linear", 0.3), ("constant", 0.3), ("cosine", 1.0)],
)
def test_the_learning_rate_warms_up_and_follows_its_schedule(
    tmp_path: Path, base: Path, schedule: str, warmup_ratio: float
) -> None:
    steps, peak = 10, 1e-3
    chosen = {"schedule": schedule, "warmup_ratio": warmup_ratio, "epochs": 5, "learning_rate": peak}
    rates = [entry["learning_rate"] for entry in record(run(tmp_path, base, random_rows(8), **chosen))["curve"]]
    warmup = math.ceil(warmup_ratio * steps)
    expected = []
    for step in range(steps):
        after = (step - warmup) / max(steps - warmup, 1)
        decay = {"cosine": 0.5 * (1 + math.cos(math.pi * after)), "linear": 1 - after, "constant": 1.0}[schedule]
        expected.append(peak * (step / warmup if step < warmup else decay))
    assert rates == pytest.approx(expected)


THEIRS = {"arm": "direct", "epochs": 3, "batch_size": 7, "block_size": 20, "overlong": "truncate", "drop_last": True}


def test_a_training_may_take_as_many_tokens_as_another_arm_sees(tmp_path: Path, base: Path) -> None:
    path = write_rows(tmp_path / "others.parquet", random_rows(30, seed=1, longest=40))
    done = record(run(tmp_path, base, random_rows(11), tokens_of=path, theirs=THEIRS))
    wanted = tokens_seen(path, THEIRS, seed=0)
    steps, seen = done["steps"], sum(entry["tokens"] for entry in done["curve"])
    assert done["supervised_tokens"] == {"seen": seen, "wanted": wanted, "of": "direct"}
    assert abs(seen - wanted) <= max(entry["tokens"] for entry in done["curve"]) / 2
    assert done["epochs"] == steps / 2, "two whole batches of four in 11 rows"
    assert steps % 2 == 1, "these rows shall end within an epoch"
    # The schedule ends where the steps do.
    rates = [entry["learning_rate"] for entry in done["curve"]]
    assert rates == pytest.approx([1e-2 * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)])
    assert set(done["provenance"]["settings"]["inputs"]) == {"model", "rows", "tokens_of"}


def test_without_another_arm_no_tokens_are_wanted(tmp_path: Path, base: Path) -> None:
    done = record(run(tmp_path, base, random_rows(8)))
    seen = sum(entry["tokens"] for entry in done["curve"])
    assert done["supervised_tokens"] == {"seen": seen, "wanted": None, "of": None}
    assert set(done["provenance"]["settings"]["inputs"]) == {"model", "rows"}


# --- loss and gradient -----------------------------------------------------------------------------------------------


def test_the_collator_of_the_trainer_yields_exactly_the_completions_as_labels(tmp_path: Path, base: Path) -> None:
    rows = random_rows(8)
    data = read_training_rows(write_rows(tmp_path / "rows.parquet", rows), block_size=64, overlong="error")
    trainer = trainer_for(tmp_path, base, data, batch_size=8, micro_batch_size=4)
    numbers = iter(list(trainer.order))
    for batch in trainer.get_train_dataloader():
        members = [rows[next(numbers)] for _ in range(4)]
        width = max(len(row["prompt_tokens"]) + len(row["completion_tokens"]) for row in members)
        for index, row in enumerate(members):
            prompt, completion = row["prompt_tokens"], row["completion_tokens"]
            padding = width - len(prompt) - len(completion)
            assert batch["labels"][index].tolist() == [-100] * len(prompt) + completion + [-100] * padding
            assert batch["input_ids"][index].tolist()[: width - padding] == prompt + completion
            assert batch["attention_mask"][index].tolist() == [1] * (width - padding) + [0] * padding
    assert next(numbers, None) is None


def test_a_trainer_that_would_mask_something_else_is_refused(tmp_path: Path, base: Path) -> None:
    data = read_training_rows(write_rows(tmp_path / "rows.parquet", random_rows(4)), block_size=64, overlong="error")
    trainer = trainer_for(tmp_path, base, data)
    rsd.train.require_labels(trainer, data)
    collate = trainer.data_collator

    def whole_row(examples: list[dict[str, Any]]) -> Any:
        return collate([{"input_ids": example["input_ids"]} for example in examples])

    trainer.data_collator = whole_row
    with pytest.raises(RuntimeError, match=r"row 0: TRL .* would not train on exactly the completion"):
        rsd.train.require_labels(trainer, data)


def naive_loss(network: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """From the definition: minus the log-probability of each completion token given all before it, averaged."""
    losses = []
    for row in rows:
        ids = row["prompt_tokens"] + row["completion_tokens"]
        for position in range(len(row["prompt_tokens"]), len(ids)):
            logits = network(torch.tensor([ids[:position]])).logits[0, -1].double()
            losses.append(torch.logsumexp(logits, 0) - logits[ids[position]])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("direct_logits", [2**26, 0], ids=["own loss", "TRL's loss"])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 6])
def test_the_gradient_is_that_of_the_loss_written_from_its_definition(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, direct_logits: int, micro_batch_size: int
) -> None:
    monkeypatch.setattr(rsd.train, "DIRECT_LOGITS", direct_logits)
    rows = random_rows(6)
    data = read_training_rows(write_rows(tmp_path / "rows.parquet", rows), block_size=64, overlong="error")
    trainer = trainer_for(tmp_path, base, data, batch_size=6, micro_batch_size=micro_batch_size)
    network = copy.deepcopy(load_model(base, "float32", "cpu")).requires_grad_(True)
    expected = naive_loss(network, rows)
    expected.backward()
    batches = iter(trainer.get_train_dataloader())
    micro_batches, tokens = trainer.get_batch_samples(batches, 6 // micro_batch_size, torch.device("cpu"))
    loss = sum(trainer.training_step(trainer.model, inputs, tokens) for inputs in micro_batches)
    assert int(tokens) == sum(len(row["completion_tokens"]) for row in rows)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, ours), naive in zip(trainer.model.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, naive.grad, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_prompt_tokens_are_never_learnt_and_a_row_is_memorised(tmp_path: Path, base: Path) -> None:
    tokenizer = load_tokenizer(base)
    prompt = tokenizer.encode("7+5?<think>", add_special_tokens=False)
    completion = tokenizer.encode("7+5=12</think>12<|im_end|>", add_special_tokens=False)
    row = {"problem_id": "a", "attempt": 0, "kind": "trace", "prompt_tokens": prompt, "completion_tokens": completion}
    output = run(tmp_path, base, [row] * 4, epochs=120, micro_batch_size=4, learning_rate=2e-2)
    losses = [entry["loss"] for entry in record(output)["curve"]]
    assert losses[0] > 4
    assert losses[-1] < 0.05
    network, ids = load_model(output, "float32", "cpu"), list(prompt)
    for _ in completion:
        ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
    assert tokenizer.decode(ids[len(prompt) :]) == "7+5=12</think>12<|im_end|>"
    before = load_model(base, "float32", "cpu")(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
    after = network(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
    target = torch.tensor(prompt[1:])[:, None]
    assert after.gather(1, target).mean() < before.gather(1, target).mean()


def test_gradient_checkpointing_and_micro_batches_change_nothing_but_rounding(tmp_path: Path, base: Path) -> None:
    rows = random_rows(8)
    plain = record(run(tmp_path / "plain", base, rows))["curve"]
    recomputed = record(run(tmp_path / "recomputed", base, rows, gradient_checkpointing=True))["curve"]
    single = record(run(tmp_path / "single", base, rows, micro_batch_size=1))["curve"]
    for other in (recomputed, single):
        assert [entry["loss"] for entry in other] == pytest.approx([entry["loss"] for entry in plain], rel=1e-4)
        assert [entry["grad_norm"] for entry in other] == pytest.approx(
            [entry["grad_norm"] for entry in plain], rel=1e-3
        )


def test_bfloat16_keeps_float32_weights_while_training_and_saves_bfloat16(tmp_path: Path, base: Path) -> None:
    # With an update of 1e-6 a step, bfloat16 weights would never move.
    seen = []
    original = Conductor.on_step_end

    def watch(self: Conductor, *arguments: Any, **more: Any) -> None:
        seen.append({parameter.dtype for parameter in more["model"].parameters()})
        original(self, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conductor, "on_step_end", watch)
        output = run(tmp_path, base, random_rows(8), epochs=10, dtype="bfloat16")
    assert set().union(*seen) == {torch.float32}
    assert {tensor.dtype for tensor in load_file(output / "model.safetensors").values()} == {torch.bfloat16}
    done = record(output)
    assert done["precision"] == {"weights": "float32", "compute": "bfloat16", "saved": "bfloat16"}
    assert done["curve"][-1]["loss"] < done["curve"][0]["loss"] - 0.1


# --- stopping and going on -------------------------------------------------------------------------------------------

KILL_WHILE_SAVING = """
import json, os, signal, sys
from pathlib import Path
import rsd.train
seal, calls = rsd.train.seal_checkpoint, []
def kill_at_the_second(folder):
    calls.append(folder)
    if len(calls) == 2:
        (folder / "rng_state.pth").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    seal(folder)
rsd.train.seal_checkpoint = kill_at_the_second
arguments = json.loads(sys.argv[1])
paths = {name: Path(arguments.pop(name)) for name in ("model", "rows", "output", "work")}
rsd.train.run_train(**arguments, **paths)
"""


def signal_at(patch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Sends this process a signal while the given step is running."""
    original = Conductor.on_step_end

    def send(self: Conductor, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), number)
        original(self, args, state, control, **more)

    patch.setattr(Conductor, "on_step_end", send)


def test_a_run_killed_while_it_saves_goes_on_to_bit_identical_weights(tmp_path: Path, base: Path) -> None:
    rows, chosen = random_rows(12), {"epochs": 3, "checkpoint_steps": 2}
    undisturbed = run(tmp_path / "undisturbed", base, rows, **chosen)
    killed = tmp_path / "killed"
    arguments = {
        "model": str(base),
        "rows": str(write_rows(killed / "rows.parquet", rows)),
        "settings": {**SETTINGS, **chosen},
        "seed": 0,
        "threads": 1,
        "output": str(killed / "trained" / "arm-seed0"),
        "work": str(killed / "work"),
    }
    environment = {**os.environ, "PYTHONPATH": str(Path(rsd.train.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    child = subprocess.run(
        [sys.executable, "-c", KILL_WHILE_SAVING, json.dumps(arguments)], env=environment, capture_output=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert not (killed / "trained" / "arm-seed0").exists()
    assert sorted(path.name for path in (killed / "work").glob("*/*")) == ["checkpoint-2", "partial"]
    resumed = run(killed, base, rows, **chosen)
    assert record(resumed)["resumed_from_step"] == 2
    assert weights(resumed) == weights(undisturbed)
    assert record(resumed)["curve"] == record(undisturbed)["curve"]
    assert (resumed / "manifest.json").read_bytes() == (undisturbed / "manifest.json").read_bytes()
    assert sorted(path.name for path in (killed / "work").glob("*/*")) == ["finished"]


def test_a_model_lost_after_it_was_trained_is_put_in_its_place_again(
    tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Snakemake removes what a job has written that is ended between its last file and its own end."""
    caplog.set_level(logging.INFO)
    rows = random_rows(8)
    output = run(tmp_path, base, rows)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    (finished,) = (tmp_path / "work").glob("*/finished")
    assert os.path.samefile(output / "model.safetensors", finished / "model.safetensors"), "it takes space twice"
    for lost in (["manifest.json", "training.json"], list(before)):
        for name in lost:
            (output / name).unlink()
        start = time.time() - 1
        caplog.clear()
        run(tmp_path, base, rows)
        assert "had been trained to the end" in caplog.text
        assert {path.name: path.read_bytes() for path in output.iterdir()} == before
        # Older than what it was made from, it would be made again for ever.
        assert min((output / name).stat().st_mtime for name in ("manifest.json", "training.json")) > start
    # Of a bit that flips they have one copy.
    content = bytearray((output / "model.safetensors").read_bytes())
    content[-1] ^= 1
    with open(output / "model.safetensors", "r+b") as file:
        file.write(content)
    caplog.clear()
    run(tmp_path, base, rows)
    assert "cannot be used" in caplog.text
    assert "trained 4 steps" in caplog.text
    assert (output / "model.safetensors").read_bytes() == before["model.safetensors"]
    run(tmp_path, base, rows, learning_rate=1e-3)
    (other,) = (tmp_path / "work").glob("*/finished")
    assert other != finished, "one of other settings stayed"


def test_where_there_are_no_hard_links_the_training_ends_all_the_same(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "copied", base, random_rows(8))  # where there were some

    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, "not permitted")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(os, "link", fail)
    output = run(tmp_path, base, random_rows(8), checkpoint_steps=1)
    verify_manifest(output, deep=True)
    assert "should this job fail now, it trains anew" in caplog.text
    assert not list((tmp_path / "work").glob("*/*"))
    caplog.clear()
    verify_manifest(run(tmp_path / "copied", base, random_rows(8)), deep=True)
    assert re.search(r"finished cannot be used .*not permitted", caplog.text)
    assert "trained 4 steps" in caplog.text


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(
    ("number", "ending"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_signal_saves_the_step_and_the_next_run_goes_on_from_it(
    tmp_path: Path,
    number: int,
    ending: type[BaseException],
    dropout: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    base = tiny_model_folder(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "attention_dropout": dropout}))
    write_manifest(base, kind="model", source="path:tiny", revision=None, licence=None, provenance={})
    rows, chosen = random_rows(12), {"epochs": 3}
    undisturbed = run(tmp_path / "undisturbed", base, rows, **chosen)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        # Steps 4 and 5 are in the middle of the second epoch, where the order must be found again.
        signal_at(patch, 5, number)
        with pytest.raises(ending) as stopped:
            run(tmp_path / "stopped", base, rows, **chosen)
    if ending is SystemExit:
        assert stopped.value.code == 128 + signal.SIGTERM
    assert "stopped after step 5 of 9, which is saved; run the same command again to go on" in caplog.text
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert not (tmp_path / "stopped" / "trained" / "arm-seed0").exists()
    resumed = run(tmp_path / "stopped", base, rows, **chosen)
    assert record(resumed)["resumed_from_step"] == 5
    assert weights(resumed) == weights(undisturbed)
    assert record(resumed)["curve"] == record(undisturbed)["curve"]


def test_a_damaged_checkpoint_is_not_used_but_the_one_before_it(
    tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows, chosen = random_rows(12), {"epochs": 3, "checkpoint_steps": 2}
    undisturbed = run(tmp_path / "undisturbed", base, rows, **chosen)
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, 7, signal.SIGTERM)
        with pytest.raises(SystemExit):
            run(tmp_path / "stopped", base, rows, **chosen)
    (work,) = (tmp_path / "stopped" / "work").iterdir()
    # Two are kept, so that one is left when the newest is damaged.
    assert sorted(path.name for path in work.iterdir()) == ["checkpoint-6", "checkpoint-7"]
    for fault in ("cut", "missing", "flipped", "unsealed"):
        folder = shutil.copytree(tmp_path / "stopped", tmp_path / fault)
        newest = folder / "work" / work.name / "checkpoint-7"
        content = (newest / "optimizer.pt").read_bytes()
        if fault == "cut":
            (newest / "optimizer.pt").write_bytes(content[:-100])
        elif fault == "missing":
            (newest / "optimizer.pt").unlink()
        elif fault == "flipped":
            (newest / "optimizer.pt").write_bytes(content[:-500] + bytes([content[-500] ^ 1]) + content[-499:])
        else:
            (newest / "checkpoint.json").unlink()
        caplog.clear()
        resumed = run(folder, base, rows, **chosen)
        assert "checkpoint-7 is incomplete or damaged; falling back" in caplog.text
        assert record(resumed)["resumed_from_step"] == 6
        assert weights(resumed) == weights(undisturbed)


def test_a_training_of_another_arms_tokens_goes_on_within_its_last_epoch(tmp_path: Path, base: Path) -> None:
    rows = random_rows(11)
    theirs = {
        "tokens_of": write_rows(tmp_path / "others.parquet", random_rows(30, seed=1, longest=40)),
        "theirs": THEIRS,
    }
    undisturbed = run(tmp_path / "undisturbed", base, rows, **theirs)
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, record(undisturbed)["steps"] - 1, signal.SIGTERM)
        with pytest.raises(SystemExit):
            run(tmp_path / "stopped", base, rows, **theirs)
    resumed = run(tmp_path / "stopped", base, rows, **theirs)
    assert record(resumed)["resumed_from_step"] == record(undisturbed)["steps"] - 1
    assert record(resumed)["supervised_tokens"] == record(undisturbed)["supervised_tokens"]
    assert weights(resumed) == weights(undisturbed)


def test_a_checkpoint_of_other_settings_rows_or_seed_is_not_taken_up(tmp_path: Path, base: Path) -> None:
    rows = random_rows(8)
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, 2, signal.SIGTERM)
        with pytest.raises(SystemExit):
            run(tmp_path, base, rows)
    assert record(run(tmp_path, base, rows, learning_rate=1e-3))["resumed_from_step"] is None
    assert record(run(tmp_path, base, rows, seed=1))["resumed_from_step"] is None
    write_rows(tmp_path / "rows.parquet", random_rows(8, seed=1))
    assert record(run(tmp_path, base, rows))["resumed_from_step"] is None
    write_rows(tmp_path / "rows.parquet", rows)
    assert record(run(tmp_path, base, rows))["resumed_from_step"] == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_diverging_run_stops_at_its_step_and_writes_nothing(tmp_path: Path, base: Path, dtype: str) -> None:
    chosen = {"epochs": 20, "learning_rate": 1e30, "max_grad_norm": 0.0, "dtype": dtype, "checkpoint_steps": 1}
    message = r"step 2: grad_norm is (nan|inf), so training has diverged.*lower training\.learning_rate"
    with pytest.raises(FloatingPointError, match=message):
        run(tmp_path, base, random_rows(8), **chosen)
    assert not list((tmp_path / "trained").iterdir())


def test_a_loss_that_is_not_finite_is_not_averaged_away(tmp_path: Path) -> None:
    base = tiny_model_folder(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] = math.nan
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    write_manifest(base, kind="model", source="path:tiny", revision=None, licence=None, provenance={})
    with pytest.raises(FloatingPointError, match="step 1: loss is nan"):
        run(tmp_path, base, random_rows(4))


def test_a_last_step_that_spoils_the_weights_is_noticed(tmp_path: Path, base: Path) -> None:
    # One step: its loss comes from the intact weights, only the update overflows.
    with pytest.raises(FloatingPointError, match="step 1: "):
        run(tmp_path, base, random_rows(4), epochs=1, learning_rate=1e39)
    assert not list((tmp_path / "trained").iterdir())


# --- what is written -------------------------------------------------------------------------------------------------


def test_equal_runs_write_equal_manifests_and_another_seed_other_weights(tmp_path: Path, base: Path) -> None:
    rows = random_rows(8)
    first, second = (run(tmp_path / name, base, rows) for name in ("first", "second"))
    other = run(tmp_path / "first", base, rows, seed=1)
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()
    assert weights(first) != weights(other)
    assert weights(first) != weights(base)


def test_the_trained_folder_is_complete_and_like_its_base_but_for_the_weights(tmp_path: Path, base: Path) -> None:
    output = run(tmp_path, base, random_rows(8))
    manifest = verify_manifest(output, deep=True)
    assert manifest["kind"] == "trained-model"
    assert {key: manifest[key] for key in ("source", "revision", "licence")} == {
        "source": "path:tiny",
        "revision": None,
        "licence": None,
    }
    assert manifest["provenance"]["seed"] == 0
    assert manifest["provenance"]["settings"] == SETTINGS
    # The trainer switches the cache off and aligns special tokens in the config of the model it holds.
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (output / name).read_bytes() == (base / name).read_bytes(), name
    more = {"training.json", "training.json.sha256"}
    assert {path.name for path in output.iterdir()} == {path.name for path in base.iterdir()} | more
    assert load_file(output / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
    assert [path.name for path in (tmp_path / "trained").iterdir()] == ["arm-seed0"]
    assert [path.name for path in (tmp_path / "work").glob("*/*")] == ["finished"]


def test_training_json_holds_every_step_and_what_was_counted(tmp_path: Path, base: Path) -> None:
    rows = random_rows(9)
    done = record(run(tmp_path, base, rows))
    assert done["rows"] == {
        "total": 9,
        "trace": 6,
        "prefix": 3,
        "overlong": 0,
        "truncated": 0,
        "dropped": 0,
        "used": 9,
        "supervised_tokens": sum(len(row["completion_tokens"]) for row in rows),
        "total_tokens": sum(len(row["prompt_tokens"]) + len(row["completion_tokens"]) for row in rows),
        "longest": max(len(row["prompt_tokens"]) + len(row["completion_tokens"]) for row in rows),
        "left_out_each_epoch": 1,
    }
    assert (done["steps"], done["epochs"], done["resumed_from_step"], done["device"]) == (4, 2, None, "cpu")
    assert done["parameters"] == sum(parameter.numel() for parameter in load_model(base, "float32", "cpu").parameters())
    assert 0 < done["seconds"] < 600
    assert [entry["step"] for entry in done["curve"]] == [1, 2, 3, 4]
    assert all(
        list(entry) == ["step", "epoch", "loss", "learning_rate", "grad_norm", "tokens"] for entry in done["curve"]
    )
    assert done["provenance"]["settings"]["seed"] == 0


def test_an_older_output_and_snakemakes_empty_folder_are_replaced(tmp_path: Path, base: Path) -> None:
    output = tmp_path / "trained" / "arm-seed0"
    output.mkdir(parents=True)
    (output / "stale.safetensors").write_text("from an older run")
    assert run(tmp_path, base, random_rows(8)) == output
    assert not (output / "stale.safetensors").exists()


def test_the_log_is_sparse_and_nothing_else_is_printed_or_sent(
    tmp_path: Path,
    base: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **_: pytest.fail("telemetry"))
    # It would warn, and edit the model's config.
    monkeypatch.setattr("transformers.trainer.align_special_tokens", lambda *_: pytest.fail("special tokens aligned"))
    run(tmp_path / "quiet", base, random_rows(8))
    ours = [entry.getMessage() for entry in caplog.records if entry.name == "rsd.train"]
    assert [line.split()[0] for line in ours] == ["8", "4", "trained"]
    monkeypatch.setattr(rsd.train, "PROGRESS_SECONDS", 0.0)
    caplog.clear()
    run(tmp_path / "chatty", base, random_rows(8))
    assert len([entry for entry in caplog.records if "rows/s" in entry.getMessage()]) == 4
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "it/s" not in printed.err
    assert "loss" not in printed.err


# --- bad input -------------------------------------------------------------------------------------------------------


def test_rows_of_another_vocabulary_are_refused(tmp_path: Path, base: Path) -> None:
    rows = random_rows(8)
    rows[3]["completion_tokens"] = [VOCABULARY]
    with pytest.raises(ValueError, match=rf"token id {VOCABULARY}, but .*has {VOCABULARY} tokens.*trace set's student"):
        run(tmp_path, base, rows)


def test_rows_longer_than_the_models_context_are_refused(tmp_path: Path, base: Path) -> None:
    rows = random_rows(8)
    rows[0]["completion_tokens"] = [1] * 600
    with pytest.raises(ValueError, match=r"reads at most 512; lower training\.block_size to 512"):
        run(tmp_path, base, rows, block_size=1000)


def test_too_few_rows_for_a_batch_are_refused(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ValueError, match=r"3 training rows make no batch of .*batch_size = 4.*lower batch_size"):
        run(tmp_path, base, random_rows(3))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("manifest.json", "has no manifest.json, so it is missing or incomplete"),
        ("model.safetensors", "the file model.safetensors is missing"),
        ("tokenizer.json", "the file tokenizer.json is missing"),
    ],
)
def test_an_incomplete_model_folder_is_refused(tmp_path: Path, base: Path, missing: str, message: str) -> None:
    broken = shutil.copytree(base, tmp_path / "broken")
    (broken / missing).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        run(tmp_path, broken, random_rows(8))


def test_a_disk_that_cannot_hold_the_checkpoints_is_noticed_before_training(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(rsd.train.shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 50_000, 50_000))
    # 10 thousand parameters: the model alone (4 bytes each) fits, two checkpoints (12 bytes each) do not.
    assert run(tmp_path / "enough", base, random_rows(8)).exists()
    with pytest.raises(OSError, match=r"0\.0 GB free, but training needs about .*free some space"):
        run(tmp_path / "tight", base, random_rows(8), checkpoint_steps=1)


def test_a_disk_that_fills_up_while_saving_is_reported_as_that(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(rsd.train.shutil, "disk_usage", lambda _: usage(10, 10, 0))
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(rsd.train, "seal_checkpoint", fail)
    with pytest.raises(OSError, match=r"no space left while writing .*free some space there and run again"):
        run(tmp_path, base, random_rows(8), checkpoint_steps=1)
    assert not list((tmp_path / "work").glob("*/*"))


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    write_rows(tmp_path / "rows.parquet", random_rows(8))
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"cannot write .*work.*make its folder writable"):
        run(tmp_path, base, [])


def test_rows_made_with_another_tokenizer_are_refused(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path / "model")
    other = vocabulary_digest(tiny_tokenizer(marks=("<other>", "</other>")))
    write_table(tmp_path / "rows.parquet", [], ROWS, {"vocabulary": other})
    with pytest.raises(ValueError, match=r"ids of another vocabulary .*name the trace set's student.*method recode"):
        rsd.train.require_vocabulary(tmp_path / "rows.parquet", tiny_tokenizer(), model)
    same = vocabulary_digest(tiny_tokenizer())
    write_table(tmp_path / "rows.parquet", [], ROWS, {"vocabulary": same})
    rsd.train.require_vocabulary(tmp_path / "rows.parquet", tiny_tokenizer(), model)
