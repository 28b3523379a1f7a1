"""One colour matrix per photo: white balance, exposure and an offset."""

import torch
from torch import Tensor

from unified_lift.modelfolder.settings import GeometrySettings
from unified_lift.train.exposure.base import ExposureKind


def identity(settings: GeometrySettings, width: int, height: int) -> Tensor:
    """Return the matrix that changes no colour, [3, 4]."""
    return torch.eye(3, 4)


def apply(matrix: Tensor, image: Tensor) -> Tensor:
    """Return A c + b of every colour c, [H, W, 3], for matrix [A | b], [3, 4]. Gradient: to both.

    Source: the exposure option of the released 3D-GS code (c A + b there, the transposed A).
    """
    flat = torch.addmm(matrix[:, 3], image.reshape(-1, 3), matrix[:, :3].T)
    return flat.view(image.shape)


def centred(matrices: Tensor) -> Tensor:
    """Return the matrices of all photos [V, 3, 4] less what their mean differs from the identity by."""
    return matrices - (matrices.mean(dim=0) - torch.eye(3, 4, device=matrices.device))


EXPOSURE = ExposureKind(
    name="affine",
    what="a colour matrix",
    identity=identity,
    apply=apply,
    matrix=lambda matrix: matrix,
    centred=centred,
    rate=0.01,
    last_share=0.1,  # both [3DGS]
)
