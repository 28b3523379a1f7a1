"""OmniSeg3D-GS with HDBSCAN: contrastive features on the unit sphere, whose clusters are the objects (CVPR 2024).

Paper (Unified-Lift, with the best cluster size in hindsight): LERF-Mask mIoU 74.7.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unified_lift.kernels.contrastive import contrastive_loss
from unified_lift.methods.base import MethodEntry
from unified_lift.methods.clustered import ClusteredMethod, ClusteredSettings
from unified_lift.types import ZeroId


@dataclass(frozen=True, kw_only=True)
class OmniSeg3DSettings(ClusteredSettings):
    """Defaults are those of the released OmniSeg3D-GS."""

    feature_lr: float = 0.01
    """Rate of the features, constant [OmniSeg3D-GS]."""
    min_pixels: int = 20
    """Segments with no more drawn pixels than this stay out of the loss [OmniSeg3D-GS, of 32,768 pixels]."""
    weight_contrastive: float = 1e-3
    """Weight of the contrastive loss, a sum over pixels / number of segments [OmniSeg3D-GS]."""
    weight_norm: float = 100.0
    """Weight of mean (|f| - 1)^2 over the Gaussians [OmniSeg3D-GS]."""


class OmniSeg3D(ClusteredMethod):
    """The flat branch of the loss inside each view, and a norm of 1 for every Gaussian.

    Differs: masks here are flat, one segment for each pixel. The hierarchical branch, which orders the overlapping
    proposals of SAM by inclusion, needs several; on flat masks it is the flat one. The released code contains no
    clustering: see `ClusteredMethod`.
    """

    settings: OmniSeg3DSettings

    def __init__(self, settings: OmniSeg3DSettings, *, zero_id: ZeroId, seed: int) -> None:
        """Create the method for a dataset in which id 0 means `zero_id`."""
        super().__init__(settings, zero_id=zero_id, seed=seed)
        self.weights = {"contrastive": settings.weight_contrastive, "norm": settings.weight_norm}

    def losses(
        self, features: Tensor, slot: Tensor, num_segments: int, progress: float, *, view: int
    ) -> dict[str, Tensor]:
        """Return the contrastive term of one view; which view it is does not matter."""
        term = contrastive_loss(
            features,
            slot,
            num_segments,
            temperature=None,
            min_pixels=self.settings.min_pixels,
            detach_norm=True,
            unit_centres=False,
            mean_over_pixels=False,
        )
        return {"contrastive": term}

    def gaussian_terms(self, features: Tensor, means: Tensor, step: int) -> dict[str, Tensor]:
        """Return how far the features of the Gaussians are from length 1."""
        return {"norm": (features.norm(dim=1) - 1).square().mean()}

    def phase(self, progress: float, num_pixels: int) -> int:
        """Return the same at every step: nothing is drawn and nothing changes."""
        return 0

    def rates(self, progress: float) -> dict[str, float]:
        """Return the rate of the features."""
        return {"features": self.settings.feature_lr}


METHOD = MethodEntry("omniseg3d_gs", OmniSeg3DSettings, OmniSeg3D)
