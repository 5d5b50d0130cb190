"""A headless Chromium, spoken to over its debugging pipe: no driver, no network."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-extensions",
    ),
    *("--remote-debugging-pipe", "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"),
)
KEYS = {
    "ArrowRight": 39,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowDown": 40,
    "n": 78,
    "p": 80,
    "Home": 36,
    "End": 35,
    "Tab": 9,
    "Enter": 13,
}


def executable() -> str | None:
    """Chromium's path; None where there is none."""
    named = os.environ.get("CHROMIUM")
    return (
        named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    )


@contextlib.contextmanager
def installed_browser() -> Iterator["Tab"]:
    """A tab of the Chromium that is installed; without one the test is skipped."""
    path = executable()
    if path is None or not Path(path).exists():
        pytest.skip("there is no Chromium: install it, or name it in $CHROMIUM")
    with browser(path) as found:
        yield found


def require_fit(tab: "Tab", width: int, dark: bool) -> None:
    """Asserts that the open page is as wide as the window, in the colours that were asked for."""
    assert tab.run("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(18, 22, 26)" if dark else "rgb(255, 255, 255)")


class Tab:
    """One open page. `requested` are the addresses that it asked for."""

    def __init__(self, write: int, read: int):
        self._write, self._read = os.fdopen(write, "wb", 0), os.fdopen(read, "rb")
        self._number, self._session, self.events = 0, None, list[dict[str, Any]]()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send(
            "Network.emulateNetworkConditions",
            offline=True,
            latency=0,
            downloadThroughput=0,
            uploadThroughput=0,
        )

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        said = {"id": self._number, "method": method, "params": params}
        said |= {"sessionId": self._session} if self._session else {}
        self._write.write(json.dumps(said).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a file at a width of the window, and wait until it is there."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send(
            "Emulation.setEmulatedMedia",
            features=[theme, {"name": "prefers-reduced-motion", "value": "reduce"}],
        )
        self.events.clear()
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    @property
    def requested(self) -> list[str]:
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    @property
    def complaints(self) -> list[str]:
        """What the console says of errors: blocked scripts, exceptions."""
        logged = [
            event["params"]["entry"]["text"]
            for event in self.events
            if event.get("method") == "Log.entryAdded"
        ]
        thrown = [
            str(event["params"]) for event in self.events if event.get("method") == "Runtime.exceptionThrown"
        ]
        return logged + thrown

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def screenshot(self, path: Path, whole: bool = True) -> None:
        found = self.send(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=whole,
            **({"clip": self._all()} if whole else {}),
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def _all(self) -> dict[str, Any]:
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def _next(self) -> dict[str, Any]:
        found = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser is gone")
            found += byte
        return json.loads(found)


@contextlib.contextmanager
def browser(path: str) -> Iterator[Tab]:
    """The browser at `path`, with a profile of its own, until leaving."""
    to_it, from_it = os.pipe(), os.pipe()

    def as_three_and_four() -> None:
        ends = os.dup(to_it[0]), os.dup(from_it[1])  # not on the places to be taken
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={profile}"],
            preexec_fn=as_three_and_four, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_it[0])
        os.close(from_it[1])
        try:
            yield Tab(to_it[1], from_it[0])
        finally:
            process.terminate()
            process.wait(10)
