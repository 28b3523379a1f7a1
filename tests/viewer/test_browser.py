"""The viewer as a person uses it: a headless Chromium opens it, clicks, hides, copies, saves and comes back."""

import cv2
import numpy as np
import pytest

from tests.data.fixtures.floor import quaternion_from_rigid
from tests.saved_model import save_model, window_of
from tests.viewer.browser import MARKS, Browser, wait_for
from unified_lift.editing.operations import Duplicate
from unified_lift.editing.script import parse
from unified_lift.modelfolder.inference import load_model
from unified_lift.ops.cameras import look_at, project
from unified_lift.viewer.renderer import camera_of, saved_cameras, start_view

pytestmark = MARKS


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
