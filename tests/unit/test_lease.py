"""GPUs are lent to one job at a time. No GPU is here: `nvidia-smi` is a stand-in, the locks and processes are real."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_gpus import fake_machine, listing, uuid
from rsd import lease
from rsd.lease import parse_listing, visible

# A job that writes "number start" and "number end" for each GPU it held, in one file of all jobs, and works between.
JOB = """
import os, sys, time
from pathlib import Path
from rsd import lease
lease.POLL_SECONDS = 0.01
device, count, seconds, folder = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
held = lease.take(device, count)
log = os.open(folder / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def say(what):
    os.write(log, f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')} {what}\\n".encode())
say("start")
time.sleep(seconds)
say("end")
"""
MIG = """\
GPU 0: NVIDIA H100 (UUID: GPU-whole)
  MIG 3g.40gb     Device  0: (UUID: MIG-first)
  MIG 3g.40gb     Device  1: (UUID: MIG-second)
GPU 1: NVIDIA H100 (UUID: GPU-other)
"""


class Machine:
    """Some stand-in GPUs, and jobs that ask for them."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.environment = fake_machine(folder / "bin", count)
        (folder / "job.py").write_text(JOB)
        self.jobs: list[subprocess.Popen[str]] = []

    def start(self, count: int = 1, seconds: float = 0.0, device: str = "cuda", **more: str) -> subprocess.Popen[str]:
        # Every other job is one of another pipeline, in a folder of its own.
        pipeline = self.folder / f"pipeline-{len(self.jobs) % 2}"
        pipeline.mkdir(exist_ok=True)
        job = subprocess.Popen(
            [sys.executable, self.folder / "job.py", device, str(count), str(seconds), self.folder],
            env=self.environment | {"PYTHONPATH": os.pathsep.join(sys.path)} | more,
            cwd=pipeline,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.jobs.append(job)
        return job

    def events(self) -> list[list[str]]:
        path = self.folder / "events"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, count: int) -> list[list[str]]:
        for _ in range(1000):
            if len(events := self.events()) >= count:
                return events
            time.sleep(0.01)
        raise AssertionError(f"only {self.events()}")

    def holders(self) -> str:
        command = [sys.executable, "-m", "rsd.lease"]
        environment = self.environment | {"PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path, 3)
    yield machine
    for job in machine.jobs:
        job.kill()
        job.communicate()


def most_at_once(events: list[list[str]]) -> dict[str, int]:
    """GPU -> the most jobs that held it at one time."""
    held: dict[str, int] = {}
    most: dict[str, int] = {}
    for _, gpus, what in events:
        for gpu in gpus.split(","):
            held[gpu] = held.get(gpu, 0) + (1 if what == "start" else -1)
            most[gpu] = max(most.get(gpu, 0), held[gpu])
    return most


# --- who gets what ---------------------------------------------------------------------------------------------------


def test_many_jobs_of_one_and_of_several_gpus_all_come_through_and_no_gpu_has_two_holders(machine: Machine) -> None:
    wanted = [1, 2, 1, 3, 1, 2, 1, 1, 2, 1, 3, 1]
    for count in wanted:
        machine.start(count, 0.05)
    for job in machine.jobs:
        assert job.wait(timeout=60) == 0
    events = machine.events()
    assert len(events) == 2 * len(wanted)
    assert most_at_once(events) == {"0": 1, "1": 1, "2": 1}
    assert sorted(len(gpus.split(",")) for _, gpus, what in events if what == "start") == sorted(wanted)


def test_a_killed_holder_frees_its_gpu_and_a_killed_waiter_leaves_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 1)
    holder = machine.start(seconds=600)
    machine.wait_for(1)
    waiter = machine.start(seconds=600)
    line = waiter.stderr.readline() if waiter.stderr else ""
    assert "waits for 1 of 1 GPUs" in line
    assert f"GPU 0 is held by pid {holder.pid} of " in line
    assert "job.py" in line
    waiter.send_signal(signal.SIGKILL)
    waiter.wait()
    last = machine.start()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert last.wait(timeout=30) == 0
    assert machine.holders() == "1 GPUs\nGPU 0 is free\n"


def test_a_stream_of_small_jobs_does_not_keep_a_large_one_out(tmp_path: Path) -> None:
    """It waits for two GPUs while each time only one becomes free; what comes later waits behind it."""
    machine = Machine(tmp_path, 2)
    first, second = machine.start(seconds=600), machine.start(seconds=600)
    machine.wait_for(2)
    large = machine.start(2)
    assert "waits for 2 of 2 GPUs" in (large.stderr.readline() if large.stderr else "")
    late = machine.start()
    first.kill()
    time.sleep(0.3)
    assert late.poll() is None, "it took the GPU that the large job waits for"
    second.kill()
    assert large.wait(timeout=30) == 0
    assert late.wait(timeout=30) == 0


def test_a_job_sees_its_gpus_alone_and_keeps_to_those_that_it_was_given(machine: Machine) -> None:
    """By number, by UUID and by how a UUID starts; of Slurm's two variables, that of the step."""
    given = (
        {"CUDA_VISIBLE_DEVICES": "2"},
        {"CUDA_VISIBLE_DEVICES": uuid(1)},
        {"CUDA_VISIBLE_DEVICES": uuid(0)[:12]},
        {"SLURM_STEP_GPUS": "1", "SLURM_JOB_GPUS": "1,2"},
    )
    for variables in given:
        assert machine.start(**variables).wait(timeout=30) == 0
    assert [gpus for _, gpus, what in machine.events() if what == "start"] == ["2", "1", "0", "1"]


def test_two_pipelines_that_are_pinned_to_different_gpus_do_not_wait_for_each_other(machine: Machine) -> None:
    machine.start(seconds=600, CUDA_VISIBLE_DEVICES="0")
    machine.wait_for(1)
    waiting = machine.start(CUDA_VISIBLE_DEVICES="0")
    assert machine.start(CUDA_VISIBLE_DEVICES="1").wait(timeout=30) == 0
    assert waiting.poll() is None


def test_a_forked_child_holds_the_gpu_on_and_a_started_program_does_not(tmp_path: Path) -> None:
    """A child may have memory on the GPU; a program that was started (git, nvidia-smi) knows nothing of it."""
    machine = Machine(tmp_path, 1)
    body = """
    if os.fork() == 0:
        time.sleep(1.0); os._exit(0)
    import subprocess
    subprocess.Popen(["sleep", "600"])
    os._exit(0)
    """
    (tmp_path / "job.py").write_text(JOB.partition("time.sleep(seconds)")[0] + textwrap.dedent(body))
    started = time.monotonic()
    assert machine.start().wait(timeout=30) == 0
    (tmp_path / "job.py").write_text(JOB)
    assert machine.start().wait(timeout=30) == 0
    assert time.monotonic() - started > 1.0, "the GPU was given away while a child of its holder lived"


# --- none, too few, another machine ----------------------------------------------------------------------------------


def refusal(machine: Machine, count: int = 1, device: str = "cuda", **variables: str) -> str:
    job = machine.start(count, device=device, **variables)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 1
    return errors.splitlines()[-1]


def test_a_job_that_needs_a_gpu_and_finds_none_says_what_to_do(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 0)
    assert "device: cuda, but no GPU was found here (nvidia-smi lists none)" in refusal(machine)
    assert "of 0, by CUDA_VISIBLE_DEVICES=" in refusal(machine, CUDA_VISIBLE_DEVICES="")
    assert machine.start(device="auto").wait(timeout=30) == 0
    assert machine.start(device="cpu", count=2).wait(timeout=30) == 0
    fake_machine(tmp_path / "bin", 0, text="NVIDIA-SMI has failed: no driver\n", status=9)
    assert "no driver" in refusal(machine)


def test_a_job_of_more_gpus_than_there_are_is_refused_at_once(machine: Machine) -> None:
    for device in ("cuda", "auto"):
        message = refusal(machine, 4, device)
        assert "needs 4 GPUs (training.gpus, or models.NAME.gpus), but 3 found here; lower that key" in message
    assert "1 found here (of 3, by CUDA_VISIBLE_DEVICES=1,nonsense,2)" in refusal(
        machine, 2, CUDA_VISIBLE_DEVICES="1,nonsense,2"
    )


def test_parts_of_a_split_gpu_are_devices_and_the_whole_is_none() -> None:
    parts = parse_listing(MIG)
    assert [(gpu.index, gpu.uuid, gpu.visible_as) for gpu in parts] == [
        (0, "MIG-first", "MIG-first"),
        (0, "MIG-second", "MIG-second"),
        (1, "GPU-other", "1"),
    ]
    assert [gpu.uuid for gpu in visible(parts, "MIG-second,1")] == ["MIG-second", "GPU-other"]
    assert [gpu.uuid for gpu in visible(parts, "0,0")] == ["MIG-first", "MIG-second"]
    assert visible(parts, "NoDevFiles") == visible(parts, "-1") == []


def test_what_slurm_numbers_and_a_container_numbers_anew_is_all_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a control group nvidia-smi shows the job's two GPUs as 0 and 1, while Slurm calls them 2 and 3."""
    monkeypatch.setenv("PATH", fake_machine(tmp_path / "bin", 2)["PATH"])
    assert len(lease.found({"SLURM_JOB_GPUS": "2,3"})[0]) == 2
    assert len(lease.found({"SLURM_JOB_GPUS": "1"})[0]) == 1


@pytest.mark.parametrize(("device", "gpus"), [("cuda", "2"), ("auto", "1"), ("cpu", "2")])
def test_a_stage_takes_its_gpus_before_anything_else(machine: Machine, device: str, gpus: str) -> None:
    """A shard that there is not ends it right afterwards; it would be busy for long otherwise."""
    settings = {"device": device, "gpus": int(gpus), "shards": 1, "task": "aime24"}
    words = ["evaluate", "--settings", json.dumps(settings), "--shard", "5", "--threads", "1", "--log", "stage.log"]
    words += [word for name in ("model", "benchmark", "samples", "work") for word in (f"--{name}", name)]
    environment = machine.environment | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "rsd.cli", *words]
    assert subprocess.run(command, env=environment, cwd=machine.folder, stderr=subprocess.DEVNULL).returncode == 1
    lines = (machine.folder / "stage.log").read_text().splitlines()
    assert lines[-1].startswith("error: --shard 5: expected 0 to 0")
    held = [line for line in lines if " holds GPU 0 (NVIDIA Stand-in, " in line]
    assert sum(line.count("GPU-") for line in held) == (0 if device == "cpu" else int(gpus))
    assert machine.holders().count("is free") == 3


# --- the folder of the locks -----------------------------------------------------------------------------------------


def test_every_user_may_lock_and_none_may_delete_anothers_lock(machine: Machine) -> None:
    old = os.umask(0o077)
    try:
        assert machine.start().wait(timeout=30) == 0
    finally:
        os.umask(old)
    folder = machine.folder / "bin" / "locks"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o666}
    holder = json.loads((folder / f"{uuid(0)}.lock").read_text())
    assert holder.keys() == {"pid", "user", "since", "command"}


def test_a_link_or_another_thing_in_place_of_a_lock_is_refused(machine: Machine, tmp_path: Path) -> None:
    locks = machine.folder / "bin" / "locks"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    locks.mkdir()
    (locks / f"{uuid(0)}.lock").symlink_to(victim)
    assert "RSD_GPU_LOCKS" in refusal(machine)
    assert victim.read_text() == "precious"
    (locks / f"{uuid(0)}.lock").unlink()
    os.mkfifo(locks / f"{uuid(0)}.lock")
    assert "no plain file" in refusal(machine)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert "cannot be used as a lock" in refusal(machine, RSD_GPU_LOCKS=str(tmp_path / "link"))


def test_a_lock_that_somebody_deleted_while_it_was_opened_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lease.FOLDER_VARIABLE, str(tmp_path / "locks"))
    gpus = parse_listing(listing(1))
    locked = lease._try_lock

    def deleted_first(file: int, kind: int) -> bool:
        for path in (tmp_path / "locks").glob("*.lock"):
            path.unlink()
        monkeypatch.setattr(lease, "_try_lock", locked)
        return locked(file, kind)

    folder = lease._open_folder()
    monkeypatch.setattr(lease, "_try_lock", deleted_first)
    assert lease._take_free(folder, gpus, 1, [0]).gpus == ()
    with lease._take_free(folder, gpus, 1, []) as held:
        assert len(held.gpus) == 1
        assert lease._take_free(folder, gpus, 1, []).gpus == ()
    os.close(folder)
