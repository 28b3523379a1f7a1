"""Unit quaternions in the order w, x, y, z, on torch tensors of any batch shape."""

from __future__ import annotations

import torch
from torch import Tensor

_MIN_NORM = 1e-12  # below this a quaternion has no direction left to normalise


def normalise(quats: Tensor) -> Tensor:
    """Return quaternions of length one.

    Args:
        quats: Quaternions wxyz, [..., 4].
    Raises:
        ValueError: The last dimension is not 4.
    """
    _check_last(quats, 4)
    return quats / quats.norm(dim=-1, keepdim=True).clamp_min(_MIN_NORM)


def rotation_from_quaternion(quats: Tensor) -> Tensor:
    """Return rotation matrices of quaternions, which are normalised first.

    Source: R = I + 2 w [v]x + 2 [v]x^2 for a unit quaternion (w, v).
    Args:
        quats: Quaternions wxyz, any length but zero, [..., 4].
    Returns:
        Rotations, [..., 3, 3].
    """
    w, x, y, z = normalise(quats).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def quaternion_from_rotation(rotations: Tensor) -> Tensor:
    """Return unit quaternions wxyz with w >= 0 of rotation matrices.

    Source: the outer product q q^T is linear in R; its row of largest diagonal entry is q up to scale, never near zero.
    Args:
        rotations: Rotations, [..., 3, 3].
    Returns:
        Quaternions, [..., 4].
    """
    if rotations.shape[-2:] != (3, 3):
        raise ValueError(f"rotations must be [..., 3, 3], received {list(rotations.shape)}")
    r = [[rotations[..., i, j] for j in range(3)] for i in range(3)]
    a, b, c = r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1]
    d, e, f = r[0][1] + r[1][0], r[0][2] + r[2][0], r[1][2] + r[2][1]
    rows = (  # 4 q q^T
        (1 + r[0][0] + r[1][1] + r[2][2], a, b, c),
        (a, 1 + r[0][0] - r[1][1] - r[2][2], d, e),
        (b, d, 1 - r[0][0] + r[1][1] - r[2][2], f),
        (c, e, f, 1 - r[0][0] - r[1][1] + r[2][2]),
    )
    outer = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # [..., 4, 4]
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    row = outer.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    quats = normalise(row)
    return torch.where(quats[..., :1] < 0, -quats, quats)


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Return the Hamilton product: the rotation `right` followed by `left`.

    Args:
        left, right: Quaternions wxyz, broadcastable, [..., 4].
    Returns:
        Quaternions, [..., 4].
    """
    _check_last(left, 4)
    _check_last(right, 4)
    aw, ax, ay, az = left.unbind(-1)
    bw, bx, by, bz = right.unbind(-1)
    return torch.stack(
        (
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ),
        dim=-1,
    )


def _check_last(tensor: Tensor, size: int) -> None:
    if tensor.ndim == 0 or tensor.shape[-1] != size:
        raise ValueError(f"quaternions must be [..., {size}], received {list(tensor.shape)}")
