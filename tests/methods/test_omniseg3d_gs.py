import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tests.methods.calls import build, losses
from unified_lift.errors import UserError
from unified_lift.methods.base import LiftData

PAIRS = normalize(torch.tensor([[1.0, 0.3, 0], [1.0, -0.3, 0], [0, 0.3, 1.0], [0, -0.3, 1.0]]), dim=1)
"""Directions of four parts; two neighbours each are 33 degrees apart, the pairs 60 or more."""


method_with = partial(build, "omniseg3d_gs")


def observations(directions, parts_of_segment, *, views=4, per_part=40, noise=0.02):
    """What a stage shows of views in which each segment consists of parts; slots are shuffled in every view."""
    generator = torch.Generator().manual_seed(5)

    def observe():
        for _ in range(views):
            names = torch.randperm(len(parts_of_segment), generator=generator).tolist()
            part = torch.tensor([p for own in parts_of_segment for p in own]).repeat_interleave(per_part)
            slot = torch.tensor([n for n, own in zip(names, parts_of_segment, strict=True) for _ in own])
            slot = slot.repeat_interleave(per_part).int()
            features = directions[part] + noise * torch.randn(len(part), directions.shape[1], generator=generator)
            yield features, slot, len(parts_of_segment)

    return observe


def finished(parts_of_segment=((0, 1), (2, 3)), **changes):
    method = method_with(**{"feature_dim": 3, "cluster_sizes": (20, 250)} | changes)
    method.finish(observations(PAIRS, parts_of_segment))
    return method


# ---- the loss ----


def view(seed=0):
    generator = torch.Generator().manual_seed(seed)
    slot = torch.cat([torch.arange(4).repeat_interleave(30), torch.full((20,), 4), torch.full((9,), -1)]).int()
    features = normalize(torch.randn(5, 16, generator=generator), dim=1)[slot.long()]
    return (features + 0.3 * torch.randn(len(slot), 16, generator=generator)).requires_grad_(True), slot


def test_loss_is_the_released_flat_branch_of_segments_above_twenty_pixels():
    features, slot = view()
    term = losses(method_with(), features, slot, 5)["contrastive"]
    large = (slot >= 0) & (slot < 4)  # segment 4 has exactly 20
    x = features.detach()[large] / (features.detach()[large].norm(dim=1, keepdim=True) + 1e-6)
    own = slot[large].long()
    centres = torch.stack([x[own == j].mean(dim=0) for j in range(4)])
    phi = torch.stack([(x[own == j] - centres[j]).norm(dim=1).mean() / np.log(30 + 10) for j in range(4)])
    share = torch.exp(x @ centres.T / (10 * phi).clamp(0.5, 1.0))
    expected = -torch.log(share[torch.arange(len(own)), own] / share.sum(dim=1)).sum() / 4
    torch.testing.assert_close(term.detach(), expected, rtol=1e-4, atol=0)
    term.backward()
    assert bool((features.grad[~large] == 0).all())
    assert float((features.grad * features.detach()).sum(dim=1).abs().max()) > 1e-3  # |F| is held constant


def test_norm_term_counts_every_gaussian_and_weights_are_those_of_the_original():
    method = method_with()
    features = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]], requires_grad=True)
    term = losses(method, *view(), 5, gaussian_features=features)["norm"]
    assert float(term.detach()) == pytest.approx((16 + 0 + 1) / 3)
    term.backward()
    assert bool(torch.isfinite(features.grad).all())
    assert method.weights == {"contrastive": 1e-3, "norm": 100.0}
    assert method.rates(0.0) == method.rates(0.9) == {"features": 0.01}


def test_features_start_on_the_unit_sphere_and_a_graph_may_replay_every_step():
    method = method_with()
    torch.testing.assert_close(method.initial_features(50).norm(dim=1), torch.ones(50))
    assert method.graph_key(0.0, 100) == method.graph_key(0.9, 100) is not None


# ---- clusters ----


@pytest.mark.parametrize(
    ("parts_of_segment", "chosen", "clusters"),
    [(((0, 1), (2, 3)), 250, 2), (((0,), (1,), (2,), (3,)), 20, 4)],
    ids=["masks of wholes", "masks of parts"],
)
def test_the_size_is_chosen_that_agrees_with_the_masks(parts_of_segment, chosen, clusters):
    method = finished(parts_of_segment)
    assert tuple(method.candidates()) == ("min_cluster_size=20", "min_cluster_size=250")
    assert method.chosen == f"min_cluster_size={chosen}"
    assert method.num_objects == clusters
    ids = method.segment(PAIRS).object_ids
    assert [len(set(ids[list(own)].tolist())) for own in parts_of_segment] == [1] * len(parts_of_segment)
    assert len(set(ids.tolist())) == clusters
    summary = method.summary
    assert summary["chosen"] == method.chosen
    assert [(row["min_cluster_size"], row["clusters"]) for row in summary["cluster_sweep"]] == [(20, 4), (250, 2)]
    by_size = {row["min_cluster_size"]: row["pseudo_label_pq"] for row in summary["cluster_sweep"]}
    assert by_size.pop(chosen) == pytest.approx(1.0)
    # of four clusters each covers exactly half of one of two segments: IoU 0.5, which is no match
    assert max(by_size.values()) < 0.7 if chosen == 20 else by_size == {20: 0.0}


def test_of_equal_agreement_the_smallest_size_is_taken():
    method = finished(cluster_sizes=(300, 250, 280, 250))
    rows = method.summary["cluster_sweep"]
    assert [row["min_cluster_size"] for row in rows] == [250, 280, 300]
    assert {row["pseudo_label_pq"] for row in rows} == {1.0}
    assert method.chosen == "min_cluster_size=250"


def test_each_candidate_segments_in_its_own_way_and_renumbering_reaches_the_chosen_one_only():
    method, order = finished(((0,), (1,), (2,), (3,))), torch.tensor([2, 0, 3, 1])
    ids = method.segment(PAIRS).object_ids
    wholes = method.candidates()["min_cluster_size=250"]
    assert (method.num_objects, wholes.num_objects) == (4, 2)
    others = wholes.segment(PAIRS).object_ids
    assert len(set(others.tolist())) == 2
    method.reorder(order)
    assert torch.equal(order[method.segment(PAIRS).object_ids], ids)
    parts, wholes = (method.candidates()[f"min_cluster_size={size}"] for size in (20, 250))
    assert torch.equal(parts.segment(PAIRS).object_ids, method.segment(PAIRS).object_ids)
    assert torch.equal(wholes.segment(PAIRS).object_ids, others)


def test_ids_do_not_depend_on_the_length_of_features_and_confidence_is_a_probability():
    method = finished()
    features = torch.cat([PAIRS, PAIRS.mean(dim=0, keepdim=True)])
    ids, confidence = method.segment(features)
    longer, same = method.segment(7 * features)
    assert torch.equal(ids, longer)
    torch.testing.assert_close(confidence, same)
    assert bool(((confidence >= 1 / 2) & (confidence <= 1)).all())
    assert float(confidence[:4].min()) > float(confidence[4])  # between all clusters
    cosines = features / features.norm(dim=1, keepdim=True) @ normalize(method.centroids, dim=1).T
    torch.testing.assert_close(confidence, torch.softmax(cosines / 0.1, dim=1).max(dim=1).values)


def test_pixels_without_label_found_no_cluster_and_do_not_count():
    observe = observations(PAIRS, ((0, 1), (2, 3)))

    def with_unlabelled():
        for features, slot, num_segments in observe():
            lost = torch.tensor([[0.0, -1.0, 0.0]]).expand(300, 3)
            yield torch.cat([lost, features]), torch.cat([torch.full((300,), -1).int(), slot]), num_segments

    method = method_with(feature_dim=3, cluster_sizes=(20, 250))
    method.finish(with_unlabelled)
    assert method.num_objects == 2
    assert method.summary["cluster_sweep"][1]["pseudo_label_pq"] == pytest.approx(1.0)


def test_sample_and_score_keep_to_their_sizes_and_repeat(monkeypatch):
    seen = []

    def counted(points, *, min_cluster_size):
        seen.append(points.clone())
        return points[:min_cluster_size]

    monkeypatch.setattr("unified_lift.methods.clustered.hdbscan_centroids", counted)
    for _ in range(2):
        method_with(feature_dim=3, cluster_sizes=(2,), cluster_sample=50, score_pixels=30).finish(
            lambda: observations(PAIRS, ((0, 1), (2, 3)))()
        )
    assert [len(points) for points in seen] == [50, 50]
    assert torch.equal(*seen)
    torch.testing.assert_close(seen[0].norm(dim=1), torch.ones(50))


def test_nothing_to_cluster_is_an_error_with_a_cure():
    method = method_with(feature_dim=3)
    empty = torch.zeros(5, 3), torch.full((5,), -1, dtype=torch.int32), 0
    with pytest.raises(UserError, match="--object_path"):
        method.finish(lambda: [empty])
    lonely = torch.ones(1, 3), torch.zeros(1, dtype=torch.int32), 1
    with pytest.raises(UserError, match="--cluster_sizes 5 10"):
        method.finish(lambda: [lonely, empty])
    assert method.num_objects == 0


def test_missing_scikit_learn_is_found_before_the_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UserError, match=r"pip install .*baselines"):
        method_with().prepare(LiftData(torch.zeros(1, 3), lambda: iter(())))
