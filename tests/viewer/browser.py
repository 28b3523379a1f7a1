"""A headless Chromium that opens the viewer and does what a person does."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROGRAM = os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, NAMES) if path), None)
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium; install one or name it in CHROMIUM"),
]


class Browser:
    """One page of a fresh profile. Use as a context manager."""

    def __init__(self, profile: Path, *, width: int, height: int):
        """Start the program with software WebGL and open an empty page."""
        from websockets.sync.client import connect

        self.requests: list[str] = []
        self.complaints: list[str] = []  # errors and warnings of the console, exceptions
        self._numbers = itertools.count(1)
        flags = (
            "--headless=new --no-sandbox --disable-dev-shm-usage --no-first-run --use-angle=swiftshader"
            " --enable-unsafe-swiftshader --hide-scrollbars --disable-extensions --disable-background-networking"
            f" --disable-component-update --disable-sync --window-size={width},{height} --remote-debugging-port=0"
        )
        command = [PROGRAM, *flags.split(), f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port_file = profile / "DevToolsActivePort"
            wait_for(lambda: port_file.exists() and port_file.read_text().count("\n"), what="Chromium's port")
            port, path = port_file.read_text().split("\n")[:2]
            self._socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, open_timeout=30, close_timeout=1)
            self._session = None
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log"):
                self.call(f"{domain}.enable")
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            self.call("Emulation.setDeviceMetricsOverride", **size)
        except BaseException:
            self._process.kill()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def call(self, method: str, **params):
        """Send a command and return its result; requests seen meanwhile are noted."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("method") in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                seen = answer["params"]
                self.requests.append(seen["request"]["url"] if "request" in seen else seen["url"])
            self._note(answer)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _note(self, event: dict):
        kind, told = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif kind == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.complaints.append(str(told["args"]))
        elif kind == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.complaints.append(str(told["entry"]))

    def open(self, url: str):
        self.call("Page.navigate", url=url)

    def evaluate(self, script: str):
        """Return what a JavaScript expression gives."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self) -> str:
        return self.evaluate("document.body ? document.body.innerText : null") or ""

    def click(self, x: float, y: float, *, shift: bool = False):
        self.drag((x, y), (x, y), steps=0, modifiers=8 * shift)

    def key(self, name: str, *, ctrl: bool = False, shift: bool = False):
        """Press a key such as z, Delete or Escape where the focus is."""
        code = {"Delete": 46, "Escape": 27, "Enter": 13}.get(name) or ord(name.upper())
        shown = name.upper() if shift and len(name) == 1 else name
        pressed = {"key": shown, "code": f"Key{name.upper()}" if len(name) == 1 else name}
        pressed |= {"windowsVirtualKeyCode": code, "modifiers": 2 * ctrl + 8 * shift}
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **pressed)
        time.sleep(0.05)

    def drag(self, start, end, *, steps: int = 8, modifiers: int = 0):
        self._mouse("mouseMoved", *start, button="none", clickCount=0, modifiers=modifiers)
        self._mouse("mousePressed", *start, buttons=1, modifiers=modifiers)
        for step in range(1, steps + 1):
            x, y = (a + (b - a) * step / steps for a, b in zip(start, end, strict=True))
            self._mouse("mouseMoved", x, y, buttons=1, clickCount=0)
        self._mouse("mouseReleased", *end, modifiers=modifiers)

    def _mouse(self, kind: str, x: float, y: float, **settings):
        defaults = {"button": "left", "buttons": 0, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", **{"type": kind, "x": x, "y": y} | defaults | settings)
        time.sleep(0.05)

    def press(self, label: str, *, shift: bool = False, last: bool = False):
        """Click the visible button, tab or check box with exactly that text, or the card of an object.

        Of several, the first, or the last.
        """
        order = "reverse" if last else "slice"
        self._click_at_rest(
            "(() => { for (const e of"
            f" [...document.querySelectorAll('button, label, [role=tab], [role=option]')].{order}()) {{"
            f"  if ([e.innerText.trim(), e.title].includes({json.dumps(label)}) && e.offsetParent !== null) {{"
            "    e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect();"
            "    const place = [r.x + r.width / 2, r.y + r.height / 2], hit = document.elementFromPoint(...place);"
            "    if (hit !== null && (e.contains(hit) || hit.contains(e))) return place; } } return null; })()",
            what=f"a button {label!r}",
            shift=shift,
        )

    def _click_at_rest(self, search: str, *, what: str, shift: bool = False):
        """Click the place that a script finds, when it no longer moves: folders take a moment to unfold."""

        moving = "document.getAnimations().some(a => a.effect.getComputedTiming().iterations < Infinity)"

        def found():
            place = self.evaluate(search)
            time.sleep(0.1)
            return place if not self.evaluate(moving) and place == self.evaluate(search) else None

        self.click(*wait_for(found, what=what), shift=shift)

    def open_folder(self, name: str):
        """Unfold, or fold, the folder of the panel with that title."""
        self._click_at_rest(
            "(() => { const e = [...document.querySelectorAll('*')].filter("
            f"e => e.innerText === {json.dumps(name)}).pop();"
            "e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()",
            what=f"a folder {name!r}",
        )

    def heap(self) -> float:
        """Return the MiB of memory that scripts of the page hold."""
        self.call("HeapProfiler.collectGarbage")
        return self.call("Runtime.getHeapUsage")["usedSize"] / 2**20

    def fill(self, old: str, new: str):
        """Choose the last input that reads `old`, and type `new` in its place."""
        search = (
            "(() => { const e = [...document.querySelectorAll('input, textarea')].filter("
            f"e => e.value === {json.dumps(old)} && e.offsetParent !== null && !e.readOnly).pop();"
            " if (e) { e.focus(); e.select(); } return !!e; })()"
        )
        wait_for(lambda: self.evaluate(search), what=f"an input that reads {old!r}")
        self.call("Input.insertText", text=new)

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


def wait_for(found, *, what: str, seconds: float = 30):
    """Return the first true value of `found()`; fail after that many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")
