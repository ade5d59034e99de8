"""What is written is saved in time, once; a signal ends a run at a good moment; the line in the log says what is so."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rsd import interruption as interruption_module
from rsd import progress as module
from rsd.decode import Unfinished
from rsd.interruption import Interruption
from rsd.journal import Journal, Part
from rsd.progress import FallbackRate, Progress, Recorder, SolvedShare, begun, pack, unpack

FORMAT = {"think_close": "</think>", "end_of_turn": "<|im_end|>", "answer": "boxed"}


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(interruption_module, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A signal that nobody remembers fails the test rather than the test run; no test leaves a handler behind."""

    def fail(number: int, _: object) -> None:
        raise AssertionError(f"signal {number} acted at once")

    default = signal.signal(signal.SIGTERM, fail)
    before = signal.getsignal(signal.SIGINT)
    yield
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == (fail, before)
    signal.signal(signal.SIGTERM, default)


def lane(length: int, index: int = 0) -> Unfinished:
    """The first tokens of an attempt that is the same at every length."""
    generator = np.random.default_rng(index)
    columns = generator.random((3, 10_000), dtype=np.float32)[:, :length]
    p_teacher = np.where(columns[2] < 0.2, np.float32(np.nan), columns[2])
    tokens = np.arange(length, dtype=np.int32) * 7 + index
    return Unfinished(index, tokens, columns[0] < 0.3, columns[1], p_teacher)


def assert_equal(one: Unfinished | None, other: Unfinished) -> None:
    assert one is not None
    for name in ("tokens", "fallback", "p_student", "p_teacher"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype
        assert left.tobytes() == right.tobytes()


# --- what is saved ---------------------------------------------------------------------------------------------------


def test_packed_arrays_come_back_bit_for_bit() -> None:
    for length in (0, 1, 1000):
        back = unpack(pack(lane(length)))
        assert {name: array.tobytes() for name, array in back.items()} == {
            name: getattr(lane(length), name).tobytes() for name in back
        }


def test_an_attempt_is_put_together_from_its_parts() -> None:
    parts = [Part(start, stop, pack(lane(stop), start)) for start, stop in ((0, 3), (3, 4), (4, 90))]
    assert_equal(begun(0, parts), lane(90))
    assert begun(0, []) is None


def recorder(journal: Journal | None, *, saved: dict[int, int] | None = None) -> Recorder:
    return Recorder(journal, ["a", "b", "c"], saved or {}, Progress("attempts", 3))


def test_lanes_are_asked_for_every_half_minute_and_never_later_than_a_minute(clock: Clock) -> None:
    with recorder(None) as snapshots:
        asked = []
        for _ in range(200):
            clock.now += 1
            if snapshots.round(5):
                snapshots.take([])
                asked.append(clock.now)
    assert np.diff([1000, *asked]).max() <= 31 < 60
    assert len(asked) == 6


def test_only_what_is_new_is_saved_and_all_of_it_comes_back(tmp_path: Path) -> None:
    lengths = [(5, 0), (5, 9), (40, 10), (1000, 11)]
    with Journal(tmp_path / "j") as journal, recorder(journal) as snapshots:
        for first, second in lengths:
            snapshots.take([lane(first, 0), lane(second, 1)])
    parts = Journal(tmp_path / "j").load().parts
    assert [(part.start, part.stop) for part in parts["a"]] == [(0, 5), (5, 40), (40, 1000)]
    assert [(part.start, part.stop) for part in parts["b"]] == [(0, 9), (9, 10), (10, 11)]
    assert_equal(begun(0, parts["a"]), lane(1000, 0))
    assert_equal(begun(1, parts["b"]), lane(11, 1))


def test_what_an_earlier_run_saved_is_not_saved_again(tmp_path: Path) -> None:
    for until in (30, 50, 90):
        with Journal(tmp_path / "j") as journal:
            known = begun(0, journal.load().parts.get("a", ()))
            saved = {0: len(known.tokens)} if known else {}
            with recorder(journal, saved=saved) as snapshots:
                snapshots.take([lane(until)])
    parts = Journal(tmp_path / "j").load().parts["a"]
    assert [(part.start, part.stop) for part in parts] == [(0, 30), (30, 50), (50, 90)]
    assert_equal(begun(0, parts), lane(90))


def test_the_journal_grows_with_the_tokens_and_not_with_the_snapshots(tmp_path: Path) -> None:
    def size(tokens: int, times: int) -> int:
        path = tmp_path / f"{tokens}-{times}"
        with Journal(path) as journal, recorder(journal) as snapshots:
            for stop in np.linspace(tokens / times, tokens, times).astype(int):
                snapshots.take([lane(stop)])
        return path.stat().st_size

    # 13 bytes a token as base64, and a line's frame for each part.
    for tokens, times in ((4000, 40), (8000, 80), (8000, 8)):
        assert size(tokens, times) < tokens * 13 * 4 / 3 + times * 150


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "ending"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_signal_saves_the_lanes_says_how_to_go_on_and_ends(
    tmp_path: Path, number: int, ending: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ending) as stopped, Journal(tmp_path / "j") as journal, recorder(journal) as snapshots:
        assert not snapshots.round(5)
        os.kill(os.getpid(), number)
        assert snapshots.round(5)
        snapshots.take([lane(10)])
        pytest.fail("it went on")
    if ending is SystemExit:
        assert stopped.value.code == 143
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "stopped with 0 of 3 attempts finished" in line
    assert line.endswith("run the same command again to go on")
    assert_equal(begun(0, Journal(tmp_path / "j").load().parts["a"]), lane(10))


def test_a_signal_while_the_lanes_are_saved_is_not_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    append = Journal.append_parts

    def interrupted(self: Journal, parts: object) -> None:
        append(self, parts)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Journal, "append_parts", interrupted)
    with pytest.raises(SystemExit), Journal(tmp_path / "j") as journal, recorder(journal) as snapshots:
        snapshots.round(1)
        snapshots.take([lane(3)])
    assert_equal(begun(0, Journal(tmp_path / "j").load().parts["a"]), lane(3))


def test_a_signal_after_the_last_round_is_not_lost() -> None:
    with pytest.raises(SystemExit) as stopped, recorder(None) as snapshots:
        snapshots.round(1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143


def test_before_the_first_round_signals_act_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with recorder(None) as snapshots:
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        snapshots.round(1)
        assert signal.getsignal(signal.SIGTERM) != before[0]


def test_a_failure_inside_is_not_hidden_and_the_handlers_go(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyError, match="mine"), recorder(None) as snapshots:
        snapshots.round(1)
        raise KeyError("mine")


def test_signals_that_come_together_are_one_wish(clock: Clock) -> None:
    """As on a cluster, which signals every process of a job, and the supervisor passes its own on."""
    with Interruption() as interruption:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            clock.now += 0.3
        assert interruption.received == signal.SIGTERM
        with pytest.raises(SystemExit):
            interruption.end()


def test_a_second_signal_acts_at_once(clock: Clock) -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.received == signal.SIGINT
        clock.now += 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_without_a_signal_nothing_ends() -> None:
    with Interruption() as interruption:
        interruption.end()


def test_an_ignored_signal_stays_ignored() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.received is None
    finally:
        signal.signal(signal.SIGINT, previous)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen = []

    def run() -> None:
        with recorder(None) as snapshots:
            seen.append(snapshots.round(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]


# --- the line --------------------------------------------------------------------------------------------------------


def test_the_line_says_what_is_done_how_fast_and_how_long_it_takes(clock: Clock) -> None:
    progress = Progress("attempts", 10, lambda: ["more"])
    progress.count(40)
    clock.now += 5
    progress.count(100)
    assert progress.line() == "0 of 10 attempts, 20 tokens/s, more, time to go unknown"
    progress.finish(50)
    # 9 attempts of 50 tokens, less the 90 that are written: 360 at 20 a second.
    assert progress.line() == "1 of 10 attempts, 20 tokens/s, more, about 18 s to go"
    for _ in range(9):
        progress.finish(10)
    assert progress.line() == "10 of 10 attempts, 20 tokens/s, more, about 0 s to go"


def test_a_slow_rate_keeps_a_digit(clock: Clock) -> None:
    progress = Progress("attempts", 10)
    progress.count(1)
    clock.now += 10
    progress.count(4)
    assert "0.4 tokens/s" in progress.line()


def test_what_earlier_runs_made_counts_as_done_and_not_in_the_rate(clock: Clock) -> None:
    progress = Progress("attempts", 4)
    progress.resume(1000)
    progress.tokens_in_flight = 600
    progress.count(10)
    clock.now += 10
    progress.count(100)
    # 3 attempts of 1000 tokens, less 600 and 110.
    assert progress.line() == f"1 of 4 attempts, 10 tokens/s, about {229 // 60} min {229 % 60} s to go"


def test_attempts_longer_than_expected_make_the_time_unknown(clock: Clock) -> None:
    progress = Progress("attempts", 2)
    progress.count(10)
    progress.finish(10)
    clock.now += 10
    progress.count(10)
    assert progress.line().endswith("time to go unknown")


def test_the_rate_is_that_of_the_last_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress("attempts", 10)
    for second in range(300):
        progress.count(1000 if second < 200 else 50)
        clock.now += 1
    rates = [float(record.message.split(", ")[1].split()[0]) for record in caplog.records]
    assert len(rates) == 29
    assert rates[0] == 1000
    assert rates[-1] == 50


def test_a_line_comes_every_ten_seconds_and_one_at_the_end(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with recorder(None) as snapshots:
        for _ in range(100):
            snapshots.round(1)
            clock.now += 0.5
    assert len([record for record in caplog.records if "tokens/s" in record.message]) == 4 + 1


def test_the_fallback_rate_is_that_of_finished_attempts_and_of_lanes_in_flight() -> None:
    rate = FallbackRate()
    assert str(rate) == "fallback unknown"
    rate.finish(np.array([True, False, False, False]))
    assert str(rate) == "fallback on 25.00 % of tokens"
    flags = np.zeros(96, dtype=bool)
    rate.see([Unfinished(0, flags.astype(np.int32), flags, flags.astype(np.float32), flags.astype(np.float32))])
    assert str(rate) == "fallback on 1.00 % of tokens"
    # Finished: no longer in flight, or its tokens would count twice.
    rate.finish(flags, 0)
    assert str(rate) == "fallback on 1.00 % of tokens"


def test_the_solved_share_is_that_of_finished_attempts_with_a_usable_reference() -> None:
    solved = SolvedShare(FORMAT)
    assert str(solved) == "solved - (0 graded)"
    solved.add("so</think>\\boxed{42}<|im_end|>", "42")
    solved.add("so</think>\\boxed{\\frac12}", "1/2")
    solved.add("so</think>\\boxed{7}", "42")
    solved.add("no box</think>", "42")
    solved.add("so</think>\\boxed{7}", "a proof that there are infinitely many prime numbers of this very form")
    solved.add("so</think>\\boxed{7}", "")
    solved.catch_up(60)
    solved.close()
    assert str(solved) == "solved 50.0 % (4 graded, 2 without a usable reference)"


def test_a_slow_grader_delays_no_one(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(module, "grade", lambda *_: release.wait(60))
    solved = SolvedShare(FORMAT)
    start = time.monotonic()
    for _ in range(3):
        solved.add("</think>\\boxed{1}", "1")
    solved.catch_up(0.1)
    assert str(solved) == "solved - (0 graded)"
    solved.close()
    assert time.monotonic() - start < 5
    release.set()


def test_a_failing_grader_stops_nothing_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError("math-verify cannot be started")

    monkeypatch.setattr(module, "grade", fail)
    solved = SolvedShare(FORMAT)
    for _ in range(3):
        solved.add("</think>\\boxed{1}", "1")
    solved.catch_up(60)
    solved.close()
    assert str(solved) == "solved - (0 graded)"
    assert caplog.text.count("math-verify cannot be started") == 1
