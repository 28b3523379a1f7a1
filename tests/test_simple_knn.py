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


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        # squared distances to the three others: 1 9 49 | 1 4 36 | 9 4 16 | 49 36 16
        ([0, 1, 3, 7], [59 / 3, 41 / 3, 29 / 3, 101 / 3]),
        ([0, 0, 0, 0, 0, 2], [0, 0, 0, 0, 0, 4]),  # duplicates are neighbours
        ([], []),
        ([0], [0]),  # fewer than four points: the mean over those there are
        ([0, 1], [1, 1]),
        ([0, 1, 2], [2.5, 1, 2.5]),
    ],
)
def test_by_hand_on_a_line(x, expected):
    points = torch.nn.functional.pad(torch.tensor(x, dtype=torch.float32)[:, None], (0, 2))
    torch.testing.assert_close(distCUDA2(points), torch.tensor(expected, dtype=torch.float32))


def test_chunks_do_not_change_the_result(monkeypatch):
    points = torch.rand(1000, 3)
    whole = distCUDA2(points)
    monkeypatch.setattr(simple_knn, "_CHUNK", 64)
    assert torch.equal(distCUDA2(points), whole)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.tensor([[0.0, torch.nan, 0]] * 5), "NaN or infinite"),
        (torch.tensor([[0.0, torch.inf, 0]] * 5), "NaN or infinite"),
        (torch.rand(3, 4), r"\[N, 3\]"),
    ],
)
def test_what_is_no_cloud_of_finite_points_is_refused(points, message):
    with pytest.raises(ValueError, match=message):
        distCUDA2(points)


def test_far_from_the_origin_precision_holds():
    points = torch.rand(200, 3, dtype=torch.float64)
    moved = distCUDA2(points + 1e5)
    np.testing.assert_allclose(moved, distCUDA2(points), rtol=1e-3)


def test_the_result_has_no_gradient():
    assert not distCUDA2(torch.rand(20, 3, requires_grad=True)).requires_grad
