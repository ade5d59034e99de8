"""GPUs of one machine, each lent to one job at a time, whichever pipeline or user it is of.

A job asks for some GPUs before it loads torch; they are the only ones that it sees from then on. A lease is a lock on a
file named by the GPU, in a folder that all jobs of the machine share; the kernel frees it when the last process that
holds it is gone, by `kill -9` too. Who waits says for whom. By hand: `python -m rsd.lease` prints which GPUs there are
and who holds them. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import logging
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LOG = logging.getLogger(__name__)
# Where the locks are; every job that may use the same GPUs must see the same folder.
FOLDER_VARIABLE, FOLDER = "RSD_GPU_LOCKS", Path("/tmp/rsd-gpu-locks")
# What a scheduler or a user restricts a job's GPUs by; the first that is set counts.
GIVEN = ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
POLL_SECONDS, TELL_SECONDS = 0.5, 60.0
# Characters of a holder's command that are shown to those who wait.
COMMAND_LENGTH = 160


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a part of one (MIG): its number in nvidia-smi's order, its name, and what never changes."""

    index: int
    name: str
    uuid: str

    @property
    def is_part(self) -> bool:
        """Is it a part of a GPU that is split (MIG)?"""
        return self.uuid.startswith("MIG-")

    @property
    def visible_as(self) -> str:
        """What CUDA_VISIBLE_DEVICES calls it. A whole one by its number, since vLLM reads nothing else."""
        return self.uuid if self.is_part else str(self.index)


@dataclass
class Lease:
    """GPUs that belong to this process and its forked children until `release`, or until all of them are gone."""

    gpus: tuple[Gpu, ...] = ()
    files: list[int] = field(default_factory=list)

    def release(self) -> None:
        """Gives the GPUs back."""
        while self.files:
            os.close(self.files.pop())

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take(device: str, count: int) -> Lease:
    """`count` GPUs for a job whose `device` is auto, cpu or cuda: waits for them, and hides all others from CUDA.

    None for `cpu`, and for `auto` on a machine without a GPU. Raises ValueError where there are too few (see
    `require`), OSError where the folder of the locks cannot be used.
    """
    if device == "cpu":
        return Lease()
    gpus = require(device, count)
    if not gpus:
        return Lease()
    lease = acquire(gpus, count)
    # By numbers, which CUDA counts as nvidia-smi does if told to.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.visible_as for gpu in lease.gpus)
    LOG.info("holds %s", ", ".join(f"GPU {gpu.index} ({gpu.name}, {gpu.uuid})" for gpu in lease.gpus))
    return lease


def require(device: str, count: int, who: str = "this job") -> list[Gpu]:
    """The GPUs that a job may choose from, none where it may do without.

    Raises ValueError where `device` is cuda and there is none, and where there are some, but fewer than `count`.
    """
    if device == "cpu":
        return []
    gpus, why = found()
    if not gpus and device == "auto":
        if why:
            LOG.warning("no GPU is used: %s", why)
        return []
    if not gpus:
        raise ValueError(
            f"device: cuda, but no GPU was found here ({why or 'nvidia-smi lists none'}); install or repair the "
            "driver, write `device: auto` or `device: cpu`, or run the jobs where GPUs are (a profile of "
            "workflow/profiles)"
        )
    if len(gpus) < count:
        raise ValueError(
            f"{who} needs {count} GPUs (training.gpus, or models.NAME.gpus), but {len(gpus)} found here"
            f"{f' ({why})' if why else ''}; lower that key, write `device: cpu`, or run where there are as many"
        )
    return gpus


# --- which GPUs there are --------------------------------------------------------------------------------------------


def found(environment: Mapping[str, str] = os.environ) -> tuple[list[Gpu], str]:
    """The GPUs that this process may use, and why not all or none, in words; "" where nothing was left out."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        return [], ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi: {error}"
    if listing.returncode:
        return [], f"nvidia-smi: {' '.join((listing.stdout + listing.stderr).split())}"
    gpus = parse_listing(listing.stdout)
    variable = next((name for name in GIVEN if name in environment), None)
    if variable is None:
        return gpus, ""
    given = environment[variable]
    # A container or control group that shows just a job's GPUs numbers them anew, while Slurm's numbers stay.
    if variable != "CUDA_VISIBLE_DEVICES" and len({gpu.index for gpu in gpus}) <= len(given.split(",")):
        return gpus, ""
    return visible(gpus, given), f"of {len(gpus)}, by {variable}={given}"


def parse_listing(text: str) -> list[Gpu]:
    """The devices of `nvidia-smi -L`; of a GPU that is split (MIG), its parts."""
    gpus: list[Gpu] = []
    for line in text.splitlines():
        if whole := re.match(r"GPU (\d+): (.*) \(UUID: ([^)]+)\)", line):
            gpus.append(Gpu(int(whole[1]), whole[2], whole[3]))
        elif part := re.match(r"\s+MIG (\S+).*\(UUID: ([^)]+)\)", line):
            gpus.append(Gpu(gpus[-1].index, f"MIG {part[1]}", part[2]))
    split = {gpu.index for gpu in gpus if gpu.is_part}
    return [gpu for gpu in gpus if gpu.is_part or gpu.index not in split]


def visible(gpus: Sequence[Gpu], given: str) -> list[Gpu]:
    """Those that a value of CUDA_VISIBLE_DEVICES names, each once, by number, UUID (or how it starts) or MIG id.

    As in CUDA, the first name of nothing (-1, NoDevFiles, a typing error) ends the list.
    """
    chosen: list[Gpu] = []
    for name in filter(None, (part.strip() for part in given.split(","))):
        if name.isdecimal():
            named = [gpu for gpu in gpus if gpu.index == int(name)]
        elif name.startswith(("GPU-", "MIG-")):
            named = [gpu for gpu in gpus if gpu.uuid == name] or [gpu for gpu in gpus if gpu.uuid.startswith(name)]
        else:
            named = []
        if not named:
            break
        chosen += [gpu for gpu in named if gpu not in chosen]
    return chosen


# --- locks -----------------------------------------------------------------------------------------------------------


def acquire(gpus: Sequence[Gpu], count: int) -> Lease:
    """`count` of `gpus`, all at once: who cannot have all of them holds none while it waits.

    A job of one GPU takes whichever is free first. A job of several announces itself, and what becomes free then waits
    for it, so that a stream of small jobs cannot keep it out.
    """
    told = -TELL_SECONDS
    with contextlib.ExitStack() as stack:
        folder = _open_folder()
        stack.callback(os.close, folder)
        announced: list[int] = []
        while True:
            if count > 1 and not announced:
                announced = _announce(folder, gpus)
                for file in announced:
                    stack.callback(os.close, file)
            free = Lease() if count > 1 and not announced else _take_free(folder, gpus, count, announced)
            if len(free.gpus) == count:
                return free
            if time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                LOG.warning("waits for %d of %d GPUs: %s", count, len(gpus), "; ".join(_holders(folder, gpus)))
            time.sleep(POLL_SECONDS)


def _announce(folder: int, gpus: Sequence[Gpu]) -> list[int]:
    """Locks that tell others to leave `gpus` alone; none where another job of several was first.

    In the order of the names, so that of two that try at once one gets all.
    """
    files: list[int] = []
    for gpu in sorted(gpus, key=lambda gpu: gpu.uuid):
        file = _open_file(folder, _file_name(gpu) + ".next")
        if not _try_lock(file, fcntl.LOCK_EX):
            os.close(file)
            for other in files:
                os.close(other)
            return []
        files.append(file)
    return files


def _take_free(folder: int, gpus: Sequence[Gpu], count: int, announced: Sequence[int]) -> Lease:
    """`count` GPUs that nobody holds, or none."""
    lease = Lease()
    for gpu in gpus:
        if len(lease.files) < count and (announced or not _is_announced(folder, gpu)):
            file = _open_file(folder, _file_name(gpu))
            if _try_lock(file, fcntl.LOCK_EX) and _is_current(folder, file, _file_name(gpu)):
                lease.files.append(file)
                lease.gpus += (gpu,)
            else:
                os.close(file)
    if len(lease.files) < count:
        lease.release()
        return Lease()
    for file in lease.files:
        _write_holder(file)
    return lease


def _is_announced(folder: int, gpu: Gpu) -> bool:
    file = _open_file(folder, _file_name(gpu) + ".next")
    # Shared, so that jobs of one GPU that look at once do not take each other for an announcement.
    try:
        return not _try_lock(file, fcntl.LOCK_SH)
    finally:
        os.close(file)


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_current(folder: int, file: int, name: str) -> bool:
    """Whether others who open `name` now get this file: someone who tidies up may have deleted it meanwhile."""
    try:
        return os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), os.fstat(file))
    except FileNotFoundError:
        return False


def _file_name(gpu: Gpu) -> str:
    return re.sub(r"[^A-Za-z0-9-]", "_", gpu.uuid) + ".lock"


def _folder() -> Path:
    return Path(os.environ.get(FOLDER_VARIABLE) or FOLDER)


def _open_folder() -> int:
    """The folder of the locks, made for all users if it is not there; a link is not followed."""
    path = _folder()
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            # As /tmp: everybody may make files, nobody may delete another's.
            path.chmod(0o1777)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, _unusable(path, error)) from error


def _open_file(folder: int, name: str) -> int:
    """A lock file, made if it is not there, for every user to lock. Nothing but a plain file is opened."""
    plain = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        try:
            # Not O_CREAT on a file that is there: in such folders Linux refuses that for another user's file.
            file = _open_as_may_be(folder, name, plain)
        except FileNotFoundError:
            try:
                file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | plain, 0o666, dir_fd=folder)
            except FileExistsError:
                continue
            except OSError as error:
                raise OSError(error.errno, _unusable(_folder() / name, error)) from error
            os.fchmod(file, 0o666)  # whatever the umask
        except OSError as error:
            raise OSError(error.errno, _unusable(_folder() / name, error)) from error
        if stat.S_ISREG(os.fstat(file).st_mode):
            return file
        os.close(file)
        raise OSError(errno.EINVAL, _unusable(_folder() / name, "it is no plain file"))


def _open_as_may_be(folder: int, name: str, flags: int) -> int:
    try:
        return os.open(name, os.O_RDWR | flags, dir_fd=folder)
    except PermissionError:
        # Enough to lock it, if not to leave a name in it.
        return os.open(name, os.O_RDONLY | flags, dir_fd=folder)


def _unusable(path: Path, why: object) -> str:
    return (
        f"{path} cannot be used as a lock for GPUs ({why}); remove it, or set {FOLDER_VARIABLE} to a folder on this "
        "machine that everybody who uses its GPUs may write to"
    )


def _write_holder(file: int) -> None:
    """Who holds the lock, for those who wait; not essential."""
    holder = {
        "pid": os.getpid(),
        "user": _user(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(sys.argv)[:COMMAND_LENGTH],
    }
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _holders(folder: int, gpus: Sequence[Gpu]) -> Iterator[str]:
    """A line for each GPU: who holds it."""
    for gpu in gpus:
        file = _open_file(folder, _file_name(gpu))
        try:
            # Text by whoever could write there: nothing in it but what can be printed.
            text = "".join(filter(str.isprintable, os.pread(file, 4096, 0).decode("utf-8", "replace")))
            taken = not _try_lock(file, fcntl.LOCK_SH)
        finally:
            os.close(file)
        if not taken:
            yield f"GPU {gpu.index} is free" + (" but spoken for" if _is_announced(folder, gpu) else "")
            continue
        try:
            holder = json.loads(text)
            who = "pid {pid} of {user} since {since} ({command})".format_map(holder)
        except (ValueError, KeyError, TypeError, AttributeError):
            who = "somebody who left no name"
        yield f"GPU {gpu.index} is held by {who}"


if __name__ == "__main__":
    everything, reason = found()
    print(f"{len(everything)} GPUs{f' ({reason})' if reason else ''}")
    if everything:
        for told_line in _holders(_open_folder(), everything):
            print(told_line)
