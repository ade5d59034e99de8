"""What a prefetch takes of a source, and whether it fits: names of files -> the files to fetch, or what is missing."""

from __future__ import annotations

import errno
import fnmatch
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rsd.manifest import MANIFEST, visible_files

KINDS = {"models": "model", "datasets": "dataset"}

DOCUMENTS = ("README*", "LICENSE*", "LICENCE*", "NOTICE*")
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.safetensors",
    "*.safetensors.index.json",
    *DOCUMENTS,
)
# Whatever its name, a file of another type is left out: no pickle (.bin, .pt, .pkl), no code (.py).
SAFE_SUFFIXES = ("", ".json", ".jinja", ".md", ".model", ".safetensors", ".txt")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
DATA_SUFFIXES = (".jsonl", ".parquet", ".csv")


@dataclass(frozen=True)
class Place:
    """What is fetched and where to; `key` is the config key that messages name."""

    key: str
    kind: str
    source: str
    files: str | None
    gated: bool
    output: Path

    @property
    def label(self) -> str:
        """Key and value, as they stand at the beginning of every message."""
        return f"{self.key}: {self.source!r}"


@dataclass(frozen=True)
class Fetched:
    """What the manifest says about where the files came from."""

    revision: str | None
    licence: str | None
    provenance: dict[str, Any] = field(default_factory=dict)


def choose_files(place: Place, names: Iterable[str]) -> list[str]:
    """The files of a source that are taken, sorted; FileNotFoundError where what is needed is not there."""
    names = sorted(name for name in names if name != MANIFEST)
    return _choose_model_files(place, names) if place.kind == "models" else _choose_data_files(place, names)


def _choose_model_files(place: Place, names: list[str]) -> list[str]:
    # Subfolders of model repositories hold other formats (onnx, original weights).
    top = [name for name in names if "/" not in name and PurePosixPath(name).suffix in SAFE_SUFFIXES]
    chosen = [name for name in top if any(fnmatch.fnmatchcase(name, pattern) for pattern in MODEL_FILES)]
    weights = [name for name in chosen if name.endswith(".safetensors")]
    if not weights:
        pickles = [name for name in names if PurePosixPath(name).suffix in PICKLES]
        refused = f", only pickled ones ({some(pickles)}), which can run code when loaded and are refused"
        raise FileNotFoundError(
            f"{place.label} holds no safetensors weights{refused if pickles else ''}; name a repository or revision "
            "with *.safetensors, or convert the weights and use path:FOLDER"
        )
    if "config.json" not in chosen:
        raise FileNotFoundError(f"{place.label} holds no config.json, only {some(names)}; name a complete model")
    if not any(name in chosen for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise FileNotFoundError(
            f"{place.label} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json), only {some(names)}; "
            "name a repository that holds one, or add it and use path:FOLDER"
        )
    # Some repositories hold the same weights twice: as model-*.safetensors and as consolidated.safetensors.
    twice = any(name.startswith("model") for name in weights)
    return [name for name in chosen if not (twice and ".safetensors" in name and not name.startswith("model"))]


def _choose_data_files(place: Place, names: list[str]) -> list[str]:
    pattern = place.files or "**"
    data = [name for name in names if matches(name, pattern) and PurePosixPath(name).suffix in DATA_SUFFIXES]
    if not data:
        key = place.key.replace(".source", ".files")
        raise FileNotFoundError(
            f"{key}: {pattern!r} matches no data file ({', '.join(DATA_SUFFIXES)}) of {place.source!r}, which holds "
            f"{some(names)}; correct the glob"
        )
    documents = [name for name in names if any(fnmatch.fnmatchcase(name, document) for document in DOCUMENTS)]
    return sorted({*data, *documents})


def matches(name: str, pattern: str) -> bool:
    """Whether a relative name matches a glob as pathlib reads it below a folder: `**` is any number of folders."""
    return _matches(name.split("/"), pattern.split("/"))


def _matches(parts: list[str], patterns: list[str]) -> bool:
    if not patterns or not parts:
        return not parts and all(pattern == "**" for pattern in patterns)
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or _matches(parts[1:], patterns)
    return fnmatch.fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def some(names: list[str], most: int = 20) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "nothing"


def refuse_strays(place: Place, chosen: Iterable[str]) -> None:
    """ValueError where the output folder holds other files: they would count as part of the source."""
    strays = sorted(set(visible_files(place.output)) - set(chosen))
    if strays:
        raise ValueError(
            f"{place.output} holds files that do not belong to {place.label}: {some(strays)}; delete the folder, or "
            "these files, and run again"
        )


def require_space(place: Place, needed: int) -> None:
    """OSError where the output's disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(place.output).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{place.label} needs {megabytes(needed)} in {place.output}, but only {megabytes(free)} are free; free "
            "some space there, or put `results` on a larger disk, and run again",
        )


def megabytes(size: int) -> str:
    """A number of bytes, for people."""
    return f"{size / 1e6:.1f} MB"
