"""The camera path of the video, and its file."""

import math

import cv2
import numpy as np
import pytest

from unified_lift.evaluation.video import MIN_HEIGHT, video_path, write_video
from unified_lift.ops.cameras import look_at, project
from unified_lift.types import Camera

UP = np.array([0.0, 0.0, 1.0])


def camera_at(position, target, *, width=161, height=121):
    pose = look_at(position, target, UP)
    return Camera(cam_from_world=pose, fx=150, fy=152, cx=84, cy=57, width=width, height=height)


def ring(angles, *, target=(0.5, 0.0, 0.2)):
    """Cameras around a point, at radii 2 to 3 and heights 1 to 1.5, all looking at it."""
    target = np.array(target)
    rng = np.random.default_rng(0)
    offsets = [
        np.array([r * math.cos(a), r * math.sin(a), h])
        for a, r, h in zip(angles, rng.uniform(2, 3, len(angles)), rng.uniform(1, 1.5, len(angles)))
    ]
    return [camera_at(target + offset, target) for offset in offsets], target


def polar(cameras, target):
    offsets = np.stack([camera.position for camera in cameras]) - target
    return np.arctan2(offsets[:, 1], offsets[:, 0]), np.hypot(offsets[:, 0], offsets[:, 1]), offsets[:, 2]


def test_a_surrounded_point_is_circled_within_the_range_of_the_cameras_and_stays_in_the_middle():
    cameras, target = ring(np.random.default_rng(1).uniform(0, 2 * math.pi, 40))
    path = video_path(cameras, count=36)
    angles, radii, heights = polar(path, target)
    steps = np.diff(np.unwrap(angles))
    assert np.allclose(steps, 2 * math.pi / 36 * np.sign(steps[0]), rtol=1e-3)
    assert 2 <= radii.min() <= radii.max() <= 3
    assert 1 <= heights.min() <= heights.max() <= 1.5
    for camera in path:
        pixel, depth = project(target[None], camera)
        assert depth[0] > 0
        assert np.allclose(pixel[0], [camera.width / 2, camera.height / 2], atol=1)
        assert camera.cam_from_world[1, 2] < 0  # the image's down axis points down in the world


def test_a_wide_gap_is_never_crossed():
    cameras, target = ring(np.linspace(0.3, 2.5, 15))
    angles = polar(video_path(cameras, count=48), target)[0]
    assert angles.min() == pytest.approx(0.3, abs=0.02)
    assert angles.max() == pytest.approx(2.5, abs=0.02)
    assert abs(angles[0] - angles[-1]) < 0.05  # there and back: it can be looped


def test_cameras_that_look_outward_are_followed_in_their_order():
    centres = [np.array([0.4 * math.cos(a), 0.4 * math.sin(a), 1.0]) for a in np.linspace(0, 5, 12)]
    cameras = [camera_at(centre, centre * [5, 5, 1]) for centre in centres]
    path = video_path(cameras, count=24)
    outward = [camera.cam_from_world[2, :2] @ camera.position[:2] for camera in path]
    assert min(outward) > 0
    assert max(np.linalg.norm(a.position - b.position) for a, b in zip(path, path[1:])) < 0.2


def test_one_camera_is_enough():
    camera = camera_at(np.array([1.0, 2.0, 1.0]), np.zeros(3))
    (only,) = video_path([camera], count=1)
    assert np.allclose(only.position, camera.position)


def test_frames_have_even_sizes_the_shape_and_the_field_of_view_of_the_photos():
    cameras, _ = ring(np.linspace(0, 6, 9))
    camera = video_path(cameras, count=1)[0]
    assert (camera.width % 2, camera.height) == (0, MIN_HEIGHT)
    assert camera.width / camera.height == pytest.approx(161 / 121, rel=0.01)
    assert camera.width / camera.fx == pytest.approx(161 / 150, rel=0.01)
    assert (camera.cx, camera.cy) == (camera.width / 2, camera.height / 2)


def test_the_file_holds_every_frame(tmp_path):
    frames = [np.full((34, 50, 3), 20 * index, dtype=np.uint8) for index in range(10)]
    write_video(tmp_path / "a.mp4", frames)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    shown = [capture.read() for _ in range(11)]
    assert [good for good, _ in shown] == [True] * 10 + [False]
    assert shown[0][1].shape == (34, 50, 3)
    assert abs(float(shown[9][1].mean()) - 180) < 4


def test_an_interrupted_video_leaves_no_file(tmp_path):
    def frames():
        yield np.zeros((32, 32, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", frames())
    assert not list(tmp_path.iterdir())
