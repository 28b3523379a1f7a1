"""Unit quaternions in the order w, x, y, z, on torch tensors of any batch shape."""

import torch
from torch import Tensor

_MIN_NORM = 1e-12  # below this a quaternion has no direction left to normalise


def _matrix(rows: tuple[tuple[Tensor, ...], ...]) -> Tensor:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _components(quats: Tensor) -> tuple[Tensor, ...]:
    if quats.ndim == 0 or quats.shape[-1] != 4:
        raise ValueError(f"quaternions must be [..., 4], received {list(quats.shape)}")
    return quats.unbind(-1)


def normalise(quats: Tensor) -> Tensor:
    """Return quaternions wxyz [..., 4] scaled to length one; a ValueError if the last dimension is not 4."""
    _components(quats)
    return quats / quats.norm(dim=-1, keepdim=True).clamp_min(_MIN_NORM)


def rotation_from_quaternion(quats: Tensor) -> Tensor:
    """Return rotation matrices [..., 3, 3] of quaternions wxyz [..., 4] of any length but zero.

    Source: R = I + 2 w [v]x + 2 [v]x^2 for a unit quaternion (w, v).
    """
    w, x, y, z = normalise(quats).unbind(-1)
    return _matrix(
        (
            (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        )
    )


def quaternion_from_rotation(rotations: Tensor) -> Tensor:
    """Return unit quaternions wxyz [..., 4] with w >= 0 of rotation matrices [..., 3, 3].

    Source: the outer product q q^T is linear in R; its row of largest diagonal entry is q up to scale, never near zero.
    """
    if rotations.shape[-2:] != (3, 3):
        raise ValueError(f"rotations must be [..., 3, 3], received {list(rotations.shape)}")
    r = [[rotations[..., i, j] for j in range(3)] for i in range(3)]
    a, b, c = r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1]
    d, e, f = r[0][1] + r[1][0], r[0][2] + r[2][0], r[1][2] + r[2][1]
    outer = _matrix(  # 4 q q^T
        (
            (1 + r[0][0] + r[1][1] + r[2][2], a, b, c),
            (a, 1 + r[0][0] - r[1][1] - r[2][2], d, e),
            (b, d, 1 - r[0][0] + r[1][1] - r[2][2], f),
            (c, e, f, 1 - r[0][0] - r[1][1] + r[2][2]),
        )
    )
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    quats = normalise(outer.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2))
    return torch.where(quats[..., :1] < 0, -quats, quats)


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Return the Hamilton product of quaternions wxyz [..., 4], the rotation `right` followed by `left`, [..., 4]."""
    (aw, ax, ay, az), (bw, bx, by, bz) = _components(left), _components(right)
    product = (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
    return torch.stack(product, dim=-1)
