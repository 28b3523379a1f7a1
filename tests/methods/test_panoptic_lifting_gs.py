import pytest
import torch

from tests.methods.calls import build, losses
from tests.methods.test_classifier import bundles, data_of, lift_stage, share_told_apart, terms_without_waiting
from unified_lift.kernels.identity import identity_loss
from unified_lift.ops.segments import dense_slots

NAME = "panoptic_lifting_gs"


def method_with(*, data_says="segment", **changes):
    method = build(NAME, data_says=data_says, **{"num_codes": 12} | changes)
    method.prepare(data_of([]))
    return method


def loss_of(method, features, ids):
    slot, known = dense_slots(ids, ignore_zero=method.ignore_zero)
    return losses(method, features, slot, len(known), 0.5, view=0)["identity"]


def one_hot_head(method, scale=1.0):
    """Give the method the head whose class c scores the c-th number of a feature."""
    size = method.feature_dim
    method.load_object_state({"weight": scale * torch.eye(size)[:, :, None, None], "bias": torch.zeros(size)})


def test_relabelling_the_ids_of_a_view_changes_nothing():
    features, ids = bundles([5, 16, 27, 38], noise=0.5)
    features.requires_grad_(True)
    renamed = torch.tensor([700, 3, 90000, 41])[(ids - 5) // 11]
    gradients = []
    for names in (ids, renamed):
        method = method_with()
        loss = loss_of(method, features, names)
        gradients.append((float(loss.detach()), *torch.autograd.grad(loss, [features, method.weight, method.bias])))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    assert gradients[0][0] > 0
    for a, b in zip(gradients[0][1:], gradients[1][1:]):
        torch.testing.assert_close(a, b)


def test_segments_are_matched_by_the_mean_over_their_pixels_not_by_the_sum():
    # Both segments like class 0 best. Probabilities of class 0 are 0.62 for each of 90 pixels and 0.98 for each of 10:
    # the sum gives it to the large segment, the mean (Eq. 3) to the small one.
    method = method_with(feature_dim=2)
    one_hot_head(method)
    large, small = torch.tensor([0.5, 0.0]), torch.tensor([4.0, 0.0])
    features = torch.cat([large.expand(90, 2), small.expand(10, 2)])
    ids = torch.tensor([1] * 90 + [2] * 10)
    expected = identity_loss(features, torch.tensor([1] * 90 + [0] * 10), rest_when_right=True)
    torch.testing.assert_close(loss_of(method, features, ids).detach(), expected)


def test_every_segment_has_its_own_class_and_those_beyond_the_last_class_train_nothing():
    method = method_with(feature_dim=2)
    one_hot_head(method)
    # Probabilities of class 0: 0.71, 0.52, 0.62. The first takes class 0, and the second fits class 1 better than the
    # third does: 0.71 + 0.48 is the largest sum.
    features = torch.tensor([[0.9, 0.0], [0.2, 0.1], [0.5, 0.0]], requires_grad=True)
    loss_of(method, features, torch.tensor([4, 5, 6])).backward()
    idle = (features.grad == 0).all(dim=1)
    assert idle.tolist() == [False, False, True]


def test_loss_rests_when_every_pixel_already_is_of_its_class():
    method = method_with(feature_dim=3)
    one_hot_head(method)
    features = torch.eye(3).repeat_interleave(5, dim=0).requires_grad_(True)
    ids = torch.tensor([8, 2, 5]).repeat_interleave(5)
    assert float(loss_of(method, features, ids).detach()) == 0
    wrong = torch.cat([features[:-1].detach(), torch.eye(3)[:1]]).requires_grad_(True)
    loss = loss_of(method, wrong, ids)
    loss.backward()
    assert float(loss.detach()) > 0
    assert bool((wrong.grad != 0).any(dim=1).all())
    assert bool((method.weight.grad != 0).any())


def test_a_view_without_segments_trains_nothing():
    method = method_with(data_says="ignore")
    assert float(loss_of(method, torch.randn(4, 16), torch.zeros(4, dtype=torch.int64)).detach()) == 0


def test_segments_that_no_sampled_pixel_shows_do_not_change_the_others():
    # a replayed step counts as many segments as the view with most of them has
    features, ids = bundles([5, 16, 27], noise=0.5)
    slot, _ = dense_slots(ids, ignore_zero=False)
    method = method_with()
    terms = [float(losses(method, features, slot, count, 0.5, view=-1)["identity"].detach()) for count in (3, 9, 40)]
    assert terms[1] == pytest.approx(terms[0], rel=1e-6)
    assert terms[0] > 0


def test_objects_of_a_scene_are_told_apart_though_ids_change_from_view_to_view(scene):
    method = build(NAME, feature_lr=0.05, head_lr=0.05)
    stage = lift_stage(scene, method, steps=120)
    terms = [float(stage.step(step)["identity"]) for step in range(120)]
    assert method.num_objects == 500
    assert sum(terms[-10:]) < 0.5 * sum(terms[:10])
    assert share_told_apart(stage) > 0.8


# ---- on a real GPU only ------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_steps_are_replayed_without_the_host_waiting_and_learn_what_they_learn_on_a_cpu(scene):
    terms = {}
    for device in ("cpu", "cuda"):
        method = build(NAME, feature_lr=0.05, head_lr=0.05)
        stage = lift_stage(scene, method, steps=120, device=device)
        if device == "cpu":
            terms[device] = [stage.step(step) for step in range(120)][20:]
        else:
            terms[device] = terms_without_waiting(stage, first=20, count=100)
            assert stage.graph._graph is not None
    # Other pixels are drawn on the other device, and views differ: the mean over ten rounds of them.
    last = {d: float(torch.stack([v["identity"] for v in values[-60:]]).mean()) for d, values in terms.items()}
    assert last["cuda"] == pytest.approx(last["cpu"], rel=0.5, abs=0.1)
