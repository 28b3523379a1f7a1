"""The viewer as an editor, in a headless Chromium: select, keys, and every edit as one of the script."""

import pytest

from tests.saved_model import save_model
from tests.viewer.browser import MARKS, Browser, wait_for

pytestmark = MARKS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("editor"))


@pytest.fixture
def page(tmp_path, model, open_viewer):
    """A viewer and a browser that shows it; nothing may have complained in the end."""
    viewer = open_viewer(model)
    with Browser(tmp_path / "profile", width=700, height=900) as browser:
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
