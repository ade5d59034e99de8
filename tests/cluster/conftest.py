"""A Slurm cluster of the tests' own, and one run of the shrunk demo without it to compare with."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm
from on_slurm import new_pipeline

from pipelines import Pipeline


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """The folder of a running cluster."""
    if reason := slurm.missing():
        pytest.skip(reason)
    # Sockets want a short path that everybody may pass, which the folders of pytest are not.
    folder = Path(tempfile.gettempdir(), f"rsd-slurm-{os.getpid()}")
    slurm.start(folder)
    yield folder
    slurm.stop(folder)


@pytest.fixture(scope="session")
def local(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The demo, finished on this machine alone; nobody changes it."""
    pipeline = new_pipeline(tmp_path_factory.mktemp("local"))
    pipeline.run("--cores", "2")
    return pipeline
