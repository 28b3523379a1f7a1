import torch

from unified_lift.methods.clustered import box_without_outliers, hdbscan_centroids, require_hdbscan
from unified_lift.methods.omniseg3d_gs import OmniSeg3D, OmniSeg3DSettings


def blobs(centres, per_blob, noise, seed=0):
    """Points around each centre, in turn."""
    generator = torch.Generator().manual_seed(seed)
    points = centres.repeat_interleave(per_blob, dim=0)
    return points + noise * torch.randn(points.shape, generator=generator)


def test_each_blob_is_a_cluster_whose_centroid_is_in_its_middle():
    centres = 4 * torch.eye(5, 6)
    found = hdbscan_centroids(blobs(centres, 60, 0.1), min_cluster_size=10)
    assert found.dtype == torch.float32
    assert len(found) == 5
    nearest = torch.cdist(centres, found).min(dim=1)
    assert sorted(nearest.indices.tolist()) == [0, 1, 2, 3, 4]
    assert float(nearest.values.max()) < 0.1


def test_min_cluster_size_decides_between_parts_and_wholes():
    pairs = torch.tensor([[0.0, 0.0], [1.0, 0.0], [20.0, 0.0], [21.0, 0.0]])  # two objects of two parts each
    points = blobs(pairs, 40, 0.05)
    assert len(hdbscan_centroids(points, min_cluster_size=10)) == 4
    assert len(hdbscan_centroids(points, min_cluster_size=60)) == 2


def test_centroid_is_the_mean_weighted_by_probability():
    points = blobs(torch.tensor([[0.0, 0.0], [10.0, 0.0]]), 50, 0.3)
    found = require_hdbscan()(min_cluster_size=10, min_samples=1, allow_single_cluster=True, copy=True)
    found.fit(points.double().numpy())
    expected = []
    for label in range(found.labels_.max() + 1):
        total, weight = torch.zeros(2, dtype=torch.float64), 0.0
        for row, own, probability in zip(points.double(), found.labels_, found.probabilities_, strict=True):
            if own == label:
                total, weight = total + probability * row, weight + probability
        expected.append(total / weight)
    assert len({round(float(p), 6) for p in found.probabilities_}) > 10  # or a plain mean would do as well
    torch.testing.assert_close(hdbscan_centroids(points, min_cluster_size=10), torch.stack(expected).float())


def test_points_are_not_changed_and_the_same_points_give_the_same_clusters():
    points = blobs(4 * torch.eye(3), 30, 0.2)
    before = points.clone()
    first, second = (hdbscan_centroids(points, min_cluster_size=5) for _ in range(2))
    assert torch.equal(points, before)
    assert torch.equal(first, second)


def test_one_blob_or_too_few_points_or_equal_ones():
    assert len(hdbscan_centroids(blobs(torch.zeros(1, 3), 80, 0.1), min_cluster_size=30)) == 1
    for count in (0, 1):
        assert hdbscan_centroids(torch.ones(count, 4), min_cluster_size=5).shape == (0, 4)
    assert len(hdbscan_centroids(torch.eye(3), min_cluster_size=50)) <= 1
    found = hdbscan_centroids(torch.ones(40, 3), min_cluster_size=5)
    assert torch.equal(found, torch.ones(len(found), 3))


def test_points_that_are_not_finite_belong_to_no_cluster():
    points = blobs(10 * torch.eye(2), 40, 0.1)
    broken = torch.cat([points, torch.tensor([[float("nan"), 0.0], [float("inf"), 1.0]])])
    found = hdbscan_centroids(broken, min_cluster_size=10)
    torch.testing.assert_close(found, hdbscan_centroids(points, min_cluster_size=10))


def test_box_by_hand():
    # 99 points at 0 and 1 in turn and one at 100: mean 1.49, standard deviation 9.9, so 100 is 9.9 of them away.
    first = torch.cat([torch.arange(99) % 2, torch.tensor([100])]).float()
    points = torch.stack([first, 5 + 2 * (torch.arange(100) % 3).float()], dim=1)
    kept, box = box_without_outliers(points)
    assert kept.tolist() == [True] * 99 + [False]
    assert box.tolist() == [[0, 5], [1, 4]]  # low, width


def test_box_without_spread_in_a_dimension_or_with_each_point_far_out_in_one_of_its_own():
    points = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    kept, box = box_without_outliers(points)
    assert bool(kept.all())
    assert ((points - box[0]) / box[1])[:, 0].tolist() == [0, 0, 0]
    assert bool(box_without_outliers(torch.eye(30))[0].all())


def test_largest_logit_is_that_of_the_nearest_centroid():
    generator = torch.Generator().manual_seed(0)
    points, centroids = torch.randn(200, 5, generator=generator), 2 * torch.randn(12, 5, generator=generator)
    settings = OmniSeg3DSettings(feature_dim=5, cluster_space="box", confidence_temperature=0.3)
    method = OmniSeg3D(settings, zero_id="segment", seed=0)
    method.load_object_state({"centroids": centroids, "box": torch.tensor([[0.0], [1.0]]).expand(2, 5)})
    logits = method.logits(points)
    assert torch.equal(logits.argmax(dim=1), torch.cdist(points, centroids).argmin(dim=1))
    by_definition = -torch.cdist(points, centroids).square() / 0.6
    torch.testing.assert_close(torch.softmax(logits, dim=1), torch.softmax(by_definition, dim=1), rtol=1e-3, atol=1e-5)
