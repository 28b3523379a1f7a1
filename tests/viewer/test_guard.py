"""Nobody gets in without the token, no page of another site, and nothing is written in foreign places."""

import urllib.error
import urllib.request

import pytest
from websockets.exceptions import InvalidStatus

from tests.saved_model import save_model
from tests.viewer.window import SERVER, Window
from unified_lift.cli.view import ViewCommand, open_viewer
from unified_lift.viewer.guard import Guard

NAME = "[a](http:b) *c* {d} www.e.com <img src=x>"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Port and token of a viewer, and the folder of its model, whose name and an object's are markup."""
    folder = tmp_path_factory.mktemp("guard") / "models"
    folder.mkdir()
    model = save_model(folder).rename(folder / NAME)
    (folder / "edits.yaml").write_text(f"- rename: {{1: '{NAME}'}}")
    (folder / "link").symlink_to(folder.parent)
    command = ViewCommand(
        model_path=model,
        port=8290,
        device="cpu",
        edits=folder / "edits.yaml",
        allow_host=("proxy.example",),
        allow_write=(folder.parent / "other",),
    )
    viewer = open_viewer(command)
    port, token = SERVER.match(viewer.url).groups()
    assert viewer.port == int(port)
    yield int(port), token, folder
    viewer.stop()


def cookie(served):
    return f"x=y; unified_lift_{served[0]}={served[1]}"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST", "proxy.example"])
def test_who_has_the_token_is_let_in_and_needs_it_once(served, host):
    port, token, _ = served
    own = f"http://{host}:{port}".lower()
    for headers in ({}, {"Origin": own}):
        Window(port, token, host=host, **headers).__exit__()
        Window(port, host=host, Cookie=cookie(served), **headers).__exit__()
    Window(port, token, Origin="https://proxy.example").__exit__()  # which ends TLS and keeps the name to itself
    url = f"http://127.0.0.1:{port}/?token={token}"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": f"{host}:{port}"}), timeout=20) as page:
        assert b"<html" in page.read().lower()
        given, *settings = page.headers["Set-Cookie"].split("; ")
    assert given in cookie(served)
    assert {"HttpOnly", "SameSite=Strict"} <= set(settings)


@pytest.mark.parametrize(
    ("token", "host", "headers"),
    [
        ("", None, {}),
        ("guess", None, {}),
        ("", None, {"Cookie": "unified_lift_8290=guess"}),
        ("", None, {"Cookie": "unified_lift_1={token}"}),  # of another port
        ("\N{SNOWMAN}", None, {"Cookie": "\N{LATIN SMALL LETTER E WITH ACUTE}"}),
        ("right", None, {"Origin": "http://evil.example"}),
        ("right", None, {"Origin": "http://localhost.evil.example:{port}"}),
        ("right", None, {"Origin": "http://localhost:1"}),
        ("right", None, {"Origin": "null"}),
        ("right", None, {"Origin": "http://["}),
        ("right", None, {"Origin": ""}),
        ("right", "evil.example", {}),
        ("right", "evil.example", {"Origin": "http://evil.example:{port}"}),
        ("right", "localhost.evil.example", {}),
        ("right", "192.0.2.7", {}),
    ],
)
def test_others_get_nothing_neither_page_nor_websocket(served, token, host, headers):
    port, right, _ = served
    headers = {key: value.format(port=port, token=right) for key, value in headers.items()}
    given = token.replace("right", right)
    with pytest.raises(InvalidStatus) as refused:
        Window(port, urllib.parse.quote(given), host=host, **headers)
    assert refused.value.response.status_code == 403
    if "é" in str(headers):
        return  # not sent by urllib
    url = f"http://127.0.0.1:{port}/?token={urllib.parse.quote(given)}"
    request = urllib.request.Request(url, headers={"Host": f"{host or 'localhost'}:{port}", **headers})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=20)
    assert error.value.code == 403
    assert b"<html" not in error.value.read()
    assert "Set-Cookie" not in error.value.headers


def test_a_machine_that_listens_everywhere_is_known_by_its_addresses_and_its_name():
    everywhere, one = Guard("0.0.0.0"), Guard("192.0.2.1")
    assert [everywhere.knows(name) for name in ("192.0.2.7", "::1", "evil.example")] == [True, True, False]
    assert [one.knows(name) for name in ("192.0.2.1", "127.0.0.2", "192.0.2.7")] == [True, True, False]
    assert everywhere.token != one.token


FOREIGN = ["{folder}/../stolen", "{folder}/link/stolen", "/stolen", "{folder}", "~nobody_at_all/x", "{folder}/\0", ""]


@pytest.mark.parametrize("named", FOREIGN)
@pytest.mark.parametrize(("box", "button", "ending"), [("Folder", "Save edits", ""), ("File", "Write video", ".mp4")])
def test_a_window_that_names_foreign_places_writes_nothing(served, named, box, button, ending):
    port, token, folder = served
    before = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
    with Window(port, token) as window:
        window.look()
        window.use(box, named.format(folder=folder) + ending if named else "")
        window.read(0.3)
        window.use(button, True)
        window.wait_for("NotificationShowMessage")
        (told,) = [m["props"]["body"] for m in window.messages if m["type"] == "NotificationShowMessage"]
    assert any(words in told for words in ("lies outside of", "not a path", "no folder is named", "suffix")), told
    assert {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")} == before


@pytest.mark.parametrize("place", ["models/new", "models/deep/new", "other/new"])
def test_beside_the_model_and_where_the_user_allows_it_scenes_are_saved(served, place):
    port, token, folder = served
    with Window(port, token) as window:
        window.look()
        window.use("Folder", str(folder.parent / place))
        window.read(0.3)
        window.use("Save edits", True)
        window.wait_for("open it with")
    assert (folder.parent / place / "edits.yaml").exists()


def test_names_never_become_markup(served):
    port, token, _ = served
    with Window(port, token) as window:
        window.look()
        window.wait_for("ul-card")
        sent = [message.get("props", {}) | message.get("updates", {}) for message in window.read(0.5)]
    texts = [str(props["_markdown"]) for props in sent if "_markdown" in props]
    assert any("4 objects" in text for text in texts)
    assert not any("img" in text or "www" in text for text in texts)
    pages = [str(props["content"]) for props in sent if "content" in props]
    assert any("&lt;img src=x&gt;" in page for page in pages)
    assert not any("<img src=x>" in page for page in pages)
