"""What a result was made from: digests of settings, files and code, and the stamp that every output carries.

Imports nothing heavy, since Snakemake calls `code_digest` while it parses.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
# Versions that can change a number; the rest of the environment is in the lock.
PACKAGES = ("torch", "transformers", "trl", "datasets", "lm-eval", "math-verify", "numpy", "pyarrow")


def settings_digest(settings: object) -> str:
    """16 hex digits of the sha256 of `settings` as sorted JSON; equal for equal settings."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_digest(modules: Iterable[str]) -> str:
    """16 hex digits over the sources of the named modules of this package, the ones that decide a stage's numbers.

    Raises FileNotFoundError for a module that does not exist, so that a renamed module cannot go unnoticed.
    """
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(name.encode() + b"\0" + (PACKAGE / f"{name}.py").read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def stamp(settings: Mapping[str, Any], inputs: Mapping[str, Path], seed: int | None = None) -> dict[str, Any]:
    """The provenance of an output.

    `settings` holds what must be equal between two runs (settings, input digests, seed), `run` what may differ
    (commit, versions, device, time). An input that is a folder stands for its manifest.json.
    """
    digests = {name: file_digest(path / "manifest.json" if path.is_dir() else path) for name, path in inputs.items()}
    return {
        "settings": {"settings": dict(settings), "inputs": digests, "seed": seed},
        "run": {
            "commit": _commit(),
            "python": platform.python_version(),
            "packages": _versions(),
            "machine": platform.machine(),
            "gpu": _gpu(),
            "finished_unix": round(time.time(), 3),
        },
    }


def _commit() -> str | None:
    """The checkout's commit, with `-dirty` where tracked files differ from it; None outside a checkout."""
    try:
        return subprocess.run(
            ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _gpu() -> str | None:
    # A stage that never loaded torch used no GPU, and must not pay for loading it here.
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
