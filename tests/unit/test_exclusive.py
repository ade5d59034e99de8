"""Two processes never make one output at once, and a killed one leaves nothing that has to be cleaned up."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap

import pytest

from rsd import exclusive
from rsd.exclusive import alone


def start_holder(target, job: str | None = None) -> subprocess.Popen:
    """Another process that makes `target` until its input is closed."""
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from rsd.exclusive import alone
        with alone(Path(sys.argv[1])):
            print("holding", flush=True)
            sys.stdin.read()
    """)
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | ({"SLURM_JOB_ID": job} if job else {})
    process = subprocess.Popen(
        [sys.executable, "-c", script, target], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"holding\n"
    return process


def test_the_second_stops_and_names_the_holder(tmp_path):
    with start_holder(tmp_path / "out", job="77") as holder:
        with (
            pytest.raises(
                BlockingIOError, match=rf"out is being made by process {holder.pid} on .*, Slurm job 77; let"
            ),
            alone(tmp_path / "out", patience_s=0.3),
        ):
            pytest.fail("both are in")
        with alone(tmp_path / "other", patience_s=0) as waited:
            assert not waited


def test_the_second_waits_for_one_that_ends(tmp_path, caplog):
    caplog.set_level("INFO")
    with start_holder(tmp_path / "out") as holder:
        holder.stdin.close()
        with alone(tmp_path / "out", patience_s=60):
            assert holder.wait(60) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_is_in_nobodys_way(tmp_path):
    with start_holder(tmp_path / "out") as holder:
        holder.kill()
        holder.wait()
        assert (tmp_path / ".out.lock").exists()
        with alone(tmp_path / "out", patience_s=10):
            assert json.loads((tmp_path / ".out.lock").read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_a_dead_node_left_is_taken_with_a_warning(tmp_path, caplog):
    (tmp_path / ".out.lock").write_text(json.dumps({"host": "node7", "process": 12, "slurm_job": "5"}))
    with alone(tmp_path / "out"):
        pass
    assert "was not freed by process 12 on node7, Slurm job 5; if that still runs, end one of the two" in caplog.text


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(exclusive.fcntl, "flock", refuse)
    caplog.set_level("INFO")
    with alone(tmp_path / "out"):
        pass
    assert "cannot be locked (No locks available); let no other process make the same" in caplog.text


def test_a_failure_inside_keeps_its_own_error(tmp_path):
    with pytest.raises(BlockingIOError, match="mine"), alone(tmp_path / "out"):
        raise BlockingIOError("mine")
    assert list(tmp_path.iterdir()) == []
