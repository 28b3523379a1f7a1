"""OmniSeg3D-GS with HDBSCAN: contrastive features on the unit sphere, whose clusters are the objects (CVPR 2024).

Paper (Unified-Lift, with the best cluster size of an oracle): LERF-Mask mIoU 74.7.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from unified_lift.kernels.contrastive import contrastive_loss
from unified_lift.methods.base import MethodEntry, StepInfo, ViewPixels
from unified_lift.methods.clustered import ClusteredMethod, ClusteredSettings
from unified_lift.settings.limits import Range


@dataclass(frozen=True, kw_only=True)
class OmniSeg3DSettings(ClusteredSettings):
    """Defaults are those of the released OmniSeg3D-GS."""

    min_pixels: Annotated[int, Range(0)] = 20
    """Segments with no more drawn pixels than this stay out of the loss [OmniSeg3D-GS, of 32,768 pixels]."""
    weight_contrastive: Annotated[float, Range(0)] = 1e-3
    """Weight of the contrastive loss, a sum over pixels / number of segments [OmniSeg3D-GS]."""
    weight_norm: Annotated[float, Range(0)] = 100.0
    """Weight of mean (|f| - 1)^2 over the Gaussians [OmniSeg3D-GS]."""


class OmniSeg3D(ClusteredMethod):
    """The flat branch of the loss inside each view, and a norm of 1 for every Gaussian.

    Differs: masks here are flat, one segment for each pixel, on which the hierarchical branch for the overlapping
    proposals of SAM is the flat one. The released code contains no clustering: see `ClusteredMethod`.
    """

    settings: OmniSeg3DSettings

    def losses(self, pixels: ViewPixels, info: StepInfo) -> dict[str, Tensor]:
        least = self.settings.min_pixels
        contrastive = contrastive_loss(
            *pixels[:3],
            temperature=None,
            min_pixels=least,
            detach_norm=True,
            unit_centres=False,
            mean_over_pixels=False,
        )
        return {"contrastive": contrastive, "norm": (info.gaussian_features.norm(dim=1) - 1).square().mean()}

    def graph_key(self, progress: float, num_pixels: int) -> int:
        return 0  # nothing is drawn and nothing changes


METHOD = MethodEntry("omniseg3d_gs", OmniSeg3DSettings, OmniSeg3D)
