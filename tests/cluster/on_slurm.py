"""Working folders and arguments for Snakemake on the cluster of the tests."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import slurm

from pipelines import POCKET_TINY, ROOT, Pipeline, real_rsd

POCKET = (*POCKET_TINY, "tests/cluster/pocket-cluster.yaml")
EXPERIMENT = "pocket-cluster"
# The rules that run a model.
MODEL_RULES = ("make_pocket_model", "generate_traces", "derive_traces", "train", "evaluate", "analyse_tokens")


def new_pipeline(base: Path, cluster: Path | None = None) -> Pipeline:
    """A working folder for the demo; with `cluster`, one whose Snakemake finds that."""
    (base / "run").mkdir(parents=True)
    real_rsd(base / "run-bin", ROOT)
    environment = {"OMP_NUM_THREADS": "1"}
    if cluster is not None:
        variables = slurm.environment(cluster)
        environment |= {"SLURM_CONF": variables["SLURM_CONF"], "PATH": f"{base}/run-bin:{variables['PATH']}"}
    return Pipeline(base / "run", ROOT, POCKET, environment)


def prepared(base: Path, cluster: Path | None, local: Pipeline) -> Pipeline:
    """A working folder with the models, datasets and problems of the finished run, and nothing after them."""
    pipeline = new_pipeline(base, cluster)
    for name in ("models", "datasets", f"{EXPERIMENT}/data"):
        shutil.copytree(local.folder / "results" / name, pipeline.folder / "results" / name)
    return pipeline


def arguments(profile: str = "slurm", *resources: str) -> list[str]:
    """Snakemake's arguments for a profile, its fields filled on the command line, and jobs of one core."""
    folder = ROOT / "workflow" / "profiles" / profile
    return [
        *("--profile", str(folder), "--default-resources", f"slurm_partition={slurm.PARTITION}", *resources),
        *("--slurm-init-seconds-before-status-checks", "1"),
        *("--set-threads", *(f"{rule}=1" for rule in MODEL_RULES)),
    ]


def ask(cluster: Path, *command: str, ok: bool = True) -> list[list[str]]:
    """What a command of Slurm says: its lines, split at `|`. With `ok` it must not fail.

    A controller that has crashed is started again, as a service manager would: that of Slurm 22.05 was seen to end by a
    segmentation fault under many questions at a time.
    """
    for _ in range(5):
        result = subprocess.run(command, env=slurm.environment(cluster), capture_output=True, text=True, timeout=60)
        if "Unable to contact slurm controller" not in result.stderr:
            break
        if not slurm.running(cluster, "slurmctld"):
            slurm.start_slurmctld(cluster)
        time.sleep(2)
    assert result.returncode == 0 or not ok, result.stderr
    return [line.split("|") for line in result.stdout.splitlines()]
