"""Files from the future, after a clock was set back: Snakemake would make what depends on them again at every call.

Such files become as old as now, in the order that they have, so that at most one more run is needed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from rsd.checksums import RECORDS
from rsd.manifest import MANIFEST

# Clocks of a cluster's machines differ by some seconds, and nothing is wrong.
SLACK_S = 60


def leave_the_future(experiment: str | Path, folders: Iterable[str | Path], now: float | None = None) -> int:
    """Dates back what the stages left below `experiment`, and manifests in `folders`; how many files that were."""
    now = time.time() if now is None else now
    files = [Path(folder, MANIFEST) for folder in folders]
    for name in RECORDS:
        files += [Path(folder, file) for folder, _, names in os.walk(Path(experiment, name)) for file in names]
    ahead = {}
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            if (time_ns := path.stat().st_mtime_ns) > (now + SLACK_S) * 1e9:
                ahead[path] = time_ns
    newest_first = {time_ns: rank for rank, time_ns in enumerate(sorted(set(ahead.values()), reverse=True))}
    for path, time_ns in ahead.items():
        dated = int(now * 1e9) - newest_first[time_ns] * 1_000_000
        with contextlib.suppress(OSError):
            os.utime(path, ns=(dated, dated))
    return len(ahead)
