"""The viewer as an editor, in a headless Chromium: select, keys, and every edit as one of the script."""

import time

import pytest
import torch

from tests.saved_model import save_model
from tests.viewer.browser import MARKS, Browser, wait_for
from unified_lift.editing.script import apply, dump, parse

pytestmark = MARKS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("editor"))


@pytest.fixture
def page(tmp_path, model, open_viewer):
    """A viewer and a browser that shows it; nothing may have complained in the end."""
    viewer = open_viewer(model)
    with Browser(tmp_path / "profile", width=700, height=1000) as browser:
        browser.open(viewer.url)
        wait_for(lambda: browser.evaluate("document.querySelectorAll('.ul-card').length") == 4, what="the cards")
        yield viewer, browser
        assert browser.complaints == []


def test_cards_and_keys_select_hide_delete_and_undo(page):
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


def test_objects_are_merged_split_and_scaled_and_it_all_replays(page):
    viewer, browser = page
    session = viewer.session

    def open_folder(name):
        place = browser.evaluate(
            f"(() => {{ const e = [...document.querySelectorAll('*')].filter(e => e.innerText === '{name}').pop();"
            "e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        browser.click(*place)
        time.sleep(0.6)  # it unfolds

    browser.press("object 1")
    wait_for(lambda: session.selection == (1,), what="the card to be selected")
    browser.press("object 2", shift=True)
    wait_for(lambda: session.selection == (1, 2), what="both to be selected")
    open_folder("Cut and join")
    browser.press("Merge")
    wait_for(lambda: set(session.scene.objects) == {0, 1, 3}, what="them to be one")
    browser.press("Split")
    wait_for(lambda: set(session.scene.objects) == {0, 1, 3, 4}, what="them to be two again")
    wait_for(lambda: session.selection == (1, 4), what="both to be selected")
    assert sorted(session.scene.objects.values()) == sorted(session.original.objects.values())
    viewer.panels.shaping._scale.value = 2.0
    open_folder("Cut and join")  # closes it
    open_folder("Place by numbers")
    browser.press("Apply")
    wait_for(lambda: len(session.operations) == 3, what="them to grow")
    again = apply(session.original, parse(dump(session.operations)))
    assert torch.equal(again.object_ids, session.scene.object_ids)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(again.gaussians, session.scene.gaussians, strict=True))
    grown = (session.scene.gaussians.scales / session.original.gaussians.scales).detach()[session.scene.mask([4])]
    assert torch.allclose(grown, torch.tensor(2.0))
    browser.key("z", ctrl=True)
    wait_for(lambda: len(session.operations) == 2, what="the last edit to be undone")
    viewer.panels.shaping._scale.value = 0.0
    browser.press("Apply")
    wait_for(lambda: "scale must be a positive number" in browser.text(), what="the message")
    assert len(session.operations) == 2
