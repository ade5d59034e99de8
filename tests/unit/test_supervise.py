"""A supervised stage leaves everything that it printed in its log, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest


def supervise(tmp_path, body: str, **options) -> subprocess.Popen:
    script = tmp_path / "stage.py"
    script.write_text(
        textwrap.dedent("""
        import ctypes, os, signal, sys, time, warnings
        from pathlib import Path
        from rsd import runtime
        from rsd.supervise import supervised
        def stage():
            runtime.setup_logging()
        {body}
        sys.exit(supervised(Path(sys.argv[1]), stage))
        """).format(body=textwrap.indent(textwrap.dedent(body), "    "))
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, script, tmp_path / "logs" / "x.log"],
        env=environment,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),
    )


def finish(tmp_path, process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    assert out == b""
    return process.returncode, (tmp_path / "logs" / "x.log").read_text(), err.decode()


def test_prints_of_python_and_c_reach_log_and_terminal_alike(tmp_path):
    body = "print('one'); print('two', file=sys.stderr); ctypes.CDLL(None).dprintf(1, b'three\\n'); return 0"
    status, log, terminal = finish(tmp_path, supervise(tmp_path, body))
    assert status == 0
    assert log == terminal
    assert log.split() == ["one", "two", "three"]


def test_a_failure_ends_the_log_with_its_message(tmp_path):
    status, log, terminal = finish(tmp_path, supervise(tmp_path, "raise ValueError('lower the threshold')"))
    assert status == 1
    assert log == terminal
    assert "Traceback" in log
    assert log.splitlines()[-1] == "error: lower the threshold"


def test_a_killed_stage_leaves_a_last_line_that_says_so(tmp_path):
    status, log, _ = finish(tmp_path, supervise(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)"))
    assert status == 128 + signal.SIGKILL
    assert "killed by signal 9" in log.splitlines()[-1]
    assert "run the same command again" in log.splitlines()[-1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_under_the_log_hides_nothing_from_the_terminal(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "x.log").symlink_to("/dev/full")
    process = supervise(tmp_path, "print('one'); print('two'); raise OSError(28, 'no space left while writing rows')")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = err.decode().splitlines()
    assert lines[0] == "one"
    assert "two" in lines
    assert sum("the log is incomplete: [Errno 28] no space left" in line for line in lines) == 1
    assert lines[-1].startswith("error: [Errno 28] no space left while writing rows")


def test_a_log_that_cannot_be_opened_is_said_before_the_stage_starts(tmp_path):
    (tmp_path / "logs").write_text("a file, no folder")
    process = supervise(tmp_path, "print('started'); return 0")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.decode().startswith("error: ")
    assert "started" not in err.decode()


def test_a_closed_terminal_does_not_stop_the_stage(tmp_path):
    process = supervise(tmp_path, "time.sleep(0.5); print('one'); time.sleep(0.2); print('two'); return 0")
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "logs" / "x.log").read_text().split() == ["one", "two"]


def test_a_slow_terminal_that_does_not_block_gets_every_byte(tmp_path):
    """Some programs hand their children a non-blocking stderr."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    body = "print('x' * 300_000); return 0"
    process = supervise(tmp_path, body, stderr=writer)
    os.close(writer)
    time.sleep(1)
    with open(reader) as terminal:
        assert terminal.read() == "x" * 300_000 + "\n"
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "logs" / "x.log").read_text() == "x" * 300_000 + "\n"


def test_ctrl_c_stops_the_stage_and_says_how_to_go_on(tmp_path):
    process = supervise(tmp_path, "print('up'); time.sleep(60); return 0", start_new_session=True)
    wait_for(tmp_path, "up")
    os.killpg(process.pid, signal.SIGINT)
    status, log, _ = finish(tmp_path, process)
    assert status == 130
    assert "run the same command again to go on" in log


def test_sigterm_reaches_the_stage(tmp_path):
    body = """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        print('up'); time.sleep(60); return 0
    """
    process = supervise(tmp_path, body)
    wait_for(tmp_path, "up")
    process.terminate()
    assert finish(tmp_path, process)[0] == 7


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_a_killed_supervisor_takes_the_stage_with_it(tmp_path):
    process = supervise(tmp_path, "print(os.getpid()); time.sleep(60); return 0")
    child = int(wait_for(tmp_path, "\n"))
    process.kill()
    process.wait()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the stage outlived its supervisor")


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux 5.3's process descriptors")
def test_a_killed_snakemake_takes_the_stage_with_it_through_the_shell_between_them(tmp_path):
    job = "import os, signal, sys, time\nfrom rsd.supervise import supervised\nfrom pathlib import Path\n"
    job += "def stage():\n    signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(3)))\n"
    job += "    print('up'); time.sleep(60); return 0\n"
    job += f"sys.exit(supervised(Path({str(tmp_path / 'logs' / 'x.log')!r}), stage))\n"
    (tmp_path / "job.py").write_text(job)
    # Two commands, so that the shell stays between Snakemake and the stage.
    (tmp_path / "snakemake").write_text(
        f"import subprocess\nsubprocess.run(['bash', '-c', 'true; {sys.executable} {tmp_path}/job.py; true'])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    snakemake = subprocess.Popen([sys.executable, tmp_path / "snakemake"], env=environment, stderr=subprocess.DEVNULL)
    wait_for(tmp_path, "up")
    snakemake.kill()
    snakemake.wait()
    log = wait_for(tmp_path, "saved")
    assert "error: Snakemake has ended; run the same command again to go on" in log


def wait_for(tmp_path, text: str) -> str:
    log = tmp_path / "logs" / "x.log"
    for _ in range(400):
        if log.exists() and text in log.read_text():
            return log.read_text()
        time.sleep(0.05)
    raise AssertionError("the stage did not start")
