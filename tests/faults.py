"""Faults for stages: each stage is a forked child that is killed at a file operation of choice, or has a small disk."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.utime", "os.chmod")


def run_stage(
    command: Sequence[str], folder: Path, output: Path, *, stop_at: int | None = None, by: int = signal.SIGKILL
) -> tuple[int, int]:
    """Runs `rsd ...` in a child; what it prints goes to `output`. (exit status, file operations that change something).

    `stop_at`: the number of the operation before which the child gets the signal `by`. The status is negative where a
    signal ended it.
    """
    reader, writer = os.pipe()
    child = start_stage(command, folder, output, stop_at=stop_at, by=by, tell=writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        counted = int(pipe.read() or -1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), counted


def start_stage(
    command: Sequence[str],
    folder: Path,
    output: Path,
    *,
    stop_at: int | None = None,
    by: int = signal.SIGKILL,
    tell: int | None = None,
) -> int:
    """The process id of a child that runs `rsd ...`, and writes the number of operations to the descriptor `tell`."""
    if (child := os.fork()) > 0:
        return child
    status = 1
    try:
        os.chdir(folder)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # What pytest had put in their place.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        logging.getLogger().handlers.clear()
        counter = _count_operations(stop_at, by)
        status = _main(command)
        if tell is not None:
            os.write(tell, str(counter[0]).encode())
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _main(command: Sequence[str]) -> int:
    from rsd.cli import main

    try:
        return main(list(command[1:]))
    except (ValueError, OSError) as error:
        # As the log's last line has it.
        print(f"error: {error}", file=sys.stderr)
        return 1


def _count_operations(stop_at: int | None, by: int) -> list[int]:
    counter = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not opened and event not in WRITES:
            return
        counter[0] += 1
        if counter[0] == stop_at:
            os.kill(os.getpid(), by)

    sys.addaudithook(hook)
    return counter


def without_log(command: Sequence[str]) -> list[str]:
    """The command without `--log`: it then runs in this very process."""
    place = command.index("--log")
    return [*command[:place], *command[place + 2 :]]


def content(path: Path) -> Any:
    """What must be equal between two runs: of a record all but times and machine; repr makes NaN equal to NaN."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        stamp = json.loads(table.schema.metadata[b"rsd"])
        return [[repr(row) for row in table.to_pylist()], _lasting(stamp)]
    if path.suffix == ".json":
        return _lasting(json.loads(path.read_text(encoding="utf-8")))
    return path.read_bytes()


# Times, the machine, how a run came about, and digests of files that hold such.
PASSING = (
    "run",
    "seconds",
    "inputs",
    "resumed_from_step",
    "resumed_samples",
    "resumed",
    "evaluation",
    "costs",
    "lm_eval",
    "backend",
)


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(entry) for key, entry in value.items() if key not in PASSING}
    return [_lasting(entry) for entry in value] if isinstance(value, list) else value


def results(folder: Path) -> dict[str, Any]:
    """The lasting content of every record and weight file below `folder`, by name."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    kinds = (".parquet", ".json", ".jsonl", ".safetensors", ".csv")
    chosen = [name for name in names if name.suffix in kinds and not any(p.startswith(".") for p in name.parts)]
    return {str(name): content(folder / name) for name in chosen}


# --- namespaces ------------------------------------------------------------------------------------------------------

NEW_MOUNTS = 0x00020000


def in_own_mounts(action: Callable[[], None]) -> str | None:
    """Runs `action` in a child whose mounts nobody else sees; why not, where that is not permitted.

    Raises AssertionError with the child's traceback where the action fails.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(NEW_MOUNTS) != 0:
                said = f"no mounts of one's own here: {os.strerror(ctypes.get_errno())}"
            else:
                mount("--make-rprivate", "/")
                action()
        except PermissionError as error:
            said = f"no mounts here: {error}"
        except BaseException:
            said = "FAILED\n" + traceback.format_exc()
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert not said.startswith("FAILED"), said
    return said or None


def mount(*words: str) -> None:
    """Raises PermissionError where that is not permitted."""
    result = subprocess.run(["mount", *words], capture_output=True, text=True)
    if result.returncode != 0:
        raise PermissionError(result.stderr.strip())
