"""Gaussian Grouping: a classifier trained by ids that a video tracker has made consistent over the views (ECCV 2024).

In Unified-Lift's tables: LERF-Mask mIoU 72.8, Replica mIoU 23.6.

It believes the ids of the masks: where they mean something else in every view it learns nothing sensible.
Differs from its released code: geometry is finished and frozen, where theirs is trained together with the identities
and moved by them; a step draws pixels of its view instead of taking all of them.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from unified_lift.methods.base import LiftData, MethodEntry
from unified_lift.methods.classifier import KnownClasses, KnownClassesSettings
from unified_lift.settings.limits import Range


@dataclass(frozen=True, kw_only=True)
class GaussianGroupingSettings(KnownClassesSettings):
    """Defaults are those of the released code."""

    zero_id: Literal["auto", "segment", "ignore"] = "segment"
    """What segment id 0 is: a class like any other [released]; `auto` = what the dataset says."""
    num_codes: Annotated[int, Range(1, 10**6)] = 256
    """Fewest classes of the head [released]. [ours] more where the masks have more ids; released: ids end at 255."""


class GaussianGrouping(KnownClasses):
    """A segment's class is its id in the mask file, in every view."""

    settings: GaussianGroupingSettings

    def segment_classes(self, data: LiftData) -> tuple[list[torch.Tensor], int]:
        """Return the rank of each id among those of all views.

        Differs: the released code takes the id itself, and so needs rows of its random head for ids that no mask has.
        """
        of_view = [view.segment_ids for view in data.views()]
        known = torch.cat(of_view).unique() if of_view else torch.zeros(0, dtype=torch.int64)
        return [torch.searchsorted(known, ids) for ids in of_view], max(self.settings.num_codes, len(known))


METHOD = MethodEntry("gaussian_grouping", GaussianGroupingSettings, GaussianGrouping)
