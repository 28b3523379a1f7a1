"""Points from photos: epipolar planes, triangulation, and how views that are turned or zoomed are matched."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.data.fixtures.floor import floor_colors, floor_photos, orbit
from unified_lift.data.triangulation import (
    Tracks,
    linear_triangulation,
    pencils,
    plane_angles,
    plane_reach,
    triangulate,
)
from unified_lift.ops.cameras import project, unproject
from unified_lift.types import Camera, View


def views_of(cameras: list[Camera]) -> list[View]:
    photos = floor_photos(cameras)
    return [View(name=str(n), camera=p.camera, image=torch.from_numpy(p.image)) for n, p in enumerate(photos)]


@pytest.fixture(scope="module")
def floor_views():
    return views_of(orbit(24, width=160, height=120, cx=83.0, cy=57.0))


def rays(pixels: np.ndarray, camera: Camera) -> torch.Tensor:
    return torch.from_numpy(unproject(pixels, np.ones(len(pixels)), camera) - camera.position)


def test_a_point_lies_in_one_epipolar_plane_of_both_cameras():
    first, *others = orbit(9, width=32, height=24, cx=15.0, cy=13.0)[:3]
    points = np.random.default_rng(0).normal(scale=0.4, size=(20, 3))
    for axes, other in zip(pencils(first, others), others, strict=True):
        one, two = (plane_angles(rays(project(points, camera)[0], camera), axes) for camera in (first, other))
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
        assert one.std() > 0.01


def test_reach_is_by_what_a_plane_turns_over_some_pixels():
    first, other = orbit(9, width=32, height=24)[:2]
    (axes,), pixels = pencils(first, [other]), np.array([[3.0, 4.0], [30.0, 20.0], [16.0, 12.0]])
    ways = np.stack([np.cos(turns := np.linspace(0, 2 * np.pi, 720)), np.sin(turns)], axis=1)
    there = plane_angles(rays(pixels, other), axes)
    around = [plane_angles(rays(pixels + 0.1 * way, other), axes) - there for way in ways]
    expected = 1.5 / 0.1 * torch.stack(around).abs().amax(dim=0)
    torch.testing.assert_close(plane_reach(rays(pixels, other), other, axes), expected, rtol=0.02, atol=0)


def test_near_the_epipole_and_without_a_baseline_nothing_is_within_reach():
    first = orbit(9, width=32, height=24)[0]
    ahead = first.cam_from_world.copy()
    ahead[2, 3] -= 0.5  # moved along its own axis: the epipole is the principal point
    (axes,) = pencils(first, [moved := dataclasses.replace(first, cam_from_world=ahead)])
    reach = plane_reach(rays(np.array([[16.0, 13.0], [16.0, 48.0]]), moved), moved, axes)
    assert reach.tolist() == pytest.approx([-1, 1.5 / 36], rel=1e-4)  # 1 and 36 px from it
    (axes,) = pencils(first, [first])
    assert (plane_reach(rays(np.array([[3.0, 4.0]]), first), first, axes) < 0).all()


def test_triangulated_points_lie_on_the_floor_with_its_colour(floor_views):
    cloud = triangulate(floor_views)
    height = np.abs(cloud.positions[:, 2])
    assert np.median(height) < 0.01  # a pixel is about 0.015 wide here
    assert np.percentile(height, 90) < 0.03
    assert (height < 0.03).sum() > 2500
    difference = np.abs(floor_colors(cloud.positions.astype(float)) - cloud.colors).mean(axis=1)
    assert np.median(difference) < 20


def test_triangulation_of_too_little_is_empty(floor_views):
    assert len(triangulate(floor_views[:2]).positions) == 0
    blank = [dataclasses.replace(view, image=torch.zeros_like(view.image)) for view in floor_views[:4]]
    assert len(triangulate(blank).positions) == 0
    assert len(triangulate([floor_views[0]] * 5).positions) == 0  # no angle, no depth


def test_linear_triangulation_returns_exact_points():
    cameras = orbit(9, width=32, height=24)
    points = np.random.default_rng(1).normal(scale=0.4, size=(7, 3)) + [100, 0, 0]
    shift = np.eye(4)
    shift[0, 3] = -100.0  # a world far from its origin must not cost precision
    moved = [dataclasses.replace(camera, cam_from_world=camera.cam_from_world @ shift) for camera in cameras]
    view, track = np.repeat(np.arange(9), 7), np.tile(np.arange(7), 9)
    pixels = np.concatenate([project(points, camera)[0] for camera in moved])
    tracks = Tracks(view=view, feature=np.zeros_like(view), pixels=pixels, track=track)
    np.testing.assert_allclose(linear_triangulation(tracks, moved), points, atol=1e-7)


def test_small_photos_are_enlarged_so_that_more_is_found(floor_views, monkeypatch):
    found = len(triangulate(floor_views).positions)
    monkeypatch.setattr("unified_lift.data.triangulation._MIN_SIDE", 1)
    assert found > 1.2 * len(triangulate(floor_views).positions) > 0


def turned(camera: Camera, quarters: int) -> Camera:
    """The same camera, turned about its axis."""
    cosine, sine = np.cos(quarters * np.pi / 2), np.sin(quarters * np.pi / 2)
    turn = np.eye(4)
    turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
    return dataclasses.replace(camera, cam_from_world=turn @ camera.cam_from_world)


@pytest.mark.parametrize("change", ["as they are", "turned", "zoomed"])
def test_views_that_are_turned_or_zoomed_match(change):
    cameras = orbit(12, width=160, height=160)
    if change == "turned":
        cameras = [turned(camera, n % 4) for n, camera in enumerate(cameras)]
    if change == "zoomed":
        zooms = [1.5 if n % 2 else 1.0 for n in range(12)]
        cameras = [dataclasses.replace(c, fx=z * c.fx, fy=z * c.fy) for c, z in zip(cameras, zooms, strict=True)]
    cloud = triangulate(views_of(cameras))
    assert len(cloud.positions) > 600
    assert np.percentile(np.abs(cloud.positions[:, 2]), 80) < 0.03


def test_points_depend_neither_on_threads_nor_on_the_order_of_work(floor_views, monkeypatch):
    expected = triangulate(floor_views[:6])
    torch.set_num_threads(2)
    monkeypatch.setattr("unified_lift.data.triangulation.parallel_map", lambda function, items: [*map(function, items)])
    found = triangulate(floor_views[:6])
    assert len(found.positions) > 100
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_array_equal(found.colors, expected.colors)


def test_the_definition_finds_the_same_points(floor_views, monkeypatch):
    expected = triangulate(floor_views[:4])
    monkeypatch.setattr("unified_lift.kernels.candidates.automatic", lambda tensor: ("reference", ""))
    np.testing.assert_array_equal(triangulate(floor_views[:4]).positions, expected.positions)
