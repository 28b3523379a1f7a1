"""Labels for Gaussians that come back from another program."""

import math

import pytest
import torch

from tests.editing.small_scene import random_gaussians, scene_of
from unified_lift.editing.reattach import reattach
from unified_lift.errors import UserError
from unified_lift.model.gaussians import Gaussians
from unified_lift.ops.quaternions import multiply

COUNT = 200


@pytest.fixture
def scene():
    return scene_of(random_gaussians(COUNT), [i % 5 for i in range(COUNT)])


def edited(scene, rows, **columns):
    """Return Gaussians of these rows as another program writes them: no features, some columns changed."""
    table = {name: value.detach()[rows].clone() for name, value in scene.gaussians}
    return Gaussians(table | columns | {"features": torch.zeros(len(table["means"]), 0)})


def test_deleted_and_reordered_gaussians_get_back_exactly_what_they_had(scene):
    rows = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))[:150]
    found, counts = reattach(edited(scene, rows), scene)
    assert tuple(counts.values()) == (150, 0, 0, 0, 50)
    assert torch.equal(found.object_ids, scene.object_ids[rows])
    assert torch.equal(found.confidence, scene.confidence[rows])
    assert torch.equal(found.gaussians.features, scene.gaussians.features[rows])


def test_an_object_moved_and_turned_keeps_its_label_though_it_stands_where_others_were(scene):
    rows = torch.arange(COUNT)
    means, quats = scene.gaussians.means.detach().clone(), scene.gaussians.quats.detach().clone()
    cup = scene.object_ids == 3
    means[cup] = torch.stack([means[cup][:, 1], -means[cup][:, 0], means[cup][:, 2]], dim=1) + 0.3
    quats[cup] = multiply(torch.tensor([math.sqrt(0.5), 0, 0, -math.sqrt(0.5)]), quats[cup])
    found, counts = reattach(edited(scene, rows, means=means, quats=quats), scene)
    assert tuple(counts.values()) == (COUNT - int(cup.sum()), int(cup.sum()), 0, 0, 0)
    assert torch.equal(found.object_ids, scene.object_ids)
    assert torch.equal(found.gaussians.means, means)  # the edited place, not the old one


def test_copies_are_the_object_they_were_copied_from(scene):
    cup = (scene.object_ids == 3).nonzero()[:, 0]
    rows = torch.cat([torch.arange(COUNT), cup])
    means = scene.gaussians.means.detach()[rows].clone()
    means[COUNT:] += 5
    found, counts = reattach(edited(scene, rows, means=means), scene)
    assert tuple(counts.values()) == (COUNT, len(cup), 0, 0, 0)
    assert set(found.object_ids[COUNT:].tolist()) == {3}


def test_recoloured_gaussians_are_told_by_their_place_and_nudged_ones_by_the_nearest(scene):
    colors = scene.gaussians.sh0.detach() + 0.25
    means = scene.gaussians.means.detach().clone()
    means[:50, 0] += 1e-4  # sizes are about 0.02
    found, counts = reattach(edited(scene, torch.arange(COUNT), sh0=colors, means=means), scene)
    assert tuple(counts.values()) == (COUNT - 50, 0, 50, 0, 0)
    assert torch.equal(found.object_ids, scene.object_ids)


def test_the_limit_is_in_standard_deviations_of_the_old_gaussian_along_its_longest_axis():
    old = random_gaussians(3)
    old.set("means", torch.tensor([[0.0, 0, 0], [100, 0, 0], [200, 0, 0]]))
    old.set("log_scales", torch.tensor([[-9.0, math.log(2), -9]] * 3))
    scene = scene_of(old, [0, 1, 2], confidence=[1.0, 1.0, 1.0])
    new = edited(scene, torch.arange(3), sh0=old.sh0.detach() + 0.1)
    new.set("means", torch.tensor([[5.9, 0, 0], [106.1, 0, 0], [200, 0, 0]]))
    found, counts = reattach(new, scene)  # 2 x 3 = 6
    assert tuple(counts.values()) == (1, 0, 1, 1, 1)
    assert found.object_ids.tolist() == [0, 1, 2]  # what is not known takes the label of the nearest ...
    assert found.confidence.tolist() == [1, 0, 1]  # ... without any confidence
    assert tuple(reattach(new, scene, max_distance=3.1)[1].values()) == (1, 0, 2, 0, 0)


def test_of_gaussians_at_one_place_the_one_that_looks_alike_is_taken():
    old = random_gaussians(6)
    old.set("means", torch.zeros(6, 3) + torch.tensor([0.0, 0, 0, 1, 1, 1])[:, None])
    scene = scene_of(old, [0, 1, 2, 3, 4, 5])
    order = torch.tensor([2, 0, 1, 5, 3, 4])
    found, counts = reattach(edited(scene, order), scene)
    assert found.object_ids.tolist() == order.tolist()
    assert tuple(counts.values()) == (6, 0, 0, 0, 0)


def test_equal_looks_in_several_objects_do_not_say_which_one_moved():
    old = random_gaussians(4)
    for name in ("sh0", "logit_opacities", "log_scales"):
        old.set(name, getattr(old, name).detach()[:1].expand_as(getattr(old, name)).clone())
    scene = scene_of(old, [0, 0, 1, 1], confidence=[1.0] * 4)
    new = edited(scene, torch.arange(4))
    new.set("means", old.means.detach() + torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 0], [50, 0, 0]]))
    assert tuple(reattach(new, scene)[1].values()) == (3, 0, 0, 1, 1)


def test_another_scene_is_an_error_not_a_guess(scene):
    other = random_gaussians(50, seed=9)
    other.set("means", other.means.detach() + 30)
    with pytest.raises(UserError, match="50 of 50 Gaussians are not near any of desk; is it that model edited"):
        reattach(other, scene)
