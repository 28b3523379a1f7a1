import numpy as np
import torch

from tests.scenes import circle_camera
from unified_lift.data.borders import black_frame, black_frames, without_frame
from unified_lift.types import View


def photos(count=10, *, frame=3, seed=0):
    """Bright noise with a black frame at the left, as JPEG leaves it: not quite black."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 255, (count, 40, 50, 3), dtype=np.uint8)
    images[:, :, :frame] = rng.integers(0, 12, (count, 40, frame, 3), dtype=np.uint8)
    return images


def test_black_frame_is_found_with_a_margin():
    found = black_frame(list(photos()))
    assert found[:, :5].all()  # 3 pixels and a margin of 2
    assert not found[:, 5:].any()


def test_dark_objects_are_no_frame():
    images = photos(frame=0)
    assert black_frame(list(images)) is None
    images[:, 10:20, 20:30] = 0  # dark in every view but inside
    assert black_frame(list(images)) is None
    images = photos(frame=0)
    images[:8, :, :6] = 0  # at the border of eight of ten views: an object that is nearly always there
    assert black_frame(list(images)) is None


def test_a_black_backdrop_and_a_handful_of_views_are_left_alone():
    assert black_frame(list(photos(frame=20))) is None
    assert black_frame(list(photos(count=7))) is None


def test_views_get_their_valid_pixels_and_the_user_a_note():
    camera = circle_camera(0.0, width=50, height=40)
    views = [View(name=f"v{i}", camera=camera, image=torch.from_numpy(image)) for i, image in enumerate(photos())]
    inside, notes = black_frames(views)
    assert {size: int((~pixels).sum()) for size, pixels in inside.items()} == {(50, 40): 5 * 40}
    assert "10 of 10 views have a black frame" in notes[0]
    assert "10.0%" in notes[0]
    assert black_frames(views[:7]) == ({}, [])


def test_what_does_not_count_and_what_lies_in_the_frame_are_both_left_out():
    valid, inside = torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]])
    assert without_frame(valid, inside).tolist() == [[False, True, False]]
    assert without_frame(None, inside) is inside
    assert without_frame(valid, None) is valid
    assert without_frame(None, None) is None
