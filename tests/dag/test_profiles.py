"""The profiles of workflow/profiles/ as Snakemake and its executors read them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from cloud import BUCKET, Cloud, cloud
from pipelines import ROOT, SMALL, Pipeline
from rsd.config import model_key, validate

PROFILES = ROOT / "workflow" / "profiles"
# What needs no permission of the hub.
OPEN = {"run": {"gated": "skip"}}
FILLED = ["--container-image", "registry/rsd:1", "--default-storage-prefix", f"s3://{BUCKET}"]

# Where the Makefile installs the plugins for Kubernetes.
PLUGINS = Path(sys.prefix, "kubernetes")
WITH_KUBERNETES = pytest.mark.skipif(
    not PLUGINS.is_dir(), reason="needs envs/requirements-kubernetes.txt in .venv/kubernetes: make .venv/installed-dev"
)


@pytest.mark.parametrize("profile", ["slurm", "slurm-gres"])
def test_a_slurm_profile_plans_unfilled_and_names_its_fields_before_the_first_job(
    profile: str, pipeline: Pipeline
) -> None:
    file = f"workflow/profiles/{profile}"
    if profile == "slurm":
        assert pipeline.plan("--profile", str(PROFILES / profile), config=SMALL)["train"] == 4
    output = pipeline.run("--profile", str(PROFILES / profile), config=SMALL, ok=False).stdout
    assert f"{file}/profile.yaml has fields that only you can fill in" in output
    for name in ("partition", "account"):
        assert f"default-resources.slurm_{name}: FILL-IN-{name}; write " in output
    gres = " gres=gpu" if profile == "slurm-gres" else ""
    assert f"--default-resources slurm_partition=... slurm_account=...{gres}\n" in output
    assert not list((pipeline.folder / "results").glob("models/*/manifest.json"))


@WITH_KUBERNETES
def test_text_for_a_shell_on_the_command_line_submits_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    with cloud() as here:
        arguments = [*kubernetes(pipeline, here, tmp_path), *FILLED, "--config", "title=$(touch canary)"]
        output = pipeline.run(*arguments, config=OPEN, ok=False).stdout
    assert "--config title: on a cluster a value with quotes" in output
    assert not here.jobs


@WITH_KUBERNETES
def test_the_kubernetes_profile_names_bucket_and_image(pipeline: Pipeline, tmp_path: Path) -> None:
    profile = ["--profile", str(PROFILES / "kubernetes"), "--dry-run"]
    pipeline.environment["PYTHONPATH"] = str(PLUGINS)
    assert "default-storage-prefix: FILL-IN-bucket; write an S3 bucket" in pipeline.run(*profile, ok=False).stdout
    with cloud() as here:
        arguments = kubernetes(pipeline, here, tmp_path)
        output = pipeline.run(*arguments, *FILLED[2:], config=SMALL, ok=False).stdout
    assert "container-image: FILL-IN-image; write the container image" in output
    assert not here.jobs


@WITH_KUBERNETES
def test_a_kubernetes_job_asks_for_what_its_rule_needs(pipeline: Pipeline, tmp_path: Path) -> None:
    config = validate(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))
    manifests = [f"results/models/{model_key(config, name)}/manifest.json" for name in ("teacher", "student")]
    with cloud() as here:
        here.objects |= dict.fromkeys(["results/paper/data/problems.jsonl", *manifests], b"there")
        arguments = kubernetes(pipeline, here, tmp_path)
        shard = "results/paper/traces/rsd/shard-000.parquet"
        output = pipeline.run(*arguments, *FILLED, "--retries", "0", shard, config=OPEN, ok=False).stdout
    assert len(here.jobs) == 1, output
    (job,) = here.jobs
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    limits = container["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == "1"
    assert limits["cpu"] == "4000m"
    assert re.fullmatch(r"\d+M", limits["memory"])
    assert re.fullmatch(r"\d+M", limits["ephemeral-storage"])
    assert container["image"] == "registry/rsd:1"
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {
        "workdir": "/workdir",
        "rsd-storage": "/storage",
        "rsd-results": "/workdir/results",
    }
    # The keys of the bucket travel as a secret of the cluster and nowhere else.
    named = {variable["name"] for variable in container["env"]}
    assert {"SNAKEMAKE_STORAGE_S3_ACCESS_KEY", "SNAKEMAKE_STORAGE_S3_SECRET_KEY"} <= named
    assert "key-of-tests" not in str(job) + output


def kubernetes(pipeline: Pipeline, here: Cloud, tmp_path: Path) -> list[str]:
    """Snakemake's arguments for the profile on an imitation of a cluster."""
    config = here.write_kubeconfig(tmp_path / "kubeconfig")
    keys = {f"SNAKEMAKE_STORAGE_S3_{name}_KEY": f"{name.lower()}-key-of-tests" for name in ("ACCESS", "SECRET")}
    pipeline.environment |= {"KUBECONFIG": str(config), "PYTHONPATH": str(PLUGINS), **keys}
    local = ["--local-storage-prefix", str(tmp_path / "storage")]
    return ["--profile", str(PROFILES / "kubernetes"), "--storage-s3-endpoint-url", here.address, *local]
