"""A bilateral grid per photo: colour matrices by place and brightness, as cameras themselves change photos."""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from unified_lift.modelfolder.settings import GeometrySettings
from unified_lift.train.exposure.base import ExposureKind

_LEAST_CELL = 32  # pixels of a side
_LUMA = (0.299, 0.587, 0.114)  # brightness of a colour, BT.601


def identity(settings: GeometrySettings, width: int, height: int) -> Tensor:
    """Return the grid that changes no colour, [12, Z, Y, X]: a 3x4 matrix, row by row, in every cell.

    It has the cells of `exposure_grid`, of small photos fewer: within a few pixels it would learn what the scene lacks.
    """
    x, y, z = settings.exposure_grid
    x, y = (max(1, min(cells, size // _LEAST_CELL)) for cells, size in ((x, width), (y, height)))
    return torch.eye(3, 4).reshape(12, 1, 1, 1).repeat(1, z, y, x)


def apply(grid: Tensor, image: Tensor) -> Tensor:
    """Return A c + b of every colour c, [H, W, 3], A and b trilinear in the grid at its pixel and brightness.

    Source: Wang et al. 2024, Bilateral guided radiance field processing; laid out as in gsplat: the edges of the
        picture and brightness 0 and 1 are the centres of the outermost cells, and beyond them these count.
    Args:
        grid: Cells [12, Z, Y, X], Z along brightness.
        image: Rendered colour, not clamped, [H, W, 3].
    Gradient: to both, to the image also through its brightness.
    """
    height, width = image.shape[:2]
    x, y = (torch.linspace(-1 + 1 / size, 1 - 1 / size, size, device=image.device) for size in (width, height))
    red, green, blue = image.unbind(dim=2)
    # Numbers: a tensor would make a GPU's host wait.
    z = 2 * (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue) - 1
    at = torch.stack([x.expand(height, width), y[:, None].expand(height, width), z], dim=-1)
    cells = grid_sample(grid[None], at[None, None], mode="bilinear", padding_mode="border", align_corners=True)
    matrix = cells[0, :, 0].view(3, 4, height, width)
    colour = image.permute(2, 0, 1)  # [3, H, W]
    return ((matrix[:, :3] * colour).sum(dim=1) + matrix[:, 3]).permute(1, 2, 0)


def centred(grids: Tensor) -> Tensor:
    """Return the grids of all photos [V, 12, Z, Y, X] less what the mean of all cells differs from the identity by.

    What all photos have in common by place, such as darker corners, stays.
    """
    mean = grids.mean(dim=(0, 2, 3, 4)) - torch.eye(3, 4, device=grids.device).flatten()
    return grids - mean[:, None, None, None]


def total_variation(grid: Tensor) -> Tensor:
    """Return the mean squared difference of neighbouring cells, summed over the axes, a scalar.

    Source: Wang et al. 2024. An axis of one cell has no neighbours.
    """
    steps = [grid.diff(dim=axis).square().mean() for axis in (1, 2, 3) if grid.shape[axis] > 1]
    return torch.stack(steps).sum() if steps else grid.sum() * 0


EXPOSURE = ExposureKind(
    name="bilateral",
    what="a bilateral grid",
    identity=identity,
    apply=apply,
    matrix=lambda grid: grid.flatten(1).mean(dim=1).view(3, 4),
    centred=centred,
    rate=0.01,  # gsplat: 0.002, but of all photos in each step
    last_share=0.01,
    warm_up=1 / 30,  # both as in gsplat, whose run has 30,000 steps
    penalty=total_variation,
)
