"""First values of the codebook: random rows, or the modes of the features themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unified_lift.shapes import check_shapes

_CHUNK = 1_024  # prototypes compared with all others at a time: M may be tens of thousands, and M x M numbers too many


def random_codebook(num_codes: int, feature_dim: int, *, generator: torch.Generator) -> Tensor:
    """Return rows uniform in [-1/sqrt(D), 1/sqrt(D)], [L, D]: the start of a bias-free 1x1 convolution [released]."""
    bound = feature_dim**-0.5
    return (torch.rand(num_codes, feature_dim, generator=generator) * 2 - 1) * bound


def codebook_from_prototypes(
    prototypes: Tensor, weights: Tensor, *, min_cosine: float, min_members: int, max_codes: int | None = None
) -> Tensor:
    """Return unit codes at the density peaks of the prototypes, so that L follows from the data.

    Greedy: the prototype with most neighbours above `min_cosine` among those not taken yet; its neighbours are
    averaged into a code and taken; stop below `min_members`.

    Source: ours (docs/experiments.md).
    Args:
        prototypes: Unit mean feature of each (view, segment), [M, D].
        weights: Weight of each in the average, [M].
        min_cosine: Neighbourhood radius.
        min_members: A code needs that many prototypes, usually from as many views.
        max_codes: Upper bound on L.
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
        view: Number of the view, int64 [E].
        segment: Dense index in its view, int64 [E].
        code: Index of the code, int64 [E].
        pixels: Pixels of the segment to which this code is the nearest, float32 [E].
    """

    view: Tensor
    segment: Tensor
    code: Tensor
    pixels: Tensor

    @classmethod
    def of_views(cls, tables: Iterable[Tensor]) -> Overlaps:
        """Return the entries of the tables of all views, pixels [S, L] each."""
        parts = []
        for view, table in enumerate(tables):
            segment, code = table.nonzero(as_tuple=True)
            pixels = table[segment, code].float()
            parts.append((torch.full_like(segment, view).cpu(), segment.cpu(), code.cpu(), pixels.cpu()))
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))


def joined_codes(
    codes: Tensor, overlaps: Overlaps, *, min_together: float, min_evidence: float, min_pixels: int, min_views: int = 3
) -> Tensor:
    """Return the object of each code, where several codes may have grown from one object.

    In each view a code is at home in the segment that holds most of its pixels. Two codes of one object share their
    home wherever the object's mask is whole; two objects share one only where a mask is merged or both are missed.
    Where masks are often cut, the share of such views alone does not tell. But the halves of an object are alike even
    then, since Eq. 1 drew them together as often as apart, and objects merged as often are not: their pixels were
    drawn to themselves in every view. So share and cosine are added. Greedy: the two that are together most, over all
    views in which both have a home, become one; until there are none.

    Source: ours; the share of views is the view consensus of MaskClustering (CVPR 2024), there between masks.
    Args:
        codes: Unit codes, [L, D].
        overlaps: Of the segments of all views with the codes.
        min_together: Least share of the views in which both have a home where it must be the same.
        min_evidence: What that share and the cosine of the codes must add up to.
        min_pixels: A code with no more pixels than this has no home.
        min_views: Views in which both must have one.
    Returns:
        Object of each code, int64 [L], numbered in the order in which their largest codes stand.
    """
    check_shapes({"codes": (codes, "L D"), "code": (overlaps.code, "E"), "pixels": (overlaps.pixels, "E")})
    count, codes = len(codes), codes.detach().cpu().clone()
    owner = torch.arange(count)
    sizes = torch.zeros(count).index_add_(0, overlaps.code, overlaps.pixels)
    homes = _Homes(overlaps, min_pixels)
    where = torch.stack([homes.of(owner == code) for code in range(count)], dim=1) if count else torch.zeros(0, 0)

    def scores_of(code: int) -> Tensor:
        """Return how surely `code` is one with each other code, [L]; -1 = it is not."""
        mine = where[:, code : code + 1]
        both = ((where >= 0) & (mine >= 0)).sum(dim=0)
        together = ((where == mine) & (mine >= 0)).sum(dim=0)
        share = together / both.clamp(min=1)
        is_one = (both >= min_views) & (share >= min_together) & (share + codes @ codes[code] >= min_evidence)
        is_one[code] = False
        # Of equal shares, the one seen in more views is surer.
        return torch.where(is_one, share * (1 - 1 / (1 + both)), -1.0)

    scores = torch.stack([scores_of(code) for code in range(count)]) if count else torch.zeros(0, 0)
    while count > 1:
        a, b = divmod(int(scores.argmax()), count)
        if scores[a, b] < 0:
            break
        a, b = (b, a) if sizes[a] < sizes[b] else (a, b)
        codes[a] = normalize(codes[a] * sizes[a] + codes[b] * sizes[b], dim=0)
        sizes[a] += sizes[b]
        owner[owner == b] = a
        where[:, a], where[:, b] = homes.of(owner == a), -1
        scores[a] = scores[:, a] = scores_of(a)
        scores[b] = scores[:, b] = -1.0
    return owner.unique(return_inverse=True)[1]


class _Homes:
    """Finds the segment of each view that holds most of an object's pixels."""

    def __init__(self, overlaps: Overlaps, min_pixels: int) -> None:
        self._code, self._pixels, self._min_pixels = overlaps.code, overlaps.pixels, min_pixels
        self._views = int(overlaps.view.max()) + 1 if len(overlaps.view) else 0
        self._width = int(overlaps.segment.max()) + 1 if len(overlaps.segment) else 0
        self._place = overlaps.view * self._width + overlaps.segment

    def of(self, members: Tensor) -> Tensor:
        """Return the segment of each view in which the codes `members`, bool [L], are at home, -1 = none, [C]."""
        mine = members[self._code]
        held = torch.zeros(self._views * self._width).index_add_(0, self._place[mine], self._pixels[mine])
        held = held.view(self._views, self._width)
        most, segment = held.max(dim=1)
        total = held.sum(dim=1)
        return torch.where((total > self._min_pixels) & (2 * most >= total), segment, -1)


def support(overlaps: Overlaps, objects: Tensor, *, background_weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return how far the masks support each object, and its pixels, [K] each.

    Pixels in segments of which the object holds most speak for it, those in others against it; the result is the share
    of those that speak for it.

    Source: ours.
    Args:
        overlaps: Of the segments of all views with the codes.
        objects: Object of each code, int64 [L].
        background_weight: What pixels in segments of the largest object count. Below 1 where masks leave out what they
            miss: the pixels of a missed object then lie in the background and say nothing of where it ends.
    """
    count = int(objects.max()) + 1 if len(objects) else 0
    own, other, pixels = torch.zeros(count), torch.zeros(count), torch.zeros(count)
    if not count:
        return own, pixels
    segment = overlaps.view * (int(overlaps.segment.max()) + 1) + overlaps.segment
    place, entry = (segment * count + objects[overlaps.code]).unique(return_inverse=True)  # (segment, object), sorted
    held = torch.zeros(len(place)).index_add_(0, entry, overlaps.pixels)
    segment, owner = (place // count).unique(return_inverse=True)[1], place % count
    pixels.index_add_(0, owner, held)
    most = torch.zeros(int(segment.max()) + 1).scatter_reduce_(0, segment, held, "amax")
    is_top = held == most[segment]
    holder = torch.full_like(most, count, dtype=torch.int64)
    holder.scatter_reduce_(0, segment[is_top], owner[is_top], "amin")  # of several with as many, the first
    holder = holder[segment]
    weight = torch.where(holder == pixels.argmax(), background_weight, 1.0)
    own.index_add_(0, owner, torch.where(holder == owner, held, 0.0))
    other.index_add_(0, owner, torch.where(holder == owner, 0.0, held * weight))
    return own / (own + other).clamp(min=1e-9), pixels
