"""Before the first job: are there the GPUs that the jobs need? The GPUs are stand-ins (`fake_gpus`)."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fake_gpus import fake_machine
from pipelines import SMALL, Pipeline, overlay

CUDA = {"device": "cuda"}
SPLIT = {"models": {"teacher": {"gpus": 2}}}


def with_gpus(pipeline: Pipeline, count: int) -> Pipeline:
    machine = fake_machine(pipeline.folder.with_name("machine"), count)
    stub = pipeline.variables()["PATH"]
    folder = machine["PATH"].partition(":")[0]
    pipeline.environment = {"PATH": f"{folder}:{stub}", "RSD_GPU_LOCKS": machine["RSD_GPU_LOCKS"]}
    return pipeline


@pytest.mark.parametrize(
    ("count", "config", "message"),
    [
        (0, CUDA, "device: cuda, but no GPU was found here (nvidia-smi lists none)"),
        (1, SPLIT, "a job of this run needs 2 GPUs (training.gpus, or models.NAME.gpus), but 1 found"),
    ],
)
def test_a_run_whose_jobs_find_too_few_gpus_stops_before_the_first(
    pipeline: Pipeline, count: int, config: dict[str, Any], message: str
) -> None:
    with_gpus(pipeline, count)
    output = pipeline.run("--cores", "2", "all", config=overlay(SMALL, config), ok=False).stdout
    assert message in output
    assert not (pipeline.folder / "calls.jsonl").exists(), "a job was started"


def test_what_runs_no_model_needs_no_gpu_and_a_dry_run_asks_for_none(pipeline: Pipeline) -> None:
    with_gpus(pipeline, 0)
    pipeline.run("--cores", "2", "downloads", config=overlay(SMALL, CUDA))
    assert pipeline.plan(config=overlay(SMALL, CUDA))["train"] == 4


@pytest.mark.parametrize(("config", "count"), [({}, 2), (SPLIT, 4)], ids=["one GPU each", "two"])
def test_as_many_model_jobs_run_at_once_as_there_are_gpus_for(
    pipeline: Pipeline, config: dict[str, Any], count: int
) -> None:
    """On eight cores with four GPUs; threads are what keeps further jobs from starting."""
    with_gpus(pipeline, 4)
    output = pipeline.run("--dry-run", "--cores", "8", "models", config=overlay(SMALL, config)).stdout
    blocks = re.split(r"^(?:local)?rule ", output, flags=re.MULTILINE)
    (train, *_) = [block for block in blocks if block.startswith("train:")]
    assert int((re.search(r"threads: (\d+)", train) or ["", "1"])[1]) == count
