import numpy as np
import pytest
import simple_knn
import torch
from simple_knn._C import distCUDA2


def by_brute_force(points: torch.Tensor) -> torch.Tensor:
    """Return the definition: all pairwise distances, the point itself left out, the three smallest averaged."""
    squared = torch.cdist(points.double(), points.double()) ** 2
    squared.fill_diagonal_(float("inf"))
    return squared.sort(dim=1).values[:, :3].mean(dim=1).float()


@pytest.mark.parametrize("count", [4, 5, 37, 700])
def test_agrees_with_all_pairwise_distances(count):
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(count))
    torch.testing.assert_close(distCUDA2(points), by_brute_force(points), rtol=1e-5, atol=1e-7)


def test_by_hand_on_a_line():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0], [7, 0, 0]])
    # squared distances to the three others: 1 9 49 | 1 4 36 | 9 4 16 | 49 36 16
    torch.testing.assert_close(distCUDA2(points), torch.tensor([59 / 3, 41 / 3, 29 / 3, 101 / 3]))


def test_duplicates_are_neighbours_at_distance_zero():
    points = torch.cat([torch.zeros(5, 3), torch.ones(1, 3)])
    torch.testing.assert_close(distCUDA2(points), torch.tensor([0.0, 0, 0, 0, 0, 3.0]))


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [0.0]), (2, [1.0, 1.0]), (3, [2.5, 1.0, 2.5])])
def test_fewer_than_four_points_average_over_those_there_are(count, expected):
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])[:count]
    torch.testing.assert_close(distCUDA2(points), torch.tensor(expected))


def test_chunks_do_not_change_the_result(monkeypatch):
    points = torch.rand(1000, 3)
    whole = distCUDA2(points)
    monkeypatch.setattr(simple_knn, "_CHUNK", 64)
    assert torch.equal(distCUDA2(points), whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    points = torch.rand(9, 3)
    points[4, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        distCUDA2(points)


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        distCUDA2(torch.rand(3, 4))


def test_far_from_the_origin_precision_holds():
    points = torch.rand(200, 3, dtype=torch.float64)
    moved = distCUDA2(points + 1e5)
    np.testing.assert_allclose(moved, distCUDA2(points), rtol=1e-3)


def test_the_result_has_no_gradient():
    assert not distCUDA2(torch.rand(20, 3, requires_grad=True)).requires_grad
