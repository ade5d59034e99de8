"""An append-only journal: what a killed job had done, the next run finds here.

Items are finished; parts are what was written of an unfinished item since its last part. One line each: a checksum,
then JSON. A tail that was cut or damaged is dropped with a warning, never half-used. One process at a time writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from rsd.runtime import atomic_path, explain_os_error

LOG = logging.getLogger(__name__)
SYNC_SECONDS = 10.0


@dataclass(frozen=True)
class Part:
    """A piece of an unfinished item: its entries number `start` to `stop`, `stop` excluded."""

    start: int
    stop: int
    content: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a journal holds, by key: finished items, and of the others the parts, each going on where the last ended."""

    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: dict[str, list[Part]] = field(default_factory=dict)


class Journal:
    """Use as a context manager; `load` first, then `append` what is finished and `append_parts` of what is not."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._synced = 0.0

    def __enter__(self) -> Journal:
        with _explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_alone(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                os.fsync(self._file.fileno())
        except OSError as failure:
            # The error that is on its way says more.
            if error is None:
                raise explain_os_error(failure, self.path) from failure

    def load(self) -> Found:
        """Everything that was appended; a damaged tail is cut off the file.

        Raises PermissionError naming the file and the remedy where it may not be read.
        """
        try:
            return self._load()
        except PermissionError as error:
            message = f"cannot read {self.path}; make it readable and writable, or delete it to make its items again"
            raise PermissionError(error.errno, message) from error
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def _load(self) -> Found:
        if not self.path.exists():
            return Found()
        found, good, misfits = _read(self.path)
        size = self.path.stat().st_size
        if good < size:
            LOG.warning("%s: dropped a damaged tail of %d bytes; its items are made again", self.path, size - good)
            os.truncate(self.path, good)
        if misfits:
            LOG.warning(
                "%s: left out %d parts that do not go on where the one before them ended; they are made again",
                self.path,
                misfits,
            )
        return found

    def append(self, key: str, item: Mapping[str, Any]) -> None:
        """Adds a finished item; it survives the death of the process at once, that of the machine within seconds.

        Raises OSError naming the file and the remedy when the disk is full; nothing of the item is left then.
        """
        self._write(_line({"key": key, "item": item}), sync=time.monotonic() - self._synced > SYNC_SECONDS)

    def append_parts(self, parts: Iterable[tuple[str, Part]]) -> None:
        """Adds (key, part) of unfinished items; they, and all items before them, survive the death of the machine.

        Raises OSError as `append` does.
        """
        entries = ({"key": key, "start": part.start, "stop": part.stop, "part": part.content} for key, part in parts)
        self._write(b"".join(map(_line, entries)), sync=True)

    def drop_parts(self) -> None:
        """Rewrites the journal with its finished items alone."""
        found = self.load()
        with atomic_path(self.path) as temporary, open(temporary, "wb") as file:
            file.writelines(_line({"key": key, "item": item}) for key, item in found.items.items())
        with _explained(self.path), self._file:
            self._file = _open_alone(self.path)

    def _write(self, lines: bytes, *, sync: bool) -> None:
        with _explained(self.path):
            good = os.fstat(self._file.fileno()).st_size
            try:
                while lines:
                    lines = lines[self._file.write(lines) :]
                if sync:
                    os.fsync(self._file.fileno())
                    self._synced = time.monotonic()
            except OSError:
                # Where even this fails, `load` drops the half line.
                with contextlib.suppress(OSError):
                    os.truncate(self._file.fileno(), good)
                raise


def peek(path: Path) -> Found:
    """What a journal that belongs to somebody else holds; it is not changed, and may be written meanwhile."""
    try:
        return _read(path)[0]
    except FileNotFoundError:
        return Found()


def remove_journals(folder: Path) -> None:
    """Removes every `*.journal` of a folder, if that is there: what they hold is somewhere else for good."""
    for path in folder.glob("*.journal"):
        path.unlink()


def _read(path: Path) -> tuple[Found, int, int]:
    """What a journal holds up to the first damaged line, the bytes up to there, and how many parts did not fit."""
    found = Found()
    good = misfits = 0
    with open(path, "rb") as file:
        for line in file:
            entry = _parse(line)
            if entry is None:
                break
            misfits += not _add(found, entry)
            good += len(line)
    return found, good, misfits


def _open_alone(path: Path) -> FileIO:
    """The file, open to append, and locked against others: two processes that write and cut it would lose its tail.

    A killed supervisor's stage may still be saving when the next run begins; that one waits here.
    """
    while True:
        # Unbuffered: what a failed write left behind must not be written again when the file is closed.
        file = FileIO(path, "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOG.info("another process is writing %s; waiting for its end", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            LOG.info("%s cannot be locked (%s); let no other process make the same", path, error.strerror)
        # Who had it before may have replaced or removed it.
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file
        file.close()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain_os_error(error, path) from error


def _add(found: Found, entry: Mapping[str, Any]) -> bool:
    """Takes over a line; False for a part that does not fit behind what is known of its item."""
    key = entry["key"]
    if "item" in entry:
        found.items[key] = entry["item"]
        found.parts.pop(key, None)
        return True
    if key in found.items:
        return True
    known = found.parts.get(key, [])
    fits = entry["start"] == (known[-1].stop if known else 0)
    if fits:
        found.parts[key] = [*known, Part(entry["start"], entry["stop"], entry["part"])]
    return fits


def _line(entry: Mapping[str, Any]) -> bytes:
    payload = json.dumps(entry, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def _parse(line: bytes) -> dict[str, Any] | None:
    checksum, _, payload = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or b"%08x" % zlib.crc32(payload) != checksum:
        return None
    return json.loads(payload)
