"""Holes behind removed objects, on a floor that is known exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.editing.small_scene import gaussians_of, scene_of
from unified_lift.editing import fill as filling
from unified_lift.editing.operations import Move, Remove
from unified_lift.editing.script import dump, parse
from unified_lift.errors import UserError
from unified_lift.metrics.psnr import psnr
from unified_lift.model.gaussians import SH_C0
from unified_lift.model.render import render
from unified_lift.modelfolder.labels import AS_TRAINED, INVENTED, RELIT, RETRAINED
from unified_lift.ops.cameras import look_at
from unified_lift.ops.inpaint import harmonic, similar_piece
from unified_lift.ops.quaternions import rotation_from_quaternion
from unified_lift.types import Camera, View

COUNT = 8


def test_what_is_unknown_becomes_the_mean_of_its_neighbours():
    # Linear along the row: the two unknown values between 1 and 4 are 2 and 3; at the edge the last one is repeated.
    values = np.array([[[1.0], [9.0], [9.0], [4.0], [9.0]]])
    found = harmonic(values, values[..., 0] == 9)
    np.testing.assert_allclose(found[0, :, 0], [1, 2, 3, 4, 4], atol=1e-9)


def test_a_hole_in_a_pattern_is_covered_by_a_turned_piece_of_it():
    rows, columns = np.indices((80, 80)) - 40.0
    angle, away = np.arctan2(rows, columns), np.hypot(rows, columns)  # 6 wedges between two rings
    values = np.stack([0.5 + 0.4 * np.tanh(3 * np.sin(6 * angle)), away / 60, 0.3 + 0 * away], axis=2)
    hole = np.hypot(rows - 20, columns) < 7
    found = similar_piece(np.where(hole[..., None], 0, values), (away > 8) & ~hole, hole, 6)
    assert found is not None
    assert np.sqrt(((found - values)[hole] ** 2).mean()) < 0.05
    assert np.sqrt(((harmonic(values, hole) - values)[hole] ** 2).mean()) > 0.06
    np.testing.assert_array_equal(found[~hole], values[~hole])
    assert similar_piece(0 * values, ~hole, hole, 6) is None  # plain: nothing to be copied


def test_a_chequered_plane_goes_on_in_phase():
    # The period, 13.3 pixels, is no whole number: a piece that is moved by whole pixels is wrong at every edge.
    rows, columns = np.indices((90, 90)) - 45.0
    x, y = rows * np.cos(0.4) - columns * np.sin(0.4), rows * np.sin(0.4) + columns * np.cos(0.4)
    values = 0.5 + 0.4 * np.tanh(4 * np.sin(2 * np.pi * x / 13.3) * np.sin(2 * np.pi * y / 13.3))[..., None]
    values = values * np.array([1.0, 0.7, 0.4])
    hole = np.hypot(rows - 4, columns + 7) < 10
    known = np.hypot(rows - 4, columns + 7) > 11
    found = similar_piece(np.where(hole[..., None], 0, values), known, hole, 9)
    assert found is not None
    assert np.sqrt(((found - values)[hole] ** 2).mean()) < 0.06  # half a pixel off: 0.1


@pytest.mark.parametrize("dark", [0.0, 0.2])
def test_brightness_goes_on_and_what_is_wrong_at_the_rim_fades(dark):
    # Chequers of period 13 whose brightness rises along the row, 0.2 in the picture; on the right of the hole a rim of
    # 3 pixels is too dark. Continued by Laplace's equation alone, that darkens the middle by 0.08, and by 0.12 at most.
    rows, columns = np.indices((100, 100)) - 50.0
    pattern = 0.5 + 0.3 * np.tanh(4 * np.sin(2 * np.pi * rows / 13) * np.sin(2 * np.pi * columns / 13))
    values, away = (pattern + 0.002 * columns)[..., None] * np.ones(3), np.hypot(rows, columns)
    hole, right = away < 10, columns > 0
    seen = np.where(hole[..., None], 0, values - dark * ((away < 13) & right)[..., None])
    found = similar_piece(seen, away > 11, hole, 9)
    assert found is not None
    error, inner = (found - values)[..., 0], (away > 9) & hole
    assert np.abs(error[away < 5]).max() < (0.03 if dark else 1e-3)  # 0.012: what is too dark counts in the mean
    assert np.abs(error[inner & ~right]).mean() < 0.03
    assert error[inner & right].mean() == pytest.approx(-0.57 * dark, abs=0.02)  # no seam: half of it, smoothed


def test_new_gaussians_lie_flat_in_the_surface():
    normal = np.array([0.6, 0.0, 0.8])
    x, y = np.meshgrid(np.arange(4.0), np.arange(3.0))
    found = filling._normals(np.stack([x, y, -0.75 * x], axis=2))
    np.testing.assert_allclose(found, np.tile(normal, (12, 1)), atol=1e-12)
    turned = rotation_from_quaternion(torch.from_numpy(filling._upright(found)))
    np.testing.assert_allclose(turned[:, :, 2], found, atol=1e-12)


def camera(turn, height=1.6):
    position = np.array([2 * np.cos(turn), 2 * np.sin(turn), height])
    pose = look_at(position, np.zeros(3), np.array([0.0, 0.0, 1.0]))
    return Camera(cam_from_world=pose, fx=60.0, fy=60.0, cx=32.0, cy=24.0, width=64, height=48)


def floor():
    """Return Gaussians of a floor, whose colour changes along x and y, 0.1 apart, and of a ball on it, [N] is ball."""
    grid = torch.cartesian_prod(torch.arange(-14, 15), torch.arange(-14, 15)) / 10.0
    ball = torch.randn(150, 3, generator=torch.Generator().manual_seed(0))
    ball = 0.25 * ball / ball.norm(dim=1, keepdim=True) + torch.tensor([0, 0, 0.25])
    colors = torch.cat(
        [0.5 + torch.cat([0.2 * grid, 0 * grid[:, :1]], dim=1), torch.tensor([[0.9, 0.1, 0.1]]).repeat(150, 1)]
    )
    means = torch.cat([torch.cat([grid, torch.zeros(len(grid), 1)], dim=1), ball])
    is_ball = torch.arange(len(means)) >= len(grid)
    gaussians = gaussians_of(
        means=means,
        log_scales=torch.full((len(means), 3), 0.07).log(),
        logit_opacities=torch.full((len(means),), 3.0),
        sh0=((colors - 0.5) / SH_C0)[:, None],
    )
    return gaussians, is_ball


LIGHT = np.array([0.8, 0.4, 0.6]) / np.linalg.norm([0.8, 0.4, 0.6])


def shade(points):
    """Return the light on points of the floor [n, 3] with half of it from a lamp that the ball hides, [n]."""
    offset = np.array([0, 0, 0.25]) - points
    beside = np.linalg.norm(offset - (offset @ LIGHT)[:, None] * LIGHT, axis=1)
    return 1 - 0.5 / (1 + np.exp((beside - 0.25) / 0.02))


def build(*, lamp):
    """Return the scene whose floor has nothing under the ball, its photos, and the scene without ball and shadow."""
    gaussians, is_ball = floor()
    bare = scene_of(gaussians, is_ball.long().tolist(), confidence=[1.0] * len(gaussians)).subset(~is_ball)
    if lamp:
        factor = torch.from_numpy(shade(gaussians.means.detach().double().numpy())).float()
        color = gaussians.sh0.detach() * SH_C0 + 0.5
        lit = (torch.where(is_ball, 1.0, factor)[:, None, None] * color - 0.5) / SH_C0
        gaussians = gaussians.like(gaussians.state_dict() | {"sh0": lit})
    whole = scene_of(gaussians, is_ball.long().tolist(), confidence=[1.0] * len(gaussians))
    cameras = [camera(2 * np.pi * index / COUNT) for index in range(COUNT)]
    with torch.no_grad():
        shown = [render(gaussians, one, with_features=False).image.clamp(0, 1) for one in cameras]
    views = [
        View(name=str(index), camera=one, image=(image * 255).round().to(torch.uint8))
        for index, (one, image) in enumerate(zip(cameras, shown, strict=True))
    ]
    hidden = ~is_ball & (gaussians.means[:, :2].norm(dim=1) < 0.15).detach()
    return whole.subset(~hidden), views, bare


@pytest.fixture(scope="module")
def world():
    return build(lamp=False)


def pictures(scene, turn=0.4):
    with torch.no_grad():
        return render(scene.gaussians, camera(turn), with_features=False).image.clamp(0, 1)


@pytest.fixture(scope="module")
def filled(world):
    scene, views, _ = world
    return filling.fill(scene, scene.object_ids == 1, views, quiet=True)


def test_the_hole_shows_the_floor_and_nothing_else_changes(world, filled):
    scene, _, truth = world
    empty, before, after, wanted = map(pictures, (Remove(objects=(1,)).apply(scene), scene, filled, truth))
    silhouette = (before - wanted).abs().amax(dim=2) > 0.02
    hole = (empty - wanted).abs().amax(dim=2) > 0.1
    assert int(hole.sum()) > 5
    assert psnr(after[silhouette][None], wanted[silhouette][None]) > 38
    assert psnr(after[hole][None], wanted[hole][None]) > psnr(empty[hole][None], wanted[hole][None]) + 8
    assert psnr(after[~silhouette][None], before[~silhouette][None]) > 40


def test_the_shadow_goes_with_the_object():
    scene, views, truth = build(lamp=True)
    lit, dark = (filling.fill(scene, scene.object_ids == 1, views, shadow=one, quiet=True) for one in (True, False))
    after, kept, before, wanted = map(pictures, (lit, dark, scene, truth))
    shadow = (before - wanted).abs().amax(dim=2) > 0.05
    scores = [psnr(one[shadow][None], wanted[shadow][None]) for one in (after, kept)]
    assert scores[0] > 26
    assert scores[0] > scores[1] + 3
    assert int((lit.labels.filled == RELIT).sum()) > 10
    assert int((dark.labels.filled == RELIT).sum()) == 0


def test_what_no_photo_shows_is_marked_and_belongs_to_the_floor(world, filled):
    marks = filled.labels.filled
    new = filled.gaussians.means.detach()[marks == INVENTED]
    assert len(new) > 5
    assert bool((filled.object_ids == 0).all())
    assert bool((filled.confidence[marks == INVENTED] == 0).all())
    assert float(new[:, :2].norm(dim=1).max()) < 0.65
    assert float(new[:, 2].abs().median()) < 0.05
    assert int((marks == RETRAINED).sum()) > 0
    old = world[0].subset(world[0].object_ids == 0).gaussians.means
    kept = filled.gaussians.means.detach()[marks == AS_TRAINED]
    assert bool(torch.isin(kept[:, 0], old[:, 0]).all())  # to the bit


def test_it_is_the_same_every_time(world, filled):
    scene, views, _ = world
    again = filling.fill(scene, scene.object_ids == 1, views, quiet=True)
    for name, value in filled.gaussians:
        assert torch.equal(value, again.gaussians.table[name]), name


def test_marks_go_with_their_gaussians(filled):
    copied = Move(objects=(0,), translate=(1, 0, 0)).apply(filled)
    assert torch.equal(copied.labels.filled, filled.labels.filled)
    part = filled.subset(filled.labels.filled == INVENTED)
    assert bool((part.labels.filled == INVENTED).all())


def test_photos_that_show_another_scene_are_refused(world):
    scene, views, _ = world
    other = [replace(view, image=255 - view.image) for view in views]
    with pytest.raises(UserError, match="no longer show this scene"):
        filling.fill(replace(scene, is_edited=True), scene.object_ids == 1, other, quiet=True)
    with pytest.raises(UserError, match="no photo shows the object"):
        filling.fill(scene, scene.object_ids == 1, [], quiet=True)
    with pytest.raises(UserError, match="fill needs the photos"):
        Remove(objects=(1,), fill=True).apply(scene)


def test_scripts_say_fill():
    text = "- remove: {objects: [3], fill: true}"
    (operation,) = parse(text)
    assert operation == Remove(objects=(3,), fill=True)
    assert parse(dump([operation])) == [operation]
    assert dump([Remove(objects=(3,))]) == "- remove: [3]\n"
