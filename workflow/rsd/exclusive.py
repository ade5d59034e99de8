"""One process at a time makes an output: a lock file beside it, locked as long as the stage lives.

The kernel frees the lock however the process ends, so a killed stage leaves nothing to clean up. The file `.NAME.lock`
says who holds it (host, process, Slurm job). On a cluster's file system a lock may hold on one node alone, or not at
all; then this says so and goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from rsd.runtime import explain_os_error

LOG = logging.getLogger(__name__)
# A stage that was told to end may still be saving: a round of decoding, a training step and its checkpoint.
PATIENCE_S = 120.0
POLL_S = 0.2


@contextlib.contextmanager
def alone(target: Path, patience_s: float | None = PATIENCE_S) -> Iterator[bool]:
    """Keeps others from making `target` meanwhile; yields whether somebody else was at it just before.

    Waits for at most `patience_s` seconds (None: as long as it takes), then raises BlockingIOError naming who holds it.
    Raises PermissionError or OSError naming `target` and the remedy where the file cannot be made.
    """
    target = Path(target)
    path = target.with_name(f".{target.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file, waited = _open_alone(path, target, patience_s)
    except BlockingIOError:
        raise
    except OSError as error:
        raise explain_os_error(error, target) from error
    with file:
        before = _holder(path)
        if before and before.get("host") != platform.node():
            LOG.warning(
                "%s was not freed by %s; if that still runs, end one of the two: locks may not reach across machines",
                *(path, _named(before)),
            )
        # On a full disk the lock alone must do.
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(json.dumps(_myself()).encode())
        try:
            yield waited
        finally:
            # Still locked: whoever waits sees that its file is gone, and makes a new one.
            with contextlib.suppress(OSError):
                path.unlink()


def _open_alone(path: Path, target: Path, patience_s: float | None) -> tuple[FileIO, bool]:
    """The lock file, locked, and whether another process had to end first."""
    deadline = None if patience_s is None else time.monotonic() + patience_s
    waited = False
    while True:
        file = FileIO(path, "ab+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _named(_holder(path))
            file.close()
            if not waited:
                LOG.info("%s is being made by %s; waiting for its end", target, holder)
                waited = True
            if deadline is not None and time.monotonic() > deadline:
                raise BlockingIOError(
                    f"{target} is being made by {holder}; let it end, or end it, then run the same command again"
                ) from None
            time.sleep(POLL_S)
            continue
        except OSError as error:
            LOG.info("%s cannot be locked (%s); let no other process make the same", path, error.strerror)
            return file, waited
        # Who had it before has removed it.
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file, waited
        file.close()


def _myself() -> dict[str, Any]:
    return {"host": platform.node(), "process": os.getpid(), "slurm_job": os.environ.get("SLURM_JOB_ID")}


def _holder(path: Path) -> dict[str, Any]:
    """Who the file names; empty where that is nobody, or was not written yet."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    job = f", Slurm job {holder['slurm_job']}" if holder.get("slurm_job") else ""
    return f"process {holder.get('process')} on {holder.get('host')}{job}"
