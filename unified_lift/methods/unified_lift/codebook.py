"""First values of the codebook: random rows, or the modes of the features themselves, one for each object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
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
# Masks that cut objects part their pieces in many views, masks that merge part neighbours in some: one threshold cannot
# serve both. So it falls from the setting to 1.1 as the cohesion of objects merged at 1.1 falls from 0.83 to 0.73.
_CUT_SCORE, _CUT_COHESION, _CUT_SLOPE = 1.1, 0.83, 3.0
_EXCESS = 0.5  # of the share in masks of its own: what more in no mask makes an object background. [ours]
_MIN_COSINE_OF_SIDES = 0.8  # codes of different objects that are never seen together: 0.6 on average, seldom above
_FEW_CODES, _DRAWING_ROUNDS = 128, 100
_CHUNK = 1_024  # prototypes compared with all others at a time: M may be tens of thousands, and M x M numbers too many


class PlacedCodes(NamedTuple):
    """Unit features with the part of space that their pixels show."""

    codes: Tensor  # [L, D]
    centres: Tensor  # mean of the points, world units, [L, 3]
    spread: Tensor  # root of the mean squared distance of the points from it, [L]

    def places(self) -> Tensor:
        """Return the centre of each code and how far from it a pixel may show it, [L, 4]."""
        # Twice the spread holds every point of a box or a floor; the usual one forgives a depth that mixes at borders.
        reach = 2 * self.spread + (self.spread.median() if len(self.spread) else 0)
        return torch.cat([self.centres, reach[:, None]], dim=1)

    def touching(self) -> Callable[[Tensor], Tensor]:
        """Return what tells of codes at indices, [S], whether their places touch that of each code, bool [S, L]."""
        centres = self.centres - self.centres.mean(dim=0)  # squares of large coordinates round badly
        reach = 2 * self.spread + self.spread.median() / 2
        return lambda some: torch.cdist(centres[some], centres) <= reach[some, None] + reach

    def united(self, groups: Tensor, weights: Tensor) -> PlacedCodes:
        """Return the weighted mean code of each group and the place of all its pixels; both are of each code, [L]."""
        count = int(groups.max()) + 1
        share = weights[:, None] / segment_sum(weights[:, None], groups, count)[groups]
        codes, centres = (segment_sum(share * part, groups, count) for part in (self.codes, self.centres))
        squares = self.spread.square() + (self.centres - centres[groups]).square().sum(dim=1)
        spread = segment_sum(share * squares[:, None], groups, count)[:, 0].sqrt()
        return PlacedCodes(normalize(codes, dim=1), centres, spread)


class FoundObjects(NamedTuple):
    """Objects of the training views; one that lies in pieces, such as the background, has several codes."""

    pieces: PlacedCodes  # K of them
    owners: Tensor  # object of each piece, int64 [K]
    sizes: Tensor  # pixels of each piece, [K]

    def codebook(self) -> Tensor:
        """Return the code of the largest piece of each object, unit, [L, D]."""
        order = self.owners[by_size := self.sizes.argsort(descending=True, stable=True)].argsort(stable=True)
        counts = torch.bincount(self.owners)
        return self.pieces.codes[by_size[order[counts.cumsum(0) - counts]].to(self.pieces.codes.device)]


def codebook_from_views(views: TrainingViews, s: UnifiedLiftSettings, *, background_weight: float) -> FoundObjects:
    """Return the objects of the training views, with codes and places; there may be none. `s` are the settings.

    Modes of the mean features of consistent segments that lie at one place; modes of one object are merged, and those
    that grew from cut or merged masks are dropped. `background_weight` is that of `purity`.

    Source: ours (docs/experiments.md).
    """
    found = []
    for features, slot, count, points, _ in views():
        assert points is not None
        centre = segment_mean(points, slot, count)
        mean = segment_mean(normalize(features, dim=1, eps=_EPS), slot, count)
        # The last row is for pixels without label, at index -1.
        squares = (points - torch.cat([centre, points[:1]])[slot.long()]).square().sum(dim=1, keepdim=True)
        pixels, spread = segment_counts(slot, count), segment_mean(squares, slot, count)[:, 0].sqrt()
        kept = (mean.norm(dim=1) > s.codebook_min_consistency) & (pixels > s.codebook_min_pixels)
        found.append([part[kept] for part in (normalize(mean, dim=1), centre, spread, pixels.float().sqrt())])
    *prototypes, weights = (torch.cat(parts) for parts in zip(*found, strict=True))
    fewest = min(s.codebook_min_members, len(found))  # of one view, every segment is an object
    grouped = partial(codebook_from_prototypes, min_cosine=s.codebook_min_cosine, max_codes=s.num_codes or None)
    codes = grouped(PlacedCodes(*prototypes), weights, min_members=fewest)
    if not len(codes.codes):
        return FoundObjects(codes, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    overlaps = Overlaps.of_views(_pixels_of_codes(views(), codes, min_cosine=s.codebook_min_fit))
    merge = partial(merged_codes, codes.codes, overlaps, min_cooccurrence=s.codebook_min_together)
    touching = codes.touching()(torch.arange(len(codes.codes), device=weights.device)).cpu()
    merge = partial(merge, min_pixels=s.codebook_min_pixels, touching=touching)
    whole = cohesion(overlaps, merge(min_score=_CUT_SCORE))
    merged = merge(min_score=least_evidence(s.codebook_min_evidence, whole))
    objects = one_background(overlaps, merged)
    pure = purity(overlaps, objects, background_weight=background_weight)
    sizes = overlaps.sizes(len(codes.codes)).clamp(min=1)
    pieces = codes.united(merged.to(weights.device), sizes.to(weights.device))
    owners = torch.zeros(len(pieces.codes), dtype=torch.int64).index_put_((merged,), objects)
    total = torch.zeros(len(pieces.codes)).index_add_(0, merged, sizes)
    kept = (pure >= s.codebook_min_support * pure.median())[owners]
    owners = owners[kept].unique(return_inverse=True)[1]
    on_device = kept.to(weights.device)
    return FoundObjects(PlacedCodes(*(part[on_device] for part in pieces)), owners, total[kept])


def _pixels_of_codes(
    views: Iterable[ViewPixels], codes: PlacedCodes, *, min_cosine: float
) -> Iterator[tuple[Tensor, bool]]:
    """Yield for each view how many pixels of each segment are nearest to each code, and near it, [S, L].

    Beside it: whether the first segment is id 0, what no mask claims.
    """
    count, places = len(codes.codes), codes.places()
    for features, slot, num_segments, points, ids in views:
        cosine, code = nearest_code(features, codes.codes, points=points, places=places)
        pair = (torch.where(cosine >= min_cosine, slot, -1) + 1) * count + code  # row 0: no label, or near no code
        table = torch.bincount(pair, minlength=(num_segments + 1) * count).view(-1, count)[1:]
        yield table, ids is not None and len(ids) > 0 and int(ids[0]) == 0


def codebook_from_prototypes(
    prototypes: PlacedCodes, weights: Tensor, *, min_cosine: float, min_members: int, max_codes: int | None = None
) -> PlacedCodes:
    """Return codes at the density peaks of the prototypes of all (view, segment), largest first; L may be 0.

    Neighbours are as alike as `min_cosine`, and their places touch. Greedy: the prototype with most neighbours among
    those not taken yet; their average by weights [M] is a code; stop below `min_members`, or at `max_codes`.

    Source: ours (docs/experiments.md).
    """
    unit, centres, spread = prototypes
    check_shapes({"codes": (unit, "M D"), "centres": (centres, "M 3"), "weights": (weights, "M")})
    if not len(unit):
        return prototypes
    touching = prototypes.touching()

    def neighbours(some: Tensor) -> Tensor:
        """Return which prototypes are neighbours of those at indices `some`, bool [len(some), M]."""
        return touching(some) & (unit[some] @ unit.T >= min_cosine)

    every = torch.arange(len(unit), device=unit.device)
    members = torch.cat([neighbours(part).sum(dim=1) for part in every.split(_CHUNK)])
    owner, count = torch.full_like(every, -1), 0
    while max_codes is None or count < max_codes:
        counts = torch.where(owner < 0, members, -1)
        if int(counts.max()) < min_members:
            break
        peak = counts.argmax()
        taken = (owner < 0) & neighbours(peak[None])[0]
        taken[peak] = True  # whatever rounding says
        owner[taken] = count
        count += 1
        for part in every[taken].split(_CHUNK):
            members = members - neighbours(part).sum(dim=0)
    kept = PlacedCodes(*(part[owner >= 0] for part in prototypes))
    return kept.united(owner[owner >= 0], weights[owner >= 0]) if count else kept


def final_codes(codebook: Tensor) -> Tensor:
    """Return the unit codes that the features of the finished model are made of, [L, D] or [L, 2 D].

    Those that were learnt, up to `_FEW_CODES`. Of more, many lie between two others, and a border of these two shows a
    third: they are drawn anew in twice the dimensions, at random and a little apart.

    Source: ours (docs/experiments.md).
    """
    count, dim = codebook.shape
    if count <= _FEW_CODES:
        return normalize(codebook, dim=1, eps=_EPS)
    drawn = torch.randn(count, 2 * dim, generator=torch.Generator().manual_seed(0)).to(codebook.device)
    for _ in range(_DRAWING_ROUNDS):
        drawn = normalize(drawn, dim=1)
        crowd = torch.cat([torch.softmax(20 * (part @ drawn.T), dim=1) @ drawn for part in drawn.split(_CHUNK)])
        drawn = drawn - 0.1 * crowd
    return normalize(drawn, dim=1)


class Overlaps(NamedTuple):
    """Pixels that the segments of all views share with codes, as far as they share any; on the CPU."""

    segment: Tensor  # number of the view x most segments of a view + index of the segment in its view, int64 [E]
    code: Tensor  # index of the code, int64 [E]
    pixels: Tensor  # pixels of the segment to which this code is the nearest, float32 [E]
    shape: tuple[int, int]  # number of views and most segments of a view
    unclaimed: Tensor  # whether a segment is id 0, what no mask claims, bool [views x most segments]

    @classmethod
    def of_views(cls, tables: Iterable[tuple[Tensor, bool]]) -> Overlaps:
        """Return the entries of the tables of all views, at least one: pixels [S, L], and if the first row is id 0."""
        found = [(table.cpu().to_sparse().coalesce(), has_zero) for table, has_zero in tables]
        views = [table for table, _ in found]
        most = max(len(view) for view in views)
        segment = torch.cat([index * most + view.indices()[0] for index, view in enumerate(views)])
        code, pixels = (torch.cat(parts) for parts in zip(*((v.indices()[1], v.values()) for v in views), strict=True))
        unclaimed = torch.zeros(len(views), most, dtype=torch.bool)
        unclaimed[:, :1] = torch.tensor([has_zero for _, has_zero in found])[:, None]
        return cls(segment, code, pixels.float(), (len(views), most), unclaimed.flatten())

    def sizes(self, num_codes: int) -> Tensor:
        """Return the labelled pixels of each code over all views, float32 [L]."""
        return torch.zeros(num_codes).index_add_(0, self.code, self.pixels)


def merged_codes(
    codes: Tensor,
    overlaps: Overlaps,
    *,
    min_cooccurrence: float,
    min_score: float,
    min_pixels: int,
    min_views: int = 3,
    touching: Tensor | None = None,
) -> Tensor:
    """Return the object of each code, where several codes may have grown from one object.

    The dominant segment of a code in a view is the one that holds most of its pixels. The co-occurrence ratio of two
    codes is the share of the views in which it is the same, of those in which both have one. Masks that are often cut
    lower it, but the halves of an object stay alike, as objects merged as often do not: so the merge score is ratio +
    cosine. Greedy: the two with the highest ratio become one; until there are none. Two sides of a small object are
    seldom seen together: codes as alike as 0.8 that no view tells apart are one where their places touch.

    Source: ours; the ratio is the view consensus of MaskClustering (CVPR 2024), there between masks.
    Args:
        codes: Unit codes, [L, D].
        min_pixels: A code with no more pixels than this has no dominant segment.
        min_views: Views in which both must have one.
        touching: Whether the places of two codes touch, bool [L, L]; None = not known, and fewer views say nothing.
    Returns:
        Object of each code, int64 [L], numbered in the order of their largest codes.
    """
    count, codes = len(codes), codes.detach().cpu().clone()
    owner, sizes = torch.arange(count), overlaps.sizes(count)
    touching = torch.zeros(count, count, dtype=torch.bool) if touching is None else touching.clone()
    if not len(overlaps.code):
        return owner
    dominant = torch.stack([_dominant_segments(overlaps, owner == code, min_pixels) for code in range(count)], dim=1)

    def scores_of(code: int) -> Tensor:
        """Return the co-occurrence ratio of `code` with each other code, a little less in few views, [L]; -1 = two."""
        mine = dominant[:, code : code + 1]
        both = ((dominant >= 0) & (mine >= 0)).sum(dim=0)
        same, cosine = ((dominant == mine) & (mine >= 0)).sum(dim=0), codes @ codes[code]
        ratio = same / both.clamp(min=1)
        is_one = (both >= min_views) & (ratio >= min_cooccurrence) & (ratio + cosine >= min_score)
        # Of equal ratios, the one seen in more views is surer.
        score = torch.where(is_one, ratio * (1 - 1 / (1 + both)), -1.0)
        sides = (both < min_views) & (same == both) & touching[code] & (cosine >= _MIN_COSINE_OF_SIDES)
        score = torch.where(sides & (owner == torch.arange(count)), 1e-3 * cosine, score)  # after all others
        score[code] = -1.0
        return score

    scores = torch.stack([scores_of(code) for code in range(count)])
    while scores.max() >= 0:
        a, b = divmod(int(scores.argmax()), count)
        a, b = (b, a) if sizes[a] < sizes[b] else (a, b)
        codes[a] = normalize(codes[a] * sizes[a] + codes[b] * sizes[b], dim=0)
        sizes[a] += sizes[b]
        owner[owner == b] = a
        touching[a] = touching[:, a] = touching[a] | touching[b]
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


def _held(overlaps: Overlaps, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return segment, object and pixels of each pair of a segment and an object that share pixels, sorted."""
    count = int(objects.max()) + 1
    pair, entry = (overlaps.segment * count + objects[overlaps.code]).unique(return_inverse=True)
    return pair // count, pair % count, torch.zeros(len(pair)).index_add_(0, entry, overlaps.pixels)


def _holders(segment: Tensor, owner: Tensor, held: Tensor) -> Tensor:
    """Return the object that holds most pixels of the segment of each pair; of several with as many, the first."""
    segment = segment.unique(return_inverse=True)[1]
    most = torch.zeros(int(segment.max()) + 1).scatter_reduce_(0, segment, held, "amax")
    is_top = held == most[segment]
    holder = torch.full_like(most, int(owner.max()) + 1, dtype=torch.int64)
    return holder.scatter_reduce_(0, segment[is_top], owner[is_top], "amin")[segment]


def one_background(overlaps: Overlaps, objects: Tensor) -> Tensor:
    """Return the object of each code, int64 [L], of which all that are background are one; `objects` is that before.

    Where id 0 is a segment, it is what no mask claims. Where detectors miss much, every object lies there now and then;
    background does so more: the share of its pixels exceeds that of the usual object by half of the share that lies in
    masks of its own, of which it holds most, and by twice what chance does in as many views. So walls that are now and
    then taken for a thing are no objects.

    Source: ours (docs/experiments.md).
    """
    if not overlaps.unclaimed.any() or not len(overlaps.code):
        return objects
    segment, owner, held = _held(overlaps, objects)
    free = overlaps.unclaimed[segment]
    size, unclaimed, own = (
        torch.zeros(int(objects.max()) + 1).index_add_(0, owner[some], held[some])
        for some in (torch.ones_like(free), free, ~free & (_holders(segment, owner, held) == owner))
    )
    background, share = unclaimed.argmax(), unclaimed / size.clamp(min=1)
    others = torch.arange(len(size)) != background
    usual = share[others].median() if others.any() else share.new_zeros(())
    views = torch.bincount((segment // overlaps.shape[1] * len(size) + owner).unique() % len(size), minlength=len(size))
    chance = (usual * (1 - usual) / views.clamp(min=1)).sqrt()
    is_background = share - usual > _EXCESS * own / size.clamp(min=1) + 2 * chance
    united = torch.where(is_background[objects], background, objects)
    return united.unique(return_inverse=True)[1]


def cohesion(overlaps: Overlaps, objects: Tensor, *, min_pixels: int = 30, min_views: int = 3) -> float:
    """Return the chance that two pixels of the usual object share a segment: 1 where masks never cut; ours.

    Mean over the views that show more than `min_pixels` of an object, median over the objects seen in `min_views` of
    them but the background, the largest; 1 where there is none. `objects` is that of each code, int64 [L].
    """
    if not len(overlaps.code):
        return 1.0
    segment, owner, held = _held(overlaps, objects)
    count, views = int(objects.max()) + 1, overlaps.shape[0]
    shown = segment // overlaps.shape[1] * count + owner  # (view, object)
    total, squares = torch.zeros(2, views * count).index_add_(1, shown, torch.stack([held, held.square()]))
    counts = (total > min_pixels).view(views, count)
    chance = (squares / total.clamp(min=1).square()).view(views, count)
    mean = (chance * counts).sum(dim=0) / counts.sum(dim=0).clamp(min=1)
    usual = counts.sum(dim=0) >= min_views
    usual[torch.zeros(count).index_add_(0, owner, held).argmax()] = False
    return float(mean[usual].median()) if usual.any() else 1.0


def least_evidence(wanted: float, whole: float) -> float:
    """Return the merge score to ask for: `wanted`, lowered to no less than 1.1 where the cohesion is low; ours."""
    return max(wanted - _CUT_SLOPE * max(0.0, _CUT_COHESION - whole), min(wanted, _CUT_SCORE))


def purity(overlaps: Overlaps, objects: Tensor, *, background_weight: float = 1.0) -> Tensor:
    """Return the share of the pixels of each object that lie in segments of which it holds most, [K].

    `objects` is that of each code, int64 [L]. Pixels in segments of the largest object count `background_weight`, below
    1 where missed objects lie in the background, and say nothing of where an object ends.

    Source: ours.
    """
    count = int(objects.max()) + 1 if len(objects) else 0
    if not len(overlaps.code):
        return torch.zeros(count)
    segment, owner, held = _held(overlaps, objects)
    holder = _holders(segment, owner, held)
    background = torch.bincount(owner, held).argmax()
    weight = torch.where(holder == background, background_weight, 1.0)
    own = torch.zeros(count).index_add_(0, owner, torch.where(holder == owner, held, 0.0))
    other = torch.zeros(count).index_add_(0, owner, torch.where(holder == owner, 0.0, held * weight))
    return own / (own + other).clamp(min=1e-9)
