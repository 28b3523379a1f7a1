"""Depth from sparse points: which points a view shows, the loss by hand, and that it trains and resumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diff_gaussian_rasterization import RasterMeta, RasterOutput

from tests.data.fixtures import edit_json, write_dataset
from tests.data.fixtures.floor import LANDMARK
from tests.train.test_training import StopAt, final_state, settings_for
from unified_lift.data import load_scene
from unified_lift.data.settings import DataSettings
from unified_lift.data.sparse import hidden, with_sparse_points
from unified_lift.errors import UserError
from unified_lift.ops.cameras import project
from unified_lift.train.hooks import Interrupted
from unified_lift.train.losses.depth import depth
from unified_lift.train.run import latest_checkpoint, run
from unified_lift.types import PointCloud


def test_points_behind_others_are_hidden():
    near = [(x + 0.5, y + 0.5, 2.0) for x in range(8) for y in range(8)]
    others = [(4.0, 4.0, 2.1), (4.0, 4.0, 3.0), (30.0, 4.0, 3.0)]  # beside the surface, behind it, where there is none
    x, y, z = np.array(near + others).T
    found = hidden(np.stack([x, y], axis=1), z, 32, 8)
    assert found.tolist() == [False] * 64 + [False, True, False]


def points_of(view):
    return sorted((int(x), int(y), round(z, 3)) for x, y, z in view.points.tolist())


def points_by_hand(view, positions):
    """Column, row and depth of the points of the picture on pixels that count, rounded, as a sorted list."""
    found = []
    for (x, y), z in zip(*project(positions, view.camera), strict=True):
        inside = z > 0 and 0 <= x <= view.camera.width and 0 <= y <= view.camera.height
        if inside and (view.valid is None or view.valid[int(y), int(x)]):
            found.append((int(x), int(y), round(float(z), 3)))
    return sorted(found)


def test_a_view_shows_the_points_of_its_track_or_those_that_nothing_hides(tmp_path):
    root = write_dataset("colmap", tmp_path)
    scene = load_scene(DataSettings(source_path=root), sparse=True)
    shown = [view for view in scene.train if view.points is not None]
    assert len(shown) == 5  # the other four images of the model have no 2D point
    for view in shown:  # only the landmark was matched
        assert points_of(view) == points_by_hand(view, LANDMARK[None])
    assert all(view.points is None for view in load_scene(DataSettings(source_path=root)).train)
    cloud = scene.points.positions
    for table in ("images", "points3D"):  # tracks go, the floor hides nothing of itself
        (root / f"sparse/0/{table}.bin").unlink()
        (root / f"sparse/0/{table}.txt").write_bytes((root / f"sparse_text/0/{table}.txt").read_bytes())
    path = root / "sparse/0/images.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    path.write_text("".join(f"{line}\n\n" for line in lines[::2]))
    scene = load_scene(DataSettings(source_path=root), sparse=True)
    for view in scene.train:
        assert set(points_of(view)) <= set(points_by_hand(view, cloud))
        assert len(view.points) > 0.7 * len(points_by_hand(view, cloud))


def test_excluded_pixels_and_random_points_show_no_depth(scene):
    left = torch.zeros(20, 24, dtype=torch.bool)
    left[:, :12] = True
    halves = replace(scene, train=tuple(replace(view, valid=left) for view in scene.train))
    for whole, half in zip(with_sparse_points(scene).train, with_sparse_points(halves).train, strict=True):
        kept = whole.points[whole.points[:, 0] < 12]
        assert torch.equal(half.points, kept)
        assert 0 < len(kept) < len(whole.points)
    cloud = scene.points
    some = PointCloud(positions=cloud.positions, colors=cloud.colors, num_random=len(cloud.positions) - 40)
    first = with_sparse_points(replace(scene, points=some)).train[0].points
    assert len(first) <= 40
    none = PointCloud(positions=cloud.positions, colors=cloud.colors, num_random=len(cloud.positions))
    with pytest.raises(UserError, match="--loss_weights: balls has no sparse points that a view shows"):
        with_sparse_points(replace(scene, points=none))


def test_triangulated_points_count_and_the_random_ones_that_fill_up_do_not(tmp_path):
    root = write_dataset("transforms", tmp_path)
    edit_json(root / "transforms.json", lambda content: content.pop("ply_file_path"))
    (root / "points3D.ply").unlink()
    scene = load_scene(DataSettings(source_path=root, num_random_points=500))
    found = len(scene.points.positions) - scene.points.num_random
    assert 0 < found < 400
    assert scene.points.num_random >= 100
    near = np.linalg.norm(scene.points.positions[:found] - LANDMARK, axis=1) < 0.15
    assert near.any()


def rendered(alpha, blended):
    maps = [torch.tensor(plane, requires_grad=True) for plane in (alpha, blended)]
    return RasterOutput(torch.zeros(1, 3, 3), torch.zeros(1, 3, 0), *maps, RasterMeta(torch.zeros(0), None, None))


def test_the_loss_by_hand(scene):
    camera = replace(scene.train[0].camera, width=3, height=1)
    points = torch.tensor([[0.0, 0, 2], [2, 0, 4], [1, 0, 5]])
    view = replace(scene.train[0], camera=camera, points=points)
    out = rendered([[0.5, 0.0, 1.0]], [[0.5, 0.0, 8.0]])  # depths 1, none, 8
    value = depth(out, None, view)
    value.backward()
    scale = 3 * (1 / 2 + 1 / 4 + 1 / 5) / 3
    assert value.item() == pytest.approx((abs(1 - 1 / 2) + abs(1 / 8 - 1 / 4)) / scale)
    # d (alpha / blended): 1 / blended and -alpha / blended^2
    torch.testing.assert_close(out.alpha.grad, torch.tensor([[2.0, 0, -1 / 8]]) / scale)
    torch.testing.assert_close(out.depth.grad, torch.tensor([[-2.0, 0, 1 / 64]]) / scale)
    assert depth(out, None, replace(view, points=None)) == 0


def test_it_trains_and_resumes_bit_for_bit(tmp_path, scene, capsys):
    cloud = PointCloud(positions=scene.points.positions, colors=scene.points.colors)
    settings = {
        name: settings_for(tmp_path / name, lift_iterations=0, quiet=False, loss_weights=[f"depth={weight}"])
        for name, weight in (("whole", 1), ("halves", 1), ("plain", 0))
    }
    scene = replace(scene, points=cloud)
    run(settings["whole"], scene)
    assert "loss depth: " in capsys.readouterr().out
    with pytest.raises(Interrupted):
        run(settings["halves"], scene, hooks=[StopAt(13)])
    run(settings["halves"], scene, resume_from=latest_checkpoint(settings["halves"]))
    run(settings["plain"], scene)
    whole, halves, plain = (final_state(each.model_path, 24)["gaussians"]["means"] for each in settings.values())
    assert torch.equal(whole, halves)
    assert not torch.equal(whole, plain)
