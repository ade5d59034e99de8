"""How much memory is free, by what the system says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rsd import memory
from rsd.memory import free_bytes

CPU = torch.device("cpu")
MACHINE = 50_000_000 * 1024
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own, with 50 GB available and no control groups."""
    monkeypatch.setattr(memory, "SYSTEM", tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 60000000 kB\nMemAvailable:   50000000 kB\n")
    return tmp_path


def group(folder: Path, names: tuple[str, str, str], limit: object, used: int, files: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 900000\nactive_file 100000\n{names[2]} {files}\n")


def test_without_control_groups_it_is_what_the_machine_has_available(system: Path) -> None:
    assert free_bytes(CPU) == MACHINE


def test_where_a_machine_does_not_say_what_is_available_it_is_all_its_memory(system: Path) -> None:
    """As on macOS."""
    (system / "proc/meminfo").unlink()
    total = int(Path("/proc/meminfo").read_text().partition("MemTotal:")[2].split()[0]) * 1024
    assert free_bytes(CPU) == pytest.approx(total, rel=0.05)


@pytest.mark.parametrize(
    ("line", "root", "names"),
    [
        ("0::{}", "sys/fs/cgroup", V2),
        ("4:memory:{}", "sys/fs/cgroup/memory", V1),
        ("4:cpu,memory:{}", "sys/fs/cgroup/memory", V1),
    ],
)
@pytest.mark.parametrize(("limits", "free"), [((9_000_000, 5_000_000), 3_000_000), ((4_000_000, 7_000_000), 2_000_000)])
def test_the_tightest_of_the_groups_that_a_job_is_in_counts(
    system: Path, line: str, root: str, names: tuple[str, str, str], limits: tuple[int, int], free: int
) -> None:
    """Of what is used, files that were read make way."""
    (system / "proc/self/cgroup").write_text("1:cpuset:/other\n" + line.format("/slurm/job_7/step_0") + "\n")
    group(system / root / "slurm/job_7/step_0", names, limits[1], 3_000_000, 1_000_000)
    group(system / root / "slurm/job_7", names, "max" if names is V2 else 9223372036854771712, 3_000_000, 0)
    group(system / root / "slurm", names, limits[0], 4_000_000, 2_000_000)
    group(system / root, names, 1, 5, 0)
    # The root of all is a group too, where it has a limit: it is full.
    assert free_bytes(CPU) == 1
    (system / root / names[0]).unlink()
    assert free_bytes(CPU) == free


def test_in_a_container_the_root_of_what_is_mounted_is_its_own_group(system: Path) -> None:
    (system / "proc/self/cgroup").write_text("0::/../outside/pod\n")
    group(system / "sys/fs/cgroup", V2, 5_000_000, 3_000_000, 0)
    assert free_bytes(CPU) == 2_000_000


def test_a_full_group_leaves_next_to_nothing(system: Path) -> None:
    (system / "proc/self/cgroup").write_text("0::/\n")
    group(system / "sys/fs/cgroup", V2, 5000, 5000, 0)
    assert free_bytes(CPU) == 1


def test_this_machine_has_some_memory() -> None:
    assert 1_000_000 < free_bytes(CPU) < 1 << 50
