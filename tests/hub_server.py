"""A hub on 127.0.0.1 that speaks as much of the real one's HTTP as a download needs, and fails on demand.

Large files (`lfs`) are redirected to a second port, as the real hub redirects them to a CDN.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One repository with one commit; `branches` name it."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    branches: tuple[str, ...] = ("main",)
    lfs: tuple[str, ...] = ()
    gated: bool = False
    terms_accepted: bool = True  # by the owner of the hub's token
    card: dict[str, Any] | None = None


@dataclass
class FakeHub:
    """`repositories` is keyed like the API's paths: models/ORG/NAME or datasets/ORG/NAME."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "hf_secretSecretSecret"
    cut_at: dict[str, int] = field(default_factory=dict)  # name -> the connection ends before this byte
    wire: int | None = None  # so many bytes still leave, headers included, then every connection is cut
    when_cut: Callable[[], None] = lambda: None
    served_instead: dict[str, bytes] = field(default_factory=dict)
    fail_with: list[int] = field(default_factory=list)  # statuses of the next answers
    requests: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> FakeHub:
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self)) for _ in range(2)]
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.address, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def downloads(self) -> list[dict[str, Any]]:
        """The requests that asked for a file's content."""
        return [request for request in self.requests if request["file"] and not request["redirected"]]


class _Wire:
    """What a connection sends, until the hub's wire is cut."""

    def __init__(self, file: Any, hub: FakeHub) -> None:
        self.file, self.hub = file, hub

    def write(self, data: bytes) -> int:
        if self.hub.wire is None:
            return self.file.write(data)
        sent, self.hub.wire = data[: self.hub.wire], max(self.hub.wire - len(data), 0)
        self.file.write(sent)
        if len(sent) < len(data):
            self.hub.when_cut()
            raise ConnectionAbortedError("cut")
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def setup(self) -> None:
            super().setup()
            self.wfile = _Wire(self.wfile, hub)  # type: ignore[assignment]

        def handle(self) -> None:
            # A client that was killed needs no traceback.
            with contextlib.suppress(ConnectionError):
                super().handle()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            self.record: dict[str, Any] = {
                "path": path,
                "port": self.server.server_port,  # type: ignore[attr-defined]
                "range": self.headers.get("Range"),
                "authorization": self.headers.get("Authorization"),
                "file": None,
                "redirected": False,
            }
            hub.requests.append(self.record)
            if hub.fail_with:
                return self.answer(hub.fail_with.pop(0), b"{}")
            if path.startswith("/api/"):
                return self.describe(path.removeprefix("/api/"))
            return self.download(path)

        def describe(self, path: str) -> None:
            if path.endswith("/auth-check"):
                return self.check(path.removesuffix("/auth-check"))
            name, _, revision = path.partition("/revision/")
            repository = hub.repositories.get(name)
            if repository is None:
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if revision and revision not in (*repository.branches, repository.commit):
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            files = []
            for file, content in repository.files.items():
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                entry: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": blob}
                if file in repository.lfs:
                    sha = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 130}
                files.append(entry)
            body = {"id": name.partition("/")[2], "sha": repository.commit, "siblings": files, "private": False}
            return self.answer(200, json.dumps(body | {"cardData": repository.card, "downloads": 0}).encode())

        def check(self, name: str) -> None:
            """May whoever asks read the repository?"""
            repository, token = hub.repositories.get(name), self.headers.get("Authorization")
            if token not in (None, f"Bearer {hub.token}"):
                return self.answer(401, f"no such token: {token}".encode())
            if repository is None:
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if repository.gated and token is None:
                return self.answer(401, b"{}", {"X-Error-Code": "GatedRepo"})
            if repository.gated and not repository.terms_accepted:
                return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            return self.answer(200, b"{}")

        def download(self, path: str) -> None:
            place, _, rest = path.strip("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            repository = hub.repositories[place if place.startswith("datasets/") else f"models/{place}"]
            self.record["file"] = file
            if repository.gated and self.on_hub() and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer(401, b"", {"X-Error-Code": "GatedRepo"})
            assert revision == repository.commit, "files must be asked for by commit"
            if file in repository.lfs and self.on_hub():
                self.record["redirected"] = True
                return self.answer(302, b"", {"Location": f"{hub.cdn}{self.path}?signature=signedSigned"})
            return self.send_file(file, hub.served_instead.get(file, repository.files[file]))

        def send_file(self, file: str, content: bytes) -> None:
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            end = min(len(content), hub.cut_at.get(file, len(content)))
            self.wfile.write(content[start:end])
            self.close_connection = end < len(content)

        def on_hub(self) -> bool:
            return self.record["port"] == hub._servers[0].server_port

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler
