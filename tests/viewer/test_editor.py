"""The viewer as an editor, in a headless Chromium: select, keys, and every edit as one of the script."""

import tempfile
import time

import numpy as np
import pytest
import torch

from tests.saved_model import save_model
from tests.viewer.browser import MARKS, Browser, wait_for
from unified_lift.editing.script import apply, dump, parse
from unified_lift.model.files import read_splat
from unified_lift.ops.cameras import project
from unified_lift.viewer.renderer import camera_of

pytestmark = MARKS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("editor"))


@pytest.fixture
def page(request, tmp_path, model, open_viewer):
    """A viewer and a browser that shows it, 700 pixels wide; nothing may have complained in the end."""
    viewer = open_viewer(model)
    with Browser(tmp_path / "profile", width=getattr(request, "param", 700), height=1000) as browser:
        browser.open(viewer.url)
        wait_for(lambda: browser.evaluate("document.querySelectorAll('.ul-card').length") == 4, what="the cards")
        yield viewer, browser
        assert browser.complaints == []


def test_cards_and_keys_select_hide_delete_and_undo_and_the_memory_of_the_page_stays_flat(page):
    viewer, browser = page
    session = viewer.session

    def then(state, what):
        wait_for(state, what=what)

    browser.press("object 1")
    then(lambda: session.selection == (1,), "the card to be selected")
    browser.press("object 3", shift=True)
    then(lambda: session.selection == (1, 3), "both to be selected")
    then(lambda: browser.evaluate("document.querySelectorAll('.ul-card.on').length") == 2, "two cards to be marked")
    browser.press("object 3", shift=True)
    then(lambda: session.selection == (1,), "one to be let go")
    browser.key("h")
    then(lambda: session.hidden == {1}, "it to be hidden")
    browser.key("h")
    then(lambda: not session.hidden, "it to be shown")
    browser.key("Escape")
    then(lambda: session.selection == (), "nothing to be selected")
    browser.key("a", ctrl=True)
    then(lambda: session.selection == (0, 1, 2, 3), "all to be selected")
    browser.press("object 2")
    then(lambda: session.selection == (2,), "one only")
    # At once, without waiting: what was asked for is done in its order.
    browser.key("Delete")
    browser.key("z", ctrl=True)
    browser.key("z", ctrl=True, shift=True)
    then(lambda: len(session.operations) == 1 and 2 not in session.scene.objects, "it to be gone")
    browser.key("z", ctrl=True)
    then(lambda: 2 in session.scene.objects, "it to come back")
    (client,) = viewer._server.get_clients().values()
    position = client.camera.position.copy()
    browser.press("object 2")
    then(lambda: session.selection == (2,), "it to be selected")
    browser.key("f")
    then(lambda: abs(client.camera.position - position).max() > 0.1, "the camera to come near")

    used = []
    for _ in range(4):
        for key in 3 * ["Delete", "z", "a", "Escape"]:
            browser.key(key, ctrl=len(key) == 1)
        browser.press("object 2")
        then(lambda: session.selection == (2,) and not session.operations, "all that to be done")
        used.append(browser.heap())
    assert max(used) - used[0] < 5, used


@pytest.mark.parametrize("page", [1000], indirect=True)
def test_a_person_edits_and_exports_one_object(page, tmp_path, monkeypatch):
    viewer, browser = page
    session = viewer.session
    scratch, downloads = tmp_path / "scratch", tmp_path / "downloads"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    browser.press("object 1")
    wait_for(lambda: session.selection == (1,), what="the card to be selected")
    browser.click(*place_of(viewer, 2), shift=True)
    wait_for(lambda: session.selection == (1, 2), what="the object in the picture to be selected too")
    wait_for(lambda: browser.evaluate("document.querySelectorAll('.ul-card.on').length") == 2, what="two cards")
    browser.open_folder("Cut and join")
    browser.press("Merge")
    wait_for(lambda: set(session.scene.objects) == {0, 1, 3}, what="them to be one")
    browser.press("Split")
    wait_for(lambda: set(session.scene.objects) == {0, 1, 3, 4}, what="them to be two again")
    wait_for(lambda: session.selection == (1, 4), what="both to be selected")
    assert sorted(session.scene.objects.values()) == sorted(session.original.objects.values())
    viewer.panels.shaping._scale.value = 2.0
    browser.open_folder("Cut and join")  # closes it
    browser.open_folder("Place by numbers")
    browser.press("Apply")
    wait_for(lambda: len(session.operations) == 3, what="them to grow")
    assert_replays(session)
    grown = (session.scene.gaussians.scales / session.original.gaussians.scales).detach()[session.scene.mask([4])]
    assert torch.allclose(grown, torch.tensor(2.0))
    browser.key("z", ctrl=True)
    wait_for(lambda: len(session.operations) == 2, what="the last edit to be undone")
    viewer.panels.shaping._scale.value = 0.0
    browser.press("Apply")
    wait_for(lambda: "scale must be a positive number" in browser.text(), what="the message")
    assert len(session.operations) == 2

    browser.click(*place_of(viewer, 4))
    wait_for(lambda: session.selection == (4,), what="one object to be selected in the picture")
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    browser.press("Export")  # the tab
    viewer.panels.part.value, viewer.panels.format.value = "selected objects", "glb"
    browser.press("Export", last=True)
    wait_for(lambda: (downloads / "part_of_object_1.glb").exists(), what="the file")
    read, _ = read_splat(downloads / "part_of_object_1.glb")
    own = session.scene.subset(session.scene.mask([4])).gaussians
    assert torch.allclose(read.means, own.means)
    assert torch.allclose(read.sh0, own.sh0, atol=1e-6)
    wait_for(lambda: not any(scratch.iterdir()), what="what was written on the way to be removed")


def test_names_are_searched_views_stand_up_and_uncertainty_has_a_legend(page):
    viewer, browser = page
    titles = "[...document.querySelectorAll('.ul-card')].map(card => card.title)"
    viewer.session.rename(2, "Red mug")
    for text, found in (("MUG", ["Red mug (2)"]), ("3", ["object 3"]), ("<b>", []), ("", ["object 0 (background)"])):
        viewer.panels.search.value = text
        browser.key("Escape")
        wait_for(lambda: browser.evaluate(titles)[: len(found) or None] == found, what=str(found))  # noqa: B023
    assert browser.evaluate("!document.querySelector('.ul-legend')")
    viewer.panels.mode.value = "Uncertainty"
    wait_for(lambda: "1: none" in browser.text(), what="the legend")
    (client,) = viewer._server.get_clients().values()
    where, auto = client.camera.position.copy(), client.camera.up_direction.copy()
    for axis, up in (("y", (0, 1, 0)), ("-z", (0, 0, -1)), ("auto", auto)):
        viewer.stand(axis)
        time.sleep(0.2)
        wait_for(lambda: np.allclose(client.camera.up_direction, up, atol=1e-3), what="the camera to turn")  # noqa: B023
        assert np.allclose(client.camera.position, where, atol=1e-3)
    assert not viewer.session.is_dirty or len(viewer.session.operations) == 1


def test_a_brush_gives_what_it_is_drawn_over_to_the_selected_object(page):
    viewer, browser = page
    session = viewer.session
    browser.press("object 0 (background)")
    browser.press("object 2", shift=True)
    wait_for(lambda: browser.evaluate("document.querySelectorAll('.ul-card.on').length") == 2, what="both to be marked")
    browser.open_folder("Brush")
    browser.press("Paint")
    wait_for(lambda: viewer.panels.brush._sphere is not None, what="the brush")
    time.sleep(0.5)
    browser.drag(place_of(viewer, 2), place_of(viewer, 0), steps=3)
    wait_for(lambda: len(session.operations) == 1, what="the stroke")
    (stroke,) = session.operations
    assert (stroke.object, stroke.objects) == (2, (0,))
    assert len(stroke.centre) > 2
    gained = session.scene.mask([2]) & ~session.original.mask([2])
    assert 0 < gained.sum() == session.scene.objects[2] - session.original.objects[2]
    assert bool((session.original.object_ids[gained] == 0).all())
    assert_replays(session)
    browser.click(*place_of(viewer, 2))  # a dab on what is its own already
    wait_for(lambda: "no Gaussian lies in what was named" in browser.text(), what="the message")
    assert session.selection == (0, 2)  # a click paints and selects nothing
    # viser's own: its listener of drags is a passive one, which Chromium complains about.
    browser.complaints[:] = [told for told in browser.complaints if "Unable to preventDefault" not in told]


def assert_replays(session):
    """What was done by hand is what its script does."""
    again = apply(session.original, parse(dump(session.operations)))
    assert torch.equal(again.object_ids, session.scene.object_ids)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(again.gaussians, session.scene.gaussians, strict=True))


def place_of(viewer, object_id):
    """Return the pixel at which the window shows the middle of an object."""
    (client,) = viewer._server.get_clients().values()
    means = viewer.session.scene.gaussians.means.detach()[viewer.session.scene.mask([object_id])]
    (pixel,), _ = project(means.mean(dim=0).numpy()[None], camera_of(client))
    return tuple(pixel)
