"""One undisturbed run of the shrunk demo, by the real stages, for all tests here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines import POCKET_TINY, Pipeline, copy_tree, real_rsd, without_network


def new_pipeline(base: Path, tree: Path, inside: tuple[str, ...] = ()) -> Pipeline:
    folder = base / "run"
    folder.mkdir(parents=True)
    real_rsd(base / "run-bin", tree)
    return Pipeline(folder, tree, POCKET_TINY, inside=inside)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The shrunk demo, finished, where possible without a network; nobody changes it.

    From a copy of the tree, so that an edit meanwhile does no harm.
    """
    base = tmp_path_factory.mktemp("tiny")
    tree = copy_tree(base / "tree")
    (tree / "tests" / "integration").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("pocket-tiny.yaml"), tree / "tests" / "integration")
    pipeline = new_pipeline(base, tree, without_network())
    result = pipeline.run("--cores", "2")
    (base / "output.txt").write_text(result.stdout, encoding="utf-8")
    return pipeline


@pytest.fixture
def copied(tiny: Pipeline, tmp_path: Path) -> Pipeline:
    """A copy of the finished run that a test may damage."""
    pipeline = new_pipeline(tmp_path, tiny.tree)
    shutil.copytree(tiny.folder, pipeline.folder, dirs_exist_ok=True)
    return pipeline


@pytest.fixture
def prepared(tiny: Pipeline, tmp_path: Path) -> Pipeline:
    """A working folder with the models, datasets and problems of the finished run, and nothing after them."""
    pipeline = new_pipeline(tmp_path, tiny.tree)
    for name in ("models", "datasets", "pocket-tiny/data"):
        shutil.copytree(tiny.folder / "results" / name, pipeline.folder / "results" / name)
    return pipeline
