"""Unit quaternions in the order w, x, y, z, on torch tensors of any batch shape."""

import torch
from torch import Tensor

_MIN_NORM = 1e-12  # below this a quaternion has no direction left to normalise


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
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def rotate(quats: Tensor, vectors: Tensor) -> Tensor:
    """Return vectors [..., 3] turned by unit quaternions wxyz [..., 4].

    Source: v + 2 w (u x v) + 2 u x (u x v) for a unit quaternion (w, u).
    """
    w, axis = quats[..., :1], quats[..., 1:]
    crossed = 2 * torch.linalg.cross(axis, vectors)
    return vectors + w * crossed + torch.linalg.cross(axis, crossed)


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
