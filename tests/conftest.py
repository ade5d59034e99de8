"""For all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest


def pytest_configure() -> None:
    """A shell starts background jobs with Ctrl-C ignored; the tests send it, and must be heard."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def variables_as_they_were() -> Iterator[None]:
    """Stages set variables of their process (the hub is switched off); the next test must not inherit them."""
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models are slower on several threads, most of all where tests share a machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
