"""Undistortion against the opposite direction: photos ray-cast through the distorted lens."""

import cv2
import numpy as np
import pytest

from tests.data.fixtures.floor import floor_colors, floor_ids, floor_photos, floor_points, orbit
from unified_lift.data.colmap import lens_of
from unified_lift.data.colmap_tables import ColmapCamera
from unified_lift.data.lens import Lens, distort, undistort_ids, undistort_image
from unified_lift.types import Camera

PERSPECTIVE = (-0.25, 0.05, 0.004, -0.006, 0.01)
BROWN = (-0.25, 0.05, 0.004, -0.006, 0.01, 0.3)
FISHEYE = (0.03, -0.01, 0.004, 0.001)


def lens_with(model, coefficients, width=96, height=72):
    return Lens(fx=80.0, fy=78.0, cx=50.0, cy=35.0, width=width, height=height, model=model, coefficients=coefficients)


def inverse_by_search(lens, pixels):
    """Return pinhole directions (x, y) whose distorted pixel is given: Newton with numeric derivatives."""
    xy = (pixels - [lens.cx, lens.cy]) / [lens.fx, lens.fy]
    for _ in range(30):
        value = np.stack(distort(xy[:, 0], xy[:, 1], lens), axis=1)
        columns = []
        for axis in range(2):
            step = np.zeros(2)
            step[axis] = 1e-6
            moved = np.stack(distort(*(xy + step).T, lens), axis=1)
            columns.append((moved - value) / 1e-6)
        xy = xy - np.linalg.solve(np.stack(columns, axis=2), (value - pixels)[:, :, None])[:, :, 0]
    return xy


def photo_through(lens, camera):
    """Return colour and ids that the distorted lens records of the floor."""
    rows, cols = np.mgrid[0 : lens.height, 0 : lens.width]
    pixels = np.stack([cols, rows], axis=-1).reshape(-1, 2) + 0.5
    pinhole = inverse_by_search(lens, pixels) * [camera.fx, camera.fy] + [camera.cx, camera.cy]
    points = floor_points(pinhole, camera)
    shape = (lens.height, lens.width)
    return floor_colors(points).round().astype(np.uint8).reshape(*shape, 3), floor_ids(points).reshape(shape)


@pytest.mark.parametrize(
    ("model", "coefficients"), [("perspective", PERSPECTIVE), ("brown", BROWN), ("fisheye", FISHEYE)]
)
def test_undistorted_photo_is_what_a_pinhole_sees(model, coefficients):
    lens = lens_with(model, coefficients)
    pose = orbit(5, width=96, height=72)[1].cam_from_world
    camera = Camera(cam_from_world=pose, fx=80.0, fy=78.0, cx=50.0, cy=35.0, width=96, height=72)
    image, ids = photo_through(lens, camera)
    expected = floor_photos([camera])[0]
    got_image, got_ids = undistort_image(image, lens), undistort_ids(ids, lens)
    seen = got_image.any(axis=-1)
    assert 0.5 < seen.mean()
    # Nearest sampling may pick the other side of a border: at most a thin line of pixels differs.
    assert (got_ids != expected.ids)[seen].mean() < 0.005
    error, raw_error = (np.abs(photo.astype(float) - expected.image)[seen].mean() for photo in (got_image, image))
    assert error < 0.25 * raw_error  # the raw photo is far away, so the comparison means something
    assert error < 7.0  # bilinear sampling of a fine texture
    assert got_ids.dtype == np.int32


def test_k4_of_brown_multiplies_r_to_the_8_and_that_of_opencv_divides_by_r_squared():
    radius, k1, k4 = np.array([0.5]), 0.1, 0.3
    brown, opencv = (lens_with(model, (k1, 0, 0, 0, 0, k4)) for model in ("brown", "perspective"))
    assert distort(radius, 0 * radius, brown)[0] == pytest.approx(50 + 80 * 0.5 * (1 + k1 / 4 + k4 / 256))
    assert distort(radius, 0 * radius, opencv)[0] == pytest.approx(50 + 80 * 0.5 * (1 + k1 / 4) / (1 + k4 / 4))


def test_pixels_that_nothing_saw_are_black_and_unlabelled():
    lens = lens_with("perspective", (0.3,))  # pulls pixels from beyond the border
    image = undistort_image(np.full((72, 96, 3), 200, np.uint8), lens)
    ids = undistort_ids(np.full((72, 96), 300, np.int32), lens)
    assert image[0, 0].tolist() == [0, 0, 0]
    assert ids[0, 0] == 0
    assert image[35, 50].tolist() == [200, 200, 200]
    assert ids[35, 50] == 300
    np.testing.assert_array_equal(ids > 0, image.any(axis=-1))


def test_folded_borders_of_a_strong_polynomial_are_not_seen():
    lens = lens_with("perspective", (-0.9,))  # r (1 - 0.9 r^2) turns back at r = 0.61
    ids = undistort_ids(np.full((72, 96), 1, np.int32), lens)
    rows, cols = np.mgrid[0:72, 0:96] + 0.5
    radius = np.hypot((cols - 50) / 80, (rows - 35) / 78)
    assert (ids[radius > 0.63] == 0).all()
    assert (ids[radius < 0.55] == 1).all()


@pytest.mark.parametrize("model", ["perspective", "fisheye"])
def test_agrees_with_opencv(model):
    lens = lens_with(model, PERSPECTIVE if model == "perspective" else FISHEYE)
    matrix = np.array([[80.0, 0, 50.0], [0, 78.0, 35.0], [0, 0, 1]])
    directions = np.random.default_rng(0).uniform(-0.5, 0.5, (40, 2))
    points = np.concatenate([directions, np.ones((40, 1))], axis=1)
    expected = cv2.fisheye.distortPoints(directions[None], matrix, np.array(FISHEYE))
    if model == "perspective":
        expected = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, np.array(PERSPECTIVE))[0]
    got = np.stack(distort(directions[:, 0], directions[:, 1], lens), axis=1)
    np.testing.assert_allclose(got, expected.reshape(-1, 2), atol=1e-9)


@pytest.mark.parametrize(
    ("model", "params", "expected"),
    [
        ("SIMPLE_PINHOLE", (9, 4, 3), (9, 9, 4, 3, "perspective", (0, 0, 0, 0, 0, 0, 0, 0))),
        ("PINHOLE", (9, 8, 4, 3), (9, 8, 4, 3, "perspective", (0, 0, 0, 0, 0, 0, 0, 0))),
        ("SIMPLE_RADIAL", (9, 4, 3, 0.1), (9, 9, 4, 3, "perspective", (0.1, 0, 0, 0, 0, 0, 0, 0))),
        ("RADIAL", (9, 4, 3, 0.1, 0.2), (9, 9, 4, 3, "perspective", (0.1, 0.2, 0, 0, 0, 0, 0, 0))),
        ("OPENCV", (9, 8, 4, 3, 1, 2, 3, 4), (9, 8, 4, 3, "perspective", (1, 2, 3, 4, 0, 0, 0, 0))),
        ("FULL_OPENCV", (9, 8, 4, 3, 1, 2, 3, 4, 5, 6, 7, 8), (9, 8, 4, 3, "perspective", (1, 2, 3, 4, 5, 6, 7, 8))),
        ("OPENCV_FISHEYE", (9, 8, 4, 3, 1, 2, 3, 4), (9, 8, 4, 3, "fisheye", (1, 2, 3, 4))),
        ("SIMPLE_RADIAL_FISHEYE", (9, 4, 3, 0.1), (9, 9, 4, 3, "fisheye", (0.1, 0, 0, 0))),
        ("RADIAL_FISHEYE", (9, 4, 3, 0.1, 0.2), (9, 9, 4, 3, "fisheye", (0.1, 0.2, 0, 0))),
        ("SIMPLE_FISHEYE", (9, 4, 3), (9, 9, 4, 3, "fisheye", (0, 0, 0, 0))),
        ("FISHEYE", (9, 8, 4, 3), (9, 8, 4, 3, "fisheye", (0, 0, 0, 0))),
    ],
)
def test_colmap_parameters_land_in_their_places(model, params, expected, tmp_path):
    lens = lens_of(ColmapCamera(model=model, width=8, height=6, params=params), tmp_path)
    assert (lens.fx, lens.fy, lens.cx, lens.cy, lens.model, lens.coefficients) == expected
    assert lens.is_distorted == (model not in ("PINHOLE", "SIMPLE_PINHOLE"))
