"""One HTTP request: an address -> status, headers and body, within a time limit. Standard library alone.

For what has to work where Snakemake runs, with none of the pipeline's packages, and for addresses that a user names. A
secret in a header goes to the host that was named and to no other, and no message holds one.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class Answer:
    """What a server said; the names of `headers` are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def ask(url: str, *, headers: Mapping[str, str], data: bytes | None = None, timeout_s: float) -> Answer:
    """GETs `url`, or POSTs `data` to it; any status is an answer.

    Raises ConnectionError naming the host, where there is no network, no server, no answer within `timeout_s` seconds,
    or one of more than MOST_BYTES.
    """
    deadline = time.monotonic() + timeout_s
    request = urllib.request.Request(url, data=data, headers=dict(headers))
    try:
        try:
            response = _OPENER.open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            return Answer(
                int(response.status or 0),
                {name.lower(): value for name, value in response.headers.items()},
                _read(response, deadline),
            )
    except TimeoutError:
        raise ConnectionError(f"{host(url)} gave no answer within {timeout_s:g} s") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise ConnectionError(f"{host(url)} gave no answer within {timeout_s:g} s") from None
        raise ConnectionError(f"{host(url)} cannot be reached ({error.reason})") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConnectionError(f"{host(url)} broke off ({type(error).__name__})") from None


def host(url: str) -> str:
    """Scheme, host and port of an address: no name, password or path."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _read(response: Any, deadline: float) -> bytes:
    # The limit of the socket holds for one read; a server that sends a byte now and then would never meet it.
    blocks, size = [], 0
    while block := response.read1(1 << 16):
        blocks.append(block)
        size += len(block)
        if size > MOST_BYTES:
            raise ValueError("too long")
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(blocks)


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows no redirect to another host, since the headers would go there, too; such an answer stays as it is."""

    def redirect_request(
        self, request: urllib.request.Request, file: Any, code: int, message: str, headers: Any, address: str
    ) -> urllib.request.Request | None:
        if request.data is not None or host(address) != host(request.full_url):
            return None
        return super().redirect_request(request, file, code, message, headers, address)


_OPENER = urllib.request.build_opener(_SameHost)
