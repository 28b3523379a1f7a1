"""First values of Gaussians and features."""

import torch
from simple_knn import distCUDA2
from torch import Tensor
from torch.nn.functional import normalize

from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.types import PointCloud

_MIN_SQUARED_DISTANCE = 1e-7  # floor of the start scale squared [3DGS]
_START_OPACITY = 0.1  # [3DGS]


def gaussians_from_points(points: PointCloud, *, sh_degree: int) -> Gaussians:
    """Return isotropic Gaussians at the points, of which there must be one, with room for `sh_degree` (0..3) SH bands.

    Source: 3D-GS section 5.1: scale = root mean squared distance to the 3 nearest points, opacity 0.1.
    """
    means = torch.from_numpy(points.positions).float()
    colors, count = torch.from_numpy(points.colors).float() / 255, len(means)
    squared = distCUDA2(means).clamp(min=_MIN_SQUARED_DISTANCE)
    quats = torch.zeros(count, 4)
    quats[:, 0] = 1
    return Gaussians(
        {
            "means": means,
            "quats": quats,
            "log_scales": squared.sqrt().log()[:, None].expand(count, 3),
            "logit_opacities": torch.full((count,), _START_OPACITY).logit(),
            "sh0": ((colors - 0.5) / SH_C0)[:, None, :],
            "shN": torch.zeros(count, (sh_degree + 1) ** 2 - 1, 3),
            "features": torch.zeros(count, 0),
        }
    )


def random_features(count: int, feature_dim: int, *, unit: bool, generator: torch.Generator) -> Tensor:
    """Return start features, [count, feature_dim].

    With `unit` random directions of length 1 [OmniSeg3D-GS]; else uniform in [-1.772, 1.772] per coordinate [released].
    """
    if unit:
        return normalize(torch.randn(count, feature_dim, generator=generator), dim=1)
    return (torch.rand(count, feature_dim, generator=generator) - 0.5) / SH_C0
