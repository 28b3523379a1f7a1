"""Camera conventions against hand-computed numbers: every source's first step into the project."""

import math

import numpy as np
import pytest

from unified_lift.ops.cameras import (
    cam_from_world_opengl,
    flip_opengl_opencv,
    focal_from_fov,
    fov_degrees,
    fov_from_focal,
    invert_rigid,
    look_at,
    look_at_point,
    project,
    rigid_from_quaternion,
    unproject,
)
from unified_lift.types import Camera

QVEC, TVEC = [0.9, 0.1, -0.3, 0.3], [0.5, -0.25, 2.0]
POINT, IN_CAMERA = [0.3, 0.2, 1.5], [-0.148, -0.486, 3.38]


def colmap_camera(**changes: float | np.ndarray) -> Camera:
    values = {"fx": 778.0, "fy": 780.0, "cx": 493.0, "cy": 364.0, "width": 986, "height": 728}
    return Camera(**{"cam_from_world": rigid_from_quaternion(QVEC, TVEC), **values, **changes})


def test_colmap_pose_and_pixel_match_the_oracle():
    camera = colmap_camera()
    expected = [[0.64, -0.6, -0.48], [0.48, 0.8, -0.36], [0.6, 0.0, 0.8]]
    np.testing.assert_allclose(camera.cam_from_world[:3, :3], expected, atol=1e-12)
    np.testing.assert_allclose(camera.position, [-1.4, 0.5, -1.45], atol=1e-12)
    pixel, depth = project(np.array([POINT]), camera)
    np.testing.assert_allclose(depth, [IN_CAMERA[2]], atol=1e-12)
    np.testing.assert_allclose(pixel[0], [458.933728, 251.846154], atol=1e-6)
    assert fov_from_focal(778.0, 986) == pytest.approx(1.129628, abs=1e-6)
    assert fov_from_focal(780.0, 728) == pytest.approx(0.873254, abs=1e-6)


def test_off_centre_principal_point_moves_the_pixel():
    pixel, _ = project(np.array([POINT]), colmap_camera(cx=500.0, cy=360.0))
    np.testing.assert_allclose(pixel[0] - 0.5, [465.433728, 247.346154], atol=1e-6)


def test_opencv_and_opengl_poses_match_the_oracle():
    opencv = invert_rigid(colmap_camera().cam_from_world)
    np.testing.assert_allclose(
        opencv, [[0.64, 0.48, 0.6, -1.4], [-0.6, 0.8, 0, 0.5], [-0.48, -0.36, 0.8, -1.45], [0, 0, 0, 1]], atol=1e-12
    )
    opengl = flip_opengl_opencv(opencv)
    np.testing.assert_allclose(
        opengl, [[0.64, -0.48, -0.6, -1.4], [-0.6, -0.8, 0, 0.5], [-0.48, 0.36, -0.8, -1.45], [0, 0, 0, 1]], atol=1e-12
    )
    np.testing.assert_allclose(cam_from_world_opengl(opengl), colmap_camera().cam_from_world, atol=1e-12)


def test_first_pixel_centre_at_zero_sources_move_by_half_a_pixel():
    # nice-slam stores cx = 599.5 for 1200 columns; in corner-origin pixels that is 600.
    camera = Camera(
        cam_from_world=np.eye(4), fx=600.0, fy=600.0, cx=599.5 + 0.5, cy=339.5 + 0.5, width=1200, height=680
    )
    pixel, _ = project(np.array([[0.4, -0.2, 2.0]]), camera)
    np.testing.assert_allclose(pixel[0], [720.0, 280.0])
    assert math.degrees(fov_from_focal(600.0, 1200)) == pytest.approx(90.0)


def test_kubric_pose_matches_the_oracle():
    opengl = rigid_from_quaternion([0.5, 0.5, 0.5, 0.5], [1.0, -2.0, 3.0])
    opencv = [[0, 0, -1, 1], [1, 0, 0, -2], [0, -1, 0, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(flip_opengl_opencv(opengl), opencv, atol=1e-12)
    world_to_camera = [[0, 1, 0, 2], [0, 0, -1, 3], [-1, 0, 0, 1], [0, 0, 0, 1]]
    np.testing.assert_allclose(cam_from_world_opengl(opengl), world_to_camera, atol=1e-12)


@pytest.mark.parametrize(("width", "fov", "focal"), [(800, 0.691111, 1111.111031), (640, math.pi / 2, 320.0)])
def test_focal_length_of_a_field_of_view(width, fov, focal):
    # Blender's angle in the oracle is rounded to six digits, which is 1e-3 px here.
    assert focal_from_fov(fov, width) == pytest.approx(focal, abs=2e-3)
    assert fov_from_focal(focal_from_fov(fov, width), width) == pytest.approx(fov)


def test_unproject_inverts_project():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 3)) + [0, 0, 6]
    pixel, depth = project(points, colmap_camera())
    np.testing.assert_allclose(unproject(pixel, depth, colmap_camera()), points, atol=1e-9)


def test_look_at_centres_the_target_with_up_upwards():
    pose = look_at(np.array([3.0, 1.0, 2.0]), np.array([0.0, 0.5, 0.0]), np.array([0.0, 0.0, 1.0]))
    camera = Camera(cam_from_world=pose, fx=100.0, fy=100.0, cx=50.0, cy=40.0, width=100, height=80)
    pixel, depth = project(np.array([[0.0, 0.5, 0.0], [0.0, 0.5, 0.2]]), camera)
    np.testing.assert_allclose(pixel[0], [50.0, 40.0], atol=1e-9)
    assert pixel[1, 1] < 40.0  # image y points down
    assert depth[0] == pytest.approx(np.linalg.norm([3.0, 0.5, 2.0]))
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1.0)
    np.testing.assert_allclose(camera.position, [3.0, 1.0, 2.0])


def test_look_at_refuses_a_view_along_up():
    with pytest.raises(ValueError, match="parallel to up"):
        look_at(np.zeros(3), np.array([0.0, 0.0, 2.0]), np.array([0.0, 0.0, 1.0]))


def test_look_at_point_is_where_the_axes_meet():
    target = np.array([0.3, -0.2, 0.4])
    positions = [[2.0, 0.0, 1.0], [0.0, 2.0, 1.5], [-2.0, -1.0, 0.7]]
    up = np.array([0, 0, 1.0])
    cameras = [colmap_camera(cam_from_world=look_at(np.array(p), target, up)) for p in positions]
    np.testing.assert_allclose(look_at_point(cameras), target, atol=1e-9)


def test_look_at_point_of_parallel_axes_stays_at_the_cameras():
    poses = [rigid_from_quaternion([1, 0, 0, 0], [x, 0, 0]) for x in (-1.0, 0.0, 1.0)]
    cameras = [colmap_camera(cam_from_world=pose) for pose in poses]
    np.testing.assert_allclose(look_at_point(cameras), [0, 0, 0], atol=1e-9)


def test_a_lens_has_one_number_of_degrees_however_the_camera_is_held():
    assert fov_degrees(100, 80, 200, 120) == 90.0  # 2 atan(100 / 100)
    assert fov_degrees(80, 100, 120, 200) == 90.0
