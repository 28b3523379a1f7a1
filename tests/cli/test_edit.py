"""unified-lift edit, run as a user runs it."""

import json
import re
from dataclasses import replace
from threading import Thread

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.saved_model import save_model
from unified_lift.cli.edit import EditCommand, _flag_entries, edit_main
from unified_lift.cli.main import main
from unified_lift.cli.render import render_main
from unified_lift.editing import script
from unified_lift.editing.operations import Remove
from unified_lift.editing.script import read_script
from unified_lift.editing.script import save_model as save_edited
from unified_lift.errors import UserError
from unified_lift.evaluation.pictures import read_picture
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.inference import load_model, render_view, views_of
from unified_lift.modelfolder.labels import segment_by_labels


def edited(model, out, *flags):
    assert edit_main(["-m", str(model), "--out", str(out), *map(str, flags)]) == 0
    return load_model(out)


def same(left, right):
    tables = [(value, getattr(right.gaussians, name)) for name, value in left.gaussians]
    return all(
        torch.equal(*pair)
        for pair in [*tables, (left.object_ids, right.object_ids), (left.confidence, right.confidence)]
    )


def test_an_edited_model_is_a_model_folder(model, tmp_path, capsys):
    out = tmp_path / "new" / "edited"
    scene = edited(model, out, "--remove", 3, "--duplicate", 1, "--translate", -0.5, 0, 0.2, "--rename", "1=gold coin")
    assert set(scene.objects) == {0, 1, 2, 4}
    assert (scene.name_of(1), scene.name_of(4)) == ("gold coin", "copy of object 1")
    folder = outputs.iteration_dir(out, 40)
    names = ("point_cloud.ply", "point_cloud_objects.ply", "classifier.pth", "segmentation.npz", "objects.json")
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert (out / "cameras.json").read_bytes() == (model / "cameras.json").read_bytes()
    settings = outputs.read_run_settings(model)
    assert outputs.read_run_settings(out) == replace(settings, model_path=out)  # paths are found from the new place
    assert all(str(tmp_path) not in (out / name).read_text() for name in ("config.yaml", "cfg_args"))
    listed = json.loads((folder / "objects.json").read_text())
    before = json.loads((outputs.iteration_dir(model, 40) / "objects.json").read_text())
    assert listed["1"]["views"] == before["1"]["views"] > 0
    assert (listed["4"]["views"], listed["4"]["count"]) == (0, listed["1"]["count"])
    text = capsys.readouterr().out
    assert "4 objects" in text
    assert "4: copy of object 1" in text
    assert sorted(path.name for path in out.parent.iterdir()) == ["edited"]


def test_edits_of_edits_add_up_and_replay_exactly(model, tmp_path):
    first, second, again = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    edited(model, first, "--duplicate", 1, "--rotate_axis", 1, 2, 3, "--rotate_degrees", 33.3, "--scale", 0.7)
    assert [edit.key for edit in read_script(first / "edits.yaml", flag="")] == ["duplicate"]
    scene = edited(first, second, "--recolour", 4, "--color", "#12f", "--strength", 0.9)
    assert [edit.key for edit in read_script(second / "edits.yaml", flag="")] == ["duplicate", "recolour"]
    assert same(scene, edited(model, again, "--script", second / "edits.yaml"))
    assert (again / "edits.yaml").read_text() == (second / "edits.yaml").read_text()


def test_flags_come_after_the_script_in_their_own_order(model, tmp_path):
    path = tmp_path / "edits.yaml"
    path.write_text("- rename: {2: one}\n")
    out = tmp_path / "out"
    edited(model, out, "--rename", "2=two", "--remove", 1, "--merge", 2, 3, "--script", path, "--clean", 2)
    keys = [next(iter(entry)) for entry in yaml.safe_load((out / "edits.yaml").read_text())]
    assert keys == ["rename", "clean", "remove", "merge", "rename"]


def test_rendered_ids_of_an_edited_model_are_those_of_its_gaussians(model, tmp_path):
    out = tmp_path / "out"
    edited(model, out, "--isolate", 1, 2, "--clean", 1, "--outliers", 0)
    copied = tmp_path / "copied"
    scene = edited(out, copied, "--duplicate", 1, "--translate", 0, 0, 0.7)
    assert render_main(["-m", str(copied), "--skip_train", "--no-video", "--quiet"]) == 0
    path = next((copied / "test" / "ours_40" / "objects_pred").rglob("*.png"))
    assert set(np.unique(read_picture(path))) == {0, 1, 2, 4}  # 0: where nothing is
    loaded = load_model(copied)
    assert loaded.is_edited
    assert not load_model(model).is_edited
    assert torch.equal(loaded.object_ids, scene.object_ids)


def test_removing_an_object_leaves_the_rest_of_the_picture(model, tmp_path):
    before = load_model(model)
    edited(model, tmp_path / "out", "--remove", 2)
    view = views_of(before).train[0]
    silhouette = segment_by_labels(before.gaussians, before.object_ids, view.camera).object_ids == 2
    assert silhouette.any()
    outside = ~torch.from_numpy(cv2.dilate(silhouette.numpy().astype(np.uint8), np.ones((5, 5))) > 0)
    images = [render_view(load_model(path), view.camera).image for path in (model, tmp_path / "out")]
    error = (images[0] - images[1]).square()
    assert float(-10 * error[outside].mean().log10()) > 35
    assert float(-10 * error[silhouette].mean().log10()) < 25


def test_eval_refuses_an_edited_model(model, tmp_path, capsys):
    edited(model, tmp_path / "out", "--remove", 2)
    assert main(["eval", "-m", str(tmp_path / "out"), "--quiet"]) == 2
    assert "this scene was edited" in capsys.readouterr().err


def test_models_are_replaced_only_on_demand_and_other_folders_never(tmp_path):
    model = save_model(tmp_path)
    (model / "results.json").write_text("{}")
    (model / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds a model; name another folder, or add --overwrite"):
        edited(model, model, "--remove", 1)
    assert not (model / "edits.yaml").exists()
    with pytest.raises(UserError, match="translate must be three numbers up to 1e"):
        edited(model, model, "--duplicate", 1, "--translate", 1e39, 0, 0, "--overwrite")
    scene = edited(model, model, "--remove", 1, "--overwrite")
    assert set(scene.objects) == {0, 2, 3}
    assert not (model / "results.json").exists()  # it was about the scene before
    assert (model / "notes.txt").read_text() == "mine"
    scene = edited(model, model, "--remove", 2, "--overwrite")
    assert [edit.objects for edit in read_script(model / "edits.yaml", flag="")] == [(1,), (2,)]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(UserError, match="is there and no model"):
        edited(model, tmp_path / "photos", "--remove", 3, "--overwrite")


def test_training_again_forgets_the_edits(tmp_path):
    model = save_model(tmp_path)
    edited(model, model, "--remove", 1, "--overwrite")
    outputs.set_earlier_run_aside(model)
    assert not (model / "edits.yaml").exists()


@pytest.mark.parametrize(
    ("flags", "entry"),
    [
        (["--merge", 1, 2, "--split", 1, "--gap", 2], "[{merge: [1, 2]}, {split: {objects: [1], gap: 2}}]"),
        (["--split", 0, "--box", 0, 0, -1, 2, 2, 1], "- split: {objects: [0], box: [[0, 0, -1], [2, 2, 1]]}"),
        (
            ["--grow", 1, "--shrink", 2, "--distance", 0.1],
            "[{grow: {objects: [1], distance: 0.1}}, {shrink: {objects: [2], distance: 0.1}}]",
        ),
        (
            ["--relabel", 9, "--centre", 0, 0, 0, "--radius", 0.5],
            "- relabel: {object: 9, centre: [0, 0, 0], radius: 0.5}",
        ),
        (
            ["--relabel", 0, "--gaussians", *range(3000), "--givers", 1, 2],
            f"- relabel: {{object: 0, gaussians: {[*range(3000)]}, objects: [1, 2]}}",
        ),
    ],
)
def test_flags_are_entries_of_a_script(model, tmp_path, flags, entry):
    (tmp_path / "edits.yaml").write_text(entry)
    scripted = edited(model, tmp_path / "scripted", "--script", tmp_path / "edits.yaml")
    assert same(edited(model, tmp_path / "flags", *flags), scripted)
    assert not torch.equal(scripted.object_ids, load_model(model).object_ids)


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ([], {"fill": False, "shadow": True}),
        (["--fill"], {"fill": True, "shadow": True}),
        (["--fill", "--keep_shadow"], {"fill": True, "shadow": False}),
    ],
)
def test_flags_of_a_removal_say_what_is_filled_and_whether_its_shadow_stays(flags, settings):
    command = EditCommand.parsed(["-m", "model", "--out", "new", "--remove", "3", *flags], command="edit")
    assert [*_flag_entries(command)] == [{"remove": {"objects": [3], **settings}}]


def test_an_interruption_leaves_nothing_half_written(model, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs, "write_objects", interrupted)
    assert main(["edit", "-m", str(model), "--remove", "1", "--out", str(tmp_path / "out")]) == 130
    assert list(tmp_path.iterdir()) == []
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to do; give --script"),
        (["--remove", "9"], "edit 1 (remove): .*no object 9; there are 0, 1, 2, 3"),
        (["--remove", "1", "1"], "flags: remove: objects must be"),
        (["--recolour", "1"], "--recolour: needs --color"),
        (["--color", "#fff"], "--color: needs --recolour"),
        (["--outliers", "2"], "--outliers: needs --clean"),
        (["--grow", "1"], "--grow: needs --distance"),
        (["--gap", "2"], "--gap: needs --split"),
        (["--fill"], "--fill: needs --remove"),
        (["--remove", "1", "--keep_shadow"], "--keep_shadow: needs --fill"),
        (["--split", "0", "--box", "0", "0", "0", "1", "1"], "box must be two corners"),
        (["--grow", "scene", "--distance", "1"], "no Gaussian lies within 1 of"),
        (["--radius", "2"], "--radius: needs --relabel"),
        (["--split", "1", "--gap", "0"], "gap must be a positive number"),
        (["--relabel", "1", "--centre", "0", "0", "0"], "relabel needs either gaussians"),
        (["--recolour", "1", "--color", "red"], "color must be a colour"),
        (["--translate", "1", "0", "0"], "--translate: needs --move or --duplicate"),
        (["--move", "1", "--duplicate", "2"], "share --translate"),
        (["--move", "1", "--scale", "0"], "scale must be a positive number"),
        (["--rename", "mug"], "--rename mug: write ID=NAME"),
        (["--script", "nowhere.yaml"], "--script nowhere.yaml: not readable"),
        (["--remove", "1", "--level", "part"], "no level part; there are none"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(model, tmp_path, capsys, flags, message):
    assert main(["edit", "-m", str(model), "--out", str(tmp_path / "out"), *flags]) == 2
    error = capsys.readouterr().err
    assert re.search(message.replace("(", r"\(").replace(")", r"\)"), error), error
    assert not (tmp_path / "out").exists()


def test_labels_without_a_model_are_exported_instead(model, tmp_path):
    bare = replace(load_model(model), method=None)
    with pytest.raises(UserError, match="unified-lift export"):
        save_edited(bare, tmp_path / "out", edits=[Remove(objects=(1,))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "flags", "codes", "left", "said"),
    [
        ("model", ["--overwrite"], [2, 0], [0, 2, 3], "is at work there"),  # the first holds what it has loaded
        ("new", [], [0, 2], [0, 1, 3], "holds a model; name another folder"),  # the other was done before it wrote
    ],
)
def test_of_two_edits_at_once_one_is_refused(place, flags, codes, left, said, tmp_path, monkeypatch, capsys):
    model, out, apply, found = save_model(tmp_path), tmp_path / place, script.apply, []
    words = ["edit", "-m", str(model), "--out", str(out), *flags, "--remove"]

    def with_another_meanwhile(*args):
        monkeypatch.setattr(script, "apply", apply)
        another = Thread(target=lambda: found.append(main([*words, "2"])))
        another.start()
        another.join()
        return apply(*args)

    monkeypatch.setattr(script, "apply", with_another_meanwhile)
    found.append(main([*words, "1"]))
    assert found == codes
    assert said in capsys.readouterr().err
    assert sorted(load_model(out).objects) == left
