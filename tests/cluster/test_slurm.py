"""The demo on a real Slurm, by the profiles and nothing else, from the first job to the report."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from on_slurm import EXPERIMENT, MODEL_RULES, arguments, ask, new_pipeline, prepared

from pipelines import Pipeline

# Jobs that run a model, and so ask for a GPU.
ON_A_GPU = set(MODEL_RULES) - {"make_pocket_model"}
SECRET = "hf_secret-of-the-tests"


@pytest.fixture(scope="module")
def on_cluster(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, str]:
    """The finished run, and what Snakemake said."""
    pipeline = new_pipeline(tmp_path_factory.mktemp("on-slurm"), cluster)
    pipeline.environment["HF_TOKEN"] = SECRET
    return pipeline, pipeline.run(*arguments()).stdout


def jobs(cluster: Path, pipeline: Pipeline) -> list[dict[str, str]]:
    """What the accounting knows of the jobs of a working folder."""
    fields = ["JobID", "State", "Comment", "AllocTRES", "NodeList", "WorkDir"]
    lines = ask(
        cluster,
        *("sacct", "-X", "--noheader", "--parsable2", f"--format={','.join(fields)}", "--starttime=now-1hour"),
    )
    found = [dict(zip(fields, line, strict=True)) for line in lines]
    return [job for job in found if job["WorkDir"] == str(pipeline.folder)]


def test_every_file_of_results_is_what_one_machine_makes(on_cluster: tuple[Pipeline, str], local: Pipeline) -> None:
    pipeline, _ = on_cluster
    results = Path("results", EXPERIMENT)
    tables = sorted((local.folder / results).rglob("*.parquet"))
    assert len(tables) > 10
    for path in tables:
        if "work" in path.parts:
            continue
        mine, other = (pq.read_table(root / path.relative_to(local.folder)) for root in (pipeline.folder, local.folder))
        # repr makes NaN equal to NaN.
        assert repr(mine.to_pylist()) == repr(other.to_pylist()), path
    name = results / "report" / "comparison.csv"
    assert (pipeline.folder / name).read_text() == (local.folder / name).read_text()
    assert (pipeline.folder / results / "report" / "report.html").stat().st_size > 100_000


def test_jobs_with_a_model_get_one_gpu_and_others_none_on_both_nodes(
    on_cluster: tuple[Pipeline, str], cluster: Path
) -> None:
    found = jobs(cluster, on_cluster[0])
    assert {job["State"] for job in found} == {"COMPLETED"}
    assert {job["NodeList"] for job in found} == {"n1", "n2"}
    for job in found:
        rule = job["Comment"].removeprefix("rule_").partition("_wildcards")[0]
        assert ("gres/gpu=1" in job["AllocTRES"]) == (rule in ON_A_GPU), job
    assert any("gres/gpu=1" in job["AllocTRES"] for job in found)


def test_a_token_in_the_environment_stands_in_no_command_and_no_file(
    on_cluster: tuple[Pipeline, str], cluster: Path
) -> None:
    pipeline, output = on_cluster
    lines = ask(cluster, "sacct", "--noheader", "--parsable2", "--format=SubmitLine,Comment", "--starttime=now-1hour")
    said = [output, *("|".join(line) for line in lines)]
    assert any("--target-jobs" in text or "snakemake" in text for text in said[1:]), lines
    files = [path for path in pipeline.folder.rglob("*") if path.is_file()]
    assert len(files) > 100
    assert not any(SECRET in text for text in said)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_by_gres_a_job_gets_what_its_gpu_resource_says(cluster: Path, local: Pipeline, tmp_path: Path) -> None:
    pipeline = prepared(tmp_path, cluster, local)
    target = f"results/{EXPERIMENT}/traces/rsd/shard-000.parquet"
    pipeline.run(target, f"results/{EXPERIMENT}/data/overlap.json", "--force", *arguments("slurm-gres", "gres=gpu"))
    tres = {job["Comment"].split("_wildcards")[0]: job["AllocTRES"] for job in jobs(cluster, pipeline)}
    assert "gres/gpu=1" in tres["rule_generate_traces"]
    assert "gpu" not in tres["rule_measure_overlap"]
