"""A clock that was set back skips nothing, makes nothing again for ever, and makes no time negative."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from rsd.checksums import set_aside_damaged
from rsd.clock import leave_the_future
from rsd.provenance import PACKAGE
from rsd.records import write_record


def test_files_from_the_future_become_as_old_as_now_in_their_order(tmp_path: Path) -> None:
    now = time.time()
    days = {
        "data/problems.json": 0.0,
        "traces/rsd/rows.json": 2.0,
        "trained/a/training.json": 1.0,
        "scores/s.json": 2.0,
    }
    for name, ahead in days.items():
        write_record(tmp_path / name, {})
        for path in (tmp_path / name, tmp_path / f"{name}.sha256"):
            os.utime(path, (now + ahead * 86400,) * 2)
    manifest = tmp_path / "models/m/manifest.json"
    write_record(manifest, {})
    os.utime(manifest, (now + 3 * 86400,) * 2)
    assert leave_the_future(tmp_path, [manifest.parent, tmp_path / "absent"], now) == 7
    made, rows, trained, scores = ((tmp_path / name).stat().st_mtime for name in days)
    assert made == now
    assert now - 1 < trained < rows == scores < manifest.stat().st_mtime <= now
    assert set_aside_damaged(tmp_path, []) == []
    assert leave_the_future(tmp_path, [manifest.parent], now) == 0


def test_seconds_are_measured_by_a_clock_that_nobody_sets() -> None:
    """The time of day only says when something was finished."""
    for path in PACKAGE.glob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"\btime\.time\(\)|datetime\.now|time\.time_ns", line):
                assert '"finished_unix"' in line or path.name == "clock.py", f"{path.name}: {line.strip()}"
