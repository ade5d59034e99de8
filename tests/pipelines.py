"""Snakemake on this workflow, in folders of its own, with a stand-in for the stages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import snakemake.cli
import yaml

from rsd.config_schema import merge

ROOT = Path(__file__).parents[1]
POCKET_TINY = ("workflow/experiments/pocket.yaml", "tests/integration/pocket-tiny.yaml")
STUB = ROOT / "tests" / "dag" / "stub_rsd.py"
# The paper's DAG with fewer names in it: 2 shards, 2 seeds, 2 benchmarks.
SMALL = {
    "traces": {"rsd": {"shards": 2}},
    "run": {"seeds": [0, 1], "tasks": ["aime24", "math500"]},
}


def make_stub(folder: Path, tree: Path) -> Path:
    """A folder for PATH with an `rsd` that runs the stand-in against the package in `tree`."""
    folder.mkdir(parents=True)
    script = folder / "rsd"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{tree}/workflow" exec "{sys.executable}" "{STUB}" "$@"\n')
    script.chmod(0o755)
    return folder


def real_rsd(folder: Path, tree: Path) -> None:
    """An `rsd` in `folder` that runs the package of `tree`, whatever is installed."""
    folder.mkdir(parents=True)
    (folder / "rsd").write_text(f'#!/bin/sh\nPYTHONPATH="{tree}/workflow" exec "{sys.executable}" -m rsd.cli "$@"\n')
    (folder / "rsd").chmod(0o755)


@dataclass
class Pipeline:
    """A working folder, the tree whose Snakefile runs there, and a stand-in for the stages.

    `experiments` are config files laid over config.yaml, by their path below the tree.
    """

    folder: Path
    tree: Path = ROOT
    experiments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    inside: tuple[str, ...] = ()  # a command that runs Snakemake, such as `without_network`

    def command(self, *arguments: str, config: dict[str, Any] | None = None) -> list[str]:
        configs = [self.tree / "config.yaml", *(self.tree / name for name in self.experiments)]
        if config:
            configs.append(self.folder / "overlay.yaml")
            configs[-1].write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
        snakefile = ["--snakefile", str(self.tree / "Snakefile"), "--configfile", *map(str, configs)]
        return [
            *self.inside,
            sys.executable,
            "-m",
            "snakemake",
            *snakefile,
            "--directory",
            str(self.folder),
            *arguments,
        ]

    def variables(self) -> dict[str, str]:
        stub = self.folder.with_name(self.folder.name + "-bin")
        if not stub.exists():
            make_stub(stub, self.tree)
        return {**os.environ, "PATH": f"{stub}{os.pathsep}{os.environ['PATH']}", **self.environment}

    def run(
        self, *arguments: str, config: dict[str, Any] | None = None, ok: bool = True
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            self.command(*arguments, config=config),
            env=self.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert (result.returncode == 0) == ok, result.stdout[-6000:]
        return result

    def plan(self, *arguments: str, config: dict[str, Any] | None = None) -> Counter[str]:
        """How many jobs of each rule a dry-run plans, target rules left out."""
        words = self.command("--dry-run", *arguments, config=config)
        status, output = _snakemake_here(words[words.index("snakemake") + 1 :], self.variables())
        assert status == 0, output[-6000:]
        return planned(output)


def _snakemake_here(arguments: Sequence[str], variables: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of Snakemake in a fork of this process, which has loaded most of what a plan loads."""
    with tempfile.TemporaryFile() as output:
        if (child := os.fork()) == 0:
            status: Any = 1
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                os.environ.clear()
                os.environ.update(variables)
                # Snakemake takes the package of the tree that it runs.
                for name in [name for name in sys.modules if name.partition(".")[0] == "rsd"]:
                    del sys.modules[name]
                sys.argv = ["snakemake", *arguments]
                snakemake.cli.main(arguments)
                status = 0
            except SystemExit as end:
                status = end.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status if isinstance(status, int) else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return status, output.read().decode()


def planned(output: str) -> Counter[str]:
    _, _, table = output.partition("Job stats:")
    counts = Counter({name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE)})
    for target in ("total", *TARGETS):
        counts.pop(target, None)
    return counts


TARGETS = ("all", "downloads", "data", "traces", "models", "scores", "tokens")


def without_network() -> tuple[str, ...]:
    """A command that runs another in a network namespace that has nothing, not even loopback; empty where forbidden."""
    for words in (("unshare", "-n"), ("unshare", "-rn")):
        if shutil.which("unshare") and subprocess.run([*words, "true"], capture_output=True).returncode == 0:
            return words
    return ()


def copy_tree(folder: Path) -> Path:
    """A copy of what Snakemake reads, to be edited."""
    folder.mkdir(parents=True)
    for name in ("Snakefile", "config.yaml", "workflow", "envs"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def overlay(*parts: dict[str, Any]) -> dict[str, Any]:
    """Several overlays as one."""
    merged: dict[str, Any] = {}
    for part in parts:
        merged = merge(merged, part)
    return merged


def shell_commands(output: str) -> Sequence[str]:
    """The commands that `--printshellcmds` shows."""
    return re.findall(r"^\s*(?:Shell command: )?(rsd [a-z].*)$", output, flags=re.MULTILINE)
