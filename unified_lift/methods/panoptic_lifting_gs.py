"""Panoptic Lifting on Gaussians: a classifier trained end to end by pseudo-labels of its own (CVPR 2023).

In Unified-Lift's tables: Messy Rooms mean PQ_scene 58.6, LERF-Mask mIoU 70.7, Replica mIoU 25.3.

In each view the segments are matched one to one with the classes that their pixels like best on average (Eq. 3 of
Unified-Lift), and the pixels are trained for the matched class. The code of that baseline of the tables is not public.
Differs from Panoptic Lifting: features of D numbers and a linear head as in Gaussian Grouping instead of an MLP per
point; no confidence of masks; background, see `zero_id`. It starts at once, not after 30 % of the schedule, as there
is no geometry left to wait for.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from unified_lift.kernels.assignment import association_scores, hungarian, pseudo_labels
from unified_lift.kernels.identity import identity_loss
from unified_lift.methods.base import LiftData, MethodEntry, StepInfo, ViewPixels
from unified_lift.methods.classifier import ClassifierSettings, IdentityClassifier
from unified_lift.settings.limits import Range


@dataclass(frozen=True, kw_only=True)
class PanopticLiftingSettings(ClassifierSettings):
    """As Unified-Lift's authors most likely set it. `zero_id`: Panoptic Lifting ignores id 0 everywhere.

    Its background comes from a semantic field, which is absent here: with 0 ignored nothing would teach the background
    an id. So by default 0 is one more segment where the dataset says that it is background (as Messy Rooms).
    """

    num_codes: Annotated[int, Range(1, 10**6)] = 500
    """L, classes of the head [Contrastive Lift's setting of Panoptic Lifting for Messy Rooms, which has up to 500
    objects]. Segments of a view beyond that many train nothing."""


class PanopticLifting(IdentityClassifier):
    """Ids need not agree between views: only which pixels of a view belong together matters."""

    settings: PanopticLiftingSettings

    def prepare(self, data: LiftData) -> None:
        self.start_head(self.settings.num_codes)

    def losses(self, pixels: ViewPixels, info: StepInfo) -> dict[str, Tensor]:
        """Return the cross-entropy with the matched classes; it rests where every pixel already agrees.

        Gradient: to features and head; none through the matching.
        """
        features, slot, num_segments, *_ = pixels
        logits = self.logits(features)
        scores = association_scores(torch.softmax(logits.detach(), dim=1), slot, num_segments, area_aware=False)
        labels = pseudo_labels(hungarian(scores), slot)
        return {"identity": identity_loss(logits, labels, rest_when_right=True)}

    def graph_key(self, progress: float, num_pixels: int) -> Hashable:
        return "matched"


METHOD = MethodEntry("panoptic_lifting_gs", PanopticLiftingSettings, PanopticLifting)
