"""Nothing that fails costs more than minutes, and afterwards the results are those of an undisturbed run."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest

from faults import content, in_own_mounts, mount, results, run_stage, start_stage, without_log
from pipelines import Pipeline, shell_commands
from rsd.checksums import verify
from rsd.manifest import verify_manifest

pytestmark = pytest.mark.slow

RUN = Path("results/pocket-tiny")


# --- damaged files ---------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def flip_data(path: Path) -> None:
    tokens = pq.ParquetFile(path).metadata.row_group(0).column(2)
    flip(path, tokens.data_page_offset + tokens.total_compressed_size // 2)


def flip_footer(path: Path) -> None:
    """In the provenance, which no page checksum covers."""
    flip(path, path.read_bytes().rindex(b"finished_unix"))


def test_damaged_records_are_made_again_by_the_next_call(tiny: Pipeline, copied: Pipeline) -> None:
    folder = copied.folder / RUN / "traces"
    damages: dict[str, Callable[[Path], None]] = {
        "rsd/shard-000.parquet": cut,
        "rsd/shard-001.parquet": flip_footer,
        "direct/shard-000.parquet": flip_data,
        "direct/rows.parquet": empty,
        "rsd/selection.json": cut,
        "../data/problems.json": empty,
    }
    for name, damage in damages.items():
        damage(folder / name)
    assert copied.run("--dry-run", "traces").stdout.count(" is damaged (") == len(damages)
    assert not list(folder.rglob("*.damaged")), "a dry-run changed something"
    output = copied.run("--cores", "2", "traces", "data").stdout
    for name in damages:
        assert re.search(rf"{Path(name).name} is damaged \(.*; it is {Path(name).name}\.damaged now", output)
    assert results(folder) == results(tiny.folder / RUN / "traces")
    assert "is damaged" not in copied.run("--dry-run", "traces").stdout


def test_bits_that_rotted_unseen_stop_their_reader_and_the_next_call_makes_the_file_again(
    tiny: Pipeline, copied: Pipeline
) -> None:
    folder = copied.folder / RUN / "scores/base-seed0"
    shard = folder / "pocket/shard-000.parquet"
    flip_footer(shard)
    # As after a call that found it whole, and noted its time.
    for path in (shard, shard.with_name("shard-000.parquet.sha256")):
        os.utime(path, (0, 0))
    (folder / "pocket.json").unlink()
    wanted = f"{RUN}/scores/base-seed0/pocket.json"
    output = copied.run("--cores", "1", wanted, ok=False).stdout
    assert re.search(r"error: .*shard-000\.parquet is damaged .*run the same command again", output)
    copied.run("--cores", "1", wanted)
    assert results(folder) == results(tiny.folder / RUN / "scores/base-seed0")


def test_a_damaged_model_or_dataset_is_made_again(tiny: Pipeline, copied: Pipeline) -> None:
    trained = copied.folder / RUN / "trained"
    cut(trained / "rsd-seed0/model.safetensors")
    (dataset,) = (copied.folder / "results/datasets").glob("pocket-test-*/test.jsonl")
    empty(dataset)
    output = copied.run("--cores", "1", "models", "downloads").stdout
    assert len(re.findall(r"(?:model\.safetensors|test\.jsonl) has \d+ bytes, expected", output)) == 2
    assert results(trained) == results(tiny.folder / RUN / "trained")
    assert results(dataset.parent) == results(tiny.folder / dataset.parent.relative_to(copied.folder))


# --- the clock -------------------------------------------------------------------------------------------------------


def test_after_the_clock_was_set_back_nothing_is_made_again(copied: Pipeline) -> None:
    tomorrow = time.time() + 86400
    for path in (copied.folder / "results").rglob("*"):
        # As if half of it had been made when the clock was wrong.
        if path.is_file() and path.parts[-2] in ("rsd", "rsd-seed0", "data", "pocket"):
            os.utime(path, (tomorrow, tomorrow))
    assert "Nothing to be done" in copied.run("--cores", "2").stdout
    assert max(path.stat().st_mtime for path in (copied.folder / RUN / "traces").rglob("*")) < tomorrow - 3600


# --- stages that are killed, by the command that Snakemake prints ----------------------------------------------------

# Stage -> what it makes, below the experiment or (models) the results.
STAGES = {
    "prepare-problems": "data/problems.json*",
    "prepare-benchmark": "data/benchmarks/*",
    "measure-overlap": "data/overlap.json*",
    "convert-traces": "traces/direct/shard-000.*",
    "generate-traces": "traces/rsd/shard-000.*",
    "select-traces": "traces/rsd/[vrs][eo]*",
    "train": "trained/rsd-seed0/*",
    "evaluate": "scores/rsd-seed0/pocket/shard-000.*",
    "collect-scores": "scores/rsd-seed0/pocket.*",
    "analyse-tokens": "tokens/rsd/rsd-seed0.*",
    "compare": "report/comparison.[cj]*",
    "report": "report/report.html",
    "make-pocket-dataset": "../datasets/pocket-train-*/*",
    "make-pocket-model": "../models/pocket-student-*/*",
}

LONG = ("generate-traces", "train", "evaluate", "analyse-tokens", "make-pocket-model")


@pytest.fixture(scope="module")
def commands(tiny: Pipeline) -> dict[str, list[str]]:
    """One command a stage, as Snakemake prints it, saving more often than in earnest."""
    output = tiny.run("--dry-run", "--printshellcmds", "--forceall").stdout
    found = {}
    for stage, pattern in STAGES.items():
        made = re.escape(re.split(r"[*\[]", pattern)[0].removeprefix("../").rstrip("/"))
        lines = [line for line in shell_commands(output) if line.startswith(f"rsd {stage} ")]
        (found[stage],) = [without_log(shlex.split(line)) for line in lines if re.search(made, line)][:1]
    return {stage: impatient(command) for stage, command in found.items()}


def impatient(command: list[str]) -> list[str]:
    place = command.index("--settings") + 1
    settings = json.loads(command[place])
    if "checkpoint_steps" in settings:
        settings["checkpoint_steps"] = 1
    if settings.get("make") == "student":
        settings["student"]["steps"] = 60
    return [*command[:place], json.dumps(settings), *command[place + 1 :]]


@pytest.fixture(scope="module")
def warm() -> None:
    """Imports once what the children need, on one thread: a forked child has none of its parent's."""
    import torch

    for name in (
        "collect",
        "compare",
        "evaluate",
        "overlap",
        "pocket",
        "report",
        "selection",
        "tokens",
        "train",
        "traces",
    ):
        importlib.import_module(f"rsd.{name}")
    torch.set_num_threads(1)


class Case:
    """One stage in a copy of the finished run, its outputs removed; what it makes without a fault is `expected`."""

    def __init__(self, stage: str, copied: Pipeline, command: list[str], log: Path) -> None:
        self.folder, self.pattern, self.command, self.log = copied.folder, STAGES[stage], command, log
        self.clear()
        status, self.operations = run_stage(command, self.folder, log)
        assert status == 0, log.read_text()
        self.expected = self.found()
        self.size = sum(path.stat().st_size for path in self.outputs().values())
        self.clear()

    def outputs(self) -> dict[str, Path]:
        base = self.folder / RUN
        found = {path.relative_to(base): path for path in base.glob(self.pattern) if path.is_file()}
        return {str(name): path for name, path in sorted(found.items()) if not path.name.startswith(".")}

    def found(self) -> dict[str, object]:
        return {name: content(path) for name, path in self.outputs().items() if path.suffix != ".sha256"}

    def clear(self) -> None:
        for path in self.outputs().values():
            path.unlink()
        for work in (self.folder / RUN / "work", self.folder / "results/work"):
            shutil.rmtree(work, ignore_errors=True)

    def require_nothing_half_written(self) -> None:
        """What has its final name is whole; a folder is whole once it has its manifest."""
        for name, path in self.outputs().items():
            if path.name == "manifest.json":
                verify_manifest(path.parent, deep=True)
            if path.with_name(path.name + ".sha256").exists():
                verify(path)
                assert content(path) == self.expected[name]

    def require_recovery(self) -> None:
        status, _ = run_stage(self.command, self.folder, self.log)
        assert status == 0, self.log.read_text()
        assert self.found() == self.expected


@pytest.fixture
def case(stage: str, copied: Pipeline, commands: dict[str, list[str]], warm: None, tmp_path: Path) -> Case:
    return Case(stage, copied, commands[stage], tmp_path / "log")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_a_file_operation_leaves_nothing_half_written_and_goes_on(case: Case, stage: str) -> None:
    random = Random(stage)
    # The last operations are the renames; the others may be anywhere.
    stops = [
        (case.operations - random.randint(0, 3), signal.SIGKILL),
        (random.randint(1, case.operations), signal.SIGTERM),
        (random.randint(1, case.operations), signal.SIGKILL),
    ]
    for stop_at, by in stops[:1] if stage == "report" else stops[:2] if stage in LONG else stops:
        case.clear()
        status, _ = run_stage(case.command, case.folder, case.log, stop_at=stop_at, by=by)
        assert status != 0, "it was not stopped"
        case.require_nothing_half_written()
        case.require_recovery()


def test_two_at_once_wait_for_each_other_and_make_the_same(
    copied: Pipeline, commands: dict[str, list[str]], warm: None, tmp_path: Path
) -> None:
    case = Case("train", copied, commands["train"], tmp_path / "log")
    pids = [start_stage(case.command, case.folder, tmp_path / name) for name in ("one", "two")]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    logs = "".join((tmp_path / name).read_text() for name in ("one", "two"))
    assert logs.count("rsd-seed0 is being made by process") == 1
    assert case.found() == case.expected


# --- the disk --------------------------------------------------------------------------------------------------------


def with_small_disk(case: Case, megabytes: int, action: Callable[[Callable[[int], Path]], None]) -> None:
    """Runs `action` with `results` on a disk of its own; `fill(n)` leaves n bytes of it free."""
    results_folder = case.folder / "results"

    def fill(leave: int) -> Path:
        state = os.statvfs(results_folder)
        with open(results_folder / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(state.f_bavail * state.f_frsize - leave, 1))
        return results_folder / "ballast"

    def there() -> None:
        kept = results_folder.rename(case.folder / "kept")
        results_folder.mkdir()
        mount("-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(results_folder))
        shutil.copytree(kept, results_folder, dirs_exist_ok=True)
        action(fill)

    if (reason := in_own_mounts(there)) is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("stage", ["generate-traces", "select-traces", "train", "make-pocket-model", "report"])
def test_a_full_disk_is_said_and_after_space_is_freed_it_goes_on(case: Case, stage: str) -> None:
    def action(fill: Callable[[int], Path]) -> None:
        for leave in [0] if stage == "report" else [0, case.size // 2, case.size - 8192]:
            ballast = fill(leave)
            status, _ = run_stage(case.command, case.folder, case.log)
            said = case.log.read_text().splitlines()[-1]
            assert status != 0, f"{leave} of {case.size} bytes were enough: {said}"
            assert re.search(r"error: .*(no space left while writing|GB free, but training needs)", said), said
            assert "results/" in said
            ballast.unlink()
            case.require_nothing_half_written()
        case.require_recovery()

    with_small_disk(case, 300, action)


def test_a_read_only_results_folder_is_said_before_any_work(copied: Pipeline) -> None:
    folder = copied.folder / "results"
    shutil.rmtree(copied.folder / RUN / "traces/rsd")

    def there() -> None:
        mount("--bind", str(folder), str(folder))
        mount("-o", "remount,ro,bind", str(folder), str(folder))
        output = copied.run("--cores", "1", "traces", ok=False).stdout
        Path(copied.folder / "output").write_text(output)

    if (reason := in_own_mounts(there)) is not None:
        pytest.skip(reason)
    output = (copied.folder / "output").read_text()
    assert re.search(r"cannot write results/pocket-tiny.*make its folder writable", output), output[-3000:]
    assert "rule generate_traces" not in output
