"""unified-lift view, without a browser."""

import asyncio
import signal
import socket
import subprocess
import sys
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest

from tests.saved_model import save_model, window_of
from unified_lift.cli.main import main
from unified_lift.editing.operations import Duplicate, Recolour, Remove, Rename, centroid
from unified_lift.editing.script import parse
from unified_lift.errors import UserError
from unified_lift.modelfolder.outputs import level_dir
from unified_lift.viewer.server import BUTTONS, Viewer


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "0"], "--port must lie in 1..65535"),
        (["--iteration", "7"], "iteration 7 is not saved"),
        (["--edits", "nowhere.yaml"], "--edits nowhere.yaml: not readable"),
        (["--edits", "unknown.yaml"], "no operation 'fly'"),
        (["--edits", "impossible.yaml"], "no object 9"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1"),
        (["-m", "none"], "no trained model"),
    ],
)
def test_what_cannot_be_opened_is_named_with_exit_code_2(model, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unknown.yaml").write_text("- fly: [1]")
    (tmp_path / "impossible.yaml").write_text("- remove: [9]")
    assert main(["view", "-m", str(model), *flags]) == 2
    assert message in capsys.readouterr().err


def test_without_viser_the_extra_is_named(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "viser", None)
    assert main(["view", "-m", str(model)]) == 2
    assert 'pip install "unified-lift[viewer]"' in capsys.readouterr().err


def test_it_serves_one_page_until_interrupted(model):
    port = free_port()
    command = [sys.executable, "-m", "unified_lift", "view", "-m", str(model), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert f"open http://localhost:{port} in a browser" in process.stdout.readline()
        assert f"ssh -L {port}:127.0.0.1:{port}" in process.stdout.readline()
        with urllib.request.urlopen(f"http://localhost:{port}", timeout=20) as page:
            assert b"<html" in page.read().lower()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.strip() == "interrupted"
    assert out == ""


def test_unsaved_edits_are_kept_when_the_viewer_ends(model, monkeypatch, capsys):
    def edit_and_leave(viewer):
        viewer.session.apply(Remove(objects=(2,)))
        raise KeyboardInterrupt

    monkeypatch.setattr(Viewer, "wait", edit_and_leave)
    assert main(["view", "-m", str(model), "--port", str(free_port())]) == 130
    path = model.with_name("model_unsaved_edits.yaml")
    assert f"--edits {path}" in capsys.readouterr().out
    assert parse(path.read_text()) == [Remove(objects=(2,))]


def test_further_levels_are_opened_beside_the_models_own_parts_first(open_viewer, tmp_path):
    own = save_model(tmp_path)
    level = level_dir(own, "whole")
    level.parent.mkdir(parents=True)
    save_model(tmp_path / "other").rename(level)
    (level / "manifest.json").write_text("{}")
    viewer = open_viewer(own)
    assert len(viewer.sessions) == 2
    assert viewer.session.original.path == own
    viewer.session.apply(Remove(objects=(2,)))
    viewer.session.select(3)
    own_index = viewer.level
    viewer.use_level(1 - own_index)
    assert (viewer.session.operations, viewer.session.selected) == ((), None)
    viewer.use_level(own_index)
    assert viewer.session.selected == 3


def test_every_button_of_the_table_does_what_its_label_says(model, open_viewer):
    viewer = open_viewer(model)
    session, client = viewer.session, window_of((1, 0, 0, 0), (0, 0, -3), 1.0, 64, 48)

    def press(group, label):
        BUTTONS[group][label](viewer, client)

    for group in ("Set", "Look", "Edit"):
        for label in BUTTONS[group]:
            with pytest.raises(UserError, match="no object is selected"):
                press(group, label)
    session.select(1)
    viewer.panels.name.value = "cup"
    for group, label in [("Set", "Rename"), ("Set", "Recolour"), ("Edit", "Duplicate"), ("Edit", "Delete")]:
        press(group, label)
    assert [type(operation) for operation in session.operations] == [Rename, Recolour, Duplicate, Remove]
    assert session.operations[-1].objects == (4,)  # the copy was selected
    press("History", "Undo")
    assert len(session.operations) == 3
    press("History", "Redo")
    assert len(session.operations) == 4
    session.select(2)
    press("Look", "Hide / show")
    assert session.hidden == {2}
    press("Look", "Isolate")
    assert session.hidden == {0, 1, 3}
    press("All", "Show all")
    assert session.hidden == set()
    for label, count in [("Drop last", 0), ("Add this view", 1), ("Add this view", 2), ("Drop last", 1), ("Clear", 0)]:
        press("Camera path", label)
        assert len(viewer.path) == count


def test_handles_show_where_an_object_goes_and_move_it_when_let_go(model, open_viewer):
    viewer = open_viewer(model)
    session = viewer.session
    session.select(1)
    viewer.panels.handles.value = True
    viewer.refresh()
    handles = viewer.gizmo
    start = np.array(centroid(session.scene, [1]))
    np.testing.assert_allclose(handles.position, start, atol=1e-6)
    handles.position = start + [0, 0, 0.5]
    asyncio.run(viewer.drag(SimpleNamespace(target=handles, phase="update", client=None)))
    assert session.operations == ()
    np.testing.assert_allclose(centroid(session.shown, [1]), start + [0, 0, 0.5], atol=1e-5)
    asyncio.run(viewer.drag(SimpleNamespace(target=handles, phase="end", client=None)))
    (move,) = session.operations
    assert (move.objects, move.translate, move.rotate.degrees) == ((1,), (0, 0, 0.5), 0)
    np.testing.assert_allclose(handles.position, centroid(session.scene, [1]), atol=1e-6)  # ready for the next move
    session.select(None)
    viewer.refresh()
    assert viewer.gizmo is None
