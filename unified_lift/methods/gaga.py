"""Gaga: a memory bank of Gaussians says which masks of different views are one object; then Gaussian Grouping's lift.

Known of the original: far more groups than objects; its users report 389 and more than 1,000. Ours are counted in
manifest.json.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from unified_lift.errors import UserError
from unified_lift.methods.base import LiftData, MethodEntry
from unified_lift.methods.classifier import KnownClasses, KnownClassesSettings, SegmentClasses
from unified_lift.ops.memory_bank import front_sets, memory_bank


@dataclass(frozen=True, kw_only=True)
class GagaSettings(KnownClassesSettings):
    """The memory bank, and what every method with known classes has."""

    bank_grid: int = 32
    """Cells per image side, in each of which the nearest Gaussians of a mask are taken [Gaga]."""
    bank_share: float = 0.2
    """Share of a mask's Gaussians in a cell that counts as its front [Gaga]."""
    bank_min_score: float = 0.1
    """Overlap from which a mask joins a group rather than opening one [Gaga]."""

    def check(self) -> None:
        """Raise a UserError naming the flag whose value makes no sense."""
        super().check()
        self.require_at_least(1, "bank_grid")
        # A score of 0.5 is a front set that lies wholly in one group; above it nothing would ever join.
        for name, value, most in (("bank_share", self.bank_share, 1), ("bank_min_score", self.bank_min_score, 0.5)):
            if not 0 < value <= most:
                raise UserError(f"--{name} must lie in (0, {most}], received {value}")


class Gaga(KnownClasses):
    """Masks that see the same Gaussians are one class; a classifier learns it on frozen geometry.

    Views are taken in the order of their names, numbers in them as numbers. Where id 0 is a segment (Messy Rooms'
    masks: the background), it is a mask as any other. Its front set is large and gathers what overlaps it: objects that
    the detector missed in some views may join it there. Views that share little of it split it into several groups.

    Source: Gaga (Lyu et al.), memory bank and lift.
    Differs: Classes are the groups; theirs are one more, class 0 of pixels without mask, which here train nothing.
        Group numbers are not stored in 8 bits, in which theirs wrap above 255. A mask without any Gaussian opens no
        group. Numbers in names count as such, where theirs sort as text; for padded names it is the same.
    """

    settings: GagaSettings

    def segment_classes(self, data: LiftData) -> SegmentClasses:
        """Return the group of every mask, and note how many groups there are of how many masks."""
        s = self.settings
        means = data.means.double().cpu().numpy()
        names, fronts = [], []
        for view in data.views():
            slots = view.slots.cpu().numpy()
            front = front_sets(means, view.camera, slots, len(view.segment_ids), grid=s.bank_grid, share=s.bank_share)
            names.append(view.name)
            fronts.append(front)
        order = sorted(range(len(names)), key=lambda index: _natural(names[index]))
        groups = memory_bank((fronts[index] for index in order), len(means), min_score=s.bank_min_score)
        of_view = [torch.empty(0)] * len(names)
        for index, of_masks in zip(order, groups.of_masks, strict=True):
            of_view[index] = torch.from_numpy(of_masks)
        self.summary = {
            "num_groups": groups.num_groups,
            "num_masks": sum(front.num_masks for front in fronts),
            "num_masks_without_gaussians": sum(int((group < 0).sum()) for group in groups.of_masks),
        }
        return SegmentClasses(of_view, groups.num_groups)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts names as a person would: numbers in them by value."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


METHOD = MethodEntry("gaga", GagaSettings, Gaga)
