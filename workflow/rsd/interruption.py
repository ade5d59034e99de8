"""SIGTERM and Ctrl-C, remembered until it is a good time to end: after a round of decoding, or a training step."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

# Signals that come together are one wish.
ONE_WISH_SECONDS = 1.0


class Interruption:
    """Remembers SIGTERM and Ctrl-C until it is a good time to end; a second one acts at once.

    A cluster sends SIGTERM to every process of a job and `supervise` passes its own on, so a second one within
    ONE_WISH_SECONDS is still the first wish.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._heard = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def listen(self) -> None:
        """From now on signals are remembered; in the main thread alone, since Python allows no other."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            # Who starts a job with a signal ignored wants it ignored.
            if number not in self._previous and signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._hear)

    def leave(self) -> None:
        """From now on signals do what they did before `listen`."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def end(self) -> None:
        """Ends the process for the signal that was received, if any: KeyboardInterrupt, or SystemExit with 128 + its
        number."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._heard = number, now
        elif now - self._heard > ONE_WISH_SECONDS:
            self.leave()
            os.kill(os.getpid(), number)
