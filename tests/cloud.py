"""An imitation of an S3 bucket and of a Kubernetes API server on loopback: what is submitted is kept."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "rsd-tests"


@dataclass
class Cloud:
    """Where it listens, the bucket's objects by key, and the Kubernetes jobs and secrets that were asked for."""

    address: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    secrets: list[dict[str, Any]] = field(default_factory=list)

    def write_kubeconfig(self, path: Path) -> Path:
        """The file that KUBECONFIG names; JSON is YAML."""
        named = {
            "clusters": [{"name": "here", "cluster": {"server": self.address}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        }
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "here", **named}))
        return path


@contextmanager
def cloud() -> Iterator[Cloud]:
    """A running imitation; every job that is submitted fails at once."""
    state = Cloud()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _handler(state: Cloud) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, query = self.where()
            if path.startswith("/api"):
                self.kubernetes_get(path)
            elif path.strip("/") == BUCKET:
                self.answer(200, _listing(state, query.get("prefix", [""])[0]), "application/xml")
            else:
                self.object(path)

        do_HEAD = do_GET  # noqa: N815

        def do_PUT(self) -> None:
            path, _ = self.where()
            content = self.content()
            if path.strip("/") != BUCKET:
                state.objects[path.removeprefix(f"/{BUCKET}/")] = content
            self.answer(200, b"", "application/xml", ETag=f'"{hashlib.md5(content).hexdigest()}"')

        def do_POST(self) -> None:
            path, _ = self.where()
            body = json.loads(self.content())
            {"jobs": state.jobs, "secrets": state.secrets}[path.rsplit("/", 1)[1]].append(body)
            self.answer(201, json.dumps(body).encode(), "application/json")

        def do_DELETE(self) -> None:
            self.content()
            self.answer(200, b"{}", "application/json")

        def kubernetes_get(self, path: str) -> None:
            if path.endswith("/status"):
                self.answer(200, json.dumps({"status": {"failed": 1}}).encode(), "application/json")
            elif path.endswith("/pods"):
                self.answer(200, b'{"items": []}', "application/json")
            else:
                self.answer(404, b"{}", "application/json")

        def object(self, path: str) -> None:
            content = state.objects.get(path.removeprefix(f"/{BUCKET}/"))
            if path.strip("/") == BUCKET or content is not None:
                self.answer(200, content or b"", "binary/octet-stream", ETag='"0"')
            else:
                self.answer(404, b"", "application/xml")

        def where(self) -> tuple[str, dict[str, list[str]]]:
            parts = urlsplit(self.path)
            return unquote(parts.path), parse_qs(parts.query)

        def content(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def answer(self, status: int, content: bytes, kind: str, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Last-Modified", formatdate(usegmt=True))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


def _listing(state: Cloud, prefix: str) -> bytes:
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>0</ETag><Size>{len(content)}</Size></Contents>"
        for key, content in sorted(state.objects.items())
        if key.startswith(prefix)
    )
    head = f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>"
    return f'<?xml version="1.0"?><ListBucketResult>{head}{entries}</ListBucketResult>'.encode()
