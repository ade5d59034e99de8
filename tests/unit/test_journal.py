"""A journal gives back what was appended, and never half of it."""

from __future__ import annotations

import errno
import io
import logging
import os
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd import journal as module
from rsd.journal import Journal


def written(path, items):
    with Journal(path) as journal:
        for key, item in items.items():
            journal.append(key, item)
    return path.read_bytes()


def test_what_was_appended_comes_back(tmp_path):
    items = {"a/0": {"x": 1}, "a/1": {"x": "zwei\n"}}
    written(tmp_path / "j", items)
    assert Journal(tmp_path / "j").load() == items


def test_a_second_run_appends_behind_the_first(tmp_path):
    written(tmp_path / "j", {"a": {}})
    written(tmp_path / "j", {"b": {}})
    assert list(Journal(tmp_path / "j").load()) == ["a", "b"]


def test_nothing_there_is_nothing_done(tmp_path):
    assert Journal(tmp_path / "missing").load() == {}


@given(cut=st.integers(0, 200))
def test_a_cut_anywhere_keeps_the_whole_lines_before_it(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "j"
    items = {f"key{number}": {"value": number} for number in range(4)}
    content = written(path, items)
    path.write_bytes(content[: min(cut, len(content))])
    whole = content[:cut].count(b"\n")
    loaded = Journal(path).load()
    assert loaded == dict(list(items.items())[:whole])
    assert path.read_bytes() == b"".join(content.splitlines(keepends=True)[:whole])


@given(position=st.integers(0, 159), flip=st.integers(1, 255))
def test_a_flipped_byte_never_yields_a_changed_item(tmp_path_factory, position, flip):
    path = tmp_path_factory.mktemp("journal") / "j"
    items = {f"key{number}": {"value": number} for number in range(4)}
    content = bytearray(written(path, items))
    content[position % len(content)] ^= flip
    path.write_bytes(content)
    loaded = Journal(path).load()
    assert len(loaded) < 4
    assert all(items[key] == item for key, item in loaded.items())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_said_with_the_remedy(tmp_path):
    (tmp_path / "j").symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match=r"no space left while writing .*j; free some space"),
        Journal(tmp_path / "j") as j,
    ):
        j.append("a", {"x": 1})


def test_a_failure_inside_is_not_hidden_by_the_journals_own(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyError, match="mine"), Journal(tmp_path / "j"):
        raise KeyError("mine")


def test_a_damaged_tail_is_announced(tmp_path, caplog):
    content = written(tmp_path / "j", {"a": {}, "b": {}})
    (tmp_path / "j").write_bytes(content[:-3])
    with caplog.at_level(logging.WARNING):
        Journal(tmp_path / "j").load()
    assert "dropped a damaged tail" in caplog.text


def refuse_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def refuse_permission(*_, **__):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_line_that_did_not_fit_leaves_no_half_of_it(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path / "j") as journal:
        journal.append("a", {})
        whole = (tmp_path / "j").read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, hard))
        try:
            with pytest.raises(OSError, match="too large"):
                journal.append("b", {"text": "x" * 1000})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "j").read_bytes() == whole
        journal.append("c", {})
    assert list(Journal(tmp_path / "j").load()) == ["a", "c"]


def test_short_writes_are_gone_on_with(tmp_path, monkeypatch):
    class Sip(io.FileIO):
        def write(self, data):
            return super().write(bytes(data)[:3])

    monkeypatch.setattr(module, "open", lambda path, *_, **__: Sip(path, "a"), raising=False)
    content = written(tmp_path / "j", {"a": {"text": "long enough"}})
    monkeypatch.undo()
    assert Journal(tmp_path / "j").load() == {"a": {"text": "long enough"}}
    assert content.count(b"\n") == 1


def test_a_full_disk_found_by_the_last_sync_is_said_with_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="no space left while writing"), Journal(tmp_path / "j"):
        monkeypatch.setattr(os, "fsync", refuse_space)


def test_an_item_that_could_not_be_synced_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse_space)
    with pytest.raises(OSError, match="no space left while writing"), Journal(tmp_path / "j") as journal:
        journal.append("a", {})
    assert (tmp_path / "j").read_bytes() == b""


def test_a_journal_that_may_not_be_written_is_said_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "open", refuse_permission, raising=False)
    with pytest.raises(PermissionError, match=r"cannot write .*j; make its folder writable"), Journal(tmp_path / "j"):
        pass


def test_a_journal_that_may_not_be_read_is_said_with_the_remedy(tmp_path, monkeypatch):
    written(tmp_path / "j", {"a": {}})
    monkeypatch.setattr(module, "open", refuse_permission, raising=False)
    with pytest.raises(PermissionError, match=r"cannot read .*j; make it readable and writable, or delete it"):
        Journal(tmp_path / "j").load()


def test_a_failing_close_hides_no_failure_inside_and_is_explained_alone(tmp_path, monkeypatch):
    class Unclosable(io.FileIO):
        def close(self):
            if not self.closed:
                super().close()
                refuse_space()

    monkeypatch.setattr(module, "open", lambda path, *_, **__: Unclosable(path, "a"), raising=False)
    with pytest.raises(KeyError, match="mine"), Journal(tmp_path / "j"):
        raise KeyError("mine")
    with pytest.raises(OSError, match="no space left while writing"), Journal(tmp_path / "j"):
        pass
