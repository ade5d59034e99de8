"""Checkpoints of a training: sealed when complete, found again after a kill, never half-used.

Where the training has ended, the model takes their place, as hard links: Snakemake removes what a job has written that
is ended between its last file and its own end.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

from rsd.checksums import verify
from rsd.manifest import verify_manifest
from rsd.provenance import file_digest
from rsd.runtime import write_json

LOG = logging.getLogger(__name__)
# On disk at most: the newest, and the one before it in case that one is damaged.
KEPT_CHECKPOINTS = 2
SEAL = "checkpoint.json"
FINISHED = "finished"


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


def keep_finished(model: Path, folder: Path) -> None:
    """Replaces the checkpoints in `folder` by the finished `model`, whose weights take no more space by that.

    Finished models of earlier settings, in the folders beside, go: the space of theirs is their own by now.
    """
    for old in folder.parent.glob(f"*/{FINISHED}"):
        shutil.rmtree(old, ignore_errors=True)
    try:
        _copy(model, folder / FINISHED)
    except OSError as error:
        # Some file systems have no hard links.
        LOG.info("%s cannot be kept in %s (%s); should this job fail now, it trains anew", model, folder, error)
        shutil.rmtree(folder / FINISHED, ignore_errors=True)
    for left in set(folder.iterdir()) - {folder / FINISHED}:
        # The model is written: what cannot be removed is no reason to fail.
        shutil.rmtree(left, ignore_errors=True)


def restore_finished(folder: Path, model: Path) -> bool:
    """Whether `folder` holds the finished model; it is in its place, the folder `model`, then.

    One that is damaged or cannot be linked to is left out with a warning.
    """
    finished, temporary = folder / FINISHED, model.parent / f".{model.name}.partial"
    if not finished.is_dir():
        return False
    try:
        verify_manifest(finished, deep=True)
        verify(finished / "training.json")
        shutil.rmtree(temporary, ignore_errors=True)
        _copy(finished, temporary)
    except (OSError, ValueError) as error:
        LOG.warning("%s cannot be used (%s); training anew", finished, error)
        return False
    shutil.rmtree(model, ignore_errors=True)
    temporary.replace(model)
    return True


def _copy(source: Path, target: Path) -> None:
    """Weights as hard links; the rest, which is small, as files of its own whose time is now."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.copy"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=_link_weights)
    partial.replace(target)


def _link_weights(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)
