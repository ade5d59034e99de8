"""A journal gives back what was appended, and never half of it."""

from __future__ import annotations

import errno
import io
import logging
import os
import resource
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd import journal as module
from rsd.journal import Found, Journal, Part, peek


def written(path, items):
    with Journal(path) as journal:
        for key, item in items.items():
            journal.append(key, item)
    return path.read_bytes()


def test_what_was_appended_comes_back(tmp_path):
    items = {"a/0": {"x": 1}, "a/1": {"x": "zwei\n"}}
    written(tmp_path / "j", items)
    assert Journal(tmp_path / "j").load() == Found(items)


def test_a_second_run_appends_behind_the_first(tmp_path):
    written(tmp_path / "j", {"a": {}})
    written(tmp_path / "j", {"b": {}})
    assert list(Journal(tmp_path / "j").load().items) == ["a", "b"]


def test_nothing_there_is_nothing_done(tmp_path):
    assert Journal(tmp_path / "missing").load() == Found()


def test_somebody_elses_journal_is_read_up_to_its_damaged_tail_and_left_as_it_is(tmp_path, caplog):
    content = written(tmp_path / "j", {"a": {"x": 1}, "b": {"x": 2}})
    (tmp_path / "j").write_bytes(content[:-3])
    with Journal(tmp_path / "other"):
        assert peek(tmp_path / "j") == Found({"a": {"x": 1}})
    assert (tmp_path / "j").read_bytes() == content[:-3]
    assert caplog.text == ""
    assert peek(tmp_path / "missing") == Found()


@given(cut=st.integers(0, 200))
def test_a_cut_anywhere_keeps_the_whole_lines_before_it(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "j"
    items = {f"key{number}": {"value": number} for number in range(4)}
    content = written(path, items)
    path.write_bytes(content[: min(cut, len(content))])
    whole = content[:cut].count(b"\n")
    loaded = Journal(path).load()
    assert loaded == Found(dict(list(items.items())[:whole]))
    assert path.read_bytes() == b"".join(content.splitlines(keepends=True)[:whole])


@given(position=st.integers(0, 159), flip=st.integers(1, 255))
def test_a_flipped_byte_never_yields_a_changed_item(tmp_path_factory, position, flip):
    path = tmp_path_factory.mktemp("journal") / "j"
    items = {f"key{number}": {"value": number} for number in range(4)}
    content = bytearray(written(path, items))
    content[position % len(content)] ^= flip
    path.write_bytes(content)
    loaded = Journal(path).load().items
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
    assert list(Journal(tmp_path / "j").load().items) == ["a", "c"]


def test_short_writes_are_gone_on_with(tmp_path, monkeypatch):
    class Sip(io.FileIO):
        def write(self, data):
            return super().write(bytes(data)[:3])

    monkeypatch.setattr(module, "FileIO", Sip)
    content = written(tmp_path / "j", {"a": {"text": "long enough"}})
    monkeypatch.undo()
    assert Journal(tmp_path / "j").load().items == {"a": {"text": "long enough"}}
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
    monkeypatch.setattr(module, "FileIO", refuse_permission)
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

    monkeypatch.setattr(module, "FileIO", Unclosable)
    with pytest.raises(KeyError, match="mine"), Journal(tmp_path / "j"):
        raise KeyError("mine")
    with pytest.raises(OSError, match="no space left while writing"), Journal(tmp_path / "j"):
        pass


# --- parts of unfinished items ---------------------------------------------------------------------------------------


def part(start: int, stop: int) -> Part:
    return Part(start, stop, {"entries": list(range(start, stop))})


def written_parts(path, *parts: tuple[str, int, int]) -> None:
    with Journal(path) as journal:
        for key, start, stop in parts:
            journal.append_parts([(key, part(start, stop))])


def test_parts_come_back_in_order_by_item(tmp_path):
    written_parts(tmp_path / "j", ("a", 0, 2), ("b", 0, 5), ("a", 2, 3), ("a", 3, 9))
    assert Journal(tmp_path / "j").load() == Found({}, {"a": [part(0, 2), part(2, 3), part(3, 9)], "b": [part(0, 5)]})


def test_a_finished_item_takes_the_place_of_its_parts(tmp_path):
    written_parts(tmp_path / "j", ("a", 0, 2), ("b", 0, 5))
    written(tmp_path / "j", {"a": {"x": 1}})
    written_parts(tmp_path / "j", ("a", 2, 4))
    assert Journal(tmp_path / "j").load() == Found({"a": {"x": 1}}, {"b": [part(0, 5)]})


@pytest.mark.parametrize(
    "wrong", [(3, 5), (1, 5), (0, 2), (0, 9)], ids=["gap", "overlap", "the same again", "from the start again"]
)
def test_a_part_that_does_not_go_on_where_the_last_ended_is_left_out(tmp_path, caplog, wrong):
    written_parts(tmp_path / "j", ("a", 0, 2), ("a", *wrong), ("b", 0, 1), ("a", 2, 4))
    assert Journal(tmp_path / "j").load().parts == {"a": [part(0, 2), part(2, 4)], "b": [part(0, 1)]}
    assert "left out 1 parts" in caplog.text


def test_an_item_whose_first_part_is_missing_has_none(tmp_path, caplog):
    written_parts(tmp_path / "j", ("a", 2, 4))
    assert Journal(tmp_path / "j").load() == Found()
    assert "left out 1 parts" in caplog.text


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[bytes, list[Found]]:
    """A journal of items and parts, and what it holds after each of its lines."""
    path = tmp_path_factory.mktemp("mixed") / "j"
    steps = [("a", 0, 2), ("b", 0, 3), ("a", 2, 3), "b", ("a", 3, 4), ("c", 0, 1), "a"]
    states = [Found()]
    for step in steps:
        if isinstance(step, str):
            written(path, {step: {"done": step}})
        else:
            written_parts(path, step)
        states.append(Journal(path).load())
    return path.read_bytes(), states


@given(cut=st.integers(0, 600))
def test_parts_cut_anywhere_are_used_as_far_as_they_are_whole(tmp_path_factory, mixed, cut):
    path = tmp_path_factory.mktemp("journal") / "j"
    content, states = mixed
    path.write_bytes(content[: min(cut, len(content))])
    whole = content[:cut].count(b"\n")
    assert Journal(path).load() == states[whole]
    written_parts(path, ("new", 0, 1))
    assert Journal(path).load() == Found(states[whole].items, {**states[whole].parts, "new": [part(0, 1)]})


@given(position=st.integers(0, 599), flip=st.integers(1, 255))
def test_a_flipped_byte_costs_what_is_behind_it_and_changes_nothing_before(tmp_path_factory, mixed, position, flip):
    path = tmp_path_factory.mktemp("journal") / "j"
    content, states = mixed
    damaged = bytearray(content)
    damaged[position % len(content)] ^= flip
    path.write_bytes(damaged)
    assert Journal(path).load() == states[content[: position % len(content)].count(b"\n")]


def test_parts_are_on_the_disk_when_they_are_said_to_be(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    with Journal(tmp_path / "j") as journal:
        for number in range(3):
            journal.append_parts([("a", part(number, number + 1)), ("b", part(number, number + 1))])
            assert synced[-1] == (tmp_path / "j").stat().st_size
        assert len(synced) == 3


def test_parts_that_did_not_fit_on_the_disk_leave_no_half_of_them(tmp_path, monkeypatch):
    with Journal(tmp_path / "j") as journal:
        journal.append_parts([("a", part(0, 1))])
        whole = (tmp_path / "j").read_bytes()
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left while writing"):
            patch.setattr(os, "fsync", refuse_space)
            journal.append_parts([("a", part(1, 2)), ("b", part(0, 2))])
        assert (tmp_path / "j").read_bytes() == whole


def test_dropping_the_parts_keeps_the_items_and_what_comes_later(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.append_parts([("a", part(0, 1000)), ("b", part(0, 1000))])
        journal.append("a", {"x": 1})
        journal.drop_parts()
        assert (tmp_path / "j").stat().st_size < 100
        journal.append("c", {"x": 2})
    assert Journal(tmp_path / "j").load() == Found({"a": {"x": 1}, "c": {"x": 2}})


@pytest.mark.parametrize("meanwhile", ["nothing", "rewritten", "removed"])
def test_a_second_writer_waits_until_the_first_has_ended(tmp_path, meanwhile, caplog):
    """A stage whose supervisor was killed may still be saving when the next run begins."""
    caplog.set_level(logging.INFO)

    def second() -> None:
        written(tmp_path / "j", {"second": {}})

    with Journal(tmp_path / "j") as first:
        first.append("first", {})
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting for its end" not in caplog.text:
            assert thread.is_alive(), "it did not wait"
        first.append("last", {})
        if meanwhile == "rewritten":
            first.drop_parts()
        if meanwhile == "removed":
            (tmp_path / "j").unlink()
    thread.join(timeout=20)
    assert not thread.is_alive()
    kept = [] if meanwhile == "removed" else ["first", "last"]
    assert list(Journal(tmp_path / "j").load().items) == [*kept, "second"]


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module.fcntl, "flock", refuse)
    written(tmp_path / "j", {"a": {}})
    assert list(Journal(tmp_path / "j").load().items) == ["a"]
    assert "cannot be locked (No locks available)" in caplog.text
