import dataclasses

import numpy as np
import pytest
import torch

from tests.methods.test_classifier import (
    lift_stage,
)
from tests.scenes import CENTRES, exact_ids, tiny_scene
from unified_lift.errors import UserError
from unified_lift.methods.base import LabelledView, LiftData
from unified_lift.methods.gaga import Gaga, GagaSettings, _natural
from unified_lift.ops.segments import dense_slots


def gaga(*, zero_id="ignore", **changes):
    return Gaga(GagaSettings(**changes), zero_id=zero_id, seed=0)


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
    method = gaga(zero_id="segment")
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
    assert sorted(names, key=_natural) == [
        "",
        "2/9",
        "2/10",
        "9",
        "10",
        "b",
        "frame_9",
        "frame_09",
        "frame_9b",
        "frame_10",
    ]


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
    right = total = 0
    winners = {}
    for index, (features, slot, _) in enumerate(stage.labelled_pixels()):
        ids = method.segment(features).object_ids
        _, names = dense_slots(scene.train[index].segments, ignore_zero=True)
        for number, value in enumerate(names.tolist()):
            here = ids[slot == number]
            winner = winners.setdefault(balls_of(scene, index)[value], int(here.mode().values))
            right, total = right + int((here == winner).sum()), total + len(here)
    assert len(set(winners.values())) == 3
    assert right > 0.95 * total
