"""Runs a stage so that its log file and the terminal get the same bytes.

Everything that the stage prints goes to both: log lines, tracebacks, warnings, what C libraries write. The stage runs
in a child process; the parent copies its output until the last line, so nothing is lost and nothing comes late.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

GO_ON = "run the same command again to go on"


def supervised(log: Path, stage: Callable[[], int]) -> int:
    """Runs `stage` in a child with both output streams copied to `log` and to stderr; returns its exit status.

    SIGTERM and Ctrl-C reach the child, which ends by its own handlers. A child killed by a signal leaves a last line
    that says so, and gives 128 + the signal's number.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    # What is still buffered here would be written by both processes.
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run_child(writer, stage)
    os.close(writer)
    # Ctrl-C goes to the whole process group: the child says its last words, the parent copies them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    with open(log, "wb", buffering=0) as file:
        _copy(reader, file.fileno())
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            return os.WEXITSTATUS(status)
        number = os.WTERMSIG(status)
        hint = " (often: out of memory)" if number == signal.SIGKILL else ""
        last = f"error: killed by signal {number}{hint}; {GO_ON}\n".encode()
        os.write(file.fileno(), last)
        os.write(2, last)
        return 128 + number


def _copy(reader: int, file: int) -> None:
    while block := os.read(reader, 1 << 16):
        os.write(file, block)
        os.write(2, block)
    os.close(reader)


def _run_child(writer: int, stage: Callable[[], int]) -> None:
    """Never returns."""
    status = 1
    try:
        _die_with_parent()
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(writer)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        try:
            status = stage()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            status = 130 if isinstance(error, KeyboardInterrupt) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _die_with_parent() -> None:
    """Linux: a parent that is killed takes the stage with it, so that no forgotten job writes on."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
