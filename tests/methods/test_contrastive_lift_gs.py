import math
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.methods.calls import build, losses
from tests.methods.test_classifier import lift_stage
from unified_lift.methods.clustered import hdbscan_centroids
from unified_lift.methods.contrastive_lift_gs import slow_fast_losses

method_with = partial(build, "contrastive_lift_gs", feature_dim=4)


def view(count=60, num_segments=3, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    slot = (torch.arange(count) * num_segments // count).int()
    return torch.randn(count, dim, generator=generator, requires_grad=True), slot


def test_features_start_as_equal_unit_halves():
    features = method_with(feature_dim=16).initial_features(40)
    assert features.shape == (40, 16)
    assert torch.equal(features[:, :8], features[:, 8:])
    torch.testing.assert_close(features[:, :8].norm(dim=1), torch.ones(40))


def test_slow_half_follows_the_fast_one_by_hand():
    features = torch.tensor([[1.0, 2.0, 10.0, 0.0]])
    method = method_with()
    method.after_step(features)  # 0.9 slow + 0.1 fast
    torch.testing.assert_close(features, torch.tensor([[1.0, 2.0, 9.1, 0.2]]))
    method.after_step(features)
    torch.testing.assert_close(features, torch.tensor([[1.0, 2.0, 8.29, 0.38]]))


def test_losses_read_half_of_the_pixels_fast_and_the_others_slow():
    features, slot = view()
    method = method_with()
    terms = losses(method, features, slot, 3, 0.0, view=0)
    rows = method_with()._drawn(slot)  # the same draw: it depends on seed and number alone
    assert sorted(rows.tolist()) == list(range(60))
    fast, slow = rows[0::2], rows[1::2]
    expected = slow_fast_losses(features[fast, :2], slot[fast], features[slow, 2:], slot[slow], 3)
    torch.testing.assert_close((terms["concentration"], terms["contrastive"]), expected)
    sum(terms.values()).backward()
    assert bool((features.grad[fast, :2] != 0).all())
    assert bool((features.grad[slow] == 0).all())
    assert bool((features.grad[:, 2:] == 0).all())


def test_every_step_draws_other_pixels_and_a_resumed_run_the_same():
    slot = torch.zeros(100, dtype=torch.int32)
    method = method_with(view_pixels=10)
    draws = [method._drawn(slot).tolist() for _ in range(3)]
    assert len({tuple(draw) for draw in draws}) == 3
    assert all(len(set(draw)) == 10 for draw in draws)
    other = method_with(view_pixels=10)
    other._drawn(slot)
    resumed = method_with(view_pixels=10)
    resumed.load_state_dict(other.state_dict())
    assert [resumed._drawn(slot).tolist() for _ in range(2)] == draws[1:]


def test_labelled_pixels_are_drawn_first_and_shared_evenly():
    slot = torch.full((200,), -1, dtype=torch.int32)
    slot[50:80] = 0
    rows = method_with(view_pixels=40)._drawn(slot)
    assert len(rows) == 40
    assert sorted(rows[:30].tolist()) == list(range(50, 80))
    labelled = slot[rows] >= 0
    assert int(labelled[0::2].sum()) == int(labelled[1::2].sum()) == 15


def test_the_host_need_not_know_any_number_and_no_graph_may_replay_a_draw():
    # Tensors without values: whatever would make the host wait for a GPU raises.
    method = method_with()
    assert method.graph_key(0.5, 1000) is None
    with FakeTensorMode():
        features, slot = torch.randn(50, 4, requires_grad=True), torch.zeros(50, dtype=torch.int32)
        sum(losses(method, features, slot, 3, 0.0, view=0).values()).backward()
        assert features.grad.shape == (50, 4)
        with pytest.raises(DataDependentOutputException):
            float(features.detach().sum())


def blobs(scale=1.0):
    """Views of two objects whose fast halves lie apart along axis 0, and whose slow halves mean nothing."""
    generator = torch.Generator().manual_seed(0)
    slot = torch.arange(2).repeat_interleave(60).int()
    fast = torch.stack([scale * (2 * slot - 1.0), torch.zeros(120)], dim=1)
    for _ in range(3):
        noise = torch.randn(120, 4, generator=generator)
        yield torch.cat([fast + 0.05 * noise[:, :2], 100 * noise[:, 2:]], dim=1), slot, 2


def test_fast_halves_alone_are_clustered():
    method = method_with(cluster_sizes=(30,))
    method.finish(blobs)
    assert method.centroids.shape == (2, 2)
    features = torch.tensor([[-1.0, 0, 500, 3], [1.0, 0, -500, 8], [-0.9, 0, 0, 0]])
    ids, confidence = method.segment(features)
    assert ids[0] == ids[2] != ids[1]
    assert bool((confidence > 0.5).all())


def test_outliers_neither_stretch_the_box_nor_are_clustered(monkeypatch):
    def with_outlier():
        for features, slot, num_segments in blobs():
            far = torch.tensor([[50.0, 0.0, 0.0, 0.0]])
            yield torch.cat([features, far]), torch.cat([slot, slot[:1]]), num_segments

    clustered = []

    def watched(points, *, min_cluster_size):
        clustered.append(points)
        return hdbscan_centroids(points, min_cluster_size=min_cluster_size)

    monkeypatch.setattr("unified_lift.methods.clustered.hdbscan_centroids", watched)
    plain, disturbed = method_with(cluster_sizes=(30,)), method_with(cluster_sizes=(30,))
    plain.finish(blobs)
    disturbed.finish(with_outlier)
    for one, other in zip(plain.object_state()["box"], disturbed.object_state()["box"], strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.05)  # 50 would have been far beyond
    low, width = plain.object_state()["box"]
    assert low[0] == pytest.approx(-1.1, abs=0.1)
    assert width[0] == pytest.approx(2.2, abs=0.2)
    for points in clustered:
        assert (float(points.min()), float(points.max())) == pytest.approx((0.0, 1.0), abs=1e-5)


def test_unit_space_is_a_setting_too():
    method = method_with(cluster_sizes=(30,), cluster_space="unit")
    method.finish(blobs)
    assert "box" not in method.object_state()
    near, far = (method.segment(scale * torch.tensor([[1.0, 0, 0, 0]])).object_ids for scale in (1, 9))
    assert torch.equal(near, far)


def test_state_holds_box_clusters_and_draws(tmp_path):
    method = method_with(cluster_sizes=(30, 50))
    losses(method, *view(), 3, 0.0, view=0)
    method.finish(blobs)
    torch.save(method.state_dict(), tmp_path / "state.pth")
    other = method_with()
    other.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert other.num_draws == 1
    assert other.summary == method.summary
    assert list(other.candidates()) == list(method.candidates())
    features = next(blobs())[0]
    for name in method.candidates():
        ours, read = method.candidates()[name].segment(features), other.candidates()[name].segment(features)
        assert torch.equal(ours.object_ids, read.object_ids)
        assert torch.equal(ours.confidence, read.confidence)


# ---- in the program ----


def test_slow_features_follow_in_a_lift_whose_loss_falls(scene):
    stage = lift_stage(scene, method_with(cluster_sizes=(10, 60), feature_dim=8, feature_lr=0.05), steps=240)
    terms = [{name: float(v) for name, v in stage.step(step).items()} for step in range(stage.num_steps)]
    first, last = terms[:12], terms[-12:]  # every view twice
    assert sum(t["contrastive"] for t in last) < 0.95 * sum(t["contrastive"] for t in first)
    fast, slow = stage.gaussians.features.detach().split(4, dim=1)
    assert not torch.equal(fast, slow)
    assert float((fast - slow).abs().max()) < 1.0  # ten steps of 0.05 behind at most, and some


# ---- the losses ----


def slow_twin(fast, fast_slot, slow, slow_slot):
    """Contrastive Lift's recipe, pixel by pixel (reference/method 9.5)."""
    labels = [k for k in sorted(set(fast_slot.tolist()) & set(slow_slot.tolist())) if k >= 0]
    concentration, terms = 0.0, []
    for k in labels:
        centre = slow[slow_slot == k].mean(dim=0)
        own = fast[fast_slot == k]
        concentration -= sum(math.exp(-float((f - centre) @ (f - centre))) for f in own) / len(own) / len(labels)
        for f in own:
            same = everything = 0.0
            for s, j in zip(slow, slow_slot.tolist(), strict=True):
                if j >= 0:
                    value = math.exp(math.exp(-float((f - s).norm())))
                    everything += value
                    same += value * (j == k)
            terms.append(-math.log(same / everything))
    return concentration, sum(terms) / len(terms) if terms else 0.0


def test_two_segments_by_hand():
    # Fast 0 and 3; slow 1 and 1 of segment 0 (mean 1), 3 of segment 1.
    fast, slow = torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [1.0], [3.0]])
    concentration, contrastive = slow_fast_losses(fast, torch.tensor([0, 1]), slow, torch.tensor([0, 0, 1]), 2)
    assert math.isclose(float(concentration), -(math.exp(-1) + 1) / 2, rel_tol=1e-6)
    near, far, hit = (math.exp(math.exp(-d)) for d in (1, 3, 0))
    first = -math.log(2 * near / (2 * near + far))
    second = -math.log(hit / (hit + 2 * math.exp(math.exp(-2))))
    assert math.isclose(float(contrastive), (first + second) / 2, rel_tol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_slow_twin(seed):
    generator = torch.Generator().manual_seed(seed)
    fast = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    slow = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    fast_slot = torch.randint(-1, 6, (40,), generator=generator, dtype=torch.int32)
    slow_slot = torch.randint(-1, 9, (30,), generator=generator, dtype=torch.int32)
    fast_slot[fast_slot == 2] = -1  # segment 2 in the slow half only, 6 to 8 likewise
    found = slow_fast_losses(fast, fast_slot, slow, slow_slot, 9)
    expected = slow_twin(fast, fast_slot, slow, slow_slot)
    assert expected[0] < 0 < expected[1]
    assert [float(value) for value in found] == pytest.approx(expected, rel=1e-9)


def test_gradient_reaches_the_fast_features_only_and_is_right():
    generator = torch.Generator().manual_seed(0)
    fast = torch.randn(12, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    slow = torch.randn(10, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    fast_slot, slow_slot = torch.arange(12) % 4 - 1, torch.arange(10) % 5 - 1
    for term in slow_fast_losses(fast, fast_slot, slow, slow_slot, 4):
        grads = torch.autograd.grad(term, (fast, slow), allow_unused=True)
        assert grads[1] is None
        assert bool((grads[0][fast_slot >= 0] != 0).any())
        assert bool((grads[0][fast_slot < 0] == 0).all())
    fixed = slow.detach()
    assert torch.autograd.gradcheck(lambda f: sum(slow_fast_losses(f, fast_slot, fixed, slow_slot, 4)), fast)


def test_equal_fast_and_slow_features_have_a_finite_gradient():
    fast = torch.ones(6, 4, requires_grad=True)
    terms = slow_fast_losses(fast, torch.zeros(6).int(), torch.ones(6, 4), torch.zeros(6).int(), 1)
    sum(terms).backward()
    assert [float(term.detach()) for term in terms] == pytest.approx([-1.0, 0.0], abs=1e-6)
    assert bool(torch.isfinite(fast.grad).all())


@pytest.mark.parametrize(("fast_id", "slow_id"), [(-1, -1), (0, 1), (0, -1), (-1, 0)])
def test_without_a_segment_in_both_halves_there_is_nothing_to_learn(fast_id, slow_id):
    fast = (torch.arange(15.0).view(5, 3) / 10).requires_grad_(True)
    slots = torch.full((5,), fast_id, dtype=torch.int32), torch.full((4,), slow_id, dtype=torch.int32)
    terms = slow_fast_losses(fast, slots[0], torch.ones(4, 3), slots[1], 2)
    sum(terms).backward()
    assert [float(term.detach()) for term in terms] == [0.0, 0.0]
    assert bool((fast.grad == 0).all())


def test_no_pixels_or_segments_at_all():
    none = torch.zeros(0, dtype=torch.int32)
    terms = slow_fast_losses(torch.zeros(0, 3), none, torch.zeros(0, 3), none, 0)
    assert [float(term) for term in terms] == [0.0, 0.0]
