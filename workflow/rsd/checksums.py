"""A checksum of the whole file beside every record that a stage leaves: a damaged one is found and made again.

`shard-000.parquet` has `shard-000.parquet.sha256`, in the format of sha256sum (`sha256sum -c` works), which gets its
name first: a file under its final name has its checksum. No rule declares it. Every reader checks (`verify`);
Snakemake, when it starts, looks at sizes and times and reads only what changed (`set_aside_damaged`), so that the same
run makes it again. A file without a checksum was made by an older version, and is taken as it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rsd.manifest import MANIFEST, verify_manifest
from rsd.provenance import file_digest
from rsd.runtime import atomic_path

LOG = logging.getLogger(__name__)
SUFFIX = ".sha256"
# Folders of an experiment that hold records.
RECORDS = ("data", "traces", "trained", "scores", "tokens", "report")


@contextlib.contextmanager
def checked_path(path: Path) -> Iterator[Path]:
    """`runtime.atomic_path`, and the file's checksum beside it."""
    with atomic_path(path) as temporary:
        yield temporary
        _note(Path(path), temporary)


def verify(path: Path) -> None:
    """Raises ValueError where the file is not the one that its checksum is of; it is set aside, so that it is missed.

    A file without a checksum passes.
    """
    if (why := _damage(Path(path))) is None:
        return
    aside = _try_to_set_aside(Path(path))
    raise ValueError(f"{path} is damaged ({why}); {aside}; run the same command again, and it is made anew")


def remove(path: Path) -> None:
    """Removes a file with its checksum, if there."""
    path.unlink(missing_ok=True)
    _sidecar(path).unlink(missing_ok=True)


def set_aside_damaged(experiment: str | Path, folders: Iterable[str | Path], *, rename: bool = True) -> list[str]:
    """What is damaged, in words that name it: records below `experiment`, and models and datasets in `folders`.

    A record is renamed to *.damaged, a folder loses its manifest, so that they are missing for Snakemake; not with
    `rename` False. Of a record whose size and time are as they were, and of a model's files but for their sizes,
    nothing is read: that is for their readers.
    """
    experiment, said = Path(experiment), []
    for path in changed_records(experiment):
        if (why := _damage(path)) is None:
            # Next time it need not be read.
            with contextlib.suppress(OSError):
                _same_time(_sidecar(path), path)
        else:
            said.append(f"{path} is damaged ({why})")
            if rename:
                said[-1] += f"; {_try_to_set_aside(path)}, and it is made again"
    trained = [path.parent for path in sorted((experiment / "trained").glob(f"*/{MANIFEST}"))]
    for folder in [*map(Path, folders), *trained]:
        if not (folder / MANIFEST).exists():
            continue
        try:
            verify_manifest(folder, deep=False)
        except (ValueError, FileNotFoundError) as error:
            said.append(str(error).partition(";")[0])
            if rename:
                with contextlib.suppress(PermissionError):
                    (folder / MANIFEST).unlink(missing_ok=True)
                said[-1] += "; what is missing of it is made again"
    return said


def changed_records(experiment: Path) -> Iterator[Path]:
    """The records whose size or time is not that of when they were written, or last found whole."""
    for name in RECORDS:
        for folder, _, files in os.walk(experiment / name):
            for file in files:
                path = Path(folder, file.removesuffix(SUFFIX))
                if file.endswith(SUFFIX) and _looks_changed(path):
                    yield path


def _looks_changed(path: Path) -> bool:
    try:
        file, sidecar = path.stat(), _sidecar(path).stat()
    except FileNotFoundError:
        return False
    noted = _read(path)
    return file.st_mtime_ns != sidecar.st_mtime_ns or (noted is not None and noted[1] != file.st_size)


def _damage(path: Path) -> str | None:
    """What is wrong with a file, None where nothing is, or nothing is known."""
    if (noted := _read(path)) is None:
        return None
    digest, size = noted
    if (found := path.stat().st_size) != size:
        return f"{found} bytes, expected {size}"
    return None if file_digest(path) == digest else f"its sha256 is not the one in {_sidecar(path).name}"


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _note(path: Path, content: Path) -> None:
    """Writes the checksum of `content` as that of `path`; the comment is skipped by sha256sum."""
    text = f"# {content.stat().st_size} bytes\n{file_digest(content)}  {path.name}\n"
    with atomic_path(_sidecar(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")
        _same_time(temporary, content)


def _read(path: Path) -> tuple[str, int] | None:
    """The digest and the size that are noted of a file; None where there is no checksum, or none that can be read."""
    try:
        text = _sidecar(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    match = re.match(r"# (\d+) bytes\n([0-9a-f]{64})  ", text)
    if match is None:
        LOG.warning("%s is damaged; %s cannot be checked, and is taken as it is", _sidecar(path), path)
        return None
    return match[2], int(match[1])


def _same_time(path: Path, other: Path) -> None:
    time = other.stat().st_mtime_ns
    os.utime(path, ns=(time, time))


def _try_to_set_aside(path: Path) -> str:
    """Renames a damaged file; says what became of it."""
    aside = path.with_name(path.name + ".damaged")
    try:
        path.replace(aside)
        _sidecar(path).unlink(missing_ok=True)
    except FileNotFoundError:
        pass  # another process was faster
    except OSError as error:
        return f"delete it: it could not be renamed ({error.strerror})"
    return f"it is {aside.name} now"
