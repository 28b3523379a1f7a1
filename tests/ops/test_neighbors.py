"""Nearest neighbours of points."""

import torch

from unified_lift.ops.neighbors import nearest_points


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
