"""Working folders for Snakemake."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import SMALL, Pipeline, copy_tree, overlay


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """An empty working folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    return Pipeline(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The small paper, run to its end by the stand-in, from a copy of the tree that a test may edit."""
    base = tmp_path_factory.mktemp("finished")
    folder = base / "run"
    folder.mkdir()
    pipeline = Pipeline(folder, copy_tree(base / "tree"))
    pipeline.run("--cores", "4", config=overlay(SMALL, {"jobs_at_once": 4}))
    return pipeline
