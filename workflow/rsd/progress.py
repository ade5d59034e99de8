"""Makes a long generation durable and says how far it is: shared by traces and evaluation.

The decoder tells a `Recorder` of every round and shows it the lanes when it asks. What they have written since the last
time goes to the journal twice a minute and at SIGTERM or Ctrl-C, which then end the process; the next run goes on from
there (`begun`). A line in the log says rate, remaining time, and what the caller adds to it.
"""

from __future__ import annotations

import base64
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd.decode import Completion, Unfinished
from rsd.formatting import duration
from rsd.grading import grade, is_gradable
from rsd.interruption import Interruption
from rsd.journal import Journal, Part
from rsd.prompts import extract_answer
from rsd.supervise import GO_ON

LOG = logging.getLogger(__name__)
# A minute at most is promised to be lost; a round may take some seconds, and on slow machines many.
FLUSH_SECONDS = 30.0
REPORT_SECONDS = 10.0
# The rate is that of so many reports back: a minute, or longer where a round takes longer than REPORT_SECONDS.
RATE_REPORTS = 6
GRADING_SECONDS = 5.0


# --- what is saved of an attempt -------------------------------------------------------------------------------------

# How an array of a completion is laid out in the journal: exact bits, base64.
COLUMNS = {"tokens": "<i4", "fallback": "|b1", "p_student": "<f4", "p_teacher": "<f4"}


def pack(written: Completion | Unfinished, start: int = 0) -> dict[str, str]:
    """The arrays of an attempt from token `start` on, as text."""
    return {
        name: base64.b64encode(getattr(written, name)[start:].astype(dtype).tobytes()).decode()
        for name, dtype in COLUMNS.items()
    }


def unpack(content: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The arrays that `pack` made text of."""
    return {name: np.frombuffer(base64.b64decode(content[name]), dtype=dtype) for name, dtype in COLUMNS.items()}


def begun(index: int, parts: Sequence[Part]) -> Unfinished | None:
    """What an earlier run had written of a request, from the parts in the journal; None where that is nothing."""
    if not parts:
        return None
    pieces = [unpack(part.content) for part in parts]
    return Unfinished(index, **{name: np.concatenate([piece[name] for piece in pieces]) for name in COLUMNS})


# --- the line in the log ---------------------------------------------------------------------------------------------


class Progress:
    """How far a generation is: a line every REPORT_SECONDS.

    `noun` names what is made, `total` how many there will be, `details` gives more parts of the line. What earlier runs
    finished is told by `resume`, what they began by `tokens_in_flight`; both count as done, and not in the rate.
    """

    def __init__(self, noun: str, total: int, details: Callable[[], list[str]] = list) -> None:
        self.noun, self.total, self.details = noun, total, details
        self.finished = 0
        self.finished_tokens = 0
        self.tokens_in_flight = 0
        self.emitted = 0  # by this run
        # (when, emitted by then); it begins with the first round, since before it models load and prompts are read.
        self.reports: deque[tuple[float, int]] = deque(maxlen=RATE_REPORTS)

    def resume(self, length: int) -> None:
        """An earlier run has finished an attempt of this many tokens."""
        self.finished += 1
        self.finished_tokens += length

    def count(self, emitted: int) -> None:
        """After each round: so many tokens were written in it."""
        self.emitted += emitted
        self.tokens_in_flight += emitted
        if not self.reports:
            self.reports.append((time.monotonic(), emitted))
        elif time.monotonic() - self.reports[-1][0] >= REPORT_SECONDS:
            self.report()

    def finish(self, length: int) -> None:
        """An attempt is finished; the last of its tokens may be counted right after."""
        self.resume(length)
        self.tokens_in_flight -= length

    def report(self) -> None:
        """Logs the line."""
        LOG.info("%s", self.line())
        self.reports.append((time.monotonic(), self.emitted))

    def line(self) -> str:
        """`12 of 30 attempts, 345 tokens/s, about 3 min 20 s to go`, with the details before the last part."""
        left = self.remaining_seconds()
        return ", ".join(
            [
                f"{self.finished} of {self.total} {self.noun}",
                f"{self.rate():.{0 if self.rate() >= 10 else 1}f} tokens/s",
                *self.details(),
                "time to go unknown" if left is None else f"about {duration(left)} to go",
            ]
        )

    def rate(self) -> float:
        """Tokens a second, of late."""
        if not self.reports:
            return 0.0
        then, emitted = self.reports[0]
        return (self.emitted - emitted) / max(time.monotonic() - then, 1e-9)

    def remaining_seconds(self) -> float | None:
        """By the mean length of what is finished; None where that says nothing.

        That is before the first has finished, and where those in flight are already longer than expected.
        """
        left = self.total - self.finished
        if not left:
            return 0.0
        if not self.finished or not self.rate():
            return None
        tokens = self.finished_tokens / self.finished * left - self.tokens_in_flight
        return tokens / self.rate() if tokens > 0 else None


class FallbackRate:
    """The share of tokens by fallback: of what is finished, and of what was in flight when it was last saved."""

    def __init__(self) -> None:
        self.tokens = self.fallback = 0
        self._in_flight: dict[int, tuple[int, int]] = {}

    def finish(self, fallback: NDArray[np.bool_], index: int = -1) -> None:
        """Adds a finished attempt's flags; `index` is that of its request, if this run made it."""
        self.tokens += len(fallback)
        self.fallback += int(fallback.sum())
        self._in_flight.pop(index, None)

    def see(self, lanes: Sequence[Unfinished]) -> None:
        """Takes the flags of what is in flight."""
        self._in_flight = {lane.index: (len(lane.fallback), int(lane.fallback.sum())) for lane in lanes}

    def __str__(self) -> str:
        counts = np.array([(self.tokens, self.fallback), *self._in_flight.values()]).sum(axis=0)
        return f"fallback on {100 * counts[1] / counts[0]:.2f} % of tokens" if counts[0] else "fallback unknown"


class SolvedShare:
    """The share of finished attempts whose answer equals the reference, graded beside the generation, in a thread.

    For the eye alone: selection grades anew. An answer that keeps the grader busy delays no token, and a grader that
    fails stops nothing but this number; problems without a reference that rules can compare are left out, and counted.
    """

    def __init__(self, format: Mapping[str, Any]) -> None:
        self.format = format
        self.right = self.graded = self.without_reference = 0
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None
        self._failed = False

    def add(self, text: str, reference: str | None) -> None:
        """Has an attempt graded, some time soon."""
        if not reference or not is_gradable(reference):
            self.without_reference += 1
        else:
            self._last = self._pool.submit(self._grade, text, reference)

    def _grade(self, text: str, reference: str) -> None:
        if self._failed:
            return
        try:
            self.right += grade(extract_answer(text, self.format), reference)
            self.graded += 1
        # A number in the log must not cost a trace.
        except Exception as error:
            self._failed = True
            LOG.warning("no more attempts are graded for the solved share: %s", error)

    def catch_up(self, seconds: float) -> None:
        """Until all are graded, but no longer than that."""
        if self._last is not None:
            wait([self._last], timeout=seconds)

    def close(self) -> None:
        """Gives up what is not graded yet."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __str__(self) -> str:
        share = f"{100 * self.right / self.graded:.1f} %" if self.graded else "-"
        without = f", {self.without_reference} without a usable reference" if self.without_reference else ""
        return f"solved {share} ({self.graded} graded{without})"


# --- the decoder's listener ------------------------------------------------------------------------------------------


class Recorder:
    """Saves what the lanes have written (the decoder's `Snapshots`) and ends the process at a signal.

    Use as a context manager around the decoding. `keys`: the journal's key of every request, by its index; `saved`: how
    many tokens of a request the journal has already; `see` gets the lanes too. Without a journal nothing is saved.
    Signals are remembered from the first round on: before it there is nothing to lose, and they act at once.
    """

    def __init__(
        self,
        journal: Journal | None,
        keys: Sequence[str],
        saved: Mapping[int, int],
        progress: Progress,
        see: Callable[[Sequence[Unfinished]], None] | None = None,
    ) -> None:
        self.journal, self.keys, self.saved, self.progress, self.see = journal, keys, dict(saved), progress, see
        self.interruption = Interruption()
        self._flushed: float | None = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.interruption.leave()
        if error is None:
            self.progress.report()
            # A signal that came after the last round.
            self._stop_if_asked()

    def round(self, emitted: int) -> bool:
        """Counts the tokens of a round; whether it is time to save."""
        now = time.monotonic()
        if self._flushed is None:
            self.interruption.listen()
            self._flushed = now
        self.progress.count(emitted)
        return self.interruption.received is not None or now - self._flushed >= FLUSH_SECONDS

    def take(self, lanes: Sequence[Unfinished]) -> None:
        """Saves what the lanes have written since the last time, then ends the process if a signal has come."""
        parts = []
        for lane in lanes:
            start, stop = self.saved.get(lane.index, 0), len(lane.tokens)
            if start < stop:
                parts.append((self.keys[lane.index], Part(start, stop, pack(lane, start))))
                self.saved[lane.index] = stop
        if self.journal is not None:
            self.journal.append_parts(parts)
        if self.see is not None:
            self.see(lanes)
        self._flushed = time.monotonic()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.interruption.received is None:
            return
        LOG.warning(
            "stopped with %d of %d %s finished; what is written of the others is %s; %s",
            *(self.progress.finished, self.progress.total, self.progress.noun),
            *("saved" if self.journal is not None else "lost", GO_ON),
        )
        self.interruption.end()
