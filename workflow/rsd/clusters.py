"""What has to be right before the first job on a cluster: the profile is filled in, no earlier job still runs, and
nothing on the command line would be read by a shell.

Imports nothing heavy, since it is called while the workflow is parsed.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

RESOURCES = "default-resources."
MARK = re.compile(r"FILL-IN-(\w+)")
# Mark -> what to write, and how to do without.
REMEDIES = {
    "partition": "a partition with GPUs (`sinfo -s` lists them), or delete the line where the cluster's own is right",
    "account": "whom the hours are charged to (`sacctmgr show associations user=$USER format=account`), or delete the "
    "line where jobs need none",
    "image": "the container image of this pipeline, where your cluster pulls it from (envs/ has the recipe)",
    "bucket": "an S3 bucket that you may write to",
}


def unfilled(settings: Mapping[str, str | None]) -> dict[str, str]:
    """Setting -> mark, of those that still hold one."""
    found = {name: MARK.search(str(value)) for name, value in settings.items()}
    return {name: match[1] for name, match in found.items() if match}


def explain_unfilled(settings: Mapping[str, str | None], arguments: Sequence[str]) -> str:
    """What to write where; `arguments` are those of Snakemake, which name the profile."""
    found = unfilled(settings)
    lines = [f"{_profile(arguments)} has fields that only you can fill in:"]
    lines += [f"  {name}: FILL-IN-{mark}; write {REMEDIES.get(mark, 'your own')}" for name, mark in found.items()]
    if any(name.startswith(RESOURCES) for name in found):
        given = " ".join(
            f"{name.removeprefix(RESOURCES)}={'...' if name in found else value}"
            for name, value in settings.items()
            if name.startswith(RESOURCES) and value is not None and name != f"{RESOURCES}tmpdir"
        )
        lines.append(f"The command line gives all of default-resources at once: --default-resources {given}")
    return "\n".join(lines)


def explain_shell_words(config: Mapping[str, object]) -> str | None:
    """What is wrong with `--config NAME=VALUE` for a job on a cluster, None where nothing is.

    Snakemake hands these to the job's shell in quotes that `$`, backticks, quotes and backslashes get out of. A file of
    --configfile is named there by its path alone.
    """
    unsafe = [name for name, value in config.items() if re.search(r"[`$\"'\\!]", f"{name}{value}")]
    if not unsafe:
        return None
    return (
        f"--config {', '.join(unsafe)}: on a cluster a value with quotes, `$`, `!`, backslashes or backticks would be "
        "read by the shell of the job; write it into a file and name that with --configfile"
    )


def slurm_jobs_of(folder: Path) -> list[str]:
    """The Slurm jobs of this user that were submitted from `folder` and have not ended; empty where squeue fails."""
    command = ["squeue", "--me", "--noheader", "--format=%i|%Z"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = [line.partition("|") for line in answer.splitlines()]
    return [job for job, _, place in found if Path(place).resolve() == folder.resolve()]


def explain_jobs(jobs: Sequence[str], folder: Path) -> str:
    """Why nothing is started beside jobs that an earlier Snakemake left, and what to do."""
    return (
        f"Slurm jobs of an earlier run still work in {folder}: {' '.join(jobs)}; what they are at would be made twice. "
        f"Let them end, or end them with `scancel {' '.join(jobs)}` (they save what they have, and the next run goes "
        "on from there), and start again when squeue no longer shows them"
    )


def gpus_for(count: int, gres: str | None) -> dict[str, int | str]:
    """The resources that ask for `count` GPUs: `gpu`, or `gres` where the profile names how they are called there."""
    if gres is None:
        return {"gpu": count}
    return {"gpu": 0, "gres": f"{gres}:{count}" if count else ""}


def _profile(arguments: Sequence[str]) -> str:
    """The file of the profile that the arguments of Snakemake name."""
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        for name in ("--profile", "--workflow-profile"):
            path = value if flag == name else flag.removeprefix(f"{name}=")
            if path != flag:
                return path if path.endswith(".yaml") else str(Path(path) / "profile.yaml")
    return "the profile"
