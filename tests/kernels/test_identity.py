import math

import pytest
import torch

from unified_lift.kernels.identity import identity_loss, knn_loss, nearest_points


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_identity_by_hand():
    # Logits (0, ln 3): softmax (1/4, 3/4); label 0 costs ln 4 / ln 2 = 2, label 1 costs log2(4/3). -1 does not count.
    logits = torch.tensor([[0.0, math.log(3)]] * 3)
    assert float(identity_loss(logits, torch.tensor([0, 1, -1]))) == pytest.approx((2 + math.log2(4 / 3)) / 2)


def test_identity_is_the_mean_over_labelled_pixels_divided_by_the_log_of_the_number_of_classes():
    logits, labels = random(50, 7), torch.randint(-1, 7, (50,), generator=torch.Generator().manual_seed(1))
    costs = []
    for row, label in zip(logits.tolist(), labels.tolist()):
        if label >= 0:
            costs.append(math.log(sum(math.exp(x) for x in row)) - row[label])
    assert 0 < len(costs) < 50
    expected = sum(costs) / len(costs) / math.log(7)
    assert float(identity_loss(logits, labels)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("labels", [[-1, -1], []])
def test_identity_without_labels_is_zero_and_pulls_at_nothing(labels):
    logits = random(len(labels), 3).requires_grad_(True)
    loss = identity_loss(logits, torch.tensor(labels, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0
    assert bool((logits.grad == 0).all())


def test_identity_of_a_single_class_is_zero_not_nan():
    assert float(identity_loss(random(4, 1), torch.zeros(4, dtype=torch.int64))) == 0


def test_identity_rests_only_when_every_labelled_pixel_is_right():
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    right, unlabelled, wrong = (torch.tensor(x) for x in ([1, 0, 1], [1, 0, -1], [1, 0, 0]))
    for labels, rests in ((right, True), (unlabelled, True), (wrong, False)):
        loss = identity_loss(logits, labels)
        assert float(loss) > 0
        expected = 0 if rests else float(loss)
        assert float(identity_loss(logits, labels, rest_when_right=True)) == pytest.approx(expected)


def test_gradient_of_identity():
    labels = torch.tensor([2, 0, -1, 1])
    assert torch.autograd.gradcheck(lambda x: identity_loss(x, labels), random(4, 3).requires_grad_(True))


# ---- neighbours --------------------------------------------------------------------------------------------------


def all_gaussians(features, means, weight, bias, *, neighbours=3, anchors=10**6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    near = nearest_points(means, neighbours)
    return knn_loss(features, near, weight, bias, num_anchors=anchors, generator=generator)


def slow_knn(features, means, weight, bias, neighbours):
    """Every Gaussian an anchor, one pair after the other."""
    probabilities = [torch.softmax(weight @ f + bias, dim=0) for f in features]
    total, count = 0.0, 0
    for anchor in range(len(means)):
        near = sorted(range(len(means)), key=lambda j: float((means[j] - means[anchor]).norm()))[:neighbours]
        for j in near:
            p, q = probabilities[anchor], probabilities[j]
            total = total + sum(p[c] * (p[c].log() - q[c].log()) for c in range(len(bias)))
            count += 1
    return total / count / len(bias)


def test_knn_is_what_a_slow_loop_finds():
    features, means, weight, bias = random(12, 4), random(12, 3, seed=1), random(5, 4, seed=2), random(5, seed=3)
    leaves = [x.requires_grad_(True) for x in (features, weight, bias)]
    found, expected = all_gaussians(features, means, weight, bias), slow_knn(features, means, weight, bias, 3)
    torch.testing.assert_close(found, expected)
    assert float(found.detach()) > 0
    for a, b in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves)):
        torch.testing.assert_close(a, b)


def test_knn_by_hand():
    # Two Gaussians whose classes have probabilities (1/4, 3/4) and (1/2, 1/2); each is a neighbour of itself.
    features, means = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    weight, bias = torch.tensor([[0.0], [math.log(3)]]), torch.zeros(2)
    there = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    back = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    loss = all_gaussians(features, means, weight, bias, neighbours=2)
    assert float(loss) == pytest.approx((there + back) / 4 / 2, rel=1e-5)
    assert float(all_gaussians(features, means, weight, bias, neighbours=1)) == 0
    assert float(all_gaussians(features, means, weight, bias, neighbours=9)) == pytest.approx(float(loss))


def test_gradient_of_knn_reaches_features_and_head():
    means = random(9, 3, seed=1)
    leaves = [x.requires_grad_(True) for x in (random(9, 2), random(3, 2, seed=2), random(3, seed=3))]
    assert torch.autograd.gradcheck(lambda f, w, b: all_gaussians(f, means, w, b), leaves)


def test_knn_draws_anchors_again_with_the_same_seed_only():
    features, means, weight, bias = random(200, 4), random(200, 3, seed=1), random(5, 4, seed=2), random(5, seed=3)
    draws = [float(all_gaussians(features, means, weight, bias, anchors=7, seed=s)) for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_knn_compares_no_more_anchors_than_it_may():
    # Without neighbours but itself an anchor has no gradient; with one other, it and the other have.
    features = random(60, 4).requires_grad_(True)
    all_gaussians(
        features, random(60, 3, seed=1), random(5, 4, seed=2), random(5, seed=3), neighbours=2, anchors=4
    ).backward()
    assert 4 < int((features.grad != 0).any(dim=1).sum()) <= 8


def test_nearest_points_are_those_of_a_slow_search_itself_the_first():
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    found = nearest_points(points, 4)
    expected = torch.cdist(points.double(), points.double()).argsort(dim=1)[:, :4]
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)


def test_fewer_points_than_asked_for_give_them_all():
    assert sorted(nearest_points(torch.eye(3), 9)[1].tolist()) == [0, 1, 2]
    assert nearest_points(torch.zeros(1, 3), 5).tolist() == [[0]]


def test_points_at_one_place_each_come_first_themselves():
    found = nearest_points(torch.zeros(7, 3), 3)
    assert found[:, 0].tolist() == list(range(7))
    assert all(len(set(row)) == 3 for row in found.tolist())


def test_neighbours_far_from_the_origin_are_told_apart():
    # 1 mm apart at 10 km: in float32 a product of matrices would tell any two of them apart by chance only.
    points = torch.zeros(40, 3)
    points[:, 0] = torch.arange(40) * 2.0**-9 + 8192
    assert sorted(nearest_points(points, 3)[20].tolist()) == [19, 20, 21]
