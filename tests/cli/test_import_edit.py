"""unified-lift import-edit: out with export, edited by another program, in again."""

import json

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from tests.saved_model import save_model
from unified_lift.cli.main import main
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.outputs import iteration_dir


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
        (good, ["--max_distance", "-1"], "--max_distance must be at least 0"),
        (good, ["--iteration", "3"], "iteration 3 is not saved"),
    ):
        argv = ["import-edit", "-m", str(model), "--ply", str(ply), "--out", str(tmp_path / "new"), *more]
        assert main(argv) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
