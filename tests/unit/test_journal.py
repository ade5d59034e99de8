"""A journal gives back what was appended, and never half of it."""

from __future__ import annotations

import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
