"""Turning the view-dependent colour of Gaussians together with the object they belong to."""

from __future__ import annotations

import torch
from diff_gaussian_rasterization.reference import harmonics_color
from torch import Tensor

_NUM_DIRECTIONS = 64  # far more than the 16 unknowns of a row, spread evenly
_PROBE = 0.1  # a coefficient so small that no colour reaches the clamp at 0
_DEGREES = {0: 0, 3: 1, 8: 2, 15: 3}  # coefficients beyond the constant one -> degree


def harmonics_basis(directions: Tensor, *, degree: int) -> Tensor:
    """Return the real spherical harmonics of 3DGS at unit directions [M, 3], [M, (degree + 1)^2].

    They are read off the rasterizer's own definition of colour, so that order and signs cannot drift apart from it.
    """
    count, size = len(directions), (degree + 1) ** 2
    probes = (_PROBE * torch.eye(size, dtype=directions.dtype, device=directions.device))[:, :, None].expand(-1, -1, 3)
    colors = harmonics_color(
        probes.repeat(count, 1, 1), directions.repeat_interleave(size, dim=0), degree=degree
    )  # [M * size, 3]
    return (colors[:, 0] - 0.5).view(count, size) / _PROBE


def harmonics_rotations(rotation: Tensor, *, degree: int) -> tuple[Tensor, ...]:
    """Return for each degree 1 .. `degree` the matrix that turns its coefficients with the world, float64 [2l+1, 2l+1].

    Source: Y_l(R^T d) = M Y_l(d) holds for one matrix M per degree, as the harmonics of a degree span a space that
    rotations map to itself; it is solved for on more directions than unknowns.
    Args:
        rotation: R, target_from_source, [3, 3].
        degree: 0 to 3.
    """
    directions = _spread_directions(_NUM_DIRECTIONS)
    turned = directions @ rotation.detach().cpu().double()  # rows: R^T d
    after, before = harmonics_basis(directions, degree=degree), harmonics_basis(turned, degree=degree)
    bands = [slice(band**2, (band + 1) ** 2) for band in range(1, degree + 1)]
    return tuple(torch.linalg.lstsq(after[:, band], before[:, band]).solution for band in bands)


def rotate_harmonics(coefficients: Tensor, rotation: Tensor) -> Tensor:
    """Return coefficients c' whose colour at R d is what that of c is at d.

    Args:
        coefficients: `shN`: all but the constant one, [N, K - 1, 3] with K = 1, 4, 9 or 16.
        rotation: R, target_from_source, [3, 3].
    Raises:
        ValueError: No such number of coefficients.
    """
    if coefficients.shape[1] not in _DEGREES:
        raise ValueError(f"shN must be [N, 0, 3, 8 or 15, 3], received {list(coefficients.shape)}")
    matrices = harmonics_rotations(rotation, degree=_DEGREES[coefficients.shape[1]])
    parts = coefficients.split([len(matrix) for matrix in matrices], dim=1) if matrices else ()
    turned = [
        torch.einsum("ij,njc->nic", matrix.to(part.device), part.double())
        for matrix, part in zip(matrices, parts, strict=True)
    ]
    return torch.cat(turned, dim=1).to(coefficients.dtype) if turned else coefficients.clone()


def _spread_directions(count: int) -> Tensor:
    """Return unit vectors spread evenly over the sphere (a golden spiral), float64 [count, 3]."""
    order = torch.arange(count, dtype=torch.float64) + 0.5
    z, azimuth = 1 - 2 * order / count, order * torch.pi * (3 - 5**0.5)
    flat = (1 - z * z).sqrt()
    return torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), z], dim=1)
