"""Evaluation in the DAG: shards, the judge, gated benchmarks and the check before the first job."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from hub_server import FakeHub, Repository
from pipelines import ROOT, Pipeline, overlay, shell_commands
from rsd.cli import NETWORK

JUDGE = {"evaluation": {"judge": {"url": "http://localhost:8000/v1", "model": "judge"}}}
# One model, two benchmarks, one of them gated.
BASE: dict[str, Any] = {"run": {"arms": ["base"], "tasks": ["math500", "gpqa_diamond"]}}
OPEN = overlay(BASE, {"run": {"tasks": ["math500"]}})
SHOWN = {"report": 1, "write_config": 1}


@pytest.fixture
def hub(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub() as fake:
        fake.repositories["datasets/Idavidrein/gpqa"] = Repository({}, gated=True)
        pipeline.environment |= {"HF_ENDPOINT": fake.address, "HOME": str(pipeline.folder), "NO_PROXY": "127.0.0.1"}
        yield fake


def calls(pipeline: Pipeline) -> list[list[str]]:
    path = pipeline.folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- shards --------------------------------------------------------------------------------------------------------


def test_a_benchmark_in_shards_is_sampled_by_a_job_each_and_joined_by_one(pipeline: Pipeline) -> None:
    config = overlay(BASE, {"tasks": {"math500": {"shards": 3}}})
    output = pipeline.run("--dry-run", "--printshellcmds", "scores", config=config).stdout
    words = [shlex.split(command) for command in shell_commands(output)]
    shards = sorted(w[w.index("--shard") + 1] for w in words if w[1] == "evaluate" and "/math500/" in " ".join(w))
    assert shards == ["000", "001", "002"]
    assert sum(w[1] == "evaluate" for w in words) == 3 + 1
    (joined,) = [w for w in words if w[1] == "collect-scores" and "/math500.json" in " ".join(w)]
    files = joined[joined.index("--shards") + 1 : joined.index("--settings")]
    folder = "results/paper/scores/base-seed0/math500"
    assert files == [f"{folder}/shard-00{shard}.parquet" for shard in range(3)]


def test_shards_of_one_benchmark_share_a_folder_of_progress(pipeline: Pipeline) -> None:
    config = overlay(OPEN, {"tasks": {"math500": {"shards": 2}}})
    output = pipeline.run("--dry-run", "--printshellcmds", "scores", config=config).stdout
    words = [shlex.split(command) for command in shell_commands(output) if " evaluate " in command]
    assert {w[w.index("--work") + 1] for w in words} == {"results/paper/work/evaluate/base-seed0"}


# --- the judge -----------------------------------------------------------------------------------------------------


def test_what_needs_a_network_runs_where_snakemake_runs() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    rules = re.split(r"^rule ", text, flags=re.MULTILINE)
    for stage in NETWORK:
        (rule,) = [rule for rule in rules if rule.startswith(f"{stage.replace('-', '_')}:")]
        assert "\n    localrule: True\n" in rule, stage


def test_a_judge_sees_what_is_not_gated_alone(pipeline: Pipeline) -> None:
    output = pipeline.run("--dry-run", "--printshellcmds", "scores", config=overlay(BASE, JUDGE)).stdout
    (command,) = [command for command in shell_commands(output) if " judge-samples " in command]
    assert "/math500/judge.parquet" in command
    with_judge = [c for c in shell_commands(output) if " collect-scores " in c and "--judge" in c]
    assert len(with_judge) == 1
    assert "/math500/judge.parquet" in with_judge[0]
    wanted = {"evaluation": {"judge": {**JUDGE["evaluation"]["judge"], "send_gated": True}}}
    assert pipeline.plan("scores", config=overlay(BASE, wanted))["judge_samples"] == 2


def test_what_of_the_judge_changes_asks_again_and_how_it_is_asked_does_not(pipeline: Pipeline) -> None:
    def judge(**changes: Any) -> dict[str, Any]:
        return overlay(OPEN, JUDGE, {"evaluation": {"judge": changes}})

    pipeline.run("--cores", "2", config=judge())
    assert pipeline.plan(config=judge()) == {}
    how = judge(key_variable="PATH", timeout_s=5, concurrency=1)
    assert pipeline.plan(config=how) == SHOWN
    again = {"judge_samples": 1, "collect_scores": 1, "compare": 1, **SHOWN}
    for change in ({"model": "another"}, {"url": "http://another/v1"}, {"samples": 10}):
        assert pipeline.plan(config=judge(**change)) == again
    assert pipeline.plan(config=OPEN) == {"collect_scores": 1, "compare": 1, **SHOWN}


def test_a_judge_without_its_key_stops_the_run_before_the_first_job(pipeline: Pipeline) -> None:
    config = overlay(OPEN, JUDGE, {"evaluation": {"judge": {"key_variable": "NO_SUCH_VARIABLE"}}})
    output = pipeline.run("--cores", "2", config=config, ok=False).stdout
    assert "evaluation.judge.key_variable = 'NO_SUCH_VARIABLE': there is no environment variable of that name" in output
    assert calls(pipeline) == []


def test_the_judges_key_stands_in_no_command_and_no_file(pipeline: Pipeline) -> None:
    pipeline.environment["JUDGE_KEY"] = "sk-verySecretKey"
    config = overlay(OPEN, JUDGE, {"evaluation": {"judge": {"key_variable": "JUDGE_KEY"}}})
    output = pipeline.run("--cores", "2", "--printshellcmds", "--verbose", config=config).stdout
    assert "JUDGE_KEY" in output
    assert "sk-verySecretKey" not in output
    for path in pipeline.folder.rglob("*"):
        assert not path.is_file() or b"sk-verySecretKey" not in path.read_bytes(), path


# --- gated benchmarks ----------------------------------------------------------------------------------------------


def test_a_gated_benchmark_without_access_stops_the_run_before_the_first_job(pipeline: Pipeline, hub: FakeHub) -> None:
    output = pipeline.run("--cores", "2", config=BASE, ok=False).stdout
    assert "datasets.gpqa_diamond.source = 'hf://Idavidrein/gpqa' is gated, and there is no token for it" in output
    assert "or leave gpqa_diamond out with `run: {gated: skip}`" in output
    assert "Traceback" not in output
    assert calls(pipeline) == []
    assert hub.requests == []
    # The folder is not left locked.
    pipeline.environment["HF_TOKEN"] = hub.token
    pipeline.run("--cores", "2", config=BASE)
    assert "prefetch-dataset" in {call[0] for call in calls(pipeline)}


def test_the_hub_is_asked_once_by_a_run_with_many_jobs_and_not_by_a_plan(pipeline: Pipeline, hub: FakeHub) -> None:
    pipeline.environment["HF_TOKEN"] = hub.token
    assert pipeline.plan(config=BASE)["evaluate"] == 2
    assert hub.requests == []
    output = pipeline.run("--cores", "4", config=overlay(BASE, {"jobs_at_once": 4})).stdout
    assert [request["path"] for request in hub.requests] == ["/api/datasets/Idavidrein/gpqa/auth-check"]
    assert hub.token not in output
    for path in pipeline.folder.rglob("*"):
        assert not path.is_file() or hub.token.encode() not in path.read_bytes(), path


def test_a_downloaded_gated_benchmark_needs_no_token_any_more(pipeline: Pipeline, hub: FakeHub) -> None:
    pipeline.environment["HF_TOKEN"] = hub.token
    pipeline.run("--cores", "2", "downloads", config=BASE)
    del pipeline.environment["HF_TOKEN"]
    hub.requests.clear()
    pipeline.run("--cores", "2", config=BASE)
    assert hub.requests == []


def test_a_gated_benchmark_in_the_mirror_needs_no_hub(pipeline: Pipeline, hub: FakeHub) -> None:
    mirror = pipeline.folder / "mirror"
    config = overlay(BASE, {"mirror": str(mirror)})
    output = pipeline.run("--cores", "2", config=config, ok=False).stdout
    assert f"the mirror has no folder {mirror}/Idavidrein/gpqa; put its files there" in output
    (mirror / "Idavidrein" / "gpqa").mkdir(parents=True)
    pipeline.run("--cores", "2", config=config)
    assert hub.requests == []


def test_skipped_gated_benchmarks_are_neither_asked_for_nor_run_and_the_report_is_told(
    pipeline: Pipeline, hub: FakeHub
) -> None:
    config = overlay(BASE, {"run": {"gated": "skip"}})
    pipeline.run("--cores", "2", config=config)
    assert hub.requests == []
    assert not [call for call in calls(pipeline) if any("gpqa" in word for word in call if not word.startswith("{"))]
    settings = {call[0]: json.loads(call[call.index("--settings") + 1]) for call in calls(pipeline)}
    assert settings["compare"]["tasks"] == ["math500"]
    assert settings["compare"]["skipped_tasks"] == ["gpqa_diamond"]
    assert settings["report"]["config"]["run"]["skipped_tasks"] == ["gpqa_diamond"]


# --- backends ------------------------------------------------------------------------------------------------------


# As much of conda as a plan asks.
INFO = {"conda_version": "24.7.1", "conda_prefix": "/nowhere", "root_prefix": "/nowhere", "platform": "linux-64"}
CONDA = f"""#!/bin/sh
case "$*" in
    *"info --json"*) echo '{json.dumps(INFO)}' ;;
    *--version*) echo "conda {INFO["conda_version"]}" ;;
    *) echo '{json.dumps({"get": {"channel_priority": "strict"}})}' ;;
esac
"""


@pytest.mark.parametrize(("backend", "names"), [("rsd", {"rsd"}), ("transformers", {"rsd"}), ("vllm", {"rsd", "vllm"})])
def test_vllm_alone_gets_an_environment_of_its_own(pipeline: Pipeline, backend: str, names: set[str]) -> None:
    tools = pipeline.folder.with_name("conda")
    tools.mkdir()
    (tools / "conda").write_text(CONDA)
    (tools / "conda").chmod(0o755)
    pipeline.environment["PATH"] = f"{tools}{os.pathsep}{pipeline.variables()['PATH']}"
    config = overlay(OPEN, {"evaluation": {"backend": backend}})
    output = pipeline.run("--dry-run", "--sdm", "conda", config=config).stdout
    assert set(re.findall(r"^Conda environment .*/envs/(\w+)\.yaml will be created", output, re.MULTILINE)) == names
