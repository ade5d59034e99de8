"""Training in several processes. No GPU is here: two processes on the CPU (gloo), started as `rsd train` starts them.

Launching takes seconds each time, so few tests share few trainings.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from safetensors.torch import load_file
from test_train import SETTINGS, random_rows, record, run, write_rows

from pipelines import ROOT
from rsd import sharded
from rsd.cli import _words_of, build_parser
from rsd.launch import launch_command, worker_environment
from rsd.training_rows import read_training_rows
from tiny import tiny_model_folder

# Two steps an epoch, the last three of its rows left out.
CHOSEN: dict[str, Any] = {"batch_size": 8, "micro_batch_size": 2, "epochs": 8, "checkpoint_steps": 2}
STEPS, LEARNING_RATE = 16, SETTINGS["learning_rate"]


@dataclass
class Training:
    """A training in two processes, by the command that Snakemake prints."""

    folder: Path
    model: Path
    rows: Path

    @property
    def output(self) -> Path:
        return self.folder / "trained"

    @property
    def log(self) -> str:
        return (self.folder / "train.log").read_text()

    def start(self) -> subprocess.Popen[bytes]:
        settings = json.dumps({**SETTINGS, **CHOSEN, "gpus": 2})
        paths = {"model": self.model, "rows": self.rows, "output": self.output, "work": self.folder / "work"}
        command = [sys.executable, "-m", "rsd.cli", "train", "--settings", settings, "--seed", "0", "--threads", "2"]
        command += [word for name, path in paths.items() for word in (f"--{name}", str(path))]
        self.folder.mkdir(exist_ok=True)
        return subprocess.Popen(
            [*command, "--log", str(self.folder / "train.log")],
            env=os.environ | {"PYTHONPATH": str(ROOT / "workflow")},
            stderr=subprocess.DEVNULL,
        )

    def wait_for_checkpoint(self, least: int) -> None:
        """Until there is a sealed one of a step from `least` on."""
        for _ in range(12000):
            found = (self.folder / "work").glob("*/checkpoint-*/checkpoint.json")
            if any(int(path.parent.name.partition("-")[2]) >= least for path in found):
                return
            time.sleep(0.01)
        raise AssertionError(self.log)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("base") / "model", layers=2, width=32)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Training:
    """Trained without a disturbance."""
    folder = tmp_path_factory.mktemp("two")
    training = Training(folder, model, write_rows(folder / "rows.parquet", random_rows(19)))
    assert training.start().wait(timeout=240) == 0, training.log
    return training


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [other for child in found for other in children(child)]


def test_two_processes_train_what_one_trains(tmp_path: Path, two: Training, model: Path) -> None:
    """The same rows in the same steps, added up in another order.

    A step's loss is a sum over some 80 tokens, so by float32 rounding (6e-8 each) losses may differ by about 5e-6 of
    them. Adam moves a weight by up to its rate a step whatever the gradient's size, so weights are compared with the
    length of their way: LEARNING_RATE * STEPS.
    """
    one = run(tmp_path, model, random_rows(19), **CHOSEN)
    ours, theirs = record(two.output), record(one)
    assert len(ours["curve"]) == len(theirs["curve"]) == STEPS
    for mine, other in zip(ours["curve"], theirs["curve"], strict=True):
        for name in ("step", "epoch", "tokens", "learning_rate"):
            assert mine[name] == other[name]
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    for name in ("rows", "supervised_tokens", "steps", "epochs", "parameters", "precision", "device"):
        assert ours[name] == theirs[name]
    mine, other = (load_file(folder / "model.safetensors") for folder in (two.output, one))
    before = load_file(model / "model.safetensors")
    assert mine.keys() == other.keys() == before.keys()
    for name, weights in mine.items():
        torch.testing.assert_close(weights, other[name], rtol=0, atol=1e-3 * LEARNING_RATE * STEPS)
        assert (weights - before[name]).abs().max() > 0.1 * LEARNING_RATE * STEPS, "it has learnt nothing"
    assert sorted(path.name for path in two.output.iterdir()) == sorted(path.name for path in one.iterdir())


def test_each_process_holds_about_half_of_the_weights_and_one_alone_writes_the_log(two: Training) -> None:
    parameters = record(two.output)["parameters"]
    (line,) = [line for line in two.log.splitlines() if "this one holds" in line]
    held, whole = (int(word) for word in line.split() if word.isdecimal() and len(word) > 2)
    assert whole == parameters
    assert 0.45 < held / whole < 0.55
    assert two.log.count("16 steps of 8 rows") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_stopped_and_killed_it_goes_on_to_the_weights_of_an_undisturbed_run(tmp_path: Path, two: Training) -> None:
    training = Training(tmp_path / "disturbed", two.model, two.rows)
    process = training.start()
    training.wait_for_checkpoint(2)
    # A cluster tells every process of a job.
    for pid in [process.pid, *children(process.pid)]:
        os.kill(pid, signal.SIGTERM)
    assert process.wait(timeout=120) == 143, training.log
    assert "which is saved; run the same command again to go on" in training.log
    stopped = max(int(path.name.partition("-")[2]) for path in (training.folder / "work").glob("*/checkpoint-*"))
    assert not training.output.exists()

    process = training.start()
    training.wait_for_checkpoint(stopped + 1)
    (stage,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    everyone = children(stage)
    assert len(everyone) >= 3, "the launcher and two processes"
    os.kill(stage, signal.SIGKILL)
    assert process.wait(timeout=60) == 128 + signal.SIGKILL
    for _ in range(200):
        if not any(is_alive(pid) for pid in everyone):
            break
        time.sleep(0.05)
    else:
        pytest.fail("a process outlived the one that holds the lease")
    assert f"going on after step {stopped}" in training.log
    assert not training.output.exists()

    assert training.start().wait(timeout=240) == 0, training.log
    assert record(training.output)["resumed_from_step"] > stopped
    curves = [
        [{name: entry[name] for name in ("step", "loss", "tokens")} for entry in record(output)["curve"]]
        for output in (training.output, two.output)
    ]
    assert curves[0] == curves[1]
    assert (training.output / "model.safetensors").read_bytes() == (two.output / "model.safetensors").read_bytes()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_wrong_is_the_last_line_of_the_log(tmp_path: Path, two: Training) -> None:
    rows = random_rows(19)
    rows[3]["completion_tokens"] = [10**6]
    training = Training(tmp_path / "wrong", two.model, write_rows(tmp_path / "rows.parquet", rows))
    assert training.start().wait(timeout=120) == 1
    assert training.log.splitlines()[-1].startswith(f"error: {training.rows} holds the token id 1000000, but ")


# --- what is started, without starting it ----------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [2, 8])
def test_accelerate_is_told_to_shard_over_as_many_processes(gpus: int) -> None:
    """Read by its own parser, which also reads the file that the command names."""
    command = launch_command(gpus, ["train", "--seed", "3", "--settings", '{"a b": "$(c)"}'])
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command[3:]))
    assert arguments.use_fsdp
    assert not arguments.cpu
    assert (arguments.num_processes, arguments.num_machines) == (gpus, 1)
    assert (arguments.fsdp_version, arguments.fsdp_state_dict_type) == (2, "FULL_STATE_DICT")
    assert arguments.fsdp_auto_wrap_policy == "TRANSFORMER_BASED_WRAP"
    assert (arguments.module, arguments.training_script) == (True, "rsd.cli")
    assert arguments.training_script_args == ["train", "--seed", "3", "--settings", '{"a b": "$(c)"}']


def test_each_process_gets_the_command_again_without_the_log() -> None:
    words = ["train", "--model", "m", "--rows", "r", "--settings", '{"gpus": 2}', "--seed", "1", "--threads", "4"]
    words += ["--output", "o", "--work", "w"]
    given = build_parser().parse_args([*words, "--log", "l"])
    again = build_parser().parse_args(_words_of("train", given))
    assert vars(again) == vars(given) | {"log": None}


def test_settings_of_another_launcher_do_not_reach_the_processes(tmp_path: Path) -> None:
    environment = worker_environment({"FSDP_VERSION": "1", "ACCELERATE_USE_DEEPSPEED": "true", "A": "b"}, tmp_path, 3)
    assert environment.keys() & {"FSDP_VERSION", "ACCELERATE_USE_DEEPSPEED"} == set()
    assert (environment["A"], environment["OMP_NUM_THREADS"]) == ("b", "3")


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path: Path, model: Path) -> None:
    data = read_training_rows(write_rows(tmp_path / "rows.parquet", random_rows(19)), block_size=64, overlong="error")
    settings = {**SETTINGS, **CHOSEN, "gpus": 2}
    with pytest.raises(ValueError, match=r"drop_last = false leaves a last batch of 3 rows, which training.gpus = 2"):
        sharded.prepare(SimpleNamespace(world_size=2), data, settings, 0)
    with pytest.raises(ValueError, match=r"micro_batch_size = 2 x training.gpus = 3; choose values that divide it"):
        run(tmp_path, model, random_rows(19), **{**CHOSEN, "gpus": 3})
    with pytest.raises(ValueError, match=r"training.gpus = 2, but 1 processes train; start it by `rsd train`"):
        run(tmp_path, model, random_rows(19), **{**CHOSEN, "gpus": 2})
