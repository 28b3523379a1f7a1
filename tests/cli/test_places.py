"""A scene far from the origin, tiny or huge: trained like any other, and in the user's coordinates in all files."""

import json
import shutil

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from tests.data.fixtures import write_dataset
from tests.data.fixtures.moved import move_scene
from unified_lift.api import load_scene
from unified_lift.cli.main import main
from unified_lift.cli.model_flags import opened
from unified_lift.modelfolder.inference import load_model, render_view, views_of
from unified_lift.modelfolder.outputs import iteration_dir
from unified_lift.viewer.renderer import cameras_of
from unified_lift.viewer.session import Session

PLACES = {
    "origin": (1.0, (0, 0, 0)),
    "map": (1.0, (4e5, 5.6e6, 110)),
    "tiny": (1e-5, (0, 0, 0)),
    "far": (1e4, (1e7, -1e7, 9e6)),
}
TRAIN = "--eval --iterations 80 --lift_iterations 60 --sh_degree 1 --num_codes 6 --device cpu --quiet".split()
FORMATS = "ply,points,splat,spz,html,labels"


def train(scene, model, *more):
    assert main(["train", "-s", str(scene), "-m", str(model), *TRAIN, *more]) == 0


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name of a place -> a model that was trained there."""
    root = tmp_path_factory.mktemp("places")
    for name, place in PLACES.items():
        scene = root / name
        scene.mkdir()
        write_dataset("transforms", scene)
        if name != "origin":
            move_scene(scene, *place)
        train(scene, root / f"{name}_model", "--checkpoint_iterations", "40")
    return {name: root / f"{name}_model" for name in PLACES}


@pytest.fixture(params=[name for name in PLACES if name != "origin"])
def place(request, models):
    """The model, a function from coordinates at the origin to those there, its scale, and its accuracy in float32."""
    scale, offset = PLACES[request.param]
    return models[request.param], lambda x: scale * np.asarray(x, np.float64) + offset, scale, 1e-3 * scale


def columns(path, *names):
    rows = PlyData.read(str(path))["vertex"].data
    return np.stack([np.asarray(rows[name], np.float64) for name in names], axis=1)


def table_of(model):
    return json.loads((iteration_dir(model, 80) / "objects.json").read_text())


def test_an_ordinary_scene_is_left_where_it_is(models):
    assert not (models["origin"] / "frame.json").exists()
    assert load_model(models["origin"]).frame.is_identity
    rows = PlyData.read(str(iteration_dir(models["origin"], 80) / "point_cloud.ply"))["vertex"]
    assert {item.val_dtype for item in rows.properties} == {"f4"}


def test_files_of_the_model_are_in_the_users_coordinates(models, place):
    model, moved, scale, accuracy = place
    origin, saved = iteration_dir(models["origin"], 80), iteration_dir(model, 80)
    wide = PlyData.read(str(saved / "point_cloud.ply"))["vertex"]
    doubles = {item.name for item in wide.properties if item.val_dtype == "f8"}
    assert doubles == (set("xyz") if any(load_model(model).frame.offset) else set())
    for name in ("point_cloud.ply", "point_cloud_objects.ply"):
        found, before = columns(saved / name, *"xyz"), columns(origin / name, *"xyz")
        assert np.median(np.abs(found - moved(before)), axis=0).max() < 20 * accuracy
        sizes = [np.median(columns(each / name, "scale_0")) for each in (saved, origin)]
        assert sizes[0] - sizes[1] == pytest.approx(np.log(scale), abs=0.02)
    np.testing.assert_allclose(
        columns(model / "input.ply", *"xyz"), moved(columns(models["origin"] / "input.ply", *"xyz")), atol=accuracy
    )
    for new, old in zip(*(json.loads((each / "cameras.json").read_text()) for each in (model, models["origin"]))):
        np.testing.assert_allclose(new.pop("position"), moved(old.pop("position")), atol=accuracy)
        np.testing.assert_allclose(new.pop("rotation"), old.pop("rotation"), atol=1e-6)
        assert new == old
    found, before = table_of(model), table_of(models["origin"])
    assert len(found) == len(before)
    for corner in (0, 1):
        np.testing.assert_allclose(found["0"]["bbox"][corner], moved(before["0"]["bbox"][corner]), atol=300 * accuracy)


def test_the_scene_is_loaded_into_the_frame_of_its_model(place):
    model = load_model(place[0])
    assert load_scene(model.settings.data.source_path).frame == model.frame


def test_scores_are_those_of_the_scene_at_the_origin(models, place, capsys):
    results = []
    for model in (models["origin"], place[0]):
        assert main(["eval", "-m", str(model), "--quiet", "--device", "cpu"]) == 0
        (scores,) = json.loads((model / "results.json").read_text()).values()
        results.append(scores)
    assert results[1]["PSNR"] == pytest.approx(results[0]["PSNR"], abs=0.2)
    assert results[1]["mIoU"] == pytest.approx(results[0]["mIoU"], abs=0.005)


def test_depth_is_in_the_users_units(models, place):
    model, _, scale, _ = place
    depths = []
    for each in (models["origin"], model):
        scene = load_model(each)
        depths.append(render_view(scene, views_of(scene).test[0].camera).depth)
    assert torch.median(depths[1] / depths[0]) == pytest.approx(scale, rel=0.01)


def test_an_interrupted_run_goes_on_inside_of_its_frame(place, tmp_path):
    model = tmp_path / "again"
    shutil.copytree(place[0], model)
    for path in (model / "chkpnt140.pth", model / "chkpnt80.pth"):
        path.unlink()
    source = str(load_model(place[0]).settings.data.source_path)  # which stays where it is
    assert main(["train", "-m", str(model), "-s", source, "--resume", "--device", "cpu", "--quiet"]) == 0
    name = "point_cloud/iteration_80/point_cloud_objects.ply"
    assert (model / name).read_bytes() == (place[0] / name).read_bytes()


def test_a_checkpoint_of_before_goes_on_in_the_users_coordinates(models, tmp_path):
    model = tmp_path / "old"
    shutil.copytree(models["tiny"], model)
    for name in ("chkpnt140.pth", "chkpnt80.pth", "frame.json"):
        (model / name).unlink()
    saved = torch.load(model / "chkpnt40.pth", weights_only=True)
    frame = saved.pop("frame")
    saved["gaussians"]["means"] /= frame["scale"]
    torch.save(saved, model / "chkpnt40.pth")
    source = str(load_model(models["tiny"]).settings.data.source_path)
    assert main(["train", "-m", str(model), "-s", source, "--resume", "--device", "cpu", "--quiet"]) == 0
    assert load_model(model).frame.is_identity
    assert load_model(model).gaussians.means.abs().max() < 1e-3


def test_a_splat_is_taken_from_the_users_coordinates(place, tmp_path):
    model, _, _, _ = place
    ply = iteration_dir(model, 80) / "point_cloud.ply"
    train(load_model(model).settings.data.source_path, tmp_path / "m", "--iterations", "0", "--init_ply", str(ply))
    again = load_model(tmp_path / "m")
    torch.testing.assert_close(again.gaussians.means, load_model(model).gaussians.means, atol=1e-6, rtol=1e-6)
    alone = opened(ply)  # a splat without a model finds a frame of its own
    reach = (alone.gaussians.means - alone.gaussians.means.median(dim=0).values).norm(dim=1).median()
    assert 0.4 < reach < 260
    positions = alone.frame.outside(alone.gaussians.means.detach().numpy())
    np.testing.assert_allclose(positions, columns(ply, *"xyz"), rtol=1e-6)


@pytest.mark.parametrize("way", [[], ["--inside"]])
def test_what_is_exported_comes_back(place, tmp_path, capsys, way):
    model, _, scale, accuracy = place
    out, saved = tmp_path / "out", iteration_dir(model, 80) / "point_cloud.ply"
    assert main(["export", "-m", str(model), "--format", FORMATS, "--out", str(out), *way]) == 0
    assert "frame.json tells the way back" in capsys.readouterr().out
    assert json.loads((out / "frame.json").read_text()) == json.loads((model / "frame.json").read_text())
    frame, expected = load_model(model).frame, columns(saved, *"xyz")
    inside = frame.inside(expected)
    if not way:
        assert (out / "scene.ply").read_bytes() == saved.read_bytes()
    wanted, error = (inside, 1e-6) if way else (expected, accuracy)
    for name in ("scene.ply", "scene_points.ply", "scene_labels/point_cloud_objects.ply"):
        np.testing.assert_allclose(columns(out / name, *"xyz"), wanted, atol=error)
    rows = np.fromfile(out / "scene.splat", np.dtype([("xyz", "<f4", 3), ("rest", "u1", 20)]))["xyz"]
    held = not way and not any(frame.offset)
    np.testing.assert_allclose(rows, expected if held else inside, atol=accuracy if held else 1e-6)
    for file in ("scene.ply", "scene.splat", "scene.spz"):
        argv = ["import-edit", "-m", str(model), "--ply", str(out / file), "--out", str(tmp_path / file)]
        assert main(argv) == 0
        text = capsys.readouterr().out
        assert "rounded" not in text
        assert ("400 where they were" in text) if file == "scene.ply" else "not known" not in text
        np.testing.assert_allclose(load_model(tmp_path / file).gaussians.means.detach(), inside, atol=1e-3)


def test_positions_that_another_program_has_rounded_are_told(models, tmp_path, capsys):
    rows = PlyData.read(str(iteration_dir(models["map"], 80) / "point_cloud.ply"))["vertex"].data
    PlyData([PlyElement.describe(rows.astype([(name, "<f4") for name in rows.dtype.names]), "vertex")]).write(
        str(tmp_path / "rounded.ply")
    )
    argv = ["import-edit", "-m", str(models["map"]), "--ply", str(tmp_path / "rounded.ply")]
    assert main([*argv, "--max_distance", "100", "--out", str(tmp_path / "new")]) == 0
    assert "rounded.ply: float32 has rounded places to 0.5 units" in capsys.readouterr().out


def test_edits_are_in_the_users_units(place, tmp_path, capsys):
    model, moved, scale, accuracy = place
    step = [0.3 * scale, 0.0, -0.2 * scale]
    argv = ["edit", "-m", str(model), "--move", "0", "--translate", *map(repr, step), "--out", str(tmp_path / "new")]
    assert main(argv) == 0
    before, after = table_of(model), table_of(tmp_path / "new")
    np.testing.assert_allclose(after["0"]["centroid"], np.add(before["0"]["centroid"], step), atol=accuracy)
    about = before["0"]["centroid"]
    (tmp_path / "turn.yaml").write_text(
        json.dumps([{"move": {"objects": [0], "about": about, "rotate": {"degrees": 180}}}])
    )
    argv = ["edit", "-m", str(model), "--script", str(tmp_path / "turn.yaml"), "--out", str(tmp_path / "turned")]
    assert main(argv) == 0
    np.testing.assert_allclose(table_of(tmp_path / "turned")["0"]["centroid"], about, atol=0.2 * scale)
    capsys.readouterr()
    assert main(["query", "-m", str(tmp_path / "new"), "--list"]) == 0
    low, high = (corner.split() for corner in capsys.readouterr().out.splitlines()[1].split("  ")[-1].split(" .. "))
    assert [float(x) for x in low] == pytest.approx(after["0"]["bbox"][0], abs=0.02 * scale)
    assert [float(x) for x in high] == pytest.approx(after["0"]["bbox"][1], abs=0.02 * scale)


def test_the_viewer_looks_from_the_saved_cameras_and_edits_in_the_users_units(models, place):
    model, _, scale, _ = place
    scene = load_model(model)
    for camera, view in zip(cameras_of(scene), (*views_of(scene).test, *views_of(scene).train), strict=True):
        np.testing.assert_allclose(camera.cam_from_world, view.camera.cam_from_world, atol=1e-5)
    session = Session(scene)
    step = np.array([0.5, 0.0, 0.0]) * scale * scene.frame.scale  # as the handles have it
    move = session.move(0, wxyz=(1, 0, 0, 0), translation=step)
    assert move.translate == pytest.approx((0.5 * scale, 0, 0), rel=1e-5)
    session.apply(move)
    shift = (session.scene.gaussians.means - scene.gaussians.means)[scene.object_ids == 0]
    torch.testing.assert_close(shift, torch.from_numpy(step).float().expand_as(shift), atol=1e-5, rtol=1e-5)


def test_a_damaged_frame_is_named(models, tmp_path, capsys):
    shutil.copytree(models["map"], tmp_path / "model")
    for content in (
        "{}",
        '{"offset": [0, 0], "scale": 1}',
        '{"offset": [0, 0, 0], "scale": 0}',
        '{"offset": [0, 0, 1e300], "scale": 1}',
        "no",
    ):
        (tmp_path / "model/frame.json").write_text(content)
        assert main(["query", "-m", str(tmp_path / "model"), "--list"]) == 2
        assert "frame.json: " in capsys.readouterr().err


def test_a_run_at_the_origin_leaves_no_frame_of_an_earlier_one(models, tmp_path):
    shutil.copytree(models["map"], tmp_path / "model")
    scene = load_model(models["origin"]).settings.data.source_path
    train(scene, tmp_path / "model", "--iterations", "1", "--overwrite")
    assert not (tmp_path / "model/frame.json").exists()
