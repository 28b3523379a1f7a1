"""PLY files, random points in frusta, and what initial points are made of."""

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from tests.data.fixtures.floor import floor_photos, orbit
from unified_lift.data.points import (
    initial_points,
    look_at_distance,
    random_in_frusta,
)
from unified_lift.data.settings import DataSettings
from unified_lift.data.triangulation import triangulate
from unified_lift.errors import UserError
from unified_lift.ops.cameras import look_at, project
from unified_lift.plyio import read_point_cloud, write_point_cloud
from unified_lift.types import Camera, PointCloud, View

CLOUD = PointCloud(
    positions=np.array([[0.5, -1, 2], [3, 4, 5], [1e-3, 7, -8]], np.float32),
    colors=np.array([[0, 128, 255], [1, 2, 3], [9, 8, 7]], np.uint8),
)


def same(first, second):
    np.testing.assert_array_equal(first.positions, second.positions)
    np.testing.assert_array_equal(first.colors, second.colors)


def test_written_ply_returns_and_other_programs_read_it(tmp_path):
    write_point_cloud(tmp_path / "sub" / "a.ply", CLOUD)
    same(read_point_cloud(tmp_path / "sub" / "a.ply"), CLOUD)
    vertex = PlyData.read(tmp_path / "sub" / "a.ply")["vertex"]
    np.testing.assert_array_equal(vertex["x"], CLOUD.positions[:, 0])
    np.testing.assert_array_equal(vertex["green"], CLOUD.colors[:, 1])


@pytest.mark.parametrize("order", ["ascii", "<", ">"])
@pytest.mark.parametrize(("color", "largest"), [("u1", 255), ("u2", 65_535), ("f4", 1), ("f4", 255)])
def test_ply_of_other_programs(order, color, largest, tmp_path):
    fields = [("nx", "f4"), ("x", "f8"), ("y", "f4"), ("z", "f4"), ("red", color), ("green", color), ("blue", color)]
    rows = np.zeros(3, dtype=fields)
    for axis, name in enumerate("xyz"):
        rows[name] = CLOUD.positions[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        rows[name] = CLOUD.colors[:, channel] * (largest / 255)
    faces = np.array([([0, 1, 2],)], dtype=[("vertex_indices", "i4", (3,))])
    elements = [PlyElement.describe(rows, "vertex"), PlyElement.describe(faces, "face")]
    data = PlyData(elements, text=order == "ascii", byte_order="<" if order == "ascii" else order, comments=["hello"])
    data.write(tmp_path / "a.ply")
    same(read_point_cloud(tmp_path / "a.ply"), CLOUD)


def test_ply_without_colours_is_grey_and_bad_points_go(tmp_path):
    lines = ["ply", "format ascii 1.0", "element vertex 3", *[f"property float {a}" for a in "xyz"], "end_header"]
    (tmp_path / "a.ply").write_text("\n".join([*lines, "1 2 3", "nan 0 0", "4 5 inf", ""]))
    cloud = read_point_cloud(tmp_path / "a.ply")
    assert cloud.positions.tolist() == [[1, 2, 3]]
    assert cloud.colors.tolist() == [[127, 127, 127]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable PLY"),
        (b"ply\nformat ascii 1.0\nelement vertex 3\n", "early end-of-file"),
        (b"ply\nformat ascii 1.0\nend_header\n", "no vertices"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int a\nend_header\n1 5\n", "'a' is a list"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n", "no x, y, z"),
        (b"ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nend_header\n1\n", "early end-of-file"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\none\n", "malformed input"),
        (b"ply\nformat binary_little_endian 1.0\nelement vertex 2\nproperty float x\nend_header\n1234", "early end"),
    ],
)
def test_broken_ply_files_are_named(content, message, tmp_path):
    (tmp_path / "a.ply").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.ply: .*{message}"):
        read_point_cloud(tmp_path / "a.ply")


def camera_at(position, target, focal=40.0):
    pose = look_at(np.array(position, float), np.array(target, float), np.array([0.0, 0.0, 1.0]))
    return Camera(cam_from_world=pose, fx=focal, fy=focal, cx=16.0, cy=12.0, width=32, height=24)


def test_random_points_lie_in_a_frustum_and_end_at_one_and_a_half_look_at_distances():
    cameras = [camera_at(position, (0, 0, 0)) for position in ((2, 0, 0), (0, 2, 0), (-2, 0, 0.5))]
    cloud = random_in_frusta(cameras, count=500, seed=3)
    assert cloud.positions.shape == (500, 3)
    assert cloud.positions.dtype == np.float32
    inside = np.zeros(500, bool)
    far = 1.5 * look_at_distance(cameras)
    for camera in cameras:
        pixels, depth = project(cloud.positions, camera)
        inside |= ((pixels > -1e-3) & (pixels < [32.001, 24.001])).all(axis=1) & (depth > 0) & (depth < far * 1.0001)
    assert inside.all()
    assert look_at_distance(cameras) == pytest.approx(2.0, rel=0.02)


def test_random_points_are_uniform_where_frusta_overlap():
    cameras = [camera_at((2, 0, 0), (0, 0, 0))] * 5 + [camera_at((-2, 0, 0), (0, 0, 0))]
    cloud = random_in_frusta(cameras, count=4000, seed=0)
    # Five equal cameras on the right do not get five times the points: both sides mirror each other.
    assert np.mean(cloud.positions[:, 0] > 0) == pytest.approx(0.5, abs=0.03)
    alone = random_in_frusta(cameras[:1], count=4000, seed=0)
    depth = project(alone.positions, cameras[0])[1]
    far = 1.5 * look_at_distance(cameras[:1])
    assert np.mean(depth < far / 2) == pytest.approx(1 / 8, abs=0.02)  # volume grows with the cube of the depth


@pytest.mark.parametrize(
    ("cameras", "expected"),
    [
        ([camera_at((1, 2, 3), (0, 0, 0))], 1.0),
        ([camera_at((x, 0, 0), (x, 5, 0)) for x in (-1, 0, 1)], 2.0),
        ([camera_at((x, 0, 0), (3 * x, 0.01, 0)) for x in (-1, 1)], 2.0),
    ],
    ids=["alone", "parallel", "outward"],
)
def test_cameras_whose_axes_do_not_meet_ahead(cameras, expected):
    assert look_at_distance(cameras) == pytest.approx(expected)
    assert len(random_in_frusta(cameras, count=20, seed=0).positions) == 20


@pytest.fixture(scope="module")
def floor_views():
    photos = floor_photos(orbit(24, width=160, height=120, cx=83.0, cy=57.0))
    return [View(name=str(n), camera=p.camera, image=torch.from_numpy(p.image)) for n, p in enumerate(photos)]


def test_few_triangulated_points_are_filled_up_with_random_ones(floor_views):
    cloud, note = initial_points(floor_views[:8], DataSettings(num_random_points=2500), own=None)
    assert len(cloud.positions) == len(cloud.colors) == 2500
    assert "triangulated" in note
    assert "random" in note
    found = triangulate(floor_views[:8])
    np.testing.assert_array_equal(cloud.positions[: len(found.positions)], found.positions)


@pytest.mark.parametrize(("random_init", "share"), [(False, 0.5), (True, 0.0)])
def test_half_of_the_random_points_are_for_what_lies_behind(random_init, share, floor_views):
    settings = DataSettings(num_random_points=4000, random_init=random_init)
    views = floor_views[:2]  # of two views nothing is triangulated
    cloud, note = initial_points(views, settings, own=None)
    assert note == "4000 random initial points in the camera frusta"
    cameras = [view.camera for view in views]
    near = 1.5 * look_at_distance(cameras)
    depth = np.min([project(cloud.positions, camera)[1] for camera in cameras], axis=0)
    assert (depth > near).mean() == pytest.approx(share * (1 - (1.5 / 4) ** 3), abs=0.1)
