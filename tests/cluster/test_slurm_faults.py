"""What fails on a cluster: every way for a job to die, the accounting, the controller, a node, and Snakemake itself.

One run of Snakemake meets them all, one fault a shard, since what takes time is the starting of jobs. Which shard meets
which is left to the order in which they come to work. Afterwards every shard is what an undisturbed run makes, and none
was begun from nothing again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import slurm
from on_slurm import EXPERIMENT, arguments, ask, prepared

from pipelines import Pipeline, overlay
from rsd.records import ATTEMPTS, read_table

T = TypeVar("T")
TRACES = Path("results", EXPERIMENT, "traces", "rsd")
# In this order: the node goes first, since it takes a neighbour with it. The accounting is down all the while, and the
# controller when all have come. Then Snakemake is killed, whatever shard is at work.
FAULTS = ("node down", "kill -9", "scancel", "SIGTERM", "time limit", "requeue")
SNAKEMAKE_KILLED = "Snakemake killed"
# What Slurm says of the job that it happened to; that of a killed Snakemake is ended by hand, as the next run asks.
ENDS = {
    "kill -9": "FAILED",
    "scancel": "CANCELLED",
    "SIGTERM": "FAILED",
    "time limit": "TIMEOUT",
    "requeue": "REQUEUED",
    "node down": "NODE_FAIL",
    SNAKEMAKE_KILLED: "CANCELLED",
}
# What Snakemake itself tries again, while it lives.
COMES_AGAIN = ("kill -9", "scancel")
RUNNING = ("squeue", "--noheader", "--states=RUNNING,COMPLETING", "--format=%i")
# So many attempts that every shard is seen at work.
SHARDS = {"traces": {"rsd": {"attempts": 60, "shards": len(FAULTS)}}, "device": "cpu"}
TARGETS = [str(TRACES / f"shard-{shard:03d}.parquet") for shard in range(len(FAULTS))]
SLOWLY = {"traces": {"rsd": {"lanes": 1}}}


@dataclass(frozen=True)
class Stage:
    """A running `rsd generate-traces`: which shard, by which job on which node, in which process."""

    shard: int
    job: str
    node: str
    pid: int


@dataclass
class Disturbed:
    """What was done to a run, and what Snakemake said before and after it was killed."""

    pipeline: Pipeline
    started: list[subprocess.Popen[bytes]]
    hit: dict[str, Stage] = field(default_factory=dict)
    locked: str = ""
    left: str = ""
    outputs: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def undisturbed(local: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    pipeline = prepared(tmp_path_factory.mktemp("undisturbed"), None, local)
    pipeline.run("--cores", "2", *TARGETS, config=SHARDS)
    return pipeline


@pytest.fixture(scope="module")
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Every Snakemake that is started; where something goes wrong, none outlives the tests."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()


@pytest.fixture(scope="module")
def disturbed(
    cluster: Path, local: Pipeline, tmp_path_factory: pytest.TempPathFactory, started: list[subprocess.Popen[bytes]]
) -> Disturbed:
    """The same with one lane, so that it lasts long enough to be hit, and with every fault; at last with all lanes."""
    base = tmp_path_factory.mktemp("disturbed")
    run = Disturbed(prepared(base, cluster, local), started)
    # At its end it saves what it has from the accounting; without that it does not start while there is none.
    slurm.kill(cluster, "slurmctld", signal.SIGTERM)
    slurm.start_slurmctld(cluster)
    slurm.kill(cluster, "slurmdbd", signal.SIGKILL)
    snakemake = start(run, base / "first.txt", overlay(SHARDS, SLOWLY))
    left = list(FAULTS)
    while left:
        assert snakemake.poll() is None, f"{left} came too late, {run.hit}\n{(base / 'first.txt').read_text()}"
        released(cluster)
        met = {stage.shard for stage in run.hit.values()}
        working = at_work(run.pipeline.folder)
        fresh = [stage for stage in working if stage.shard not in met]
        if left[0] == "node down":
            # A job that is lost while its srun still asks for its place has made the controller of 22.05 crash.
            busy = ask(cluster, *RUNNING[:-1], "--format=%N|%i")
            fresh = [stage for stage in fresh if {job for node, job in busy if node == stage.node} <= jobs_of(working)]
        if fresh:
            run.hit[fault := left.pop(0)] = fresh[0]
            INFLICT[fault](cluster, fresh[0])
        time.sleep(0.5)
    # What was ended must have ended by that, and not by the `scancel` that comes below.
    ending = {stage.job for fault, stage in run.hit.items() if ENDS[fault] in ("FAILED", "CANCELLED", "TIMEOUT")}
    run.hit[SNAKEMAKE_KILLED] = hold(cluster, run, ending)
    slurm.kill(cluster, "slurmctld", signal.SIGTERM)
    time.sleep(10)
    slurm.start_slurmctld(cluster)
    wait_for(lambda: released(cluster) and not ending & {job for (job,) in ask(cluster, *RUNNING)})
    # It hears of what failed at its next look, which may be a minute later.
    again = [run.hit[fault].shard for fault in COMES_AGAIN]
    wait_for(lambda: all(len(asked_for((base / "first.txt").read_text(), shard)) > 1 for shard in again), seconds=240)
    snakemake.kill()
    snakemake.wait()
    # So that it is still there when the next run looks, however long that takes.
    ask(cluster, "scontrol", "suspend", run.hit[SNAKEMAKE_KILLED].job)
    slurm.start_slurmdbd(cluster)
    run.locked = run.pipeline.run(*TARGETS, *arguments(), config=SHARDS, ok=False).stdout
    run.pipeline.run("--unlock", *arguments(), config=SHARDS)
    run.left = run.pipeline.run(*TARGETS, *arguments(), config=SHARDS, ok=False).stdout
    ask(cluster, "scontrol", "resume", run.hit[SNAKEMAKE_KILLED].job)
    ask(cluster, "scancel", *re.findall(r"\d+\S*", re.search(r"`scancel (.*?)`", run.left)[1]))
    wait_for(lambda: not ask(cluster, "squeue", "--noheader"))
    snakemake = start(run, base / "second.txt", SHARDS)
    while snakemake.poll() is None:
        released(cluster)
        time.sleep(1)
    run.outputs = [(base / name).read_text() for name in ("first.txt", "second.txt")]
    assert snakemake.returncode == 0, run.outputs[-1][-6000:]
    return run


def start(run: Disturbed, output: Path, config: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Snakemake on the traces; it has a session of its own, so that what it started outlives it as on a login node."""
    command = run.pipeline.command(*TARGETS, *arguments(), config=config)
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command, env=run.pipeline.variables(), stdout=file, stderr=file, start_new_session=True
        )
    run.started.append(process)
    return process


def asked_for(output: str, shard: int) -> list[tuple[int, int]]:
    """(memory in MB, minutes) of every job for a shard, in the words of Snakemake."""
    job = rf"wildcards: traces=rsd, shard={shard:03d}\n +resources: .*\bmem_mb=(\d+),.*\bruntime=(\d+)"
    return [(int(memory), int(minutes)) for memory, minutes in re.findall(job, output)]


def jobs_of(stages: list[Stage]) -> set[str]:
    return {stage.job for stage in stages}


def hold(cluster: Path, run: Disturbed, ending: set[str]) -> Stage:
    """A stage of another job than these, stopped, so that it is still at work when Snakemake is killed."""
    free = wait_for(
        lambda: released(cluster) and [stage for stage in at_work(run.pipeline.folder) if stage.job not in ending]
    )
    os.kill(free[0].pid, signal.SIGSTOP)
    return free[0]


def at_work(folder: Path) -> list[Stage]:
    """The stages that have finished an attempt or two, and are at the next."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "generate-traces" not in words or Path(process.cwd()) != folder:
                continue
            # The supervisor's child works.
            if not any("generate-traces" in child.cmdline() for child in process.children()):
                continue
            environment = process.environ()
            child = next(child.pid for child in process.children())
        except psutil.Error:
            continue
        shard = int(words[words.index("--shard") + 1])
        journals = list((folder / "results" / EXPERIMENT / "work/generate_traces/rsd").glob(f"shard-{shard:03d}-*"))
        if journals and journals[0].stat().st_size > 2000:
            found.append(Stage(shard, environment["SLURM_JOB_ID"], environment["SLURMD_NODENAME"], child))
    return found


def released(cluster: Path) -> bool:
    """Lets requeued jobs start at once, which wait two minutes by themselves or are held, and a dead node come back."""
    for job, reason in ask(cluster, "squeue", "--noheader", "--states=PENDING", "--format=%i|%r"):
        if reason == "BeginTime":
            ask(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now", ok=False)
        elif "held" in reason:
            ask(cluster, "scontrol", "release", job, ok=False)
    for node in slurm.NODES:
        states = ask(cluster, "sinfo", "--noheader", f"--nodes={node}", "--format=%T")
        if not slurm.running(cluster, node) and states[0][0].startswith("down"):
            slurm.start_node(cluster, node)
    return True


def wait_for(ready: Callable[[], T], seconds: float = 120) -> T:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline
        time.sleep(1)
    return found


def reach_time_limit(cluster: Path, stage: Stage) -> None:
    # Slurm looks every half minute; the stage must not be done before.
    os.kill(stage.pid, signal.SIGSTOP)
    soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 1))
    ask(cluster, "scontrol", "update", f"JobId={stage.job}", f"EndTime={soon}")


INFLICT: dict[str, Callable[[Path, Stage], object]] = {
    "kill -9": lambda cluster, stage: os.kill(stage.pid, signal.SIGKILL),
    "scancel": lambda cluster, stage: ask(cluster, "scancel", stage.job),
    "SIGTERM": lambda cluster, stage: ask(cluster, "scancel", "--signal=TERM", stage.job),
    "time limit": reach_time_limit,
    "requeue": lambda cluster, stage: ask(cluster, "scontrol", "requeue", stage.job),
    "node down": lambda cluster, stage: slurm.kill_node(cluster, stage.node),
}


def rows(pipeline: Pipeline, shard: int) -> list[dict[str, str]]:
    """A shard's content; repr makes NaN equal to NaN."""
    table = read_table(pipeline.folder / TRACES / f"shard-{shard:03d}.parquet", ATTEMPTS)
    return [{key: repr(row[key]) for key in row} for row in table.to_pylist()]


@pytest.mark.parametrize("fault", ENDS)
def test_a_shard_is_what_it_would_have_been_and_goes_on_where_it_was(
    fault: str, cluster: Path, undisturbed: Pipeline, disturbed: Disturbed
) -> None:
    shard = disturbed.hit[fault].shard
    assert rows(disturbed.pipeline, shard) == rows(undisturbed, shard)
    log = disturbed.pipeline.folder / "results" / EXPERIMENT / "logs/generate_traces/rsd" / f"shard-{shard:03d}.log"
    assert re.search(r"INFO \d+ attempts, [1-9]\d* of them done before", log.read_text())
    states = ask(
        cluster,
        *("sacct", "--duplicates", "-X", "--noheader", "--parsable2", "--format=State"),
        *("--starttime=now-1hour", "--jobs", disturbed.hit[fault].job),
    )
    assert any(state.startswith(ENDS[fault]) for (state,) in states), states


def test_a_failed_job_comes_again_with_more_memory_and_time(disturbed: Disturbed) -> None:
    for fault in COMES_AGAIN:
        (memory, runtime), (more, longer) = asked_for(disturbed.outputs[0], disturbed.hit[fault].shard)[:2]
        assert more == pytest.approx(1.5 * memory, rel=0.01)
        assert longer == pytest.approx(1.5 * runtime, abs=1)


def test_after_snakemakes_death_nothing_starts_beside_the_jobs_that_it_left(disturbed: Disturbed) -> None:
    assert "--unlock" in disturbed.locked
    assert disturbed.hit[SNAKEMAKE_KILLED].job in re.search(r"`scancel (.*?)`", disturbed.left)[1]
    assert "Execute" not in disturbed.left
