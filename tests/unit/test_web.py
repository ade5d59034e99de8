"""One HTTP request: its time limit holds, and what is secret goes to no other host and into no message."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from rsd import web
from rsd.web import ask, host

SECRET = {"Authorization": "Bearer secretSecret"}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextmanager
def serving(*behaviours: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server whose n-th connection behaves as the n-th of `behaviours`; its address and what it was sent."""
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            for behave in behaviours:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    seen.append(connection.recv(1 << 16))
                    try:
                        behave(connection)
                    except OSError:
                        continue

        threading.Thread(target=run, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", seen


def says(text: str) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(text.replace("\n", "\r\n").encode())


def test_status_headers_and_body_come_back_whatever_the_status() -> None:
    for status in (200, 404, 503):
        with serving(says(f"HTTP/1.1 {status} x\nX-Error-Code: Y\nContent-Length: 2\n\nhi")) as (url, _):
            answer = ask(url, headers={}, timeout_s=5)
        assert (answer.status, answer.headers["x-error-code"], answer.body) == (status, "Y", b"hi")


def test_data_is_posted_with_the_headers() -> None:
    with serving(says("HTTP/1.1 200 x\nContent-Length: 0\n\n")) as (url, seen):
        ask(f"{url}/path", headers=SECRET, data=b"{}", timeout_s=5)
    assert seen[0].startswith(b"POST /path HTTP/1.1")
    assert b"Authorization: Bearer secretSecret" in seen[0]


def drips(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 x\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(200):
        connection.sendall(b"x")
        time.sleep(0.05)


@pytest.mark.parametrize("behave", [lambda connection: time.sleep(5), drips], ids=["silent", "dripping"])
def test_a_server_that_takes_too_long_is_left(behave: Callable[[socket.socket], None]) -> None:
    start = time.monotonic()
    with (
        serving(behave) as (url, _),
        pytest.raises(ConnectionError, match=r"127\.0\.0\.1.* gave no answer within 0\.3 s"),
    ):
        ask(url, headers=SECRET, timeout_s=0.3)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    "behave",
    [
        lambda connection: None,
        says("no http at all\n\n"),
        says("HTTP/1.1 200 x\nTransfer-Encoding: chunked\n\nzz\n"),
    ],
    ids=["closed", "not http", "bad chunks"],
)
def test_a_server_that_speaks_no_http_is_an_error_that_names_it(behave: Callable[[socket.socket], None]) -> None:
    with serving(behave) as (url, _), pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:\d+ ") as caught:
        ask(url, headers=SECRET, timeout_s=5)
    assert "secretSecret" not in str(caught.value)


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MOST_BYTES", 100)
    with (
        serving(says("HTTP/1.1 200 x\n\n" + "x" * 10000)) as (url, _),
        pytest.raises(ConnectionError, match="broke off"),
    ):
        ask(url, headers={}, timeout_s=5)


def test_an_address_or_header_that_cannot_be_sent_is_an_error_without_what_is_secret() -> None:
    for header in ("secret\nSecret", "secret\N{SNOWMAN}"):
        with pytest.raises(ConnectionError) as caught:
            ask("http://127.0.0.1:9", headers={"Authorization": header}, timeout_s=1)
        assert "secret" not in str(caught.value)


def moved(address: str) -> Callable[[socket.socket], None]:
    return says(f"HTTP/1.1 302 x\nLocation: {address}\nContent-Length: 0\nConnection: close\n\n")


def test_a_redirect_is_followed_on_the_same_host_alone_and_never_with_data() -> None:
    hello = says("HTTP/1.1 200 x\nContent-Length: 2\nConnection: close\n\nhi")
    with serving(moved("/other"), hello) as (url, seen):
        assert ask(url, headers=SECRET, timeout_s=5).body == b"hi"
        assert seen[1].startswith(b"GET /other")
    with serving(hello) as (elsewhere, theirs):
        with serving(moved(elsewhere)) as (url, _):
            assert ask(url, headers=SECRET, timeout_s=5).status == 302
        assert theirs == []
    with serving(moved("/other"), hello) as (url, seen):
        assert ask(url, headers=SECRET, data=b"{}", timeout_s=5).status == 302
        assert len(seen) == 1


def test_a_host_has_no_name_password_or_path() -> None:
    assert host("https://user:password@hub.example:8443/api?key=secret") == "https://hub.example:8443"
    assert host("https://hub.example/x") == "https://hub.example"
