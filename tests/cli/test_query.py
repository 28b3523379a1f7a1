"""unified-lift query, run as a user runs it."""

import re
import shutil

import cv2
import numpy as np
import pytest
import torch

from tests.data.fixtures.floor import floor_ids
from tests.saved_model import save_model
from unified_lift.cli import query as command
from unified_lift.cli.main import main
from unified_lift.cli.query import query_main
from unified_lift.editing.query import object_masks
from unified_lift.modelfolder.inference import load_model, views_of
from unified_lift.ops.cameras import project


@pytest.fixture(scope="module")
def view(model):
    return views_of(load_model(model)).train[0]


def pixel_of(model, view, object_id):
    """Return a pixel in the middle of an object, as U,V."""
    scene = load_model(model)
    middle = scene.gaussians.means.detach()[scene.object_ids == object_id].mean(dim=0, keepdim=True).numpy()
    ((u, v),), _ = project(middle, view.camera)
    assert floor_ids(middle.astype(float)) > 0
    return f"{u},{v}"


def rows(text):
    """Return the ids in a printed table."""
    return [int(line.split()[0]) for line in text.splitlines() if re.match(r"\s+\d+  ", line)]


def test_the_list_names_every_object(model, capsys):
    assert main(["query", "-m", str(model), "--list"]) == 0
    text = capsys.readouterr().out
    assert rows(text) == [0, 1, 2, 3]
    counts = load_model(model).objects
    line = next(line for line in text.splitlines() if line.split()[0] == "2")
    assert line.split()[1:4] == ["object", "2", str(counts[2])]


def test_a_point_names_its_object_and_shows_it(model, view, tmp_path, capsys):
    point = pixel_of(model, view, 2)
    assert query_main(["-m", str(model), "--point", point, "--view", view.name, "--out", str(tmp_path)]) == 0
    assert rows(capsys.readouterr().out) == [2]
    mask = cv2.imread(str(tmp_path / "2_mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}
    u, v = (int(float(part)) for part in point.split(","))
    assert mask[v, u] == 255
    picture = cv2.imread(str(tmp_path / "2.png"))
    assert picture.shape == (view.camera.height, view.camera.width, 3)
    photo = view.image.numpy()[..., ::-1].astype(float)
    assert picture[mask == 0].mean() < 0.6 * photo[mask == 0].mean()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.png", "2_mask.png"]


def test_a_point_on_nothing_is_exit_code_1(model, view, capsys, monkeypatch):
    monkeypatch.setattr(command, "object_at", lambda *_: None)
    assert main(["query", "-m", str(model), "--point", "1,1", "--view", view.name]) == 1
    assert "no object there" in capsys.readouterr().out


def test_likeness_lists_the_others(model, capsys):
    assert main(["query", "-m", str(model), "--like", "2", "--top", "2"]) == 0
    text = capsys.readouterr().out
    assert len(rows(text)) == 2
    assert 2 not in rows(text)
    assert "cosine" in text


def test_a_mask_found_by_words_names_the_object_under_it(model, view, tmp_path, capsys):
    scene = load_model(model)
    mask = object_masks(scene, view.camera)[2]
    cv2.imwrite(str(tmp_path / "gold coin.png"), mask.astype(np.uint8) * 255)
    ask = ["query", "-m", str(model), "--text", "gold coin", "--grounding", str(tmp_path), "--view", view.name]
    assert main(ask) == 0
    text = capsys.readouterr().out
    assert rows(text) == [2]
    assert "  1.000  " in text  # the IoU
    cv2.imwrite(str(tmp_path / "gold coin.png"), np.zeros((*mask.shape,), np.uint8))
    assert main(ask) == 1
    assert "no object found" in capsys.readouterr().out
    cv2.imwrite(str(tmp_path / "gold coin.png"), np.full((5, 5), 255, np.uint8))
    assert main(ask) == 2
    assert "the mask is 5 x 5" in capsys.readouterr().err


def test_words_ask_the_model_in_the_folder(model, tmp_path, capsys, monkeypatch):
    def encoder(folder, *, device):
        def encode(images, texts):
            assert texts[0] == "mug"
            return torch.eye(4)[[0, 0] + [1] * (len(images) - 2)], torch.eye(4)[[0] + [1] * (len(texts) - 1)]

        assert folder == tmp_path / "clip"
        return encode

    monkeypatch.setattr(command.query, "clip_encoder", encoder)
    ask = ["query", "-m", str(model), "--text", "mug", "--model", str(tmp_path / "clip")]
    ask += ["--out", str(tmp_path / "out")]
    assert main(ask) == 0
    text = capsys.readouterr().out
    assert len(rows(text)) == 1
    assert "1.000" in text
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_scene_that_moved_is_found_by_s(tmp_path, capsys):
    model = save_model(tmp_path)
    shutil.move(tmp_path / "scene", tmp_path / "elsewhere")
    assert main(["query", "-m", str(model), "--list"]) == 0  # needs no photo
    name = views_of(load_model(model, source_path=tmp_path / "elsewhere")).train[0].name
    ask = ["query", "-m", str(model), "--point", "16,20", "--view", name]
    assert main(ask) == 2
    assert "give its place with -s" in capsys.readouterr().err
    assert main([*ask, "-s", str(tmp_path / "elsewhere")]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "ask one thing: --list"),
        (["--list", "--like", "2"], "ask one thing"),
        (["--point", "1,1"], "--point needs --view"),
        (["--point", "here", "--view", "VIEW"], "--point here: write U,V in pixels"),
        (["--point", "9999,1", "--view", "VIEW"], r"lies outside the image of \d+ x \d+"),
        (["--point", "1,1", "--view", "nowhere"], "--view nowhere: no such view; there are "),
        (["--like", "9"], "no object 9; there are 0, 1, 2, 3"),
        (["--like", "2", "--top", "0"], "--top must be at least 1"),
        (["--text", "mug"], "--text needs --model DIR"),
        (["--text", "mug", "--model", "nowhere"], "--model nowhere: no such folder"),
        (["--text", "mug", "--grounding", "nowhere"], "--grounding needs --text and --view"),
        (["--text", "mug", "--grounding", "nowhere", "--view", "VIEW"], "--grounding nowhere: no such folder"),
        (["--list", "--model", "clip"], "--model needs --text"),
        (["--list", "--level", "part"], "no level part"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(model, view, capsys, flags, message):
    named = [view.name if flag == "VIEW" else flag for flag in flags]
    assert main(["query", "-m", str(model), *named]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1


def test_a_model_without_objects_is_told(tmp_path, capsys):
    model = save_model(tmp_path, lifted=False)
    assert main(["query", "-m", str(model), "--list"]) == 2
    assert "knows no objects" in capsys.readouterr().err
