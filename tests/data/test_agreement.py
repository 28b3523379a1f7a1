"""What check-data calls fine loads, and what it calls a problem does not."""

import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.fixtures import edit_json
from unified_lift.capture.check import check_scene
from unified_lift.cli.main import main
from unified_lift.data import load_scene
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.modelfolder.inference import load_model, render_view


def photos(root):
    return sorted((root / "images").rglob("*.png"))


def missing(root, count):
    for path in photos(root)[:count]:
        path.unlink()


def cut(root, count):
    for path in photos(root)[:count]:
        path.write_bytes(path.read_bytes()[:-200])


def other_shape(root, count):
    for path in photos(root)[:count]:
        Image.new("RGB", (40, 24)).save(path)


def renamed(root, count):
    for path in photos(root)[:count]:
        path.rename(path.with_suffix(".TIF"))


def swapped(root, count):
    for path in photos(root)[:count]:
        shutil.copy(path, path.with_suffix(".jpg"))
        path.rename(path.with_suffix(".tif"))


@pytest.mark.parametrize(
    ("damage", "count", "fine"),
    [
        (missing, 0, True),
        (missing, 3, True),
        (missing, 8, False),
        (cut, 2, True),
        (cut, 8, False),
        (other_shape, 2, True),
        (other_shape, 8, False),
        (renamed, 3, True),
        (swapped, 1, False),  # .jpg and .tif of one stem, and the pose is of .png
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_photos(damage, count, fine, strict, dataset, read):
    root = dataset("colmap")
    damage(root, count)
    fine = fine and (not strict or count == 0 or damage is renamed)
    agree(root, fine, read, strict=strict)


def agree(root, fine, read, **settings):
    assert check_scene(DataSettings(source_path=root, **settings)).facts["fine"] == fine
    if fine:
        assert len(read(root, **settings).train) >= 2
    else:
        with pytest.raises(UserError) as error:
            read(root, **settings)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "fine"),
    [
        (lambda frames: frames[2].pop("transform_matrix"), True),
        (lambda frames: frames[2].pop("file_path"), True),
        (lambda frames: frames[2].update(transform_matrix=None), True),
        (lambda frames: frames[2].update(transform_matrix=np.diag([1, -1, 1, 1]).tolist()), True),
        (lambda frames: [frame.update(fl_x=-1, fl_y=-1) for frame in frames[:3]], True),
        (lambda frames: [frame.pop("transform_matrix") for frame in frames[:-1]], False),
        (lambda frames: frames.append(frames[3]), True),
        (lambda frames: frames.append({**frames[3], "transform_matrix": frames[4]["transform_matrix"]}), False),
        (lambda frames: frames.append("text"), True),
    ],
)
def test_frames(change, fine, dataset, read):
    root = dataset("transforms")
    edit_json(root / "transforms.json", lambda data: change(data["frames"]))
    agree(root, fine, read)


def without_a_pose(root):
    edit_json(root / "transforms.json", lambda data: data["frames"][2].pop("transform_matrix"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, lambda root: None) for name in ("colmap", "transforms", "lerf_mask", "replica", "messy_rooms")]
    + [("colmap", lambda root, act=act: act(root, 2)) for act in (missing, cut, other_shape, renamed)]
    + [("transforms", without_a_pose)],
)
def test_what_check_data_calls_fine_trains_to_a_picture(name, damage, dataset, tmp_path, capsys):
    root, model = dataset(name), tmp_path / "model"
    damage(root)
    assert main(["check-data", "-s", str(root)]) == 0
    short = "--iterations 400 --opacity_reset_interval 0 --lift_iterations 20 --sharpen_steps 2 --logger none --quiet"
    short = [*short.split(), "--device", "cpu"]
    assert main(["train", "-s", str(root), "-m", str(model), *short]) == 0
    trained, scene = load_model(model), load_scene(DataSettings(source_path=root))
    errors = [(render_view(trained, view.camera).image - view.image / 255).square().mean() for view in scene.train]
    blank = [(view.image / 255 - (view.image / 255).mean(dim=(0, 1))).square().mean() for view in scene.train]
    assert sum(errors) < sum(blank)  # better than one colour
