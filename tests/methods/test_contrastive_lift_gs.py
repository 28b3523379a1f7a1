import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.methods.calls import losses
from unified_lift.methods.clustered import hdbscan_centroids
from unified_lift.methods.contrastive_lift_gs import ContrastiveLift, ContrastiveLiftSettings, slow_fast_losses
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.modelfolder.settings import TrainSettings, with_preset
from unified_lift.settings.yaml import merged
from unified_lift.train.lift import LiftStage


def method_with(**changes):
    return ContrastiveLift(ContrastiveLiftSettings(**{"feature_dim": 4} | changes), zero_id="segment", seed=0)


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


def test_the_host_need_not_know_any_number():
    # Tensors without values: whatever would make the host wait for a GPU raises.
    method = method_with()
    with FakeTensorMode():
        features, slot = torch.randn(50, 4, requires_grad=True), torch.zeros(50, dtype=torch.int32)
        sum(losses(method, features, slot, 3, 0.0, view=0).values()).backward()
        assert features.grad.shape == (50, 4)
        with pytest.raises(DataDependentOutputException):
            float(features.detach().sum())


def test_no_graph_may_replay_a_step_that_draws():
    assert method_with().graph_key(0.5, 1000) is None


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
    changes = {
        "lift": {"lift_iterations": 60, "lift_pixels": 300},
        "method": {"cluster_sizes": [10, 60], "feature_dim": 8, "feature_lr": 0.05},
    }
    settings = merged(with_preset(TrainSettings(), "contrastive_lift_gs"), changes, origin="test")
    gaussians = gaussians_from_points(scene.points, sh_degree=0)
    stage = LiftStage(scene, gaussians, settings.build_method(zero_id=scene.zero_id), settings.lift, seed=3)
    terms = [{name: float(v) for name, v in stage.step(step).items()} for step in range(stage.num_steps)]
    first, last = terms[:6], terms[-6:]  # every view once
    assert sum(t["contrastive"] for t in last) < sum(t["contrastive"] for t in first)
    fast, slow = stage.gaussians.features.detach().split(4, dim=1)
    assert not torch.equal(fast, slow)
    assert float((fast - slow).abs().max()) < 1.0  # ten steps of 0.05 behind at most, and some
