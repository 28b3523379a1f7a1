import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from tests.methods.calls import build
from tests.methods.test_classifier import lift_stage, share_told_apart
from tests.scenes import CENTRES, exact_ids, tiny_scene
from unified_lift.errors import UserError
from unified_lift.methods.base import LabelledView, LiftData
from unified_lift.methods.gaga import FrontSets, _natural, front_sets, memory_bank
from unified_lift.ops.cameras import look_at, project
from unified_lift.ops.segments import dense_slots
from unified_lift.types import Camera

gaga = partial(build, "gaga", data_says="ignore")


def data_of(scene, *, ignore_zero, order=None):
    """What a stage shows of a scene whose Gaussians are its initial points."""

    def walk():
        for index in range(len(scene.train)) if order is None else order:
            view = scene.train[index]
            yield LabelledView(view.name, view.camera, *dense_slots(view.segments, ignore_zero=ignore_zero))

    return LiftData(torch.from_numpy(scene.points.positions), walk)


def renamed(scene, names):
    """The scene with mask ids replaced: one function of ids for each view."""
    views = [
        dataclasses.replace(view, segments=view.segments.clone().apply_(name))
        for view, name in zip(scene.train, names, strict=True)
    ]
    return dataclasses.replace(scene, train=tuple(views))


def balls_of(scene, index):
    """Which ball each segment of a view is, by ray casting; 0 = none."""
    view = scene.train[index]
    truth, segments = exact_ids(view.camera), view.segments.numpy()
    return {int(value): int(np.bincount(truth[segments == value]).argmax()) for value in np.unique(segments)}


def test_one_group_per_ball_whatever_the_masks_are_called(scene):
    method = gaga()
    found, num_found = method.segment_classes(data_of(scene, ignore_zero=True))
    assert num_found == 3
    group_of = {}
    for index, (view, groups) in enumerate(zip(scene.train, found, strict=True)):
        _, ids = dense_slots(view.segments, ignore_zero=True)
        assert groups.dtype == torch.int64
        for value, group in zip(ids.tolist(), groups.tolist(), strict=True):
            assert group_of.setdefault(balls_of(scene, index)[value], group) == group
    assert sorted(group_of) == [1, 2, 3]
    assert sorted(group_of.values()) == [0, 1, 2]
    assert method.summary == {"num_groups": 3, "num_masks": 18, "num_masks_without_gaussians": 0}


def with_points(scene, positions):
    return dataclasses.replace(scene, points=dataclasses.replace(scene.points, positions=positions.astype(np.float32)))


def test_background_is_a_mask_as_any_other_where_zero_is_a_segment(scene):
    inside = CENTRES.repeat(40, axis=0)
    inside = inside + 0.7 * (scene.points.positions - inside)  # no Gaussian on an outline, half in the background
    method = gaga(data_says="segment")
    found, num_found = method.segment_classes(data_of(with_points(scene, inside), ignore_zero=False))
    assert num_found == 3  # a background without Gaussians has no group
    assert all(groups.tolist()[0] == -1 for groups in found)
    # and neither has one sliver of a ball behind another
    assert method.summary == {"num_groups": 3, "num_masks": 24, "num_masks_without_gaussians": 7}
    sky = np.random.default_rng(0).normal(size=(2000, 3))
    sky *= 6 / np.linalg.norm(sky, axis=1, keepdims=True)
    both = with_points(scene, np.concatenate([inside, sky]))
    found, num_found = method.segment_classes(data_of(both, ignore_zero=False))
    assert num_found == 4
    assert all(groups.tolist()[0] == 0 for groups in found)  # the same group in every view
    assert method.summary == {"num_groups": 4, "num_masks": 24, "num_masks_without_gaussians": 1}


def test_order_of_mask_ids_in_a_view_changes_the_numbering_only(scene):
    plain, _ = gaga().segment_classes(data_of(scene, ignore_zero=True))
    turned = renamed(scene, [lambda value: value and 1000 - value] * len(scene.train))
    found, _ = gaga().segment_classes(data_of(turned, ignore_zero=True))
    pairs = set(zip(torch.cat(plain).tolist(), torch.cat([groups.flip(0) for groups in found]).tolist()))
    assert len(pairs) == 3
    assert pairs != {(0, 0), (1, 1), (2, 2)}


def test_views_are_taken_in_the_order_of_their_names_however_they_come(scene):
    order = [4, 0, 5, 2, 1, 3]
    plain, _ = gaga().segment_classes(data_of(scene, ignore_zero=True))
    shuffled, _ = gaga().segment_classes(data_of(scene, ignore_zero=True, order=order))
    for place, index in enumerate(order):
        assert torch.equal(shuffled[place], plain[index])


def test_numbers_in_names_count_as_numbers():
    names = ["frame_10", "b", "9", "frame_9b", "10", "frame_9", "frame_09", "2/10", "2/9", ""]
    expected = ["", "2/9", "2/10", "9", "10", "b", "frame_9", "frame_09", "frame_9b", "frame_10"]
    assert sorted(names, key=_natural) == expected


def test_more_than_255_groups_do_not_wrap():
    # 300 Gaussians in a row, a mask of one pixel for each: 300 groups, each found again in the second view.
    scene = tiny_scene()
    camera = dataclasses.replace(scene.train[0].camera, cam_from_world=np.eye(4), fx=300.0, cx=150.0, width=300)
    x = (np.arange(300) + 0.5 - 150) / 300
    means = torch.from_numpy(np.stack([x, np.zeros(300), np.ones(300)], axis=1))
    slots = torch.arange(300, dtype=torch.int32).expand(camera.height, 300)
    views = [LabelledView(name, camera, slots, torch.arange(300)) for name in ("a", "b")]
    method = gaga()
    method.prepare(LiftData(means, lambda: iter(views)))
    assert method.num_objects == 300
    assert torch.equal(method.classes[0], torch.arange(300))
    assert torch.equal(method.classes[1], torch.arange(300))


@pytest.mark.parametrize("changes", [{"bank_min_score": 0.45}, {"bank_grid": 1, "bank_share": 0.01}])
def test_settings_of_the_bank_reach_it(scene, changes):
    # A stricter overlap; a front of one Gaussian per mask, which hardly ever overlaps.
    _, num_found = gaga(**changes).segment_classes(data_of(scene, ignore_zero=True))
    assert num_found > 3


def test_masks_that_see_no_gaussian_are_an_error(scene):
    data = data_of(scene, ignore_zero=True)._replace(means=torch.full((5, 3), 100.0))
    with pytest.raises(UserError, match="--object_path"):
        gaga().prepare(data)


def test_three_balls_with_shuffled_masks_are_told_apart(scene):
    method = gaga(feature_lr=0.05, head_lr=0.05)
    stage = lift_stage(dataclasses.replace(scene, zero_id="ignore"), method, steps=60)
    first, *_, last = [float(stage.step(step)["identity"]) for step in range(60)]
    assert last < 0.3 * first
    assert share_told_apart(stage) > 0.95


# ---- front sets and the bank by themselves ----

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
