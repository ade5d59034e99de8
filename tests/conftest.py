"""For all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell starts background jobs with Ctrl-C ignored; the tests send it, and must be heard."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
