"""Where an exported part lies in its file, and what the file is called."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.editing.small_scene import gaussians_of, random_gaussians, scene_of
from unified_lift.editing.formats import FORMATS, chosen_objects, export
from unified_lift.editing.placement import Placement, cameras_of, up_of
from unified_lift.errors import UserError
from unified_lift.model.files import read_splat
from unified_lift.modelfolder.inference import render_view
from unified_lift.modelfolder.labels import robust_box
from unified_lift.ops.cameras import invert_rigid, look_at
from unified_lift.types import IDENTITY, Similarity

UP = np.array([0.6, 0.0, 0.8])


def scene_with_cameras(folder, frame=IDENTITY):
    """Return 60 Gaussians around (1, 2, 3) and four cameras about them whose up is UP."""
    gaussians = random_gaussians(60)
    gaussians.set("means", gaussians.means.detach() * 0.4 + torch.tensor([1.0, 2.0, 3.0]))
    gaussians.set("log_scales", gaussians.log_scales.detach() + 2)
    entries, target = [], np.array([1.0, 2, 3])
    for side in ([3, 0.5, 0], [-2, 2, 1.5], [1, -3, 2], [0.5, 0.5, -4]):
        pose = invert_rigid(look_at(target + np.array(side), target, UP))
        place = frame.outside(pose[:3, 3]).tolist()
        size = {"width": 40, "height": 30, "fx": 30, "fy": 30}
        entries.append({"position": place, "rotation": pose[:3, :3].tolist(), **size})
    (folder / "cameras.json").write_text(json.dumps(entries))
    return replace(scene_of(gaussians, path=folder), frame=frame)


@pytest.mark.parametrize("frame", [IDENTITY, Similarity(offset=(4e5, -5e6, 100.0), scale=4.0)], ids=["at", "far"])
@pytest.mark.parametrize(
    ("flags", "turned_over"),
    [
        ({"up": "y"}, False),
        ({"up": "z", "scale": 2.5}, True),
        ({"up": "auto", "center": True, "ground": True, "scale": 0.1}, False),
        ({"ground": True}, False),
    ],
)
def test_a_placed_scene_looks_from_placed_cameras_as_it_did(tmp_path, frame, flags, turned_over):
    scene = scene_with_cameras(tmp_path, frame)
    up = up_of(scene)[0]
    np.testing.assert_allclose(up, UP, atol=3e-3)
    placed = Placement(**flags).placed(scene, up, turned_over=turned_over)
    for before, after in zip(cameras_of(scene), cameras_of(placed), strict=True):
        image, moved = render_view(scene, before).image, render_view(placed, after).image
        assert float(image.std()) > 0.1
        assert float((image - moved).abs().max()) < 2e-3  # view-dependent colours have turned with it


@pytest.mark.parametrize(
    ("up", "turned_over", "direction"),
    [("y", False, (0, 1, 0)), ("z", False, (0, 0, 1)), ("auto", False, (0, -1, 0)), ("auto", True, (0, -1, 0)),
     ("y", True, (0, -1, 0)), ("z", True, (0, 0, -1))],
)  # fmt: skip
@pytest.mark.parametrize("source", [(0, 0, 1), (0, -1, 0), (0, 1, 0), (1, 0, 0)])
def test_up_ends_where_the_file_has_it_and_lengths_are_scaled(up, turned_over, direction, source):
    scene = scene_of(gaussians_of(means=[[0, 0, 0], list(source)]), [0, 0])
    placed = Placement(up=up, scale=2).placed(scene, np.array(source, float), turned_over=turned_over)
    np.testing.assert_allclose(placed.gaussians.means.detach()[1], 2 * np.array(direction), atol=1e-6)
    np.testing.assert_allclose(placed.gaussians.scales.detach(), 2, rtol=1e-6)


def test_up_is_an_axis_of_the_world_where_cameras_are_nearly_level_with_it(tmp_path):
    pose = np.eye(4)
    pose[:3, :3] = [[1, 0, 0], [0, 0.004, 1], [0, -1, 0.004]]  # looks along y, its down is -z by 0.2 degrees
    entries = [{"position": [0, 0, 0], "rotation": pose[:3, :3].tolist(), "width": 4, "height": 3, "fx": 3, "fy": 3}]
    (tmp_path / "cameras.json").write_text(json.dumps(entries))
    up, told = up_of(scene_of(random_gaussians(2), path=tmp_path))
    assert (up.tolist(), told) == ([0, 0, 1], "(0, 0, 1), by the cameras")


def test_center_is_the_middle_of_the_bulk_and_ground_its_lowest():
    # 101 places from 0 to 10 on each axis and one far outlier: the middle is 5.05, 1 % of 102 places lie below 0.101.
    line = torch.linspace(0, 10, 101)
    means = torch.cat([torch.stack([line] * 3, dim=1), torch.tensor([[900.0, 900, 900]])])
    scene, up = scene_of(gaussians_of(means=means)), np.array([0.0, 0, 1])
    np.testing.assert_allclose(robust_box(means.numpy()), [[0.505] * 3, [9.595] * 3], rtol=1e-5)
    centred = Placement(center=True).placed(scene, up, turned_over=False).gaussians.means.detach()
    np.testing.assert_allclose(centred[50], [-0.05] * 3, atol=1e-5)
    standing = Placement(center=True, ground=True).placed(scene, up, turned_over=False).gaussians.means.detach()
    np.testing.assert_allclose(standing[0], [-5.05, -5.05, -0.101], atol=1e-5)
    assert Placement().placed(scene, up, turned_over=False) is scene


def test_a_file_with_y_up_says_so_in_every_format(tmp_path):
    scene = scene_of(gaussians_of(means=[[0, 0, 0], [0, -1, 0]]), [0, 0])  # no cameras: up is -y
    export(scene, tmp_path, formats=["ply", "spz"], placement=Placement(up="y"))
    np.testing.assert_allclose(read_splat(tmp_path / "scene.ply")[0].means.detach()[1], [0, 1, 0], atol=1e-6)
    # Our reader turns .spz over, so that its +y is -y here.
    np.testing.assert_allclose(read_splat(tmp_path / "scene.spz")[0].means.detach()[1], [0, -1, 0], atol=1e-4)


NAMES = {4: "Red fox", 5: "mug", 6: "mug", 7: "scene", 8: "../../x", 9: "Füchse 2", 10: "!?", 11: "object_3"}


def test_objects_are_asked_for_by_name_and_files_are_called_so():
    ids = [0, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    scene = scene_of(random_gaussians(len(ids)), ids, names=NAMES)
    assert chosen_objects(scene, ["red FOX"]) == {"Red_fox": 4}
    assert chosen_objects(scene, ["mug", "4", "red fox"]) == {"mug": 5, "mug_6": 6, "Red_fox": 4}
    assert chosen_objects(scene, ["scene", 7, "object 3"]) == {"scene": None, "scene_7": 7, "object_3": 3}
    assert chosen_objects(scene, [11, 3, "x"]) == {"object_3_11": 11, "object_3": 3, "x": 8}
    assert chosen_objects(scene, ["all"]) == {
        "object_3": 3, "Red_fox": 4, "mug": 5, "mug_6": 6, "scene_7": 7, "x": 8, "Füchse_2": 9, "object_10": 10,
        "object_3_11": 11,
    }  # fmt: skip
    names = {0: "mug_2", 1: "mug", 2: "MUG"}
    assert list(chosen_objects(scene_of(random_gaussians(3), [0, 1, 2], names=names), [0, 1, 2])) == [
        *("mug_2", "mug", "MUG_2_2"),
    ]
    with pytest.raises(UserError, match="--objects red: expected .* names of objects .such as Red fox"):
        chosen_objects(scene, ["red"])
    with pytest.raises(UserError, match="names of objects; objects get names by"):
        chosen_objects(scene_of(random_gaussians(2)), ["red"])


def test_a_page_of_a_placed_scene_opens_upright_in_front_of_it(tmp_path):
    scene = scene_with_cameras(tmp_path)
    placed = Placement(up="z", center=True).placed(scene, UP, turned_over=False)
    FORMATS["html"](tmp_path, "scene", placed)
    text = (tmp_path / "scene.html").read_text().split("const scene = ")[1]
    seen = json.JSONDecoder().raw_decode(text)[0]
    assert seen["up"][2] > 0.5
    np.testing.assert_allclose(seen["eye"], cameras_of(placed)[0].position, atol=1e-6)
