"""What the rasterizer takes and gives: output tuples, the sparse blending weights, and the shared constants."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# The same numbers stand in csrc/constants.h for the kernels; tests/rasterizer compares the two.
ALPHA_MIN = 1.0 / 255.0  # a fainter contribution is below one step of an 8-bit image and is skipped [3DGS]
ALPHA_MAX = 0.99  # keeps 1 - alpha away from zero, which backward divides by [3DGS]
TRANSMITTANCE_MIN = 1e-4  # a Gaussian that would leave less light than this, and all behind it, is dropped [3DGS]
LOW_PASS = 0.3  # px^2 added to the diagonal of the 2D covariance [3DGS]
FRUSTUM_MARGIN = 0.3  # the Jacobian is taken at most this many half-fields-of-view outside the image [3DGS: factor 1.3]
NEAR = 0.2  # world units; closer Gaussians are culled [3DGS]


class AdamState(NamedTuple):
    """What Adam knows of one parameter.

    Attributes:
        exp_avg, exp_avg_sq: First and second moment, contiguous, of the parameter's shape.
        lr: Learning rate.
        step: Number of this step, 1 for the first, as bias correction counts.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    lr: float
    step: int


class RasterMeta(NamedTuple):
    """By-products of a rasterization, all without gradient.

    Attributes:
        radii: ceil(3 sigma) in pixels of each Gaussian in each view, 0 = culled, int32 [C, N].
        means2d: Projected centres in corner-origin pixels, 0 for culled ones, [C, N, 2]; None from a `TrainingStep`.
        num_pairs: (tile, Gaussian) pairs that were processed; the tile size is the implementation's own.
    """

    radii: Tensor
    means2d: Tensor | None
    num_pairs: int


class RasterOutput(NamedTuple):
    """Rendered maps, channels last.

    Attributes:
        image: Colour over the background, [C, H, W, 3].
        features: Features over zero, [C, H, W, D]; D = 0 if none were given.
        alpha: Accumulated opacity in [0, 1), [C, H, W].
        depth: Sum of weight times camera z, not divided by alpha, [C, H, W].
        meta: By-products without gradient.
    """

    image: Tensor
    features: Tensor
    alpha: Tensor
    depth: Tensor
    meta: RasterMeta


class Sample(NamedTuple):
    """Pixels that were drawn from stored weights. Its tensors are overwritten by every draw and never replaced, so that
    a CUDA graph can be captured around it.

    Attributes:
        rows: Row of the weights of each pixel, int64 [P].
        slot: Segment of each pixel, int32 [P].
        source: Addresses of the parts of the weights, and their number of rows, int64 [4].
    """

    rows: Tensor
    slot: Tensor
    source: Tensor

    @staticmethod
    def empty(count: int, device: torch.device) -> Sample:
        """Return room for `count` pixels."""
        return Sample(
            torch.empty(count, dtype=torch.int64, device=device),
            torch.empty(count, dtype=torch.int32, device=device),
            torch.empty(4, dtype=torch.int64, device=device),
        )


class Association(NamedTuple):
    """How the pixels and segments of one view fit the codes of a codebook (Eq. 2 with Eq. 3 or 5), without gradient.

    Attributes:
        scores: How well each segment fits each code, [S, L].
        log_normaliser: Natural logarithm of what the exponentials of a pixel are divided by, [P].
        best: Code with the largest share of each pixel, integer [P].
    """

    scores: Tensor
    log_normaliser: Tensor
    best: Tensor


class PixelWeights(NamedTuple):
    """Blending weights of chosen pixels in compressed sparse rows, front to back inside a row.

    Attributes:
        offsets: Row i owns entries offsets[i] to offsets[i + 1], int64 [P + 1].
        gaussian_ids: Gaussian of each entry, int32 [M].
        weights: alpha times transmittance of each entry, float [M].
    """

    offsets: Tensor
    gaussian_ids: Tensor
    weights: Tensor

    @property
    def num_rows(self) -> int:
        """Number of pixels."""
        return self.offsets.numel() - 1

    @property
    def nbytes(self) -> int:
        """Memory held by the three tensors, in bytes."""
        return sum(t.numel() * t.element_size() for t in self)

    def note_ids_below(self, bound: int) -> None:
        """Remember that all Gaussian ids are below `bound`, so that nobody has to wait for a GPU to find out."""
        self.gaussian_ids.dgr_below = (self._version_of_ids(), bound)

    def ids_below(self) -> int:
        """Return a number above all Gaussian ids: what was noted or, without or after a change, what is true."""
        version, bound = getattr(self.gaussian_ids, "dgr_below", (-1, 0))
        if version != self._version_of_ids():
            bound = int(self.gaussian_ids.max()) + 1 if self.gaussian_ids.numel() else 0
            self.note_ids_below(bound)
        return bound

    def _version_of_ids(self) -> int:
        return 0 if self.gaussian_ids.is_inference() else self.gaussian_ids._version

    def row_ids(self) -> Tensor:
        """Return the row of every entry, int64 [M]."""
        counts = self.offsets[1:] - self.offsets[:-1]
        return torch.repeat_interleave(torch.arange(self.num_rows, device=counts.device), counts)

    @staticmethod
    def concatenate(parts: list[PixelWeights]) -> PixelWeights:
        """Return one object holding the rows of all parts, in order.

        Raises:
            ValueError: The list is empty.
        """
        if not parts:
            raise ValueError("PixelWeights.concatenate needs at least one part")
        base, offsets = 0, [parts[0].offsets[:1]]
        for part in parts:
            offsets.append(part.offsets[1:] + base)
            base += int(part.offsets[-1])
        return PixelWeights(
            torch.cat(offsets), torch.cat([p.gaussian_ids for p in parts]), torch.cat([p.weights for p in parts])
        )
