"""A server on 127.0.0.1 that speaks as much of OpenAI's chat completions as a judge needs, and fails on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | None


def always_correct(asked: str) -> Reply:
    return "CORRECT"


@dataclass
class FakeJudge:
    """`reply` makes the answer from the user's message; the first of `faults` is done instead, once each.

    A fault is a status, bytes to send as a 200, `hang`, `cut` (the connection ends in the middle), or `redirect`.
    """

    reply: Callable[[str], Reply] = always_correct
    key: str | None = None
    faults: list[int | bytes | str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)  # of answers that are faults
    error_body: bytes = b'{"error": "no"}'
    elsewhere: str = ""  # where `redirect` leads
    delay_s: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0

    def __enter__(self) -> FakeJudge:
        self._lock, self._now, self._over = threading.Lock(), 0, threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def take_fault(self) -> int | bytes | str | None:
        with self._lock:
            return self.faults.pop(0) if self.faults else None


def _handler(judge: FakeJudge) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with judge._lock:
                judge.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
                judge._now += 1
                judge.most_at_once = max(judge.most_at_once, judge._now)
            try:
                time.sleep(judge.delay_s)
            finally:
                # Before the answer, which lets the client ask again.
                with judge._lock:
                    judge._now -= 1
            self.respond(body)

        def respond(self, body: dict[str, Any]) -> None:
            fault = judge.take_fault()
            if fault == "hang":
                judge._over.wait(30)
                self.close_connection = True
            elif fault == "cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.close_connection = True
            elif fault == "redirect":
                self.answer(302, b"", {"Location": judge.elsewhere})
            elif isinstance(fault, int):
                self.answer(fault, judge.error_body, judge.headers)
            elif isinstance(fault, bytes):
                self.answer(200, fault)
            elif judge.key is not None and self.headers.get("Authorization") != f"Bearer {judge.key}":
                # As some real ones do, it repeats what it was sent.
                self.answer(401, f"no such key: {self.headers.get('Authorization')}".encode())
            else:
                content = judge.reply(body["messages"][-1]["content"])
                message = {"choices": [{"message": {"role": "assistant", "content": content}}]}
                self.answer(200, json.dumps(message).encode())

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler
