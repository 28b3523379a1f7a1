"""Turning the view-dependent colour of Gaussians together with the object they belong to."""

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
    towards = directions.repeat_interleave(size, dim=0)
    colors = harmonics_color(probes.repeat(count, 1, 1), towards, degree=degree)  # [M * size, 3]
    return (colors[:, 0] - 0.5).view(count, size) / _PROBE


def harmonics_rotations(rotation: Tensor, *, degree: int) -> tuple[Tensor, ...]:
    """Return for each degree 1 .. `degree` the matrix that turns its coefficients with the world, float64 [2l+1, 2l+1].

    Source: Y_l(R^T d) = M Y_l(d) holds for one matrix M per degree (`rotation` R: target_from_source, [3, 3]), as the
    harmonics of a degree span a space that rotations map to itself; it is solved for on more directions than unknowns.
    """
    order = torch.arange(_NUM_DIRECTIONS, dtype=torch.float64) + 0.5
    z, azimuth = 1 - 2 * order / _NUM_DIRECTIONS, order * torch.pi * (3 - 5**0.5)  # a golden spiral
    flat = (1 - z * z).sqrt()
    directions = torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), z], dim=1)
    turned = directions @ rotation.detach().cpu().double()  # rows: R^T d
    after, before = harmonics_basis(directions, degree=degree), harmonics_basis(turned, degree=degree)
    bands = [slice(band**2, (band + 1) ** 2) for band in range(1, degree + 1)]
    return tuple(torch.linalg.lstsq(after[:, band], before[:, band]).solution for band in bands)


def rotate_harmonics(coefficients: Tensor, rotation: Tensor) -> Tensor:
    """Return `shN` [N, K - 1, 3] turned with the world by `rotation` [3, 3]; a ValueError unless K is 1, 4, 9, 16."""
    if coefficients.shape[1] not in _DEGREES:
        raise ValueError(f"shN must be [N, 0, 3, 8 or 15, 3], received {list(coefficients.shape)}")
    turned, start = coefficients.clone(), 0
    for matrix in harmonics_rotations(rotation, degree=_DEGREES[coefficients.shape[1]]):
        band = slice(start, start + len(matrix))
        turned[:, band] = torch.einsum("ij,njc->nic", matrix.to(turned.device), coefficients[:, band].double())
        start = band.stop
    return turned
