"""Starts a training on several GPUs: accelerate's launcher, which starts a process for each of them.

`rsd train` with gpus > 1 in its settings -> `accelerate launch ... --module rsd.cli train`, the same command again, run
once in each process (`sharded`). This process waits for them: it holds the lease of the GPUs, hands signals on, and
says how it ended. No process outlives it. Imports nothing heavy.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rsd.interruption import Interruption

CONFIG = Path(__file__).with_name("fsdp.yaml")
# Set in the processes of a training: a folder where they leave their number and, if they fail, the reason.
FOLDER = "RSD_TRAINING_FOLDER"
PACKAGE = Path(__file__).parents[1]


def is_worker() -> bool:
    """Is this one of the processes that a training was spread over?"""
    return FOLDER in os.environ


def is_first() -> bool:
    """Is it the one that logs and writes?"""
    return os.environ.get("RANK") == "0"


def launch_command(processes: int, arguments: Sequence[str]) -> list[str]:
    """The command that runs `rsd ARGUMENTS` in so many processes of one training."""
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(CONFIG), "--num_processes", str(processes), "--mixed_precision", "no"),
        *("--module", "rsd.cli", *arguments),
    ]


def launch(processes: int, arguments: Sequence[str], threads: int) -> None:
    """Runs `rsd ARGUMENTS` in so many processes, of so many CPU threads each, and waits for all.

    SIGTERM and Ctrl-C are handed on to the first process, which tells the others after the step that they are in; this
    one then ends as any stage does (`Interruption.end`). Raises RuntimeError with the reason where a process failed.
    """
    with tempfile.TemporaryDirectory(prefix="rsd-train-") as name, Interruption() as interruption:
        folder = Path(name)
        job = subprocess.Popen(
            launch_command(processes, arguments),
            env=worker_environment(os.environ, folder, threads),
            # Ctrl-C in a terminal goes to a whole group of processes.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        handed_on = False
        while job.poll() is None:
            if interruption.received is not None and not handed_on:
                _hand_on(folder, job)
                handed_on = True
            time.sleep(0.1)
        interruption.end()
        if job.returncode:
            raise RuntimeError(_reason(folder, job.returncode))


def worker_environment(environment: Mapping[str, str], folder: Path, threads: int) -> dict[str, str]:
    """What the processes of a training get: as this one, but for what accelerate, torch and `is_worker` look at."""
    inherited = {
        name: value
        for name, value in environment.items()
        if not name.startswith(("ACCELERATE_", "FSDP_", "PET_")) and name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    path = os.pathsep.join(filter(None, (str(PACKAGE), environment.get("PYTHONPATH"))))
    return inherited | {
        FOLDER: str(folder),
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(threads),
        # The launcher would kill what has not saved its step within half a minute; `launch` speaks to the processes.
        "PET_SIGNALS_TO_HANDLE": "SIGQUIT",
    }


def join() -> None:
    """To be called first in each process of a training: it ends with the launcher, and says where it can be reached."""
    _die_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    if is_first():
        path = Path(os.environ[FOLDER])
        (path / "pid.new").write_text(str(os.getpid()))
        (path / "pid.new").replace(path / "pid")


def leave_reason(error: BaseException) -> None:
    """In a process of a training: says why it fails. The first is believed; the others fail for want of it."""
    if not is_worker():
        return
    try:
        with open(Path(os.environ[FOLDER]) / "reason", "x", encoding="utf-8") as file:
            file.write(str(error) or type(error).__name__)
    except OSError:
        pass


def _hand_on(folder: Path, job: subprocess.Popen[bytes]) -> None:
    """Tells the first process to stop; before it is there, ends the launcher and thereby all."""
    try:
        os.kill(int((folder / "pid").read_text()), signal.SIGTERM)
    except (OSError, ValueError):
        job.kill()


def _reason(folder: Path, status: int) -> str:
    try:
        return (folder / "reason").read_text(encoding="utf-8")
    except OSError:
        number = f"signal {-status}" if status < 0 else f"status {status}"
        return (
            f"a process of the training ended ({number}; often: out of memory) and the others with it; see above, then "
            "run the same command again to go on"
        )


def _die_with_parent() -> None:
    """Linux: killed with its parent, at once, since its GPU is another job's then."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        # Not for the launcher itself: who ends a job sends SIGTERM to every process of it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
