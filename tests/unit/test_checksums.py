"""Whatever happens to a file after it was written is found, by its readers and by the next Snakemake."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd import checksums
from rsd.checksums import set_aside_damaged, verify
from rsd.records import ROWS, read_jsonl, read_provenance, read_table, write_jsonl, write_record, write_table

ROW = {"problem_id": "a", "attempt": 0, "kind": "trace", "prompt_tokens": [1, 2], "completion_tokens": [3] * 50}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_table(folder / "rows.parquet", [ROW], ROWS, {"settings": {"seed": 1}})
    return folder


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_any_cut_and_any_flipped_bit_is_found_by_every_reader(tmp_path_factory, written, data):
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(written, folder, dirs_exist_ok=True)
    path = folder / "rows.parquet"
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), "cut"):
        content = content[:position]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    read = data.draw(st.sampled_from([lambda: read_table(path, ROWS), lambda: read_provenance(path)]))
    with pytest.raises(ValueError, match=r"rows\.parquet is damaged .* it is rows\.parquet\.damaged now; run the same"):
        read()
    assert [file.name for file in folder.iterdir()] == ["rows.parquet.damaged"]


@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_lines_that_are_missing_at_the_end_are_found(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("lines") / "problems.jsonl"
    write_jsonl(path, [{"id": "a"}, {"id": "b"}])
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError, match=r"problems\.jsonl is damaged"):
        read_jsonl(path)


def test_sha256sum_reads_the_checksums(tmp_path):
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    write_record(tmp_path / "x.json", {"a": 1})
    command = ["sha256sum", "--strict", "-c", "x.json.sha256"]
    assert subprocess.run(command, cwd=tmp_path, stdout=subprocess.DEVNULL).returncode == 0
    (tmp_path / "x.json").write_text("{}")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1


def test_a_kill_between_the_two_renames_leaves_no_file_without_its_checksum(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def replace(self, target):
        if Path(target).name == "x.json":
            raise Killed
        return os.replace(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(Killed):
        write_record(tmp_path / "x.json", {"a": 1})
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["x.json.sha256"]
    # A checksum without its file is in nobody's way.
    assert set_aside_damaged(tmp_path, []) == []
    write_record(tmp_path / "x.json", {"a": 2})
    verify(tmp_path / "x.json")


def test_a_file_of_an_older_version_has_no_checksum_and_is_taken_as_it_is(tmp_path):
    write_table(tmp_path / "rows.parquet", [ROW], ROWS, {})
    (tmp_path / "rows.parquet.sha256").unlink()
    assert read_table(tmp_path / "rows.parquet", ROWS).num_rows == 1


def test_a_damaged_checksum_is_said_and_costs_nothing(tmp_path, caplog):
    write_table(tmp_path / "rows.parquet", [ROW], ROWS, {})
    (tmp_path / "rows.parquet.sha256").write_bytes(b"")
    assert read_table(tmp_path / "rows.parquet", ROWS).num_rows == 1
    assert "rows.parquet.sha256 is damaged" in caplog.text


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    for name in ("traces/rsd/rows.parquet", "traces/own/rows.parquet"):
        write_table(tmp_path / name, [ROW], ROWS, {})
    write_record(tmp_path / "data/problems.json", {})
    return tmp_path


def test_what_is_damaged_is_set_aside_once_and_what_is_whole_is_read_once(experiment, monkeypatch):
    damaged, touched = experiment / "traces/rsd/rows.parquet", experiment / "traces/own/rows.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    touched.touch()
    read = []
    monkeypatch.setattr(checksums, "file_digest", lambda path: read.append(path) or original(path))
    original = __import__("rsd.provenance").provenance.file_digest
    (line,) = set_aside_damaged(experiment, [])
    assert f"{damaged} is damaged" in line
    assert "it is rows.parquet.damaged now, and it is made again" in line
    assert read == [touched], "a wrong size needs no reading, and neither does what did not change"
    assert not damaged.exists()
    assert touched.exists()
    read.clear()
    assert set_aside_damaged(experiment, []) == []
    assert read == []


def test_a_dry_run_only_says_what_is_damaged(experiment):
    path = experiment / "data/problems.json"
    path.write_bytes(b"")
    (line,) = set_aside_damaged(experiment, [], rename=False)
    assert line == f"{path} is damaged (0 bytes, expected 3)"
    assert path.exists()


def test_bits_that_rotted_unseen_are_left_to_the_reader(experiment):
    path = experiment / "traces/rsd/rows.parquet"
    time = path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(time, time))
    assert set_aside_damaged(experiment, []) == []
    with pytest.raises(ValueError, match="run the same command again, and it is made anew"):
        read_table(path, ROWS)
