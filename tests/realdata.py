"""The public datasets that some tests check: RSD_TEST_DATA, or shared/data beside the repository, else a skip."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(os.environ.get("RSD_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")


def real_folder(name: str) -> Path:
    """The folder of a dataset by its hub id; the test is skipped where it is not at hand."""
    if not (ROOT / name).is_dir():
        pytest.skip(f"no {name} in {ROOT}; set RSD_TEST_DATA to a folder laid out by hub id")
    return ROOT / name


def real_rows(name: str) -> list[dict[str, Any]]:
    """All rows of a dataset's JSON Lines files, files in the order of their names."""
    files = sorted(real_folder(name).rglob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
