"""The script in docs/api.md runs, and the public functions say what they do."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unified_lift
from tests.saved_model import save_model
from unified_lift import UserError, edit, evaluate, export, load_model, load_scene, render, segment, train_scene
from unified_lift.plyio import read_vertices

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("api")
    save_model(root)
    (root / "output").mkdir()
    (root / "output/demo").symlink_to(root / "model")
    return root


def test_the_script_of_the_page_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    script = re.search(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[1]
    names = {}
    exec(compile(script, "api.md", "exec"), names)
    picture, object_id = np.asarray(Image.open("view.png")), names["object_id"]
    assert picture.shape == (240, 320, 3)
    assert picture.std() > 5
    assert f"object {object_id}, " in capsys.readouterr().out
    assert len(read_vertices(Path("middle.ply"))) == names["model"].objects[object_id]


def test_the_cells_of_the_notebook_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    for cell in json.loads((PAGE.parent / "python.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "python.ipynb", "exec"), names)
    model, second = names["model"], names["second"]
    assert len(names["frames"]) == 8
    assert names["chosen"] == int(names["ids"][names["camera"].height // 2, names["camera"].width // 2])
    assert second in model.objects  # which the edits left alone
    assert (names["edited"].name_of(second), second in names["removed"].objects) == ("red one", False)
    assert len(read_vertices(Path("without.ply"))) == len(model) - model.objects[second]
    assert len(read_vertices(Path("object.ply"))) == model.objects[second]
    with pytest.raises(UserError, match="edit 2: no operation 'remov'; did you mean 'remove'"):
        edit(model, [{"remove": [second]}, {"remov": [second]}])


def test_the_page_names_everything_that_is_public():
    listed = re.findall(r"^\| `(\w+)", PAGE.read_text(), flags=re.MULTILINE)
    assert set(listed) == set(unified_lift.__all__) - {"__version__"}


def test_a_model_is_rendered_segmented_and_scored(folder):
    model, scene = load_model(folder / "model"), load_scene(folder / "scene")
    camera = scene.train[0].camera
    image, ids = render(model, camera), segment(model, camera)
    assert image.shape == (camera.height, camera.width, 3)
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert set(np.unique(ids)) <= set(model.objects)
    result = evaluate(model)
    assert result.scores["PSNR"] > 10
    assert evaluate(model, scene=folder / "scene", protocol="generic").scores == result.scores
    with pytest.raises(UserError, match="no-such: there are auto"):
        evaluate(model, protocol="no-such")


def test_objects_are_exported_together_or_the_whole_scene(folder, tmp_path):
    model = load_model(folder / "model")
    export(model, tmp_path / "new/all.splat")
    assert (tmp_path / "new/all.splat").stat().st_size == 32 * len(model)
    first, second = list(model.objects)[:2]
    export(model, tmp_path / "two.ply", objects=[first, second])
    assert len(read_vertices(tmp_path / "two.ply")) == model.objects[first] + model.objects[second]
    wrong = (("a.xyz", None, "use .ply"), ("a.points", None, "use .ply"), ("a.ply", [99], "no object 99"))
    for path, objects, words in wrong:
        with pytest.raises(UserError, match=words):
            export(model, tmp_path / path, objects=objects)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "two.ply"}


def test_a_scene_without_objects_says_so(tmp_path):
    model = load_model(save_model(tmp_path, lifted=False))
    camera = load_scene(tmp_path / "scene").train[0].camera
    with pytest.raises(UserError, match="knows no objects"):
        segment(model, camera)
    export(model, tmp_path / "all.ply")
    assert len(read_vertices(tmp_path / "all.ply")) == len(model)


def test_a_scene_is_trained_with_the_flags_of_the_command_as_arguments(folder, tmp_path):
    short = {"iterations": 4, "lift_iterations": 4, "random_init": True, "num_random_points": 50, "logger": "none"}
    model = train_scene(folder / "scene", tmp_path / "model", device="cpu", quiet=True, **short)
    assert (model.iteration, model.is_lifted, len(model)) == (4, True, len(load_model(tmp_path / "model")))
    with pytest.raises(UserError, match="already holds a run; overwrite=True"):
        train_scene(folder / "scene", tmp_path / "model")
    with pytest.raises(UserError, match="iteratoins"):
        train_scene(folder / "scene", tmp_path / "other", iteratoins=4)
    assert not (tmp_path / "other").exists()
