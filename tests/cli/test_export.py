"""unified-lift export on a small model, and import-edit of what another program made of it."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from unified_lift.cli.main import main
from unified_lift.editing.placement import up_of
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.labels import GaussianLabels
from unified_lift.modelfolder.outputs import iteration_dir


def rows(path):
    return PlyData.read(str(path))["vertex"].data


def test_by_default_the_scene_is_written_as_the_ply_it_was_saved_as(model, tmp_path, capsys):
    assert main(["export", "-m", str(model)]) == 0
    written = (model / "export/scene.ply").read_bytes()
    assert written == (iteration_dir(model, 40) / "point_cloud.ply").read_bytes()
    assert "export/scene.ply: " in capsys.readouterr().out


def test_every_object_becomes_a_file_in_every_format(model, tmp_path):
    out = tmp_path / "out"
    formats = "ply,splat,spz,html,labels,points"
    flags = ["--objects", "all", "background", "--format", formats, "--out", str(out)]
    assert main(["export", "-m", str(model), *flags]) == 0
    scene = load_model(model)
    stems = {0: "background"} | {object_id: f"object_{object_id}" for object_id in (1, 2, 3)}
    for object_id, stem in stems.items():
        own = scene.object_ids == object_id
        found = rows(out / f"{stem}.ply")
        np.testing.assert_array_equal(np.stack([found[c] for c in "xyz"], 1), scene.gaussians.means.detach()[own])
        assert (rows(out / f"{stem}_points.ply")["object_id"] == object_id).all()
        assert (out / f"{stem}.splat").stat().st_size == 32 * int(own.sum())
        assert (out / f"{stem}.spz").read_bytes()[:2] == b"\x1f\x8b"
        assert (out / f"{stem}.html").exists()
        assert set(np.load(out / f"{stem}_labels/segmentation.npz")["object_id"]) == {object_id}
    assert len(list(out.iterdir())) == 4 * 6


def test_objects_and_formats_can_be_given_with_spaces_and_uncertain_gaussians_left_out(model, tmp_path, capsys):
    out = str(tmp_path / "out")
    argv = ["export", "-m", str(model), "--objects", "1", "3", "--format", "ply", "splat", "--out", out]
    argv += ["--min_conf", "0.9"]
    assert main(argv) == 0
    scene = load_model(model)
    for object_id in (1, 3):
        certain = (scene.object_ids == object_id) & (scene.confidence >= 0.9)
        assert 0 < int(certain.sum()) < int((scene.object_ids == object_id).sum())
        assert len(rows(tmp_path / f"out/object_{object_id}.ply")) == int(certain.sum())


def test_an_object_is_named_turned_up_and_put_on_the_ground(model, tmp_path, capsys):
    scene, out = load_model(model), tmp_path / "out"
    assert main(["edit", "-m", str(model), "--rename", "2=red fox", "--out", str(tmp_path / "named")]) == 0
    flags = ["--objects", "Red Fox", "--up", "z", "--center", "--ground", "--scale", "10", "--out", str(out)]
    assert main(["export", "-m", str(tmp_path / "named"), *flags]) == 0
    up, told = up_of(scene)
    assert f"up in the scene: {told}; in the files: +z" in capsys.readouterr().out
    table = rows(out / "red_fox.ply")
    before = scene.gaussians.means.detach()[scene.object_ids == 2].numpy()
    # The middle of 5 % to 95 % has moved to 0, before the turn; 1 % lie below height 0.
    np.testing.assert_allclose(np.ptp(table["z"]), 10 * np.ptp(before @ up), rtol=1e-4)
    np.testing.assert_allclose(np.quantile(table["z"], 0.01), 0, atol=1e-4)
    assert np.abs(np.mean([table["x"], table["y"]], axis=1)).max() < 0.2 * np.ptp(table["x"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--scale", "0"], "--scale must be at least 1e-06"),
        (["--inside", "--center"], "--inside: keeps the way back to your coordinates"),
        (["--objects", "9"], "no object 9; there are 0, 1, 2, 3"),
        (["--objects", "mug"], "--objects mug: expected object ids, all, background or scene"),
        (["--format", "xyz"], "--format xyz: no such format; there are compressed, "),
        (["--min_conf", "2"], "--min_conf goes up to 1, received 2"),
        (["--iteration", "7"], "iteration 7 is not saved; there are 40"),
        (["--level", "parts"], "no level parts"),
        (["--objects"], "has no object but"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(model, tmp_path, capsys, argv, message):
    assert main(["export", "-m", str(model), "--out", str(tmp_path / "out"), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert re.search(r"^error: ", error, re.MULTILINE)
    assert not (tmp_path / "out").exists()


def test_an_object_without_a_certain_gaussian_is_named_and_none_is_an_error(model, tmp_path, capsys, monkeypatch):
    argv = ["export", "-m", str(model), "--out", str(tmp_path / "out"), "--quiet", "--min_conf"]
    scene = load_model(model)
    scene = replace(scene, labels=GaussianLabels(scene.object_ids, (scene.object_ids == 2).float() * 0.5))
    monkeypatch.setattr("unified_lift.cli.model_flags.load_model", lambda *_, **__: scene)
    assert main([*argv, "0.5", "--objects", "all"]) == 0
    assert "no Gaussian of object_1, object_3 is as certain as --min_conf 0.5: not written" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["object_2.ply"]
    assert main([*argv, "0.8", "--objects", "all"]) == 2
    assert "leaves nothing to write" in capsys.readouterr().err


# ---- import-edit ----


def edit(model, path, change):
    """Write the scene after another program changed its rows; such programs know plain columns only."""
    changed = change(rows(iteration_dir(model, 40) / "point_cloud.ply").copy())
    PlyData([PlyElement.describe(changed, "vertex")], text=True).write(str(path))
    return path


def test_an_edited_ply_becomes_a_model_with_the_labels_it_had(model, tmp_path, capsys):
    scene = load_model(model)
    kept = (scene.object_ids != 3).numpy()
    path = edit(model, tmp_path / "edited.ply", lambda table: table[kept][::-1])
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
    assert manifest["imported"] == "../edited.ply"


def test_moved_gaussians_are_told_from_unknown_ones(model, tmp_path, capsys):
    def change(table):
        table["f_dc_0"] += np.arange(len(table)) * 1e-3  # here every Gaussian of a coin has the same looks
        return table

    look = edit(model, tmp_path / "look.ply", change)
    assert main(["import-edit", "-m", str(model), "--ply", str(look), "--out", str(tmp_path / "first")]) == 0
    moved = rows(look).copy()
    moved["z"][:8] += 3
    moved["f_dc_0"][5:8] = 0.123
    PlyData([PlyElement.describe(moved, "vertex")]).write(str(tmp_path / "moved.ply"))
    capsys.readouterr()
    argv = ["import-edit", "-m", str(tmp_path / "first"), "--ply", str(tmp_path / "moved.ply")]
    assert main([*argv, "--out", str(tmp_path / "second")]) == 0
    text = capsys.readouterr().out
    assert "  5 moved or copied" in text
    assert "  3 not known: they got the object of the nearest, with confidence 0" in text
    assert load_model(tmp_path / "second").confidence[5:8].tolist() == [0, 0, 0]


def test_a_bad_ply_is_one_line_and_nothing_is_written(model, tmp_path, capsys):
    good = edit(model, tmp_path / "good.ply", lambda table: table)

    def moved(table):
        table["x"] += 50
        table["f_dc_0"] += 1
        return table

    far = edit(model, tmp_path / "far.ply", moved)
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
