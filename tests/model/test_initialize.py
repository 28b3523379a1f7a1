import numpy as np
import pytest
import torch

from unified_lift.model.initialize import gaussians_from_points, random_features
from unified_lift.types import PointCloud


def test_points_start_as_faint_balls_of_their_colour_as_far_as_their_neighbours():
    # On a line at 0, 1, 3, 7: mean squared distances to the three others are 59/3, 41/3, 29/3, 101/3.
    positions = np.array([[0, 0, 0], [1, 0, 0], [3, 0, 0], [7, 0, 0]], np.float32)
    colors = np.array([[0, 0, 0], [255, 255, 255], [51, 102, 153], [255, 0, 0]], np.uint8)
    start = gaussians_from_points(PointCloud(positions=positions, colors=colors), sh_degree=2)
    squared = torch.tensor([59.0, 41, 29, 101]) / 3
    torch.testing.assert_close(start.scales, squared.sqrt()[:, None].expand(4, 3))
    torch.testing.assert_close(start.opacities, torch.full((4,), 0.1))
    torch.testing.assert_close(0.5 + 0.28209479 * start.sh0[:, 0], torch.from_numpy(colors).float() / 255)
    assert start.shN.shape == (4, 8, 3)
    assert not bool(start.shN.any())
    assert start.quats.tolist() == [[1, 0, 0, 0]] * 4
    assert start.feature_dim == 0


def test_points_at_one_place_get_the_least_scale():
    points = PointCloud(positions=np.zeros((5, 3), np.float32), colors=np.zeros((5, 3), np.uint8))
    assert gaussians_from_points(points, sh_degree=0).scales[0].tolist() == pytest.approx([1e-7**0.5] * 3)


@pytest.mark.parametrize("unit", [True, False])
def test_random_features_are_directions_or_fill_a_box(unit):
    features = random_features(2000, 4, unit=unit, generator=torch.Generator().manual_seed(0))
    if unit:
        torch.testing.assert_close(features.norm(dim=1), torch.ones(2000))
    else:
        assert 1.7 < float(features.max()) < 1.773
        assert -1.773 < float(features.min()) < -1.7
    assert float(features.mean()) == pytest.approx(0, abs=0.05)
