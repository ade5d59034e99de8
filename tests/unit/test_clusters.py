from __future__ import annotations

import os
from pathlib import Path

import pytest

from rsd.clusters import explain_jobs, explain_shell_words, explain_unfilled, gpus_for, slurm_jobs_of, unfilled

SETTINGS = {
    "default-resources.slurm_partition": "FILL-IN-partition",
    "default-resources.slurm_account": "mine",
    "default-resources.tmpdir": "system_tmpdir",
    "default-resources.mem_mb": None,
    "container-image": "registry/FILL-IN-image:1",
}


def test_a_mark_is_found_wherever_it_stands() -> None:
    assert unfilled(SETTINGS) == {"default-resources.slurm_partition": "partition", "container-image": "image"}
    assert unfilled({"default-resources.slurm_partition": "gpu"}) == {}


@pytest.mark.parametrize(
    "arguments", [["-n", "--profile", "profiles/mine"], ["--profile=profiles/mine/profile.yaml", "--jobs", "3"]]
)
def test_the_message_names_file_field_and_remedy_and_the_whole_command_line(arguments: list[str]) -> None:
    message = explain_unfilled(SETTINGS, ["snakemake", *arguments])
    assert message.startswith("profiles/mine/profile.yaml has fields that only you can fill in:\n")
    assert "  default-resources.slurm_partition: FILL-IN-partition; write a partition with GPUs" in message
    assert "  container-image: FILL-IN-image; write the container image" in message
    assert message.endswith("--default-resources slurm_partition=... slurm_account=mine")


def test_gpus_are_asked_for_in_the_words_of_the_cluster() -> None:
    assert gpus_for(2, None) == {"gpu": 2}
    assert gpus_for(0, None) == {"gpu": 0}
    assert gpus_for(2, "gpu:a100") == {"gpu": 0, "gres": "gpu:a100:2"}
    assert gpus_for(0, "gpu") == {"gpu": 0, "gres": ""}


@pytest.mark.parametrize(
    "text", ["$(touch canary)", "`touch canary`", "it's", 'say "hi"', "back\\slash", {"a": "$HOME"}]
)
def test_what_a_shell_would_read_is_refused_on_the_command_line(text: object) -> None:
    message = explain_shell_words({"experiment": "mine", "title": text})
    assert message is not None
    assert message.startswith("--config title: ")
    assert "--configfile" in message
    assert explain_shell_words({"experiment": "mine", "seed": 3, "title": "a plain title; & more"}) is None


def test_only_jobs_from_this_folder_are_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    (tmp_path / "link").symlink_to(here)
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(f"#!/bin/sh\nprintf '%s\\n' '12|{here}' '13|{other}' '14_[3-7]|{tmp_path}/link'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}{os.pathsep}{os.environ['PATH']}")
    assert slurm_jobs_of(here) == ["12", "14_[3-7]"]
    assert "`scancel 12 14_[3-7]`" in explain_jobs(slurm_jobs_of(here), here)
    squeue.write_text("#!/bin/sh\nexit 1\n")
    assert slurm_jobs_of(here) == []
