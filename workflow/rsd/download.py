"""Files from the hub: listing, download that goes on where it stopped, check against the hub's sizes and hashes.

A revision that is no commit (or none) is resolved once and recorded in the folder, so that later runs stay with it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rsd.provenance import file_digest
from rsd.runtime import explain_os_error, write_json
from rsd.sources import KINDS, Fetched, Place, choose_files, megabytes, refuse_strays, require_space

LOG = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_WAITS_S = (1, 3, 9, 27)
LOG_EVERY_S = 30
RESOLVED = ".resolved.json"


@dataclass(frozen=True)
class RemoteFile:
    """A file of the hub: its size in bytes and its digest (sha256 of an LFS file, git's sha1 of another)."""

    name: str
    size: int
    algorithm: str
    digest: str


def from_hub(place: Place, repository: str, revision: str) -> Fetched:
    """Fetches `repository` (ORG/NAME) at `revision` (commit, branch, tag; empty for main) into the place's folder."""
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as library_logging

    if not sys.stderr.isatty():
        disable_progress_bars()
    # Its warnings on every attempt would bury ours.
    library_logging.set_verbosity_error()
    # Read here, not when huggingface_hub was imported.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    recorded = None if _is_commit(revision) else _recorded_commit(place)
    wanted = recorded or revision or "main"
    api = huggingface_hub.HfApi(endpoint=endpoint)
    describe: Callable[..., Any] = api.model_info if place.kind == "models" else api.dataset_info
    info = _retry(place, wanted, lambda: describe(repository, revision=wanted, files_metadata=True))
    if _is_commit(wanted) and info.sha != wanted:
        raise ValueError(
            f"{place.label}: asked for commit {wanted}, {_endpoint()} answered with {info.sha}; is HF_ENDPOINT a hub?"
        )
    if not _is_commit(revision):
        _record_commit(place, repository, revision or "main", info.sha)

    listing = {entry.rfilename: entry for entry in info.siblings or []}
    files = [_remote_file(place, listing[name]) for name in choose_files(place, listing)]
    refuse_strays(place, [file.name for file in files])
    require_space(place, sum(file.size for file in files) - _present_bytes(place, files))
    total = megabytes(sum(file.size for file in files))
    LOG.info("%s: %s at %s, %d files, %s", place.key, repository, info.sha, len(files), total)
    for file in files:
        url = huggingface_hub.hf_hub_url(
            repository, file.name, repo_type=KINDS[place.kind], revision=info.sha, endpoint=endpoint
        )
        _download(place, file, url, wanted)
    return Fetched(info.sha, _licence(info.card_data), {"via": "hub"})


def _is_commit(revision: str | None) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None


def _recorded_commit(place: Place) -> str | None:
    """The commit that an earlier run into this folder resolved; the manifest is gone by then, Snakemake deletes it."""
    path = place.output / RESOLVED
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        return recorded["commit"] if recorded["source"] == place.source else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to resolve the branch again") from error


def _record_commit(place: Place, repository: str, branch: str, commit: str) -> None:
    write_json(place.output / RESOLVED, {"source": place.source, "commit": commit})
    LOG.warning(
        '%s: %s is at commit %s, used from now on; to pin it, write `source: "hf://%s@%s"` into the config (best '
        "before the first long run: a pinned source is another folder and makes what depends on it anew)",
        *(place.key, branch, commit, repository, commit),
    )


def _remote_file(place: Place, entry: Any) -> RemoteFile:
    name = PurePosixPath(entry.rfilename)
    if name.is_absolute() or ".." in name.parts or "\\" in entry.rfilename:
        raise ValueError(f"{place.label}: the hub names a file outside the folder, {entry.rfilename!r}; do not use it")
    if entry.lfs is not None:
        return RemoteFile(entry.rfilename, entry.lfs.size, "sha256", entry.lfs.sha256)
    if entry.size is None or not entry.blob_id:
        raise ValueError(
            f"{place.label}: the hub states no size and hash of {entry.rfilename}, so it cannot be checked; is "
            "HF_ENDPOINT a hub that knows `blobs=true`?"
        )
    return RemoteFile(entry.rfilename, entry.size, "git-sha1", entry.blob_id)


def _licence(card: Any) -> str | None:
    """The licence that the card's metadata states; its own name where it is none of the known ones."""
    data = card.to_dict() if card is not None else {}
    licence = data.get("license_name") if data.get("license") == "other" else data.get("license")
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence


def _partial(place: Place, file: RemoteFile) -> Path:
    target = place.output / file.name
    # The digest keeps a part of an older version from being continued as this one.
    return target.with_name(f".{target.name}.{file.digest[:12]}.partial")


def _present_bytes(place: Place, files: list[RemoteFile]) -> int:
    paths = [path for file in files for path in (place.output / file.name, _partial(place, file))]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _download(place: Place, file: RemoteFile, url: str, wanted: str) -> None:
    """Brings one file, going on where an earlier run stopped; it gets its name only when size and hash are right."""
    target, partial = place.output / file.name, _partial(place, file)
    if target.is_file() and _mismatch(file, target) is None:
        LOG.info("%s: %s is already here (%s)", place.key, file.name, megabytes(file.size))
        return
    started = time.monotonic()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists() and partial.stat().st_size > file.size:
            partial.unlink()
        partial.touch()
    except OSError as error:
        raise explain_os_error(error, target) from error
    if (already := partial.stat().st_size) > 0:
        LOG.info("%s: %s goes on at %s of %s", place.key, file.name, megabytes(already), megabytes(file.size))
    if already < file.size:
        _retry(place, wanted, lambda: _get(place, file, url, partial), file.name)
    if (mismatch := _mismatch(file, partial)) is not None:
        partial.unlink()
        raise ValueError(
            f"{place.label}: {file.name} arrived with {mismatch}; it was deleted, so run again to fetch it anew; if it "
            "happens again, something between here and the hub changes the file"
        )
    partial.replace(target)
    seconds = max(time.monotonic() - started, 1e-3)
    rate = megabytes(int((file.size - already) / seconds))
    LOG.info("%s: %s (%s, %s/s)", place.key, file.name, megabytes(file.size), rate)


def _get(place: Place, file: RemoteFile, url: str, partial: Path) -> None:
    # hf_hub_download drops what it has when the process dies; http_get alone continues a file.
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    with _LoggedWriter(io.FileIO(partial, "ab"), f"{place.key}: {file.name}", file.size) as writer:
        http_get(url, writer, resume_size=writer.tell(), headers=headers, displayed_filename=file.name)


class _LoggedWriter(io.BufferedWriter):
    """A file that says how far it is, now and then; progress bars are for terminals only."""

    def __init__(self, raw: io.FileIO, label: str, size: int) -> None:
        super().__init__(raw)
        self._label, self._size, self._logged = label, size, time.monotonic()

    def write(self, data: Any) -> int:
        # Without an end, or larger than said: it shall not fill the disk before its size is compared.
        if self.tell() + len(data) > self._size:
            raise ValueError(f"{self._label} arrived with more than {self._size} bytes, expected as many; run again")
        written = super().write(data)
        if time.monotonic() - self._logged > LOG_EVERY_S:
            self._logged = time.monotonic()
            LOG.info("%s: %s of %s", self._label, megabytes(self.tell()), megabytes(self._size))
        return written


def _mismatch(file: RemoteFile, path: Path) -> str | None:
    """What differs between a local file and what the hub states, None where nothing does."""
    size = path.stat().st_size
    if size != file.size:
        return f"{size} bytes, expected {file.size}"
    digest = file_digest(path) if file.algorithm == "sha256" else git_sha1(path)
    return None if digest == file.digest else f"{file.algorithm} {digest}, expected {file.digest}"


def git_sha1(path: Path) -> str:
    """Git's object id of a file: sha1 of `blob SIZE NUL` and the content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _retry(place: Place, wanted: str, action: Callable[[], T], what: str = "file list") -> T:
    """Runs a hub call, again after a pause where the network is to blame; else raises what the failure means."""
    from huggingface_hub.errors import HTTPError

    for attempt in range(len(RETRY_WAITS_S) + 1):
        try:
            return action()
        except (HTTPError, OSError, json.JSONDecodeError) as error:
            explained = _explain(place, wanted, what, error)
            if not _is_transient(error) or attempt == len(RETRY_WAITS_S):
                # Not chained: the library's text may hold signed addresses.
                raise explained from None
            wait = RETRY_WAITS_S[attempt]
            LOG.warning("%s: %s failed (%s); trying again in %d s", place.key, what, _said(error), wait)
            time.sleep(RETRY_WAITS_S[attempt])
    raise AssertionError("unreachable")


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_transient(error: BaseException) -> bool:
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    # An OSError without a number is http_get's word for a connection that ended early.
    cut = isinstance(error, OSError) and error.errno is None
    return (isinstance(error, HTTPError) or cut) and not isinstance(error, OfflineModeIsEnabled)


def _explain(place: Place, wanted: str, what: str, error: BaseException) -> Exception:
    """The built-in exception that says what a failed hub call means and what to do."""
    import huggingface_hub
    from huggingface_hub import errors

    token = "is set but was refused" if huggingface_hub.get_token() else "is not set"
    repository = place.source.removeprefix("hf://").partition("@")[0]
    page = f"{_endpoint()}/{'datasets/' if place.kind == 'datasets' else ''}{repository}"
    status = _status(error)
    or_mirror = f"or copy the files into MIRROR/{repository} and set `mirror`"
    set_token = f"set HF_TOKEN to a token that may read it (it {token})"
    accept = f"accept its terms at {page}, {set_token}, and run again; {or_mirror}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ConnectionError(f"{place.label}: the hub is switched off; unset HF_HUB_OFFLINE, {or_mirror}")
    if isinstance(error, errors.RevisionNotFoundError):
        record = place.output / RESOLVED
        remedy = f"delete {record} to resolve it again" if record.exists() else f"choose one of {page}/commits/main"
        return FileNotFoundError(f"{place.label}: the hub has no revision {wanted!r} of {repository}; {remedy}")
    if isinstance(error, errors.EntryNotFoundError):
        return FileNotFoundError(f"{place.label}: the hub lists {what} but does not hold it; choose another revision")
    if isinstance(error, errors.GatedRepoError) or (place.gated and status in (401, 403, 404)):
        return PermissionError(f"{place.label} is gated and the hub refused {what} ({status}); {accept}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{place.label}: the hub has no {KINDS[place.kind]} {repository} ({status}), or it is private; correct the "
            f"id, or {set_token}"
        )
    if status in (401, 403):
        return PermissionError(f"{place.label}: the hub refused {what} ({status}); {accept}")
    if isinstance(error, errors.HTTPError) or _is_transient(error):
        return ConnectionError(
            f"{place.label}: {what} could not be fetched from {_endpoint()} ({_said(error)}); check the network and "
            f"HF_ENDPOINT and run again: it goes on where it stopped; {or_mirror}"
        )
    if isinstance(error, json.JSONDecodeError):
        return ConnectionError(f"{place.label}: {_endpoint()} did not answer like a hub; check HF_ENDPOINT and proxies")
    return explain_os_error(error, place.output) if isinstance(error, OSError) else RuntimeError(str(error))


def _endpoint() -> str:
    """The hub's address, without a name and password that may stand in it."""
    parts = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _said(error: BaseException) -> str:
    """A failure in one line, without the addresses in it."""
    if (status := _status(error)) is not None:
        return f"status {status}"
    return f"{type(error).__name__}: {re.sub(r'[a-z]+://[^ ]+', '<address>', str(error)).partition(chr(10))[0]}"
