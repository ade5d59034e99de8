"""What every stage needs of the machine: logging, atomic writes, device and threads.

Imports torch only inside the functions that need it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

LOG = logging.getLogger(__name__)


def setup_logging(*, quiet: bool = False) -> None:
    """Logs to stderr, one line a message; an uncaught exception ends the log with its message alone after the trace.

    `quiet`: warnings and errors alone, in a process beside another that says the same.
    """
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    # The first four would log the address of every download, with the signature in it.
    http = ("httpx", "httpx2", "httpcore", "httpcore2")
    for noisy in (*http, "urllib3", "filelock", "fsspec", "matplotlib", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    sys.excepthook = _log_exception


def _log_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        LOG.error("stopped by Ctrl-C; run the same command again to go on")
        return
    LOG.error("failed", exc_info=(kind, error, trace))
    # The last line of a log is what people see first.
    print(f"error: {error}", file=sys.stderr)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` at the end, removes it on any failure.

    Raises OSError naming `path` and the remedy when the disk is full or the folder is read-only.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _flush_to_disk(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def explain_os_error(error: OSError, path: Path) -> OSError:
    """The same error with what to do about it, for a full disk or a missing permission; others unchanged."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(error.errno, f"no space left while writing {path}; free some space there and run again")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return PermissionError(
            error.errno, f"cannot write {path}; make its folder writable, or run where you may write"
        )
    return error


@contextlib.contextmanager
def explained_writes(path: Path, needed: int) -> Iterator[None]:
    """For torch and safetensors, which report a full disk in words of their own: OSError naming `path` and the remedy.

    `needed`: the bytes that are written.
    """
    try:
        yield
    except OSError as error:
        raise explain_os_error(error, path) from error
    except Exception as error:
        if shutil.disk_usage(path.parent).free >= needed:
            raise
        raise explain_os_error(OSError(errno.ENOSPC, str(error)), path) from error


def require_writable(folder: str | Path) -> None:
    """Raises OSError naming the folder and the remedy where nothing can be written there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise explain_os_error(error, Path(folder)) from error


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, indented, keys in the given order; NaN is refused (ValueError)."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """JSON as our files have it: indented, keys in the given order; NaN is refused (ValueError)."""
    return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def choose_device(setting: str) -> str:
    """`cpu` or `cuda` for the setting auto, cpu or cuda; ValueError where cuda is asked for and there is none."""
    import torch

    if setting == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device: cuda, but torch sees no GPU here; install a torch built for the driver's CUDA, or use "
            "`device: cpu` or `device: auto`"
        )
    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return setting


def sharers(device: str, jobs_at_once: int | None) -> int:
    """How many jobs share the memory of `device`: a GPU is lent to one at a time (`lease`), a CPU to all."""
    return 1 if device == "cuda" else jobs_at_once or 1


def set_threads(threads: int) -> None:
    """Lets torch use that many CPU threads."""
    import torch

    torch.set_num_threads(threads)


def switch_hub_off() -> None:
    """Every stage but prefetch runs with the hubs switched off; to be called before transformers is imported."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
