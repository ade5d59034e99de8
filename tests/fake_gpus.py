"""A machine with GPUs that has none: an `nvidia-smi` that lists some, for tests of who gets which."""

from __future__ import annotations

import os
from pathlib import Path


def uuid(index: int) -> str:
    """The UUID of the stand-in number `index`."""
    return f"GPU-{index:08d}-aaaa-bbbb-cccc-dddddddddddd"


def listing(count: int) -> str:
    """What `nvidia-smi -L` prints for so many."""
    return "".join(f"GPU {index}: NVIDIA Stand-in (UUID: {uuid(index)})\n" for index in range(count))


def fake_machine(folder: Path, count: int, text: str | None = None, status: int = 0) -> dict[str, str]:
    """The environment of a process that finds `count` GPUs (or what `text` lists), with a lock folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "listing").write_text(listing(count) if text is None else text)
    script = folder / "nvidia-smi"
    script.write_text(f'#!/bin/sh\n[ "$1" = -L ] || exit 9\ncat "{folder}/listing"\nexit {status}\n')
    script.chmod(0o755)
    hidden = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    return inherited | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "RSD_GPU_LOCKS": str(folder / "locks"),
    }
