"""unified-lift import-edit: out with export, edited by another program, in again."""

import json

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from tests.saved_model import save_model
from unified_lift.cli import import_edit
from unified_lift.cli.main import main
from unified_lift.data import load_scene
from unified_lift.modelfolder.inference import load_model, render_view
from unified_lift.modelfolder.outputs import iteration_dir, read_run_settings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("import"))


def edit(model, path, change):
    """Write the scene after another program changed its rows; such programs know plain columns only."""
    rows = PlyData.read(str(iteration_dir(model, 40) / "point_cloud.ply"))["vertex"].data.copy()
    PlyData([PlyElement.describe(change(rows), "vertex")], text=True).write(str(path))
    return path


def test_an_edited_ply_becomes_a_model_with_the_labels_it_had(model, tmp_path, capsys):
    scene = load_model(model)
    kept = (scene.object_ids != 3).numpy()
    path = edit(model, tmp_path / "edited.ply", lambda rows: rows[kept][::-1])
    assert main(["import-edit", "-m", str(model), "--ply", str(path), "--out", str(tmp_path / "new")]) == 0
    text = capsys.readouterr().out
    assert f"{kept.sum()} where they were" in text
    assert f"{(~kept).sum()} old ones are gone" in text
    assert "objects that are gone: object 3" in text
    new = load_model(tmp_path / "new")
    expected = np.flatnonzero(kept)[::-1].copy()
    assert torch.equal(new.object_ids, scene.object_ids[expected])
    assert torch.equal(new.gaussians.features, scene.gaussians.features[expected])
    assert torch.allclose(new.confidence, scene.confidence[expected])
    manifest = json.loads((tmp_path / "new/manifest.json").read_text())
    assert (manifest["num_same"], manifest["num_removed"]) == (kept.sum(), (~kept).sum())
    assert manifest["imported"] == str(path)


def test_the_new_model_renders_without_the_deleted_object(model, tmp_path):
    scene = load_model(model)
    path = edit(model, tmp_path / "edited.ply", lambda rows: rows[(scene.object_ids != 1).numpy()])
    assert main(["import-edit", "-m", str(model), "--ply", str(path), "--out", str(tmp_path / "new")]) == 0
    camera = load_scene(read_run_settings(tmp_path / "new").data).train[0].camera
    before, after = (render_view(load_model(folder), camera) for folder in (model, tmp_path / "new"))
    hole = before.object_ids == 1
    assert int(hole.sum()) > 20
    assert float(before.alpha[hole].min()) > 0.8
    assert float(after.alpha[hole].min()) < 0.05  # in its middle; its rim is covered by what lies around it
    assert float(after.alpha[hole].mean()) < 0.6
    far = before.alpha.isclose(after.alpha) & (before.object_ids != 1)
    assert torch.equal(before.object_ids[far], after.object_ids[far])


def test_moved_gaussians_are_told_from_unknown_ones(model, tmp_path, capsys):
    def change(rows):
        rows["f_dc_0"] += np.arange(len(rows)) * 1e-3  # here every Gaussian of a coin has the same looks
        return rows

    look = edit(model, tmp_path / "look.ply", change)
    assert main(["import-edit", "-m", str(model), "--ply", str(look), "--out", str(tmp_path / "first")]) == 0
    rows = PlyData.read(str(look))["vertex"].data.copy()
    rows["z"][:5] += 3
    rows["z"][5:8] += 3
    rows["f_dc_0"][5:8] = 0.123
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(tmp_path / "moved.ply"))
    capsys.readouterr()
    argv = ["import-edit", "-m", str(tmp_path / "first"), "--ply", str(tmp_path / "moved.ply")]
    assert main([*argv, "--out", str(tmp_path / "second")]) == 0
    text = capsys.readouterr().out
    assert "  5 moved or copied" in text
    assert "  3 not known: they got the object of the nearest, with confidence 0" in text
    assert load_model(tmp_path / "second").confidence[5:8].tolist() == [0, 0, 0]


def test_bad_input_is_one_line_and_nothing_is_written(model, tmp_path, capsys):
    good = edit(model, tmp_path / "good.ply", lambda rows: rows)
    far = tmp_path / "far.ply"

    def moved(rows):
        rows["x"] += 50
        rows["f_dc_0"] += 1
        return rows

    edit(model, far, moved)
    (tmp_path / "text.ply").write_text("no ply")
    for ply, more, message in (
        (tmp_path / "none.ply", [], "none.ply: no such file"),
        (tmp_path / "text.ply", [], "text.ply: not a readable PLY"),
        (far, [], "are not near any of"),
        (good, ["--max_distance", "-1"], "--max_distance must not be negative"),
        (good, ["--iteration", "3"], "iteration 3 is not saved"),
    ):
        argv = ["import-edit", "-m", str(model), "--ply", str(ply), "--out", str(tmp_path / "new"), *more]
        assert main(argv) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_a_model_is_replaced_only_when_asked_to(model, tmp_path, capsys):
    argv = ["import-edit", "-m", str(model), "--ply", str(edit(model, tmp_path / "same.ply", lambda rows: rows))]
    argv += ["--out", str(tmp_path / "new")]
    assert main(argv) == 0
    assert main(argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0


def test_ctrl_c_leaves_nothing(model, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(import_edit, "reattach", interrupted)
    ply = edit(model, tmp_path / "same.ply", lambda rows: rows)
    assert main(["import-edit", "-m", str(model), "--ply", str(ply), "--out", str(tmp_path / "new")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["same.ply"]


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        main(["import-edit", "--help"])
    assert end.value.code == 0
    assert "Example: unified-lift import-edit -m" in capsys.readouterr().out
