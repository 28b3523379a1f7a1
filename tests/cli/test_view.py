"""unified-lift view, without a browser."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.saved_model import save_model, window_of
from tests.viewer.window import SERVER, Window
from unified_lift.cli.main import main
from unified_lift.editing.operations import Duplicate, Recolour, Remove, Rename, centroid
from unified_lift.editing.script import parse
from unified_lift.errors import UserError
from unified_lift.modelfolder.outputs import level_dir
from unified_lift.viewer.server import BUTTONS, Viewer


@pytest.fixture(autouse=True)
def _signals():
    """The command takes them over for its process, which here is that of the tests."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def refuse(path, text):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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


def ignore(number):
    """What a child process does before it starts; nohup and shells do so."""
    return lambda: signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def served(model, **settings):
    """Yield the process of a viewer, its port and its token."""
    port = free_port()
    command = [sys.executable, "-m", "unified_lift", "view", "-m", str(model), "--port", str(port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, **settings)
    try:
        line = process.stdout.readline()
        assert line.endswith(" in a browser; Ctrl-C ends\n")
        told, token = SERVER.search(line).groups()
        assert int(told) == port
        assert f"ssh -L {port}:127.0.0.1:{port}" in process.stdout.readline()
        yield process, port, token
    finally:
        process.kill()
        process.communicate()


def test_it_serves_one_page_until_interrupted_even_in_the_background_of_a_shell(tmp_path):
    with served(save_model(tmp_path), preexec_fn=ignore(signal.SIGINT)) as (process, port, token):
        with urllib.request.urlopen(f"http://localhost:{port}/?token={token}", timeout=20) as page:
            assert b"<html" in page.read().lower()
        with Window(port, token) as window:
            for fov in (0.0, -1.0, 4.0, float("nan"), 0.9):  # which no camera has, and one
                window.look(fov=fov)
            window.wait_for("BackgroundImage")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "interrupted"
    assert out == ""


def test_edits_that_are_not_saved_survive_every_signal_and_are_offered_once_more(tmp_path):
    model = save_model(tmp_path)
    first = model.with_name("model_unsaved_edits.yaml")
    paths = [first, *(first.with_stem(f"{first.stem}_{number}") for number in (2, 3))]
    for path, number in zip(paths, (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP), strict=True):
        with served(model) as (process, port, token), Window(port, token) as window:
            window.delete("object 2")
            process.send_signal(number)
            out = process.stdout.read()
            process.wait(timeout=30)
        assert parse(path.read_text()) == [Remove(objects=(2,))]
        assert process.returncode == (-9 if number == signal.SIGKILL else 130)
        assert (f"{path}: your unsaved edits" in out) == (number != signal.SIGKILL)
        assert out.count("edits that were never saved") == paths.index(path)
    assert not list(tmp_path.glob("*.partial"))

    with served(model, preexec_fn=ignore(signal.SIGHUP)) as (process, port, token), Window(port, token) as window:
        process.send_signal(signal.SIGHUP)  # as under nohup: it goes on
        window.look()
        window.wait_for(paths[2].name)
        window.use("Unsaved", "Go on")
        window.wait_for("3 objects")
        window.wait_for(paths[1].name)  # the next one
        window.use("Unsaved", "Drop")
        window.wait_for(f"never saved: {first.name}")
        assert not paths[1].exists()
        process.kill()
    assert parse(paths[2].read_text()) == [Remove(objects=(2,))]


def test_what_was_left_can_be_begun_with_and_goes_when_it_is_saved_or_taken_back(tmp_path, open_viewer):
    model = save_model(tmp_path)
    left = model.with_name("model_unsaved_edits.yaml")
    left.write_text("- remove: [2]")
    viewer = open_viewer(model, edits=left)
    assert viewer.session.is_dirty
    viewer.session.apply(Remove(objects=(3,)))
    assert parse(left.read_text()) == [Remove(objects=(2,)), Remove(objects=(3,))]
    viewer.session.save(tmp_path / "saved")
    assert not left.exists()
    viewer.session.undo()
    assert parse(left.read_text()) == [Remove(objects=(2,))]
    viewer.session.redo()
    assert not left.exists()
    viewer.session.apply(Remove(objects=(1,)))
    viewer.stop()
    again = open_viewer(model)
    again.session.apply(Remove(objects=(1,)))
    with pytest.raises(UserError, match="save or undo them first"):
        again.session.go_on(again.session.journal.found[0])
    assert left.with_stem("model_unsaved_edits_2").exists()
    again.session.undo()
    left.write_text("- remove: [9]")
    with pytest.raises(UserError, match="no object 9"):
        again.session.go_on(again.session.journal.found[0])
    assert (left.exists(), again.session.operations) == (True, ())


def test_edits_of_a_viewer_that_runs_are_not_offered_to_another(tmp_path, open_viewer):
    model = save_model(tmp_path)
    left = model.with_name("model_unsaved_edits.yaml")
    with served(model) as (process, port, token), Window(port, token) as window:
        window.delete("object 2")
        assert open_viewer(model).session.journal.found == []
        process.kill()
        process.wait(timeout=30)
    first, second = open_viewer(model), open_viewer(model)
    assert first.session.journal.found == second.session.journal.found == [left]  # its owner is gone
    first.session.go_on(left)
    for late in (second.session.go_on, second.session.journal.drop):  # a window that still shows the buttons
        with pytest.raises(UserError, match="another viewer has these edits open"):
            late(left)
    assert second.session.journal.found == []
    first.session.apply(Remove(objects=(1,)))
    second.session.apply(Remove(objects=(3,)))
    assert parse(left.read_text()) == [Remove(objects=(2,)), Remove(objects=(1,))]
    assert parse(left.with_stem(f"{left.stem}_2").read_text()) == [Remove(objects=(3,))]


def test_only_what_this_viewer_wrote_is_written_over(tmp_path, open_viewer, monkeypatch):
    viewer, told = open_viewer(save_model(tmp_path)), []
    monkeypatch.setattr(viewer, "_tell", lambda event, title, text, **_: told.append(text))
    monkeypatch.setattr("unified_lift.viewer.server.path_through", lambda keys, count: [None] * 2)
    monkeypatch.setattr("unified_lift.viewer.server.Renderer.frame", lambda *_, **__: b"frame")
    monkeypatch.setattr(
        "unified_lift.viewer.server.write_video", lambda path, frames: path.write_bytes(b"".join(frames))
    )
    own, mine = tmp_path / "own.mp4", tmp_path / "mine.mp4"
    mine.write_bytes(b"mine")
    (tmp_path / "link.mp4").symlink_to(mine)

    def film(path):
        viewer.panels.video_file.value = str(path)
        viewer.film(None)
        return told.pop()

    for path in (mine, tmp_path / "link.mp4"):
        assert film(path) == f"{mine}: is there already and this viewer did not write it; name a new file"
    assert film(own) == film(own) == str(own)
    assert own.read_bytes() == 2 * b"frame"
    own.write_bytes(b"mine")  # by somebody else
    assert "did not write it" in film(own)
    assert (own.read_bytes(), mine.read_bytes()) == (b"mine", b"mine")

    monkeypatch.setattr("unified_lift.viewer.server.write_video", lambda path, frames: (path.touch(), list(frames)))
    assert "did not write it" in film(tmp_path / "meanwhile.mp4")  # it came while the film was made
    viewer.save(None, str(tmp_path / "saved"))
    viewer.save(None, str(tmp_path / "saved"))
    (tmp_path / "saved" / "edits.yaml").write_text("- remove: [1]")  # `edit --overwrite` was there
    with pytest.raises(UserError, match="holds a model already"):
        viewer.save(None, str(tmp_path / "saved"))


def test_edits_that_cannot_be_kept_are_done_all_the_same_and_the_window_says_so(tmp_path, open_viewer, monkeypatch):
    viewer = open_viewer(save_model(tmp_path))
    with monkeypatch.context() as broken:
        broken.setattr("unified_lift.viewer.journal.write_held", refuse)
        viewer.session.apply(Remove(objects=(2,)))
        viewer.refresh()
    assert "will be lost when the viewer ends: " in viewer.panels._head.content
    assert "No space left" in viewer.panels._head.content
    assert len(viewer.session.operations) == 1
    viewer.session.apply(Remove(objects=(3,)))
    viewer.refresh()
    assert "lost" not in viewer.panels._head.content


def test_memory_stays_flat_however_often_the_camera_moves(model):
    with served(model) as (process, port, token), Window(port, token) as window:
        used = []
        for move in range(450):
            window.look(0.02 * move, width=320, height=240)
            window.read(0.01)
            if move >= 100 and move % 10 == 0:
                used.append(int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 / 2**20)
    assert len(window.messages) > 300  # a picture for nearly every move
    assert np.median(used[-10:]) - np.median(used[:10]) < 15, used


def test_unsaved_edits_are_kept_when_the_viewer_ends(tmp_path, monkeypatch, capsys):
    model = save_model(tmp_path)

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


def test_what_goes_wrong_with_an_export_is_one_line_and_leaves_nothing(model, open_viewer, tmp_path, monkeypatch):
    viewer, told = open_viewer(model), []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    client = SimpleNamespace(
        client_id=5, add_notification=lambda title, text, **_: told.append(text) or SimpleNamespace(remove=list)
    )
    monkeypatch.setattr(viewer._server, "get_clients", lambda: {5: client})
    viewer.panels.part.value = "selected objects"
    viewer.export(SimpleNamespace(client=client))
    assert told == ["no object is selected; click one"]
    viewer.session.select(2)
    monkeypatch.setattr("unified_lift.viewer.server.export", lambda *_, **__: refuse("", ""))
    viewer.export(SimpleNamespace(client=client))
    assert told[1:] == ["ply is being written", f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}"]
    assert set(tmp_path.iterdir()) == before


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
