"""A real Slurm on one host: two nodes with a pretended GPU each, accounting in a MariaDB of its own.

For a machine or container where you are root and Debian's slurm-wlm, slurmdbd, mariadb-server and munge are installed:

    python tests/cluster/slurm.py start /tmp/cluster     prints the line that points Slurm's commands to it
    python tests/cluster/slurm.py status /tmp/cluster
    python tests/cluster/slurm.py stop /tmp/cluster      ends it and removes the folder

Everything lies in that folder: configuration, keys, sockets, database, logs. Nothing on the host is changed or reused,
and a Slurm that runs there already is not disturbed, since all ports are others.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("slurm-wlm", "slurmdbd", "mariadb-server", "munge")
PROGRAMS = (
    "munged",
    "mariadbd",
    "mariadb-install-db",
    "slurmdbd",
    "slurmctld",
    "slurmd",
    "sbatch",
    "sacct",
    "sacctmgr",
)
NODES = ("n1", "n2")
PARTITION = "short"
# Of a node; more than the host may have, since Slurm only counts it and nobody keeps a job to it.
MEMORY_MB = 64000
# Ended in this order: who writes before who is written to.
DAEMONS = (*NODES, "slurmctld", "slurmdbd", "mariadb", "munge")

SLURM_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd_port}
AccountingStoragePass={folder}/munge/socket
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
ReturnToService=2
# So that faults are noticed in seconds, where clusters take minutes.
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdTimeout=10
SlurmdParameters=config_overrides
KillWait=10
MessageTimeout=10
InactiveLimit=0
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={slurmd_ports} CPUs=2 RealMemory={memory} Gres=gpu:1
PartitionName={partition} Nodes={nodes} Default=NO MaxTime=2:00:00 State=UP
"""
SLURMDBD_CONF = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""
# Slurm asks for a device file; nobody reads or writes these for it.
GRES_CONF = "NodeName=n1 Name=gpu File=/dev/null\nNodeName=n2 Name=gpu File=/dev/zero\n"


def missing() -> str | None:
    """Why no cluster can be started here; None if one can."""
    if os.geteuid() != 0:
        return "a cluster of one's own takes root (in a container)"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} missing; apt-get install -y --no-install-recommends {' '.join(PACKAGES)}"
    return None


def start(folder: Path) -> None:
    """Starts all daemons and returns when both nodes take jobs; stops what did start when one does not.

    Raises RuntimeError with the end of its log when a daemon does not start.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, mode=0o755)
    try:
        _configure(folder)
        _start_munge(folder)
        _start_mariadb(folder)
        start_slurmdbd(folder)
        _run(folder, "sacctmgr", "-i", "add", "cluster", "tests")
        start_slurmctld(folder)
        for node in NODES:
            start_node(folder, node)
        _wait(folder, "slurmctld", lambda: _states(folder) == dict.fromkeys(NODES, "idle"), seconds=30)
    except BaseException:
        stop(folder, keep=True)
        raise


def stop(folder: Path, keep: bool = False) -> None:
    """Cancels all jobs, ends all daemons and removes the folder; `keep` leaves it, with the logs."""
    folder = folder.absolute()
    if running(folder, "slurmctld"):
        subprocess.run(
            ["scancel", "--user=root"], env=environment(folder), check=False, capture_output=True, timeout=30
        )
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and _output(folder, "squeue", "-h", "-t", "R,CG"):
            time.sleep(0.2)
    for name in DAEMONS:
        kill(folder, name, signal.SIGTERM if name in ("mariadb", "slurmdbd") else signal.SIGKILL)
    # What holds a job together outlives its node's daemon, so that this may be started again.
    for node in NODES:
        _kill_steps(folder, node)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)


def environment(folder: Path) -> dict[str, str]:
    """The variables with which Slurm's commands find this cluster."""
    folder = folder.absolute()
    return {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{folder}/bin{os.pathsep}{_path()}"}


def start_slurmdbd(folder: Path) -> None:
    """Starts the accounting and waits until it answers."""
    _daemon(folder, "slurmdbd", "slurmdbd", "-D")
    _wait(folder, "slurmdbd", lambda: _answers(folder, "sacctmgr", "-n", "list", "cluster"), seconds=40)


def start_slurmctld(folder: Path) -> None:
    """Starts the controller, which knows the jobs of the one before it; it answers a moment later."""
    _daemon(folder, "slurmctld", "slurmctld", "-D", "-i")


def start_node(folder: Path, node: str) -> None:
    """Starts a node's daemon; it takes jobs a moment later."""
    _daemon(folder, node, "slurmd", "-D", "-N", node)


def kill_node(folder: Path, node: str) -> None:
    """What a power failure does: the node's daemon and all its jobs are gone at once."""
    kill(folder, node, signal.SIGKILL)
    _kill_steps(folder, node)


def kill(folder: Path, name: str, number: int) -> None:
    """Sends a daemon a signal and waits for its end, if it runs."""
    file = folder / f"{name}.started"
    if not running(folder, name):
        return
    pid = int(file.read_text())
    os.kill(pid, number)
    deadline = time.monotonic() + 20
    while _alive(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    file.unlink()


def running(folder: Path, name: str) -> bool:
    """Whether a daemon of this cluster runs."""
    file = folder / f"{name}.started"
    return file.exists() and _alive(int(file.read_text()))


def status(folder: Path) -> str:
    """A line for each daemon, then what Slurm says of its nodes and jobs."""
    lines = [f"{name:10} {'runs' if running(folder, name) else 'does not run'}" for name in reversed(DAEMONS)]
    if running(folder, "slurmctld"):
        lines += [_output(folder, "sinfo", "-N", "-l"), _output(folder, "squeue", "-o", "%i %t %N %b %k")]
    return "\n".join(lines)


def _configure(folder: Path) -> None:
    values = {
        "folder": folder,
        "host": socket.gethostname().split(".")[0],
        "nodes": f"n[1-{len(NODES)}]",
        "memory": MEMORY_MB,
        "partition": PARTITION,
        "password": secrets.token_hex(16),
        **dict(zip(("slurmctld_port", "slurmdbd_port", "mariadb_port"), _free_ports(3), strict=True)),
        "slurmd_ports": f"[{','.join(map(str, _free_ports(len(NODES))))}]",
    }
    for name in ("bin", "munge", "mariadb", "state", "log", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    _write(folder / "slurm.conf", SLURM_CONF.format(**values))
    _write(folder / "slurmdbd.conf", SLURMDBD_CONF.format(**values), mode=0o600)
    _write(folder / "gres.conf", GRES_CONF)
    _write(
        folder / "init.sql",
        # One statement a line.
        f"CREATE DATABASE slurm;\n"
        f"CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{values['password']}';\n"
        f"GRANT ALL ON slurm.* TO 'slurm'@'127.0.0.1';\n",
        mode=0o600,
    )
    _write(folder / "mariadb-port", str(values["mariadb_port"]))
    # Snakemake's jobstep removes SLURM_CONF from the environment of srun, which is right where that lies in /etc.
    srun = f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n'
    _write(folder / "bin" / "srun", srun, mode=0o755)


def _start_munge(folder: Path) -> None:
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    home = folder / "munge"
    files = [f"--{name}-file={home}/{name}" for name in ("key", "pid", "log", "seed")]
    _daemon(folder, "munge", "munged", "--foreground", f"--socket={home}/socket", *files)
    _wait(folder, "munge", (home / "socket").exists, seconds=10)


def _start_mariadb(folder: Path) -> None:
    data = folder / "mariadb" / "data"
    created = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db"]
    _run(folder, *created)
    port = (folder / "mariadb-port").read_text()
    _daemon(
        folder,
        "mariadb",
        *("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={folder}/mariadb/socket"),
        *(f"--port={port}", "--bind-address=127.0.0.1", "--skip-name-resolve", f"--init-file={folder}/init.sql"),
        *("--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF"),
    )
    _wait(folder, "mariadb", lambda: _listens(int(port)), seconds=30)


def _daemon(folder: Path, name: str, *command: str) -> None:
    """Starts a daemon in a session of its own, so that Ctrl-C here does not reach it."""
    with open(folder / "log" / name, "ab") as log:
        process = subprocess.Popen(
            command,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
    _write(folder / f"{name}.started", str(process.pid))


def _wait(folder: Path, name: str, ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline or not running(folder, name):
            log = (folder / "log" / name).read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{name} did not start in {seconds} s:\n{log}\n{status(folder)}")
        time.sleep(0.1)


def _states(folder: Path) -> dict[str, str]:
    lines = _output(folder, "sinfo", "-N", "-h", "-o", "%N %t").splitlines()
    return dict(line.split() for line in lines)


def _run(folder: Path, *command: str) -> None:
    result = subprocess.run(
        command, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}")


def _output(folder: Path, *command: str) -> str:
    result = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=60)
    return result.stdout.strip()


def _answers(folder: Path, *command: str) -> bool:
    result = subprocess.run(command, env=environment(folder), capture_output=True, timeout=60)
    return result.returncode == 0


def _kill_steps(folder: Path, node: str) -> None:
    """Every process of a node's jobs, known by its environment, and what keeps them: Slurm's parent of each."""
    wanted = {f"SLURM_CONF={folder}/slurm.conf".encode(), f"SLURMD_NODENAME={node}".encode()}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if not wanted <= set((process / "environ").read_bytes().split(b"\0")):
                continue
            keeper = Path("/proc") / (process / "stat").read_text().rsplit(")", 1)[1].split()[1]
            if (keeper / "cmdline").read_bytes().startswith(b"slurmstepd"):
                os.kill(int(keeper.name), signal.SIGKILL)
            os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue  # it has ended meanwhile


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = sorted(each.getsockname()[1] for each in sockets)
    for each in sockets:
        each.close()
    return ports


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.touch(mode=mode)
    path.write_text(text)


def _path() -> str:
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def main(arguments: list[str]) -> int:
    """start, status or stop; returns the exit status."""
    if len(arguments) != 2 or arguments[0] not in ("start", "status", "stop"):
        print(__doc__, file=sys.stderr)
        return 2
    command, folder = arguments[0], Path(arguments[1]).absolute()
    if command == "start" and (reason := missing()):
        print(f"error: {reason}", file=sys.stderr)
        return 1
    if command == "start":
        start(folder)
        print(f"export SLURM_CONF={folder}/slurm.conf PATH={folder}/bin:$PATH")
    elif command == "stop":
        stop(folder)
    else:
        print(status(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
