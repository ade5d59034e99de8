"""A headless Chromium, driven over two pipes (--remote-debugging-pipe): JSON messages that end with a zero byte.

Only what the tests of the page need: open a file, run JavaScript in it, press keys, click, emulate a screen, and keep
what the page said, asked for and threw.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_CHROMIUM = "no chromium here (Debian: apt-get install chromium)"
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)
TIMEOUT = 120.0  # seconds

Message = dict[str, Any]


class Page:
    """One page of a headless Chromium with a profile of its own in `folder`; a context manager."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM, NO_CHROMIUM
        # The browser reads from descriptor 3 and writes to 4; ours are moved out of their way.
        (ours_in, theirs_out), (theirs_in, ours_out) = os.pipe(), os.pipe()
        theirs_in, theirs_out = (_moved_up(descriptor) for descriptor in (theirs_in, theirs_out))
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out} {theirs_in}<&- {theirs_out}>&-'
        command = ["bash", "-c", script, CHROMIUM, *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(
            command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.reader, self.writer = ours_in, ours_out
        self.buffer = b""
        self.number = 0
        self.session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.session = None
        try:
            self.call("Browser.close")
        except (OSError, EOFError, TimeoutError):
            self.process.kill()
        self.process.wait(timeout=30)
        os.close(self.reader)
        os.close(self.writer)

    # --- messages ---

    def call(self, method: str, **parameters: Any) -> Message:
        """Calls a method of the protocol and returns its result; RuntimeError where the browser refuses it."""
        self.number += 1
        message: Message = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> Message:
        """The next message, noted where it is an event."""
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self.buffer:
            if not select.select([self.reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the browser said nothing for two minutes")
            chunk = os.read(self.reader, 1 << 16)
            if not chunk:
                raise EOFError("the browser is gone")
            self.buffer += chunk
        text, _, self.buffer = self.buffer.partition(b"\0")
        message: Message = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, event: Message) -> None:
        match method:
            case "Runtime.exceptionThrown":
                details = event["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled":
                self.errors.append(f"console.{event['type']}: {[argument.get('value') for argument in event['args']]}")
            case "Log.entryAdded":
                self.errors.append(f"{event['entry']['level']}: {event['entry']['text']}")
            case "Page.javascriptDialogOpening":
                self.errors.append(f"dialog: {event['message']}")
            case "Network.requestWillBeSent":
                self.requests.append(event["request"]["url"])
            case "Page.loadEventFired":
                self.loaded = True

    # --- what a reader does ---

    def open(self, path: Path) -> None:
        """Opens a file from disk and waits until it is loaded."""
        self.loaded = False
        self.errors, self.requests = [], []
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self.loaded:
            self._next()

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; RuntimeError where it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screen(self, width: int, height: int, *, scale: float = 1.0, mobile: bool = False) -> None:
        """A screen of that many CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )

    def media(self, *, scheme: str = "light", kind: str = "") -> None:
        """Light or dark; `kind` print for paper."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=kind, features=features)

    def scripting(self, on: bool) -> None:
        """Whether the next page may run scripts."""
        self.call("Emulation.setScriptExecutionDisabled", value=not on)

    def click(self, selector: str, index: int = 0) -> None:
        """Clicks in the middle of an element, with the mouse; it is scrolled into view first."""
        found = f"document.querySelectorAll({json.dumps(selector)})[{index}]"
        box = self.run(
            f"(() => {{ const e = {found}; e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def point(self, selector: str, index: int = 0) -> None:
        """Moves the mouse to the middle of an element; it is scrolled into view first."""
        found = f"document.querySelectorAll({json.dumps(selector)})[{index}]"
        box = self.run(
            f"(() => {{ const e = {found}; e.scrollIntoView({{block: 'center'}}); const b = e.getClientRects()[0]; "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def press(self, *keys: str) -> None:
        """Presses keys by their names (ArrowDown, Tab, Enter, ...)."""
        codes = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}
        codes |= {"ArrowDown": 40, "PageDown": 34, "PageUp": 33, " ": 32}
        for key in keys:
            text = {"Enter": "\r", " ": " "}.get(key)
            common = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
            self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Writes into what has the focus."""
        self.call("Input.insertText", text=text)

    def wait_for(self, expression: str, seconds: float = 20.0) -> None:
        """Until a JavaScript expression is true; TimeoutError after so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.run(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(expression)
            time.sleep(0.05)

    def screenshot(self, path: Path, *, whole: bool = False, selector: str | None = None) -> None:
        """Writes what is to be seen as PNG: the screen, the whole page, or one element with its margins."""
        options: Message = {"captureBeyondViewport": whole or selector is not None}
        if selector is not None:
            box = self.run(
                f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); return "
                "{x: 0, y: b.y + scrollY, width: innerWidth, height: b.height, scale: 1}; })()"
            )
            options["clip"] = box
        elif whole:
            size = self.run("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
            options["clip"] = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", **options)["data"]
        path.write_bytes(base64.b64decode(data))

    def print(self, path: Path) -> None:
        """Prints the page to a PDF."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"]))


def _moved_up(descriptor: int) -> int:
    """The same descriptor under a number of at least 10."""
    moved: Callable[..., int] = fcntl.fcntl
    number = moved(descriptor, fcntl.F_DUPFD, 10)
    os.close(descriptor)
    return number
