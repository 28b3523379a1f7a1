"""What the rasterizer takes and gives: output tuples, the sparse blending weights, and the shared constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# The same numbers stand in csrc/constants.h for the kernels; tests/rasterizer compares the two.
ALPHA_MIN = 1.0 / 255.0  # a fainter contribution is below one step of an 8-bit image and is skipped [3DGS]
ALPHA_MAX = 0.99  # keeps 1 - alpha away from zero, which backward divides by [3DGS]
TRANSMITTANCE_MIN = 1e-4  # a Gaussian that would leave less transmittance, and all behind it, is dropped [3DGS]
LOW_PASS = 0.3  # px^2 added to the diagonal of the 2D covariance [3DGS]
FRUSTUM_MARGIN = 0.3  # the Jacobian is taken at most this many half-fields-of-view outside the image [3DGS: factor 1.3]
NEAR = 0.2  # world units; closer Gaussians are culled [3DGS]


class Inputs(NamedTuple):
    """Checked tensors of a call, in the order in which gradients are returned; shapes as in `api.rasterize`."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor | None
    features: Tensor | None
    viewmats: Tensor
    Ks: Tensor
    backgrounds: Tensor | None = None
    means2d: Tensor | None = None
    absolute2d: Tensor | None = None


class Options(NamedTuple):
    """Checked settings of a call; meanings as in `api.rasterize`."""

    width: int
    height: int
    near: float
    sh_degree: int | None = None
    features_move_geometry: bool = False
    antialiased: bool = False


class RasterMeta(NamedTuple):
    """By-products of a rasterization, all without gradient."""

    radii: Tensor  # ceil(3 sigma) in pixels of each Gaussian in each view, 0 = culled, int32 [C, N]
    means2d: Tensor | None  # centres in corner-origin pixels, 0 for culled ones, [C, N, 2]; None from a `TrainingStep`
    num_pairs: int  # (tile, Gaussian) pairs that were processed; the tile size is the implementation's own


class RasterOutput(NamedTuple):
    """Rendered maps, channels last."""

    image: Tensor  # colour over the background, [C, H, W, 3]
    features: Tensor  # features over zero, [C, H, W, D]; D = 0 if none were given
    alpha: Tensor  # accumulated opacity in [0, 1), [C, H, W]
    depth: Tensor  # sum of weight times camera z, not divided by alpha, [C, H, W]
    meta: RasterMeta


@dataclass(frozen=True)
class PixelWeights:
    """Blending weights of chosen pixels in compressed sparse rows, front to back inside a row."""

    offsets: Tensor  # row i owns entries offsets[i] to offsets[i + 1], int64 [P + 1]
    gaussian_ids: Tensor  # Gaussian of each entry, int32 [M]
    weights: Tensor  # alpha times transmittance of each entry, float [M]
    num_gaussians: int  # all ids are below it; known beforehand, so that the host need not wait for a GPU to find out

    @property
    def num_rows(self) -> int:
        """Number of pixels."""
        return self.offsets.numel() - 1

    @property
    def nbytes(self) -> int:
        """Memory held by the three tensors, in bytes."""
        return self.offsets.nbytes + self.gaussian_ids.nbytes + self.weights.nbytes

    def to(self, device: torch.device | str) -> PixelWeights:
        """Return the same weights on `device`."""
        parts = (t.to(device) for t in (self.offsets, self.gaussian_ids, self.weights))
        return PixelWeights(*parts, self.num_gaussians)

    def dense(self, rows: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return offsets, ids, weights and chosen rows, contiguous, as the kernels take them."""
        chosen = None if rows is None else rows.contiguous()
        return self.offsets.contiguous(), self.gaussian_ids.contiguous(), self.weights.contiguous(), chosen

    def row_ids(self) -> Tensor:
        """Return the row of every entry, int64 [M]."""
        counts = self.offsets[1:] - self.offsets[:-1]
        return torch.repeat_interleave(torch.arange(self.num_rows, device=counts.device), counts)

    @staticmethod
    def concatenate(parts: list[PixelWeights]) -> PixelWeights:
        """Return one object holding the rows of all parts, in order; a ValueError where there is no part."""
        if not parts:
            raise ValueError("PixelWeights.concatenate needs at least one part")
        base, offsets = 0, [parts[0].offsets[:1]]
        for part in parts:
            offsets.append(part.offsets[1:] + base)
            base += int(part.offsets[-1])
        ids, weights = torch.cat([p.gaussian_ids for p in parts]), torch.cat([p.weights for p in parts])
        return PixelWeights(torch.cat(offsets), ids, weights, max(p.num_gaussians for p in parts))
