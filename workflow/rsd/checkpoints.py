"""Checkpoints of a training: sealed when complete, found again after a kill, never half-used."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from rsd.provenance import file_digest
from rsd.runtime import write_json

LOG = logging.getLogger(__name__)
# On disk at most: the newest, and the one before it in case that one is damaged.
KEPT_CHECKPOINTS = 2
SEAL = "checkpoint.json"


def seal_checkpoint(folder: Path) -> None:
    """Lists the files of a complete checkpoint with their hashes, in a file of its own, written last."""
    write_json(folder / SEAL, {path.name: file_digest(path) for path in sorted(folder.iterdir())})


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written; a damaged one is removed with a warning."""
    for checkpoint in reversed(checkpoint_folders(folder)):
        try:
            sealed = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
            if all(file_digest(checkpoint / name) == digest for name, digest in sealed.items()):
                return checkpoint
        except (OSError, ValueError, AttributeError):
            pass
        LOG.warning("%s is incomplete or damaged; falling back to the one before it", checkpoint)
        shutil.rmtree(checkpoint)
    return None


def checkpoint_folders(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=step_of) if folder.is_dir() else []


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was taken."""
    return int(checkpoint.name.removeprefix("checkpoint-"))
