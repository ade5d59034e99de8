"""An append-only journal of finished items: what a killed job had done, the next run finds here.

One line an item: a checksum, then JSON. A tail that was cut or damaged is dropped with a warning, never half-used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from rsd.runtime import explain_os_error

LOG = logging.getLogger(__name__)
SYNC_SECONDS = 10.0


class Journal:
    """Use as a context manager; `load` first, then `append` what is finished."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._synced = 0.0

    def __enter__(self) -> Journal:
        with _explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a failed write left behind must not be written again when the file is closed.
            self._file = open(self.path, "ab", buffering=0)
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

    def load(self) -> dict[str, dict[str, Any]]:
        """Everything that was appended, by key; a damaged tail is cut off the file.

        Raises PermissionError naming the file and the remedy where it may not be read.
        """
        try:
            return self._load()
        except PermissionError as error:
            message = f"cannot read {self.path}; make it readable and writable, or delete it to make its items again"
            raise PermissionError(error.errno, message) from error
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def _load(self) -> dict[str, dict[str, Any]]:
        items: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return items
        good = 0
        with open(self.path, "rb") as file:
            for line in file:
                item = _parse(line)
                if item is None:
                    break
                items[item["key"]] = item["item"]
                good += len(line)
        size = self.path.stat().st_size
        if good < size:
            LOG.warning("%s: dropped a damaged tail of %d bytes; its items are made again", self.path, size - good)
            os.truncate(self.path, good)
        return items

    def append(self, key: str, item: dict[str, Any]) -> None:
        """Adds an item; it survives the death of the process at once, that of the machine within seconds.

        Raises OSError naming the file and the remedy when the disk is full; nothing of the item is left then.
        """
        payload = json.dumps({"key": key, "item": item}, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(payload), payload)
        with _explained(self.path):
            good = os.fstat(self._file.fileno()).st_size
            try:
                while line:
                    line = line[self._file.write(line) :]
                if time.monotonic() - self._synced > SYNC_SECONDS:
                    os.fsync(self._file.fileno())
                    self._synced = time.monotonic()
            except OSError:
                # Where even this fails, `load` drops the half line.
                with contextlib.suppress(OSError):
                    os.truncate(self._file.fileno(), good)
                raise


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain_os_error(error, path) from error


def _parse(line: bytes) -> dict[str, Any] | None:
    checksum, _, payload = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or b"%08x" % zlib.crc32(payload) != checksum:
        return None
    return json.loads(payload)
