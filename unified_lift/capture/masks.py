"""From the proposals of a mask generator to one map of segment ids: the interface, the filter, and who wins a pixel."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch

from unified_lift.settings.limits import Range

Granularity = Literal["whole", "part", "subpart"]
GRANULARITIES: tuple[Granularity, ...] = ("whole", "part", "subpart")
"""From coarse to fine."""
SAM_INDEX: dict[Granularity, int] = {"whole": 2, "part": 1, "subpart": 0}  # of the three masks SAM gives per point
SHARE = Range(0, 1)
Rule = Literal["score_on_top", "large_eats_small", "small_on_top"]

_PIXELS_AT_ONCE = 1 << 16  # bounds the memory of the overlap counts


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposal:
    """A mask that a generator proposes, bool [H, W]."""

    mask: np.ndarray
    score: float
    """The model's own guess of the mask's IoU with a true object, in [0, 1]."""
    stability: float = 1.0
    """How little the mask changes with the cut of its logits, in [0, 1]."""
    granularity: Granularity = "whole"


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """What a generator can be told. Each has a subclass of its own; fields must be ready for JSON or paths."""


@dataclass(frozen=True, kw_only=True)
class SamLikeSettings(GeneratorSettings):
    """Settings of generators that ask a network at a grid of points; the defaults are those of SAM's own generator."""

    points_per_side: Annotated[int, Range(1)] = 32
    """Points along each side of the photo [SAM]; Gaussian Grouping and Gaga: 64."""
    points_per_batch: Annotated[int, Range(1)] = 64
    """Points at a time; fewer need less memory [SAM]."""
    pred_iou_thresh: Annotated[float, SHARE] = 0.88
    """Least predicted IoU [SAM]; Gaussian Grouping, Gaga and LangSplat: 0.7."""
    stability_score_thresh: Annotated[float, SHARE] = 0.95
    """Least stability [SAM]; LangSplat: 0.85."""


class MaskGenerator(Protocol):
    """A generator with its weights loaded."""

    facts: dict[str, Any]
    """What it is made of, ready for JSON: versions of packages and the weights' identity; stored beside the masks."""

    def propose(self, image: np.ndarray, granularities: Collection[Granularity]) -> list[Proposal]:
        """Return the proposals of these granularities for a photo, uint8 RGB [H, W, 3]."""


@dataclass(frozen=True, kw_only=True)
class GeneratorEntry:
    """What a file of `mask_generators` offers."""

    name: str
    """What `--provider` calls it."""
    settings: type[GeneratorSettings]
    load: Callable[[Any, torch.device], MaskGenerator]
    """Makes the generator: (settings, device)."""
    on_cores: bool = False
    """It runs on CPU cores and holds no weights, so every core gets a process, which loads it for each photo."""
    caution: str = ""
    """What users must know of such masks; told after making them and after training on them."""
    trials: Mapping[str, Callable[[], MaskGenerator]] = field(default_factory=dict)
    """Module of a package it needs -> makes the generator with a small random network of that package, on the CPU."""


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """How the proposals of one granularity become a map of ids."""

    rule: Rule = "score_on_top"
    """Who wins a pixel that several masks claim: the best score [Gaga], the largest mask [Gaussian Grouping], or the
    smallest."""
    max_mask_iou: Annotated[float, SHARE] = 0.8
    """A mask goes if its IoU with a better one exceeds this; better = larger stability x predicted IoU [LangSplat]."""
    min_score: Annotated[float, SHARE] = 0.7
    """A mask goes if its stability x predicted IoU is not above this [LangSplat]."""
    contained_share: Annotated[float, SHARE] = 0.85
    """A mask goes if this share of it lies inside another mask ... [LangSplat]"""
    covered_share: Annotated[float, SHARE] = 0.5
    """... of which it covers less than this share [LangSplat]."""
    min_area: Annotated[int, Range(0)] = 100
    """Pixels: what shows less of itself becomes 0, unlabelled [ours]."""


def keep_best(proposals: Sequence[Proposal], settings: FilterSettings) -> list[Proposal]:
    """Return the proposals that survive mask NMS, in their order [LangSplat].

    Every proposal is judged against all others, also those that go themselves: with a chain A > B > C of overlaps, B
    removes C although A removes B. Of two with equal score the earlier is the better.
    """
    if not proposals:
        return []
    quality = np.array([proposal.stability * proposal.score for proposal in proposals])
    overlap = np.zeros((len(proposals), len(proposals)))  # shared pixels
    flat = [proposal.mask.reshape(-1) for proposal in proposals]
    for start in range(0, flat[0].size, _PIXELS_AT_ONCE):
        block = np.stack([mask[start : start + _PIXELS_AT_ONCE] for mask in flat]).astype(np.float32)
        overlap += block @ block.T  # exact: counts stay below 2^24
    area = np.diag(overlap)
    iou = overlap / np.maximum(area[:, None] + area[None, :] - overlap, 1)
    rank = np.argsort(np.argsort(-quality, kind="stable"))
    better = rank[None, :] < rank[:, None]  # [i, j]: j is better than i
    inside = overlap / np.maximum(area[:, None], 1)  # [i, j]: the share of i that lies in j
    swallowed = (inside >= settings.contained_share) & (inside.T < settings.covered_share)
    gone = swallowed | (better & (iou > settings.max_mask_iou))
    kept = ~(gone.any(axis=1) | (quality <= settings.min_score) | (area == 0))
    return [proposals[index] for index in np.flatnonzero(kept).tolist()]


def paint(proposals: Sequence[Proposal], size: tuple[int, int], *, rule: Rule, min_area: int) -> np.ndarray:
    """Return the ids 1..K of the proposals that remain visible and 0 where there is none, int32 of `size` [H, W].

    Pixels won by a proposal that a rule then discards become 0; they do not fall to the mask below. Ids count the
    proposals in their order, under `small_on_top` from the largest to the smallest.

    Args:
        rule: `score_on_top`: the best predicted IoU wins, and what shows 10 % of itself or less is discarded [Gaga].
            `large_eats_small`: the largest area wins, and what won less than 80 % of itself is discarded [DEVA, as
            Gaussian Grouping calls it; it decides on masks shrunk to 480 pixels]. `small_on_top`: the smallest wins.
        min_area: Pixels; what shows fewer is discarded.
    """
    area = np.array([proposal.mask.sum() for proposal in proposals], dtype=np.int64)
    score = np.array([proposal.score for proposal in proposals])
    height = {"score_on_top": score, "large_eats_small": area, "small_on_top": -area}[rule]
    order = np.argsort(height, kind="stable")  # painted first to last: what comes later lies on top
    painted = np.zeros(size, dtype=np.int32)
    for index in order.tolist():
        painted[proposals[index].mask] = index + 1
    visible = np.bincount(painted.ravel(), minlength=len(proposals) + 1)[1:]
    kept = (visible > 0) & (visible >= min_area)
    if rule == "score_on_top":
        kept &= visible > 0.10 * area  # [Gaga]
    elif rule == "large_eats_small":
        kept &= visible >= 0.80 * area  # [Gaussian Grouping]
    listed = order if rule == "small_on_top" else np.arange(len(proposals))
    survivors = listed[kept[listed]]
    numbers = np.zeros(len(proposals) + 1, dtype=np.int32)
    numbers[survivors + 1] = np.arange(len(survivors)) + 1
    return numbers[painted]
