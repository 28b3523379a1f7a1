import numpy as np
import pytest

from unified_lift.methods.gaga import FrontSets, front_sets, memory_bank
from unified_lift.ops.cameras import look_at, project
from unified_lift.types import Camera

# 64x32 pixels, looks along +z; a point (x, y, 1) falls on pixel (32 + 10 x, 16 + 10 y).
CAMERA = Camera(cam_from_world=np.eye(4), fx=10.0, fy=10.0, cx=32.0, cy=16.0, width=64, height=32)


def at_pixels(pixels, depth):
    """Points that fall on corner-origin pixels at these depths."""
    depth = np.asarray(depth, dtype=np.float64)
    x, y = (np.asarray(pixels, dtype=np.float64) - [32, 16]).T / 10
    return np.stack([x * depth, y * depth, depth], axis=1)


def sets_of(front):
    return [set(front.gaussians[front.slot == mask].tolist()) for mask in range(front.num_masks)]


def fronts(*masks):
    """Front sets of one view as they are written in a test."""
    slot = np.repeat(np.arange(len(masks)), [len(mask) for mask in masks])
    return FrontSets(np.array([g for mask in masks for g in mask], dtype=np.int64), slot, len(masks))


def slow_front_sets(means, camera, slot, num_masks, grid, share):
    pixels, depth = project(means, camera)
    found = []
    for mask in range(num_masks):
        front = set()
        for cell_y in range(grid):
            for cell_x in range(grid):
                here = []
                for index, ((u, v), z) in enumerate(zip(pixels, depth)):
                    if not (z > 0.2 and 0 <= u < camera.width and 0 <= v < camera.height):
                        continue
                    x, y = int(u), int(v)
                    in_cell = (x * grid // camera.width, y * grid // camera.height) == (cell_x, cell_y)
                    if in_cell and slot[y, x] == mask:
                        here.append((z, index))
                front |= {index for _, index in sorted(here)[: max(1, int(share * len(here) + 1e-9))]}
        found.append(front)
    return found


def slow_memory_bank(views, min_score):
    """Mask by mask and set by set, as the paper tells it."""
    bank, found = [], []
    for number, masks in enumerate(views):
        groups = []
        for front in masks:
            if not front:
                groups.append(-1)
                continue
            scores = [len(front & own) / (len(front) + len(front & own)) for own in bank]
            if number and scores and max(scores) >= min_score:
                best = scores.index(max(scores))
                bank[best] |= front - set().union(*bank)
                groups.append(best)
            else:
                bank.append(set(front))
                groups.append(len(bank) - 1)
        found.append(groups)
    return found, len(bank)


# ---- front sets ----


def test_front_set_is_the_nearest_fifth_of_each_cell_of_each_mask():
    slot = np.zeros((32, 64), dtype=np.int32)
    slot[:, 33:] = 1  # with a grid of 2 the left cells end at column 32
    same_pixel = at_pixels([[10.5, 5.5]] * 10, [3, 2, 9, 8, 7, 1, 6, 5, 4, 10])  # ten in one cell: two are in front
    right = at_pixels([[40.5, 5.5], [41.5, 5.5]], [1, 2])  # two in one cell: one
    below = at_pixels([[10.5, 20.5]], [50])  # alone in its cell, however far away
    left_strip = at_pixels([[32.5, 5.5]], [70])  # the cell of `right`, but of mask 0
    front = front_sets(np.concatenate([same_pixel, right, below, left_strip]), CAMERA, slot, 2, grid=2)
    assert sets_of(front) == [{5, 1, 12, 13}, {10}]


@pytest.mark.parametrize(("count", "taken"), [(1, 1), (4, 1), (5, 1), (9, 1), (10, 2), (15, 3), (35, 7)])
def test_share_is_rounded_down_but_never_to_nothing(count, taken):
    points = at_pixels([[10.5, 5.5]] * count, np.arange(1, count + 1))
    assert sets_of(front_sets(points, CAMERA, np.zeros((32, 64), int), 1)) == [set(range(taken))]


def test_only_what_is_drawn_inside_a_mask_is_in_a_front_set():
    slot = np.zeros((32, 64), dtype=np.int32)
    slot[:, 50:] = -1
    points = np.array(
        [[0, 0, -1], [0, 0, 0], [0, 0, 0.1], [0, 0, np.nan], [50, 0, 1], [0, -5, 1], [2, 0, 1], [0, 0, 3]]
    )
    front = front_sets(points, CAMERA, slot, 2)
    assert sets_of(front) == [{7}, set()]  # behind, at the camera, nearer than the near plane, NaN, outside, no mask
    for none in (front_sets(points[:3], CAMERA, slot, 2), front_sets(points[:0], CAMERA, slot, 0)):
        assert len(none.gaussians) == len(none.slot) == 0


@pytest.mark.parametrize(("grid", "share"), [(1, 0.2), (4, 0.2), (7, 0.35), (15, 0.2)])
def test_front_sets_equal_a_loop_over_masks_and_cells(grid, share):
    rng = np.random.default_rng(3)
    camera = Camera(
        cam_from_world=look_at(np.array([0, -3.0, 1.0]), np.zeros(3), np.array([0, 0, 1.0])),
        fx=40.0, fy=41.0, cx=22.0, cy=14.0, width=45, height=30,
    )  # fmt: skip
    means = rng.normal(size=(300, 3))
    means[150:] = means[:150]  # every depth twice: the lower number is in front
    slot = np.kron(rng.integers(-1, 5, (6, 9)), np.ones((5, 5), int))
    front = front_sets(means, camera, slot, 6, grid=grid, share=share)
    assert sets_of(front) == slow_front_sets(means, camera, slot, 6, grid, share)
    assert bool((np.diff(front.slot) >= 0).all())
    assert len(np.unique(front.gaussians)) == len(front.gaussians)


# ---- the bank ----


def test_six_gaussians_in_two_views_by_hand():
    # First view: a group per mask, {0, 1} and {2, 3, 4}. Second view: {1, 5} shares 1 of 2 with group 0: 1 / (2 + 1)
    # reaches 0.1, so it joins and group 0 gains 5; {2, 3} and {4} both join group 1. Third view: 5 now belongs to 0.
    views = [fronts([0, 1], [2, 3, 4]), fronts([1, 5], [2, 3], [4]), fronts([5])]
    groups, num_groups = memory_bank(views, 6)
    assert [group.tolist() for group in groups] == [[0, 1], [0, 1, 1], [0]]
    assert num_groups == 2


@pytest.mark.parametrize(("others", "group"), [(8, 0), (9, 1)])
def test_score_is_shared_over_size_plus_shared(others, group):
    # A has 1 + others Gaussians and shares one: 1 / (9 + 1) = 0.1 joins, 1 / (10 + 1) does not.
    views = [fronts([0]), fronts([0, *range(1, 1 + others)])]
    assert memory_bank(views, 20)[0][1].tolist() == [group]


def test_joined_groups_gain_only_what_nobody_owns():
    # Second view: {0, 1, 2, 3} shares two with either group and joins the first of them; 2 and 3 stay with group 1.
    views = [fronts([0, 1], [2, 3]), fronts([0, 1, 2, 3, 4]), fronts([2, 3]), fronts([4])]
    assert [group.tolist() for group in memory_bank(views, 5)[0]] == [[0, 1], [0], [1], [0]]


def test_new_groups_take_their_whole_front_set_whoever_owns_it():
    # {0, 10..19} shares one of eleven with group 0: a new group, to which 0 belongs as well. {0, 10} then shares two
    # with it and one with group 0.
    views = [fronts([0, 1]), fronts([0, *range(10, 20)]), fronts([0, 10]), fronts([0])]
    groups, num_groups = memory_bank(views, 20)
    assert [group.tolist() for group in groups] == [[0], [1], [1], [0]]


def test_masks_without_gaussians_open_nothing():
    groups, num_groups = memory_bank([fronts([], [0]), fronts([]), fronts(), fronts([], [1], [])], 2)
    assert [group.tolist() for group in groups] == [[-1, 0], [-1], [], [-1, 1, -1]]
    assert num_groups == 2
    assert memory_bank([], 3) == ([], 0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("min_score", [0.15, 0.3])
def test_bank_equals_sets_mask_by_mask(seed, min_score):
    rng = np.random.default_rng(seed)
    views = []
    for _ in range(12):
        label = rng.integers(-6, 8, 400)  # about half of the Gaussians are seen, some masks may stay empty
        if seed % 2:  # masks of neighbours, another stretch of them in every view
            label = np.roll(np.sort(label), rng.integers(400))
        views.append([set(np.flatnonzero(label == mask).tolist()) for mask in range(9)])
    groups, num_groups = memory_bank([fronts(*map(sorted, view)) for view in views], 400, min_score=min_score)
    expected, count = slow_memory_bank(views, min_score)
    assert [group.tolist() for group in groups] == expected
    assert num_groups == count
    assert 8 < count < sum(map(len, views))
