from functools import partial

import torch

from tests.methods.calls import build
from tests.methods.test_classifier import (
    assert_saved_model_shows_what_was_trained,
    consistent,
    data_of,
    lift_stage,
    share_told_apart,
)
from tests.scenes import tiny_scene

NAME = "gaussian_grouping"


method_with = partial(build, NAME)


def test_classes_are_the_ids_of_the_masks_in_all_views():
    method = method_with(num_codes=2)
    method.prepare(data_of([torch.tensor([0, 7, 7, 65_535]), torch.tensor([7, 300]), torch.tensor([65_535, 0])]))
    assert [classes.tolist() for classes in method.classes] == [[0, 1, 3], [1, 2], [0, 3]]
    assert method.num_objects == 4


def test_head_has_no_fewer_classes_than_the_released_one():
    method = method_with()
    method.prepare(data_of([torch.arange(5)]))
    assert method.num_objects == 256
    method = method_with()
    method.prepare(data_of([torch.arange(400) * 50]))
    assert method.num_objects == 400


def test_zero_is_a_class_whatever_the_data_say():
    assert not method_with(data_says="ignore").ignore_zero


def test_objects_are_told_apart_by_consistent_ids_and_not_by_ids_that_change_from_view_to_view():
    shares = []
    for scene in (consistent(tiny_scene()), tiny_scene()):
        stage = lift_stage(scene, method_with(feature_lr=0.05, head_lr=0.05), steps=120)
        for step in range(120):
            stage.step(step)
        shares.append(share_told_apart(stage))
    assert shares[0] > 0.85
    assert shares[1] < 0.75


def test_saved_model_reads_the_ids_that_were_trained(tmp_path, scene):
    assert_saved_model_shows_what_was_trained(tmp_path, consistent(scene), NAME, knn_anchors=20)
