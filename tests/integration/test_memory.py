"""What jobs ask for, beside what they used in a real run of the shrunk demo."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines import POCKET_TINY, Pipeline
from rsd import config
from rsd.estimate import largest_jobs
from rsd.workload import jobs

SNAKEMAKE_MB = 300  # of the process that a cluster's job starts with


def test_no_job_of_the_demo_used_more_memory_than_it_asks_for(tiny: Pipeline) -> None:
    settings = config.load([tiny.tree / name for name in ("config.yaml", *POCKET_TINY)])
    asked = {stage: needs.mem_mb for stage, _, needs, _ in largest_jobs(settings, jobs(settings, Path("nowhere")))}
    used: dict[str, list[float]] = {}
    folder = tiny.folder / "results" / "pocket-tiny" / "benchmarks"
    for path in folder.rglob("*.jsonl"):
        stage = path.relative_to(folder).with_suffix("").parts[0]
        run = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
        # A job of less than a moment is over before anybody looks.
        used.setdefault(stage, []).extend([run["max_rss"]] if isinstance(run["max_rss"], int | float) else [])
    assert used.keys() == asked.keys()
    assert {stage: found for stage, found in used.items() if max(found, default=0) + SNAKEMAKE_MB > asked[stage]} == {}
    for stage in ("make_pocket_model", "generate_traces", "train", "evaluate", "analyse_tokens"):
        assert max(used[stage]) > 100, f"{stage} loads torch, so its benchmark must show it"
        assert asked[stage] < 10 * max(used[stage]), f"{stage} asks for far more than it uses"
