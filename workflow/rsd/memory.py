"""Memory that is free for this process: of a GPU, or of the machine within the control groups that the job is in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

SYSTEM = Path("/")


def free_bytes(device: torch.device) -> int:
    """Free memory of the GPU, or what the machine and the job's control groups have left for the CPU, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_available(), *_left_in_groups()])


def _available() -> int:
    path = SYSTEM / "proc/meminfo"
    if not path.exists():
        # Not Linux: all that there is.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _left_in_groups() -> Iterator[int]:
    """What is left to every control group that limits this process, of version 1 or 2.

    A cluster's job is a group within groups, and each may have a limit.
    """
    for folder, limit, used, reclaimable in _groups():
        try:
            most, now = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
            lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            continue  # no limit ("max"), or nothing to read
        # Files that were read, a model's say, count as used, but make way.
        files = int(dict(line.split() for line in lines).get(reclaimable, 0))
        yield max(most - now + files, 1)


def _groups() -> Iterator[tuple[Path, str, str, str]]:
    """(folder, file with the limit, file with what is used, field of memory.stat with what makes way) of each group."""
    mounted = SYSTEM / "sys/fs/cgroup"
    for kinds, path in _memberships():
        if kinds == "":
            root, names = mounted, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            root, names = mounted / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = root / path.strip("/")
        for folder in (inner, *inner.parents):
            yield folder, *names
            if folder == root:
                break


def _memberships() -> Iterator[tuple[str, str]]:
    """(controllers, path of the group): a line of /proc/self/cgroup each; version 2 names no controllers.

    In a container the path may be of the outside; its own group then is the root of what is mounted, which is an outer
    one of every path.
    """
    try:
        lines = (SYSTEM / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        yield kinds, path
