"""Which codes share the segments of the views: what says that several codes are one object, or the background."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

# Masks that cut objects part their pieces in many views, masks that merge part neighbours in some: one threshold cannot
# serve both. So it falls from the setting to 1.1 as the cohesion of objects merged at 1.1 falls from 0.83 to 0.73.
CUT_SCORE, _CUT_COHESION, _CUT_SLOPE = 1.1, 0.83, 3.0
_EXCESS = 0.5  # of the share in masks of its own: what more in no mask makes an object background. [ours]
_MIN_COSINE_OF_SIDES = 0.8  # codes of different objects that are never seen together: 0.6 on average, seldom above


class SharedPixels(NamedTuple):
    """How many pixels each of the E pairs of a segment of a view and a code shares, in the order of these."""

    segment: Tensor  # int64 [E]
    code: Tensor  # int64 [E]
    pixels: Tensor  # of the segment to which the code is the nearest, above 0, [E]
    num_segments: int
    has_zero: bool  # whether the first segment is id 0, what no mask claims


class Overlaps(NamedTuple):
    """Pixels that the segments of all views share with codes, as far as they share any; on the CPU."""

    segment: Tensor  # number of the view x most segments of a view + index of the segment in its view, int64 [E]
    code: Tensor  # index of the code, int64 [E]
    pixels: Tensor  # pixels of the segment to which this code is the nearest, float32 [E]
    shape: tuple[int, int]  # number of views and most segments of a view
    unclaimed: Tensor  # whether a segment is id 0, what no mask claims, bool [views x most segments]

    @classmethod
    def of_views(cls, found: Iterable[SharedPixels]) -> Overlaps:
        """Return the entries of all views, at least one."""
        views = list(found)
        most = max(view.num_segments for view in views)
        segment = torch.cat([index * most + view.segment for index, view in enumerate(views)]).cpu()
        code, pixels = (torch.cat(parts).cpu() for parts in zip(*((v.code, v.pixels) for v in views), strict=True))
        unclaimed = torch.zeros(len(views), most, dtype=torch.bool)
        unclaimed[:, :1] = torch.tensor([view.has_zero for view in views])[:, None]
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
    touching: Sequence[Iterable[int]] | None = None,
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
        touching: Codes whose places touch that of each code; None = not known, and fewer views say nothing.
    Returns:
        Object of each code, int64 [L], numbered in the order of their largest codes.
    """
    codes, sizes = codes.detach().cpu().clone(), overlaps.sizes(len(codes))
    members = [[code] for code in range(len(codes))]
    touches = [set(some) for some in touching or [()] * len(codes)]
    of_code = overlaps.code.numpy()
    ends = np.bincount(of_code, minlength=len(codes)).cumsum()
    entries = np.split(of_code.argsort(kind="stable"), ends[:-1])  # those of the overlaps of each code
    table = _Homes(len(members), overlaps.shape[0])
    version, queue = [0] * len(members), list[tuple[float, int, int, int, int]]()

    def settle(code: int) -> None:
        """Find the dominant segments of a code anew."""
        table.put(code, *_dominant_segments(overlaps, entries[code], min_pixels))

    def rank(code: int, others_from: int) -> None:
        """Queue the pairs of a code with those from a number on that may be one with it, by falling score."""
        shared = table.shared(code)
        others = np.union1d(shared[0].nonzero()[0], np.fromiter(touches[code], np.int64))
        others = others[(others >= others_from) & (others != code)]
        others = others[[bool(members[one]) for one in others]] if len(others) else others
        if not len(others):
            return
        num_both, num_same = (torch.from_numpy(counts[others]) for counts in shared)
        cosine = codes[torch.from_numpy(others)] @ codes[code]
        together = torch.tensor([one in touches[code] for one in others.tolist()])
        ratio = num_same / num_both.clamp(min=1)
        is_one = (num_both >= min_views) & (ratio >= min_cooccurrence) & (ratio + cosine >= min_score)
        # Of equal ratios, the one seen in more views is surer.
        score = torch.where(is_one, ratio * (1 - 1 / (1 + num_both)), -1.0)
        sides = (num_both < min_views) & (num_same == num_both) & together & (cosine >= _MIN_COSINE_OF_SIDES)
        score = torch.where(sides, 1e-3 * cosine, score)  # after all others
        likely = (score >= 0).nonzero()[:, 0]
        for other, value in zip(others[likely.numpy()].tolist(), score[likely].tolist(), strict=True):
            first, second = min(code, other), max(code, other)
            heapq.heappush(queue, (-value, first, second, version[first], version[second]))

    for code in range(len(members)):
        settle(code)
    for code in range(len(members)):
        rank(code, code)
    while queue:
        _, a, b, of_a, of_b = heapq.heappop(queue)
        if (version[a], version[b]) != (of_a, of_b):
            continue
        a, b = (b, a) if sizes[a] < sizes[b] else (a, b)
        codes[a] = normalize(codes[a] * sizes[a] + codes[b] * sizes[b], dim=0)
        sizes[a] += sizes[b]
        members[a], members[b] = members[a] + members[b], []
        entries[a], entries[b] = np.concatenate([entries[a], entries[b]]), entries[b][:0]
        touches[a] |= touches[b]
        for other in tuple(touches[b]):  # among them b itself, where it took in one that it touches
            touches[other].add(a)
        version[a], version[b] = version[a] + 1, version[b] + 1
        settle(b)
        settle(a)
        rank(a, 0)
    owner = torch.zeros(len(codes), dtype=torch.int64)
    for code, its in enumerate(members):
        owner[its] = code
    return owner.unique(return_inverse=True)[1]


class _Homes:
    """The dominant segment of each code in each view, for the codes and views that have one."""

    def __init__(self, num_codes: int, num_views: int) -> None:
        self._codes = [np.empty(0, np.int64) for _ in range(num_views)]  # that had one in the view
        self._segments = [np.empty(0, np.int64) for _ in range(num_views)]  # of each of these; -1 = none any more
        self._views = [np.empty(0, np.int64) for _ in range(num_codes)]
        self._own = [np.empty(0, np.int64) for _ in range(num_codes)]
        self._slots = [dict[int, int]() for _ in range(num_codes)]  # view -> place of the code in it

    def put(self, code: int, views: np.ndarray, segments: np.ndarray) -> None:
        """Let a code have these segments in these views, and none in others."""
        slots = self._slots[code]
        for view in self._views[code].tolist():
            self._segments[view][slots[view]] = -1
        for view, segment in zip(views.tolist(), segments.tolist(), strict=True):
            if view in slots:
                self._segments[view][slots[view]] = segment
            else:
                slots[view] = len(self._codes[view])
                self._codes[view] = np.append(self._codes[view], code)
                self._segments[view] = np.append(self._segments[view], segment)
        self._views[code], self._own[code] = views, segments

    def shared(self, code: int) -> tuple[np.ndarray, np.ndarray]:
        """Return of each code in how many views both have a dominant segment, and in how many the same, int64 [L]."""
        views, count = self._views[code].tolist(), len(self._slots)
        if not views:
            return np.zeros(count, np.int64), np.zeros(count, np.int64)
        codes, segments = (np.concatenate([table[view] for view in views]) for table in (self._codes, self._segments))
        own = np.repeat(self._own[code], [len(self._codes[view]) for view in views])
        both = np.bincount(codes[segments >= 0], minlength=count)
        return both, np.bincount(codes[segments == own], minlength=count)


def _dominant_segments(overlaps: Overlaps, entries: np.ndarray, min_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the views in which a segment holds at least half of the pixels of some entries, and these segments."""
    segment, index = np.unique(overlaps.segment.numpy()[entries], return_inverse=True)
    held = np.bincount(index, overlaps.pixels.numpy()[entries], minlength=len(segment))
    view, begin = np.unique(segment // max(overlaps.shape[1], 1), return_index=True)
    if not len(view):
        return view, view
    most, total = np.maximum.reduceat(held, begin), np.add.reduceat(held, begin)
    of_view = np.repeat(np.arange(len(view)), np.diff(np.append(begin, len(segment))))
    is_most = np.flatnonzero(held == most[of_view])
    first = is_most[np.unique(of_view[is_most], return_index=True)[1]]
    kept = (total > min_pixels) & (2 * most >= total)
    return view[kept], segment[first][kept]


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
    count = int(objects.max()) + 1
    shown, entry = (segment // overlaps.shape[1] * count + owner).unique(return_inverse=True)  # (view, object)
    total, squares = torch.zeros(2, len(shown)).index_add_(1, entry, torch.stack([held, held.square()]))
    shown, counts = shown % count, (total > min_pixels).float()
    chance = counts * squares / total.clamp(min=1).square()
    num_views, chances = torch.zeros(2, count).index_add_(1, shown, torch.stack([counts, chance]))
    mean, usual = chances / num_views.clamp(min=1), num_views >= min_views
    usual[torch.zeros(count).index_add_(0, owner, held).argmax()] = False
    return float(mean[usual].median()) if usual.any() else 1.0


def least_evidence(wanted: float, whole: float) -> float:
    """Return the merge score to ask for: `wanted`, lowered to no less than 1.1 where the cohesion is low; ours."""
    return max(wanted - _CUT_SLOPE * max(0.0, _CUT_COHESION - whole), min(wanted, CUT_SCORE))


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
