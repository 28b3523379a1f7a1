"""First values of the codebook: random rows, or the modes of the features themselves, one for each object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unified_lift.kernels.association import nearest_code
from unified_lift.methods.base import TrainingViews, ViewPixels
from unified_lift.methods.unified_lift.overlaps import (
    CUT_SCORE,
    Overlaps,
    SharedPixels,
    cohesion,
    least_evidence,
    merged_codes,
    one_background,
    purity,
)
from unified_lift.methods.unified_lift.settings import UnifiedLiftSettings
from unified_lift.ops.blocks import Blocks
from unified_lift.ops.segments import segment_counts, segment_mean, segment_sum
from unified_lift.shapes import check_shapes

_EPS = 1e-6
_FEW_CODES, _DRAWING_ROUNDS = 128, 100
_CHUNK = 1_024  # prototypes of a block: M may be hundreds of thousands, and M x M numbers too many


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

    def neighbours(self, *, min_cosine: float) -> Neighbours:
        """Return what tells which of them have touching places and are as alike as that."""
        reach = 2 * self.spread + self.spread.median() / 2
        size = _CHUNK if len(reach) <= _CHUNK else _CHUNK // 4  # small ones lie closer together
        return Neighbours(self, reach, Blocks.of(self.centres, reach, size=size), min_cosine)

    def touching(self) -> list[set[int]]:
        """Return the codes whose places touch that of each code."""
        found: list[set[int]] = [set() for _ in self.codes]
        if not found:
            return found
        every = self.neighbours(min_cosine=-torch.inf)
        for index, rows in enumerate(every.blocks.rows):
            columns, are = every.of(index, rows)
            place, other = are.nonzero(as_tuple=True)
            for one, its in zip(rows[place].tolist(), columns[other].tolist(), strict=True):
                found[one].add(its)
        return found

    def united(self, groups: Tensor, weights: Tensor) -> PlacedCodes:
        """Return the weighted mean code of each group and the place of all its pixels; both are of each code, [L]."""
        count = int(groups.max()) + 1
        share = weights[:, None] / segment_sum(weights[:, None], groups, count)[groups]
        codes, centres = (segment_sum(share * part, groups, count) for part in (self.codes, self.centres))
        squares = self.spread.square() + (self.centres - centres[groups]).square().sum(dim=1)
        spread = segment_sum(share * squares[:, None], groups, count)[:, 0].sqrt()
        return PlacedCodes(normalize(codes, dim=1), centres, spread)


class Neighbours(NamedTuple):
    """Which of M codes lie together and are alike: looked up where both can be, never for all M x M at once."""

    of_what: PlacedCodes
    reach: Tensor  # of each, [M]
    blocks: Blocks
    min_cosine: float

    def of(self, block: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes that may be neighbours of a block's, [K], and whether each is one of `rows`, bool [R, K]."""
        unit, centres, _ = self.of_what
        near = self.blocks.touching(self.blocks.low[block], self.blocks.high[block], self.blocks.reach[block])
        columns = self.blocks.points_in(near)
        middle = centres[columns].mean(dim=0)  # squares of large coordinates round badly
        away = torch.cdist(centres[rows] - middle, centres[columns] - middle)
        alike = unit[rows] @ unit[columns].T >= self.min_cosine
        return columns, (away <= self.reach[rows, None] + self.reach[columns]) & alike


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
    overlaps = Overlaps.of_views(pixels_of_codes(views(), codes, min_cosine=s.codebook_min_fit))
    merge = partial(merged_codes, codes.codes, overlaps, min_cooccurrence=s.codebook_min_together)
    merge = partial(merge, min_pixels=s.codebook_min_pixels, touching=codes.touching())
    whole = cohesion(overlaps, merge(min_score=CUT_SCORE))
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


def pixels_of_codes(views: Iterable[ViewPixels], codes: PlacedCodes, *, min_cosine: float) -> Iterator[SharedPixels]:
    """Yield for each view how many pixels of each segment are nearest to each code, and near it."""
    count, places = len(codes.codes), codes.places()
    for features, slot, num_segments, points, ids in views:
        cosine, code = nearest_code(features, codes.codes, points=points, places=places)
        pair = (slot.long() * count + code)[(cosine >= min_cosine) & (slot >= 0)]
        pair, pixels = pair.unique(return_counts=True)
        has_zero = ids is not None and len(ids) > 0 and int(ids[0]) == 0
        # A copy, since what `unique` returns may lie in memory for all pixels: 13 MB a view of 1.7 million.
        yield SharedPixels(pair // count, pair % count, pixels.clone(), num_segments, has_zero)


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
    neighbours = prototypes.neighbours(min_cosine=min_cosine)
    members, block_of = torch.zeros(2, len(unit), dtype=torch.int64, device=unit.device)
    for index, rows in enumerate(neighbours.blocks.rows):
        members[rows], block_of[rows] = neighbours.of(index, rows)[1].sum(dim=1), index
    owner, count = torch.full_like(members, -1), 0
    while max_codes is None or count < max_codes:
        counts = torch.where(owner < 0, members, -1)
        if int(counts.max()) < min_members:
            break
        peak = counts.argmax()
        columns, are = neighbours.of(int(block_of[peak]), peak[None])
        taken = columns[(owner[columns] < 0) & (are[0] | (columns == peak))]  # itself whatever rounding says
        owner[taken] = count
        count += 1
        for block in block_of[taken].unique().tolist():
            columns, are = neighbours.of(block, taken[block_of[taken] == block])
            members[columns] -= are.sum(dim=0)
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
