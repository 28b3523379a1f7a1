"""The viewer as a person uses it: a headless Chromium opens it, clicks, hides, copies, saves and comes back."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.data.fixtures.floor import quaternion_from_rigid
from tests.saved_model import save_model, window_of
from unified_lift.editing.operations import Duplicate
from unified_lift.editing.script import parse
from unified_lift.modelfolder.inference import load_model
from unified_lift.ops.cameras import look_at, project
from unified_lift.viewer.renderer import camera_of, saved_cameras, start_view

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROGRAM = os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, NAMES) if path), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium; install one or name it in CHROMIUM"),
]


class Browser:
    """One page of a fresh profile. Use as a context manager."""

    def __init__(self, profile: Path, *, width: int, height: int):
        """Start the program with software WebGL and open an empty page."""
        from websockets.sync.client import connect

        self.requests: list[str] = []
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
            self._socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, open_timeout=30)
            self._session = None
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Runtime"):
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
            self._process.wait(timeout=10)
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
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def open(self, url: str):
        self.call("Page.navigate", url=url)

    def evaluate(self, script: str):
        """Return what a JavaScript expression gives."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self) -> str:
        return self.evaluate("document.body ? document.body.innerText : null") or ""

    def click(self, x: float, y: float):
        self.drag((x, y), (x, y), steps=0)

    def drag(self, start, end, *, steps: int = 8):
        self._mouse("mouseMoved", *start, button="none", clickCount=0)
        self._mouse("mousePressed", *start, buttons=1)
        for step in range(1, steps + 1):
            x, y = (a + (b - a) * step / steps for a, b in zip(start, end, strict=True))
            self._mouse("mouseMoved", x, y, buttons=1, clickCount=0)
        self._mouse("mouseReleased", *end)

    def _mouse(self, kind: str, x: float, y: float, **settings):
        defaults = {"button": "left", "buttons": 0, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", **{"type": kind, "x": x, "y": y} | defaults | settings)
        time.sleep(0.05)

    def press(self, label: str):
        """Click the visible button, tab or check box with exactly that text."""
        self.click(*wait_for(lambda: self._place_of(label), what=f"a button {label!r}"))

    def _place_of(self, label: str):
        return self.evaluate(
            "(() => { for (const e of document.querySelectorAll('button, label, [role=tab], [role=option]')) {"
            f"  if (e.innerText.trim() === {json.dumps(label)} && e.offsetParent !== null) {{"
            "    e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect();"
            "    return [r.x + r.width / 2, r.y + r.height / 2]; } } return null; })()"
        )

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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("browser"))


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile", width=1100, height=700) as opened:
        yield opened


def chosen(browser):
    """Return the title of the selected card of the object list."""
    return browser.evaluate("(document.querySelector('.ul-card.on') || {}).title || ''")


def place_of_object(browser, model_path, object_id):
    """Return the window pixel at which the first view shows the centroid of an object, if the cameras agree."""
    canvas = (
        "(() => { const e = document.querySelector('canvas'); if (!e) return null;"
        " const r = e.getBoundingClientRect(); return r.width > 100 ? [r.x, r.y, r.width, r.height] : null; })()"
    )
    x, y, width, height = wait_for(lambda: browser.evaluate(canvas), what="the canvas")
    position, target, up, fov = start_view(saved_cameras(model_path))
    pose = np.linalg.inv(look_at(position, target, up))
    window = window_of(quaternion_from_rigid(pose), position, fov, round(width), round(height))
    camera = camera_of(window)
    scene = load_model(model_path)
    centroid = scene.gaussians.means.detach()[scene.mask([object_id])].mean(dim=0).numpy()
    u, v = project(centroid[None], camera)[0][0]
    return x + u, y + v


def color_at(browser, place):
    picture = cv2.imdecode(np.frombuffer(browser.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    return picture[round(place[1]), round(place[0])].astype(int)


def test_an_object_is_clicked_hidden_copied_saved_and_there_after_a_reload(model, open_viewer, browser, tmp_path):
    viewer = open_viewer(model)
    browser.open(viewer.url)
    wait_for(lambda: "4 objects" in browser.text(), what="the panel")
    place = place_of_object(browser, model, 2)
    wait_for(lambda: color_at(browser, place).max() > 100, what="the first frame")  # before, the canvas is dimmed

    def clicked():
        browser.click(*place)
        return chosen(browser) == "object 2"

    wait_for(clicked, what="the object to be selected")
    visible = color_at(browser, place)
    browser.press("Hide / show")
    wait_for(lambda: browser.evaluate("!!document.querySelector('.ul-card.on.off')"), what="the object to be hidden")
    wait_for(lambda: np.abs(color_at(browser, place) - visible).max() > 40, what="the picture without it")
    browser.press("Show all")
    wait_for(lambda: np.abs(color_at(browser, place) - visible).max() < 20, what="the picture with it")

    browser.press("Duplicate")
    wait_for(lambda: chosen(browser) == "copy of object 2 (4)", what="the copy to be selected")
    assert "5 objects" in browser.text()
    assert "not saved" in browser.text()
    browser.press("Undo")
    wait_for(lambda: "4 objects" in browser.text(), what="the copy to go")
    browser.press("Redo")
    wait_for(lambda: "5 objects" in browser.text(), what="the copy to come back")

    browser.press("Save")
    browser.press("Save edits")
    wait_for(lambda: "1 edit, saved" in browser.text(), what="the edits to be saved")
    saved = load_model(tmp_path / "edited")
    original = load_model(model)
    assert saved.objects == original.objects | {4: original.objects[2]}
    assert saved.name_of(4) == "copy of object 2"
    (edit,) = parse((tmp_path / "edited" / "edits.yaml").read_text())
    assert isinstance(edit, Duplicate)

    browser.open("about:blank")
    browser.open(viewer.url)
    wait_for(lambda: "5 objects" in browser.text(), what="the panel after a reload")

    again = open_viewer(tmp_path / "edited")
    browser.open(again.url)
    wait_for(lambda: "5 objects" in browser.text() and "no edits" in browser.text(), what="the saved scene")
    pages = [opened.url.split("?")[0] for opened in (viewer, again)]
    own = (*pages, "data:", "blob:", "about:", "ws://localhost:", "chrome:")
    assert [url for url in browser.requests if not url.startswith(own)] == []


def test_what_goes_wrong_is_said_in_the_window_and_changes_nothing(model, open_viewer, browser):
    viewer = open_viewer(model)
    browser.open(viewer.url)
    wait_for(lambda: "4 objects" in browser.text(), what="the panel")
    browser.press("Save")
    browser.fill(str(viewer.panels.folder.value), str(model))
    wait_for(lambda: viewer.panels.folder.value == str(model), what="the folder to arrive")
    before = sorted(path.stat().st_mtime_ns for path in model.rglob("*"))
    browser.press("Save edits")
    wait_for(lambda: "holds a model already" in browser.text(), what="the message")
    assert sorted(path.stat().st_mtime_ns for path in model.rglob("*")) == before
    browser.press("Video")
    browser.press("Add this view")
    wait_for(lambda: "1 view on the path" in browser.text(), what="the view to be noted")
    browser.press("Write video")
    wait_for(lambda: "two views at least, there are 1" in browser.text(), what="the message")


def test_a_camera_path_becomes_a_video(model, open_viewer, browser, tmp_path):
    viewer = open_viewer(model)
    browser.open(viewer.url)
    wait_for(lambda: "4 objects" in browser.text(), what="the panel")
    browser.press("Video")
    place = place_of_object(browser, model, 2)
    wait_for(lambda: color_at(browser, place).max() > 100, what="the first frame")
    browser.press("Add this view")
    wait_for(lambda: "1 view on the path" in browser.text(), what="the first view")
    browser.drag((200, 350), (320, 350))
    browser.press("Add this view")
    wait_for(lambda: "2 views on the path" in browser.text(), what="the second view")
    viewer.panels.seconds.value = 1
    browser.press("Write video")
    path = tmp_path / "edited_path.mp4"
    wait_for(path.exists, what="the video", seconds=120)
    reader = cv2.VideoCapture(str(path))
    frames = [reader.read()[1] for _ in range(24)]
    assert frames[-1] is not None
    assert reader.read()[0] is False
    assert frames[0].shape[0] == 720
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 1  # the camera has moved
