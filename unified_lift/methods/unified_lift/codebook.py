"""First values of the codebook: random rows, or the modes of the features themselves, one for each object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unified_lift.kernels.association import nearest_code
from unified_lift.methods.base import TrainingViews, ViewPixels
from unified_lift.methods.unified_lift.settings import UnifiedLiftSettings
from unified_lift.ops.segments import segment_counts, segment_mean, segment_sum
from unified_lift.shapes import check_shapes

_EPS = 1e-6
_CHUNK = 1_024  # prototypes compared with all others at a time: M may be tens of thousands, and M x M numbers too many


def codebook_from_views(views: TrainingViews, settings: UnifiedLiftSettings, *, background_weight: float) -> Tensor:
    """Return one unit code for each object of the training views, [L, D]; L may be 0.

    Modes of the mean features of consistent segments; modes of one object are merged, and those that grew from cut or
    merged masks are dropped. `background_weight` is that of `purity`.

    Source: ours (docs/experiments.md).
    """
    s, prototypes, weights = settings, [], []
    for features, slot, num_segments in views():
        mean = segment_mean(normalize(features, dim=1, eps=_EPS), slot, num_segments)
        counts = segment_counts(slot, num_segments)
        consistent = (mean.norm(dim=1) > s.codebook_min_consistency) & (counts > s.codebook_min_pixels)
        prototypes.append(normalize(mean[consistent], dim=1))
        weights.append(counts[consistent].float().sqrt())
    codes = codebook_from_prototypes(
        torch.cat(prototypes),
        torch.cat(weights),
        min_cosine=s.codebook_min_cosine,
        min_members=s.codebook_min_members,
        max_codes=s.num_codes or None,
    )
    if not len(codes):
        return codes
    overlaps = Overlaps.of_views(_pixels_of_codes(views(), codes))
    merged = merged_codes(
        codes,
        overlaps,
        min_cooccurrence=s.codebook_min_together,
        min_score=s.codebook_min_evidence,
        min_pixels=s.codebook_min_pixels,
    )
    kept = purity(overlaps, merged, background_weight=background_weight) >= s.codebook_min_support
    sizes = overlaps.sizes(len(codes)).clamp(min=1).to(codes.device)
    mean = segment_sum(codes * sizes[:, None], merged.to(codes.device), len(kept))
    return normalize(mean[kept.to(codes.device)], dim=1)


def _pixels_of_codes(views: Iterable[ViewPixels], codes: Tensor) -> Iterator[Tensor]:
    """Yield for each view how many pixels of each segment are nearest to each code, [S, L]."""
    for features, slot, num_segments in views:
        pair = (slot + 1) * len(codes) + nearest_code(features, codes)  # row 0: pixels without label
        yield torch.bincount(pair, minlength=(num_segments + 1) * len(codes)).view(-1, len(codes))[1:]


def codebook_from_prototypes(
    prototypes: Tensor, weights: Tensor, *, min_cosine: float, min_members: int, max_codes: int | None = None
) -> Tensor:
    """Return unit codes at the density peaks of the prototypes, so that L follows from the data.

    Greedy: the prototype with most neighbours above `min_cosine` among those not taken yet; its neighbours are
    averaged into a code and taken; stop below `min_members`, or at `max_codes`.

    Source: ours (docs/experiments.md).
    Args:
        prototypes, weights: Unit mean feature of each (view, segment), [M, D], and its weight in the average, [M].
    Returns:
        Codes, largest first, [L, D]; L may be 0.
    """
    check_shapes({"prototypes": (prototypes, "M D"), "weights": (weights, "M")})
    members = torch.cat([(part @ prototypes.T >= min_cosine).sum(dim=1) for part in prototypes.split(_CHUNK)])
    free = torch.ones(len(prototypes), dtype=torch.bool, device=prototypes.device)
    codes: list[Tensor] = []
    while max_codes is None or len(codes) < max_codes:
        counts = torch.where(free, members, -1)
        if not len(counts) or int(counts.max()) < min_members:
            break
        peak = counts.argmax()
        taken = free & (prototypes @ prototypes[peak] >= min_cosine)
        taken[peak] = True  # whatever rounding says
        chosen = prototypes[taken]
        codes.append(normalize((chosen * weights[taken, None]).sum(dim=0), dim=0))
        free &= ~taken
        for part in chosen.split(_CHUNK):
            members = members - (part @ prototypes.T >= min_cosine).sum(dim=0)
    return torch.stack(codes) if codes else prototypes.new_zeros(0, prototypes.shape[1])


class Overlaps(NamedTuple):
    """Pixels that the segments of all views share with codes, as far as they share any; on the CPU.

    Attributes:
        segment: Number of the view x most segments of a view + index of the segment in its view, int64 [E].
        code: Index of the code, int64 [E].
        pixels: Pixels of the segment to which this code is the nearest, float32 [E].
        shape: Number of views and most segments of a view.
    """

    segment: Tensor
    code: Tensor
    pixels: Tensor
    shape: tuple[int, int]

    @classmethod
    def of_views(cls, tables: Iterable[Tensor]) -> Overlaps:
        """Return the entries of the tables of all views, pixels [S, L] each; at least one."""
        views = [table.cpu().to_sparse().coalesce() for table in tables]
        most = max(len(view) for view in views)
        segment = torch.cat([index * most + view.indices()[0] for index, view in enumerate(views)])
        code, pixels = (torch.cat(parts) for parts in zip(*((v.indices()[1], v.values()) for v in views), strict=True))
        return cls(segment, code, pixels.float(), (len(views), most))

    def sizes(self, num_codes: int) -> Tensor:
        """Return the labelled pixels of each code over all views, float32 [L]."""
        return torch.zeros(num_codes).index_add_(0, self.code, self.pixels)


def merged_codes(
    codes: Tensor, overlaps: Overlaps, *, min_cooccurrence: float, min_score: float, min_pixels: int, min_views: int = 3
) -> Tensor:
    """Return the object of each code, where several codes may have grown from one object.

    The dominant segment of a code in a view is the one that holds most of its pixels. The co-occurrence ratio of two
    codes is the share of the views in which it is the same, of those in which both have one. Masks that are often cut
    lower it, but the halves of an object stay alike, as objects merged as often do not: so the merge score is ratio +
    cosine. Greedy: the two with the highest ratio become one; until there are none.

    Source: ours; the ratio is the view consensus of MaskClustering (CVPR 2024), there between masks.
    Args:
        codes: Unit codes, [L, D].
        min_cooccurrence, min_score: Least co-occurrence ratio and merge score.
        min_pixels: A code with no more pixels than this has no dominant segment.
        min_views: Views in which both must have one.
    Returns:
        Object of each code, int64 [L], numbered in the order of their largest codes.
    """
    count, codes = len(codes), codes.detach().cpu().clone()
    owner, sizes = torch.arange(count), overlaps.sizes(count)
    if not len(overlaps.code):
        return owner
    dominant = torch.stack([_dominant_segments(overlaps, owner == code, min_pixels) for code in range(count)], dim=1)

    def scores_of(code: int) -> Tensor:
        """Return the co-occurrence ratio of `code` with each other code, a little less in few views, [L]; -1 = two."""
        mine = dominant[:, code : code + 1]
        both = ((dominant >= 0) & (mine >= 0)).sum(dim=0)
        ratio = ((dominant == mine) & (mine >= 0)).sum(dim=0) / both.clamp(min=1)
        is_one = (both >= min_views) & (ratio >= min_cooccurrence) & (ratio + codes @ codes[code] >= min_score)
        is_one[code] = False
        # Of equal ratios, the one seen in more views is surer.
        return torch.where(is_one, ratio * (1 - 1 / (1 + both)), -1.0)

    scores = torch.stack([scores_of(code) for code in range(count)])
    while scores.max() >= 0:
        a, b = divmod(int(scores.argmax()), count)
        a, b = (b, a) if sizes[a] < sizes[b] else (a, b)
        codes[a] = normalize(codes[a] * sizes[a] + codes[b] * sizes[b], dim=0)
        sizes[a] += sizes[b]
        owner[owner == b] = a
        dominant[:, a], dominant[:, b] = _dominant_segments(overlaps, owner == a, min_pixels), -1
        scores[a] = scores[:, a] = scores_of(a)
        scores[b] = scores[:, b] = -1.0
    return owner.unique(return_inverse=True)[1]


def _dominant_segments(overlaps: Overlaps, members: Tensor, min_pixels: int) -> Tensor:
    """Return the segment of each view that holds most pixels of the codes `members`, bool [L]; -1 = none, [C]."""
    mine, held = members[overlaps.code], torch.zeros(overlaps.shape)
    held.view(-1).index_add_(0, overlaps.segment[mine], overlaps.pixels[mine])
    (most, segment), total = held.max(dim=1), held.sum(dim=1)
    return torch.where((total > min_pixels) & (2 * most >= total), segment, -1)


def purity(overlaps: Overlaps, objects: Tensor, *, background_weight: float = 1.0) -> Tensor:
    """Return the share of the pixels of each object that lie in segments of which it holds most, [K].

    `objects` is that of each code, int64 [L]. Pixels in segments of the largest object count `background_weight`, below
    1 where missed objects lie in the background, and say nothing of where an object ends.

    Source: ours.
    """
    count = int(objects.max()) + 1 if len(objects) else 0
    if not len(overlaps.code):
        return torch.zeros(count)
    # Entries (segment, object), sorted.
    place, entry = (overlaps.segment * count + objects[overlaps.code]).unique(return_inverse=True)
    held = torch.zeros(len(place)).index_add_(0, entry, overlaps.pixels)
    segment, owner = (place // count).unique(return_inverse=True)[1], place % count
    most = torch.zeros(int(segment.max()) + 1).scatter_reduce_(0, segment, held, "amax")
    is_top = held == most[segment]
    holder = torch.full_like(most, count, dtype=torch.int64)
    holder.scatter_reduce_(0, segment[is_top], owner[is_top], "amin")  # of several with as many, the first
    holder = holder[segment]
    background = torch.bincount(owner, held).argmax()
    weight = torch.where(holder == background, background_weight, 1.0)
    own = torch.zeros(count).index_add_(0, owner, torch.where(holder == owner, held, 0.0))
    other = torch.zeros(count).index_add_(0, owner, torch.where(holder == owner, 0.0, held * weight))
    return own / (own + other).clamp(min=1e-9)
