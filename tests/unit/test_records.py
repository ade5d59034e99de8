"""Records come back as they were written, or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd import records, runtime
from rsd.records import ATTEMPTS, ROWS, read_jsonl, read_provenance, read_table, write_jsonl, write_table

ROW = {"problem_id": "a", "attempt": 0, "kind": "trace", "prompt_tokens": [1, 2], "completion_tokens": [3] * 3000}


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "problem_id": st.text(max_size=5),
                "attempt": st.integers(0, 99),
                "kind": st.sampled_from(["trace", "prefix"]),
                "prompt_tokens": st.lists(st.integers(0, 2**31 - 1), max_size=4),
                "completion_tokens": st.lists(st.integers(0, 2**31 - 1), max_size=4),
            }
        ),
        max_size=5,
    )
)
@settings(deadline=None)
def test_tables_round_trip_with_their_provenance(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "rows.parquet"
    write_table(path, rows, ROWS, {"settings": {"seed": 1}})
    assert read_table(path, ROWS).to_pylist() == rows
    assert read_provenance(path) == {"settings": {"seed": 1}}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_table_without_a_checksum_is_refused_with_the_remedy(tmp_path, damage):
    path = tmp_path / "rows.parquet"
    # Incompressible ids, so that the flipped byte lies in the data.
    tokens = [int.from_bytes(os.urandom(3), "big") for _ in range(5000)]
    write_table(path, [ROW | {"completion_tokens": tokens}], ROWS, {})
    # As an older version left it.
    path.with_name("rows.parquet.sha256").unlink()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    path.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"rows\.parquet is truncated or corrupted.*delete the file and run again"):
        read_table(path, ROWS)


def test_a_table_of_another_kind_is_refused(tmp_path):
    write_table(tmp_path / "rows.parquet", [ROW], ROWS, {})
    with pytest.raises(ValueError, match=r"has the columns .*expected \['problem_id', 'attempt', 'tokens'"):
        read_table(tmp_path / "rows.parquet", ATTEMPTS)


def test_json_lines_round_trip_and_name_the_bad_line(tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl(path, [{"a": 1}, {"b": "ü\n"}])
    assert read_jsonl(path) == [{"a": 1}, {"b": "ü\n"}]
    (tmp_path / "x.jsonl.sha256").unlink()
    path.write_text('{"a": 1}\n{"b": \n')
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2"):
        read_jsonl(path)


def test_a_failed_write_leaves_neither_the_file_nor_a_temporary_one(tmp_path):
    with pytest.raises(RuntimeError), runtime.atomic_path(tmp_path / "out") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_with_the_file_and_the_remedy(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records.pq, "write_table", full)
    with pytest.raises(OSError, match=r"no space left while writing .*rows\.parquet; free some space"):
        write_table(tmp_path / "rows.parquet", [ROW], ROWS, {})
    assert list(tmp_path.iterdir()) == []


def test_a_real_full_disk_is_said_too(tmp_path):
    """/dev/full fails every write with ENOSPC."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(OSError, match="no space left"),
        runtime.atomic_path(tmp_path / "x"),
        open("/dev/full", "w") as file,
    ):
        file.write("x" * 100_000)


NOBODY = 65534
# Imports first: the interpreter's folders may be closed to that user.
WRITE_AS_NOBODY = f"""
import os, sys
from pathlib import Path
from rsd import runtime
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
for path in sys.argv[1:]:
    try:
        runtime.write_text(Path(path), "y")
        print("written")
    except PermissionError as error:
        print(error)
"""


@pytest.fixture
def folder_of_nobody():
    """A folder that the user of WRITE_AS_NOBODY owns and can reach (tmp_path is closed to all but its maker)."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() == 0:
            try:
                os.chown(name, NOBODY, NOBODY)
            except OSError as error:
                pytest.skip(f"this root cannot hand a folder to another user: {error}")
        yield Path(name)
        os.chmod(name, 0o700)


def write_as_nobody(*paths) -> list[str]:
    """What the user is told about each path; root, who may write everywhere, becomes another one for that."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITE_AS_NOBODY, *map(str, paths)]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()


def test_a_read_only_folder_is_said_with_the_remedy(folder_of_nobody):
    target = folder_of_nobody / "x"
    # The control: only the mode refuses it.
    assert write_as_nobody(target) == ["written"]
    target.unlink()
    folder_of_nobody.chmod(0o500)
    (message,) = write_as_nobody(target)
    assert f"cannot write {target}; make its folder writable" in message
    assert list(folder_of_nobody.iterdir()) == []


def test_a_refused_permission_is_said_with_the_remedy(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(runtime.tempfile, "mkstemp", refuse)
    with pytest.raises(PermissionError, match=r"cannot write .*; make its folder writable"):
        runtime.write_text(tmp_path / "x", "y")
