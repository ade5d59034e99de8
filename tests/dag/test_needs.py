"""What a plan says of memory, time and GPUs, and that planning many shards costs no more than their number."""

from __future__ import annotations

import os
import pstats
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines import POCKET_TINY, ROOT, SMALL, Pipeline, overlay
from rsd.config import load, model_key
from rsd.needs import RESOURCES

# 30 jobs of traces, 100 of evaluation.
MANY: dict[str, Any] = overlay(
    SMALL, {"traces": {"rsd": {"shards": 30}}, "tasks": {task: {"shards": 10} for task in ("aime24", "math500")}}
)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Counter[str]]:
    """What a dry-run of MANY prints, and how often it called the package's functions, by module and name."""
    folder = tmp_path_factory.mktemp("many") / "run"
    folder.mkdir()
    pipeline = Pipeline(folder)
    _, *command = pipeline.command("--dry-run", config=MANY)
    profile = folder.with_name("profile")
    result = subprocess.run(
        [sys.executable, "-m", "cProfile", "-o", str(profile), *command],
        env=pipeline.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-6000:]
    calls: Counter[str] = Counter()
    for (file, _, name), (_, count, *_) in pstats.Stats(str(profile)).stats.items():  # type: ignore[attr-defined]
        calls[f"{Path(file).stem}.{name}"] += count
    return result.stdout, calls


def test_every_job_of_a_plan_says_what_it_needs(profiled: tuple[str, Counter[str]]) -> None:
    output, _ = profiled
    blocks = re.split(r"^(?:local)?rule ", output, flags=re.MULTILINE)[1:]
    asked = {block.partition(":")[0]: re.search(r"^ +resources: (.*)$", block, re.MULTILINE) for block in blocks}
    asked.pop("all", None)
    assert len(asked) == 15
    for rule, found in asked.items():
        assert found is not None, rule
        numbers = dict(re.findall(r"(\w+)=(\d+)\b(?!\.)", found[1]))
        assert numbers.keys() >= set(RESOURCES), rule
        assert int(numbers["mem_mb"]) >= 500
        assert int(numbers["runtime"]) >= 10
    assert "gpu=1" in asked["generate_traces"][1]  # type: ignore[index]


def test_what_is_expensive_is_done_once_and_not_for_each_shard(profiled: tuple[str, Counter[str]]) -> None:
    output, calls = profiled
    total = int(re.findall(r"^total +(\d+)$", output, re.MULTILINE)[0])
    assert total > 150
    assert calls["config.validate"] == 1
    assert calls["config_schema.schema_problems"] == 1
    assert calls["composer.get_single_node"] < 20, "YAML is read once a file"
    # A digest a stage, and of evaluate one a task.
    assert 10 < calls["provenance.code_digest"] <= 22
    # A reckoning for every trace set, arm, task and reader, whatever the shards.
    assert 15 < calls["needs.needs_of"] < 60
    # What is still done for every job is small: its slice as JSON.
    assert total < calls["common.as_json"] < 3 * total


def test_a_job_that_fails_is_tried_again_with_more_memory_and_time(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "failing").mkdir()
    (tmp_path / "failing" / "rsd").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "failing" / "rsd").chmod(0o755)
    pipeline.environment["PATH"] = f"{tmp_path / 'failing'}{os.pathsep}{os.environ['PATH']}"
    pipeline.experiments = POCKET_TINY
    settings = load([ROOT / name for name in ("config.yaml", *POCKET_TINY)])
    target = f"results/models/{model_key(settings, 'student')}/manifest.json"
    output = pipeline.run("--cores", "1", "--retries", "2", target, ok=False).stdout
    resources = re.findall(r"^ +resources: (.*)$", output, re.MULTILINE)
    memory, minutes = (
        [int(re.findall(rf"{name}=(\d+)", line)[0]) for line in resources] for name in ("mem_mb", "runtime")
    )
    assert len(memory) == 3
    assert memory[0] < memory[1] < memory[2] == pytest.approx(1.5**2 * memory[0], abs=2)
    assert minutes[0] < minutes[1] < minutes[2]
