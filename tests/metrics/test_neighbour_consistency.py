"""Consistency between two views, by hand: a wall at depth 2, the second camera one pixel's worth to the right."""

import numpy as np
import pytest

from unified_lift.metrics.neighbour_consistency import neighbour_consistency
from unified_lift.types import Camera


def camera(x):
    pose = np.eye(4)
    pose[0, 3] = -x
    return Camera(cam_from_world=pose, fx=2.0, fy=2.0, cx=2.0, cy=0.5, width=4, height=1)


# A shift by 1 at depth 2 with focal length 2 moves the picture by one pixel: columns 1 2 3 fall on 0 1 2.
@pytest.mark.parametrize(
    ("other_ids", "other_depth", "expected"),
    [
        ([2, 3, 4, 9], [2, 2, 2, 2], 1.0),
        ([2, 3, 9, 4], [2, 2, 2, 2], 2 / 3),
        ([2, 9, 9, 9], [2, 1, 1, 2], 1.0),  # hidden pixels do not count
        ([2, 3, 4, 9], [0, 0, 0, 0], None),
    ],
)
def test_share_of_pixels_seen_twice_that_keep_their_id(other_ids, other_depth, expected):
    ids = np.array([[1, 2, 3, 4]]), np.array([other_ids])
    depths = np.full((1, 4), 2.0), np.array([other_depth], dtype=float)
    found = neighbour_consistency(ids, depths, (camera(0.0), camera(1.0)))
    assert found == (expected if expected is None else pytest.approx(expected))
