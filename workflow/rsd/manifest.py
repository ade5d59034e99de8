"""The manifest that makes a model or dataset folder complete: files, sizes, hashes, and where they came from.

Inputs -> outputs: a folder of files -> `manifest.json` in it, written last, so that its presence means that every other
file arrived. It holds no time and no machine path: the same content has the same manifest on every machine, and results
may name a folder by its manifest's hash. By hand: `python -c "from rsd.manifest import verify_manifest; ..."`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd.provenance import file_digest
from rsd.runtime import write_json

MANIFEST = "manifest.json"
KINDS = ("model", "dataset", "trained-model")


def write_manifest(
    folder: Path,
    *,
    kind: str,
    source: str,
    revision: str | None,
    licence: str | None,
    provenance: Mapping[str, Any],
) -> None:
    """Hashes the files of `folder` and writes its manifest, atomically and last.

    `kind` is model, dataset or trained-model; `revision` the commit, None where the source has none. Hidden files (also
    those in hidden folders: temporaries, partial downloads) and the manifest itself do not count.
    Raises ValueError for an unknown kind or a folder without files, OSError where it cannot be written.
    """
    folder = Path(folder)
    if kind not in KINDS:
        raise ValueError(f"manifest of {folder}: kind {kind!r}, expected one of {', '.join(KINDS)}")
    files = {name: _describe(folder / name) for name in visible_files(folder) if name != MANIFEST}
    if not files:
        raise ValueError(f"{folder} holds no files, so there is nothing to write a manifest of; make its files first")
    manifest = {
        "kind": kind,
        "source": source,
        "revision": revision,
        "licence": licence,
        "files": files,
        "provenance": dict(provenance),
    }
    write_json(folder / MANIFEST, manifest)


def verify_manifest(folder: Path, *, deep: bool) -> dict[str, Any]:
    """The manifest of a complete folder. A shallow check compares sizes (instant), a deep one also the sha256.

    Raises FileNotFoundError (no manifest, or a file of it is missing) or ValueError (a file or the manifest was
    changed) that name the folder, the file, what was expected and found, and the remedy.
    """
    folder = Path(folder)
    remedy = f"delete {folder / MANIFEST} and run the stage that makes this folder again"
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} has no {MANIFEST}, so it is missing or incomplete; run the stage that makes this folder"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / MANIFEST} is not JSON ({error}); {remedy}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict) or not manifest["files"]:
        raise ValueError(f"{folder / MANIFEST} lists no files, expected an object with `files`; {remedy}")
    for name, expected in manifest["files"].items():
        _verify_file(folder, name, expected, deep, remedy)
    return manifest


def visible_files(folder: Path) -> list[str]:
    """The files below `folder`, as sorted relative names with slashes; nothing hidden, nothing in hidden folders."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def _describe(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def _verify_file(folder: Path, name: str, expected: Any, deep: bool, remedy: str) -> None:
    path = folder / name
    if not isinstance(expected, dict) or not {"size", "sha256"} <= expected.keys():
        raise ValueError(f"{folder / MANIFEST}: files.{name} is {expected!r}, expected its size and sha256; {remedy}")
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: the file {name} is missing, but {MANIFEST} lists it; {remedy}")
    if path.stat().st_size != expected["size"]:
        found = path.stat().st_size
        raise ValueError(f"{folder}: {name} has {found} bytes, expected {expected['size']}; {remedy}")
    if deep and (found_hash := file_digest(path)) != expected["sha256"]:
        raise ValueError(f"{folder}: {name} has sha256 {found_hash}, expected {expected['sha256']}; {remedy}")
