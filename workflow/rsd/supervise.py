"""Runs a stage so that its log file and the terminal get the same bytes.

Everything that the stage prints goes to both: log lines, tracebacks, warnings, what C libraries write. The stage runs
in a child process; the parent copies its output until the last line, so nothing is lost and nothing comes late.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from rsd.runtime import explain_os_error

GO_ON = "run the same command again to go on"


def supervised(log: Path, stage: Callable[[], int]) -> int:
    """Runs `stage` in a child with both output streams copied to `log` and to stderr; returns its exit status.

    SIGTERM and Ctrl-C reach the child, which ends by its own handlers. A child killed by a signal leaves a last line
    that says so, and gives 128 + the signal's number.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    except OSError as error:
        print(f"error: {explain_os_error(error, log)}", file=sys.stderr)
        return 1
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
    tee = _Tee(log, file)
    snakemake = _snakemake_above()
    watched = [reader] if snakemake is None else [reader, snakemake]
    while True:
        ready = select.select(watched, [], [])[0]
        if snakemake in ready:
            # The shell between the two lives on. What a job without Snakemake finished, Snakemake would make again.
            watched.remove(snakemake)
            tee.write(f"error: Snakemake has ended; {GO_ON}\n".encode())
            os.kill(child, signal.SIGTERM)
        if reader in ready:
            if not (block := os.read(reader, 1 << 16)):
                break
            tee.write(block)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hint = " (often: out of memory)" if number == signal.SIGKILL else ""
        tee.write(f"error: killed by signal {number}{hint}; {GO_ON}\n".encode())
        return 128 + number
    return os.WEXITSTATUS(status)


class _Tee:
    """The terminal first, then the log. Neither's failure may stop the stage or hide what it says from the other."""

    def __init__(self, log: Path, file: int) -> None:
        self.log = log
        self.targets = {"terminal": 2, "log": file}

    def write(self, block: bytes) -> None:
        for name, target in list(self.targets.items()):
            try:
                _write_all(target, block)
            except OSError as error:
                del self.targets[name]
                if name == "log":
                    # A block may end within a line: whoever prints unbuffered sends the line and its end apart.
                    start = "" if block.endswith(b"\n") else "\n"
                    warning = f"warning: the log is incomplete: {explain_os_error(error, self.log)}\n"
                    self.write((start + warning).encode())


def _write_all(target: int, block: bytes) -> None:
    while block:
        try:
            block = block[os.write(target, block) :]
        except BlockingIOError:
            # A terminal that was handed over non-blocking and is slow just now.
            select.select([], [target], [])


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


def _snakemake_above() -> int | None:
    """A file descriptor that is ready to be read when the Snakemake that started this process has ended.

    None where nothing above is Snakemake, and where the system has no such descriptors (Linux 5.3 has).
    """
    process = os.getppid()
    try:
        while process > 1:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[:3]
            if any(os.path.basename(word) == b"snakemake" for word in words):
                return os.pidfd_open(process)
            process = int(Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, AttributeError):
        pass
    return None
