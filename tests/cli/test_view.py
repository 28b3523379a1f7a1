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

from tests.saved_model import save_model
from unified_lift.cli.flags import canonical
from unified_lift.cli.main import main
from unified_lift.editing.operations import Remove, centroid
from unified_lift.editing.script import parse


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("view"))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_help_names_an_example(capsys):
    with pytest.raises(SystemExit) as left:
        main(["view", "--help"])
    assert left.value.code == 0
    assert "unified-lift view -m output/desk" in capsys.readouterr().out


def test_the_port_that_other_commands_ignore_is_kept():
    assert canonical(["--port", "9", "--ip=x"], keep=("--port",)) == ["--port", "9"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "0"], "--port must lie in 1..65535"),
        (["--iteration", "7"], "iteration 7 is not saved"),
        (["--edits", "nowhere.yaml"], "--edits nowhere.yaml: not readable"),
    ],
)
def test_bad_flags_are_one_line_and_exit_code_2(model, flags, message, capsys):
    assert main(["view", "-m", str(model), *flags]) == 2
    assert message in capsys.readouterr().err


def test_no_model_and_a_model_without_objects_are_errors_that_say_so(tmp_path, capsys):
    assert main(["view", "-m", str(tmp_path / "none")]) == 2
    assert "no trained model" in capsys.readouterr().err
    assert main(["view", "-m", str(save_model(tmp_path, lifted=False))]) == 2
    assert "knows no objects" in capsys.readouterr().err


def test_damaged_and_impossible_edits_are_named(model, tmp_path, capsys):
    edits = tmp_path / "edits.yaml"
    for text, message in (("- fly: [1]", "no operation 'fly'"), ("- remove: [9]", "no object 9")):
        edits.write_text(text)
        assert main(["view", "-m", str(model), "--edits", str(edits)]) == 2
        assert message in capsys.readouterr().err


def test_without_viser_the_extra_is_named(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "viser", None)
    assert main(["view", "-m", str(model)]) == 2
    assert 'pip install "unified-lift[viewer]"' in capsys.readouterr().err


def test_an_address_that_is_not_ours_is_an_error(model, capsys):
    assert main(["view", "-m", str(model), "--host", "192.0.2.1", "--port", str(free_port())]) == 2
    assert "--host 192.0.2.1" in capsys.readouterr().err


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
    from unified_lift.viewer.server import Viewer

    def edit_and_leave(viewer):
        viewer.session.remove(2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Viewer, "wait", edit_and_leave)
    assert main(["view", "-m", str(model), "--port", str(free_port())]) == 130
    path = model.with_name("model_unsaved_edits.yaml")
    assert f"--edits {path}" in capsys.readouterr().out
    assert parse(path.read_text()) == [Remove(objects=(2,))]


def test_further_levels_are_opened_beside_the_models_own_parts_first(model, tmp_path):
    from unified_lift.cli.view import ViewCommand, open_viewer
    from unified_lift.modelfolder.outputs import level_dir

    own = save_model(tmp_path)
    level = level_dir(own, "whole")
    level.parent.mkdir(parents=True)
    save_model(tmp_path / "other").rename(level)
    (level / "manifest.json").write_text("{}")
    viewer = open_viewer(ViewCommand(model_path=own, port=free_port(), device="cpu"))
    try:
        assert len(viewer.sessions) == 2
        assert viewer.session.original.path == own
        viewer.session.remove(2)
        viewer.session.select(3)
        own_index = viewer.level
        viewer.use_level(1 - own_index)
        assert (viewer.session.operations, viewer.session.selected) == ((), None)
        viewer.use_level(own_index)
        assert viewer.session.selected == 3
    finally:
        viewer.stop()


def test_handles_show_where_an_object_goes_and_move_it_when_let_go(model):
    from unified_lift.cli.view import ViewCommand, open_viewer

    viewer = open_viewer(ViewCommand(model_path=model, port=free_port(), device="cpu"))
    try:
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
    finally:
        viewer.stop()
