"""Masks without a network: regions of like colour between strong borders. It knows nothing of objects.

The photo is smoothed, cut into some thousands of small patches by a watershed, and neighbouring patches are merged,
the pair with the weakest border first. A border is weak where the mean colours on both sides are close and the
gradient along it is small, and the more so the smaller its smaller side is, so that specks go early and large
regions merge only over faint borders. The three granularities are three stages of one sequence of merges, hence nested.
Lightness counts less than chroma, as shading changes it within an object. Last, the tiles of a pattern (a checkered
carpet) become one region of the coarsest granularity: two colours, of several regions each, that mostly border on each
other.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage

from unified_lift.capture.frames import shrunk
from unified_lift.capture.masks import GRANULARITIES, GeneratorEntry, GeneratorSettings, Granularity, Proposal
from unified_lift.settings.limits import Range

_MAX_PIXELS = 1_000_000  # larger photos are segmented at this size: a second on a core
_PATCHES = 2_500  # of the first cut; more gains no detail that survives the merging
_MIN_SPACING = 4  # pixels between seeds of patches
_SMOOTHING = (9, 30.0, 7.0)  # bilateral filter: diameter, grey levels, pixels
_GRADIENT_WEIGHT = 2.0  # a step blurred over two pixels counts as the difference of its sides
_LIGHTNESS_WEIGHT = 0.25  # of the difference in lightness between two regions, next to 1 of a and b
_SIZE_POWER = 1 / 3  # of the smaller side's share of the photo
_SPREAD, _LEAST_SPREAD = 20.0, 5.0  # of a photo's colours (CIELAB, lightness weighted): usual; below is but noise
_MIN_TILE = 0.002  # share of the photo: smaller regions are no tiles of a pattern
_TILES = 3  # of each of its two colours, at least
_TILE_COLOR = 5.0  # difference (CIELAB, lightness weighted as above) up to which tiles have one colour
_ALTERNATION = 0.35  # share of the borders of either colour that it has with the other, at least
_PARTS = {"whole": 1.0, "part": 0.5, "subpart": 0.25}  # of the scale


@dataclass(frozen=True, kw_only=True)
class RegionSettings(GeneratorSettings):
    """Settings of `regions`."""

    scale: Annotated[float, Range(1e-6)] = 2.0
    """Larger merges more. Border contrast (units of CIELAB) x cube root of the smaller side's share of the photo at
    which merging stops for whole objects, in a photo whose colours spread by 20 units; it goes with the square root of
    the spread, so that pale photos are not merged into one. Half of it for parts, a quarter for subparts [ours]."""
    min_share: Annotated[float, Range(0, 0.499)] = 0.001
    """Share of the photo; smaller regions are merged with their most similar neighbour [ours]."""


class RegionGenerator:
    """Cuts a photo into regions: every pixel belongs to exactly one. Nothing is drawn at random."""

    def __init__(self, settings: RegionSettings, device: torch.device) -> None:
        self.settings = settings  # it runs on CPU cores, whatever the device
        self.facts = {"opencv": cv2.__version__, "numpy": np.__version__}

    def propose(self, image: np.ndarray, granularities: Collection[Granularity]) -> list[Proposal]:
        """Return the regions as proposals with score 1: the method does not rate them."""
        maps = regions(image, self.settings)
        return [
            Proposal(mask=maps[granularity] == region, score=1.0, granularity=granularity)
            for granularity in granularities
            for region in range(int(maps[granularity].max()) + 1)
        ]


def regions(image: np.ndarray, settings: RegionSettings) -> dict[Granularity, np.ndarray]:
    """Return the region of every pixel at every granularity, numbered from 0, int32 [H, W] each."""
    height, width = image.shape[:2]
    image = shrunk(image, max(height, width) * (_MAX_PIXELS / (height * width)) ** 0.5)
    smooth = cv2.bilateralFilter(image, *_SMOOTHING)
    lab = cv2.cvtColor(smooth.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    blurred = cv2.GaussianBlur(lab, (0, 0), 1.0)
    slopes = [cv2.Scharr(blurred, cv2.CV_32F, *axis) / 32 for axis in ((1, 0), (0, 1))]  # 32: sum of Scharr's weights
    gradient = np.sqrt(sum(np.square(slope).sum(axis=2) for slope in slopes))  # change of colour per pixel
    patches = _patches(cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB), gradient)
    color = lab * np.array([_LIGHTNESS_WEIGHT, 1, 1], dtype=np.float32)
    spread = float(np.sqrt(color.var(axis=(0, 1), dtype=np.float64).sum()))
    limit = settings.scale * (max(spread, _LEAST_SPREAD) / _SPREAD) ** 0.5
    graph = _Graph(patches, color, gradient, min_share=settings.min_share)
    maps = {}
    for granularity in reversed(GRANULARITIES):  # the finest comes first
        owner = graph.merge(limit * _PARTS[granularity])
        if granularity == "whole":
            owner = graph.with_patterns(owner)
        numbered = np.unique(owner, return_inverse=True)[1].astype(np.int32)
        maps[granularity] = cv2.resize(numbered[patches], (width, height), interpolation=cv2.INTER_NEAREST)
    return maps


def _patches(lab: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Return the patch of every pixel, int32 [H, W]; the seed of each is the flattest pixel of a cell of a grid."""
    height, width = gradient.shape
    spacing = max(_MIN_SPACING, round((height * width / _PATCHES) ** 0.5))
    seeds = np.zeros((height, width), dtype=np.int32)
    flatness = cv2.GaussianBlur(gradient, (0, 0), 2.0)
    corners = itertools.product(range(0, height, spacing), range(0, width, spacing))
    for number, (top, left) in enumerate(corners, start=1):
        cell = flatness[top : top + spacing, left : left + spacing]
        row, column = divmod(int(cell.argmin()), cell.shape[1])
        seeds[top + row, left + column] = number
    framed = np.pad(seeds, 1)  # watershed leaves the outermost pixels out, so it gets some to spare
    cv2.watershed(cv2.copyMakeBorder(lab, 1, 1, 1, 1, cv2.BORDER_REPLICATE), framed)
    seeds = framed[1:-1, 1:-1]
    while (seeds < 1).any():  # border lines go to a neighbour; float32 holds every number of a patch exactly
        grown = cv2.dilate(np.maximum(seeds, 0).astype(np.float32), np.ones((3, 3), np.uint8))
        seeds = np.where(seeds > 0, seeds, grown.astype(np.int32))
    return np.unique(seeds, return_inverse=True)[1].reshape(height, width).astype(np.int32)


def _borders(patches: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pairs of neighbouring patches [B, 2], the pixels along their border [B] and the sum of gradients there."""
    count = int(patches.max()) + 1
    keys, values = [], []
    for axis in (1, 0):
        a, b = np.delete(patches, -1, axis).astype(np.int64), np.delete(patches, 0, axis).astype(np.int64)
        steepest = np.maximum(np.delete(gradient, -1, axis), np.delete(gradient, 0, axis))
        keys.append((np.minimum(a, b) * count + np.maximum(a, b))[a != b])
        values.append(steepest[a != b])
    key, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    length = np.bincount(inverse, minlength=len(key))
    total = np.bincount(inverse, np.concatenate(values), minlength=len(key))
    return np.stack([key // count, key % count], axis=1), length, total


class _Graph:
    """Regions and their borders; merging takes the weakest border of all, again and again."""

    def __init__(self, patches: np.ndarray, lab: np.ndarray, gradient: np.ndarray, *, min_share: float) -> None:
        owner = patches.ravel()
        count = np.bincount(owner)
        sums = [np.bincount(owner, lab[..., channel].ravel()) for channel in range(3)]
        self._count: list[float] = count.tolist()
        self._color: list[list[float]] = (np.stack(sums, axis=1) / count[:, None]).tolist()
        self._owner = np.arange(len(count))
        self._version = [0] * len(count)  # tells borders on the heap from those that have changed since
        self._total, self._min_count = float(count.sum()), min_share * float(count.sum())
        self._borders: list[dict[int, list[float]]] = [{} for _ in count]  # neighbour -> [length, gradient sum]
        for (a, b), length, total in zip(*(values.tolist() for values in _borders(patches, gradient)), strict=True):
            self._borders[a][b] = self._borders[b][a] = [length, total]
        self._heap = [self._entry(a, b) for a, beside in enumerate(self._borders) for b in beside if a < b]
        heapq.heapify(self._heap)

    def merge(self, limit: float) -> np.ndarray:
        """Merge until no border below the limit is left; return the region of every patch."""
        while self._heap and self._heap[0][0] <= limit:
            _, a, b, version_a, version_b = heapq.heappop(self._heap)
            if (self._version[a], self._version[b]) == (version_a, version_b):
                self._join(a, b)
                for beside in self._borders[a]:
                    heapq.heappush(self._heap, self._entry(min(a, beside), max(a, beside)))
        while (self._owner != self._owner[self._owner]).any():
            self._owner = self._owner[self._owner]
        return self._owner

    def with_patterns(self, owner: np.ndarray) -> np.ndarray:
        """Return the region of every patch with the tiles of each pattern as one region; the graph stays as it is."""
        tiles = [region for region in np.unique(owner).tolist() if self._count[region] >= _MIN_TILE * self._total]
        if len(tiles) < 2 * _TILES:
            return owner
        groups = fcluster(linkage([self._color[tile] for tile in tiles], "average"), _TILE_COLOR, "distance")
        color = dict(zip(tiles, groups.tolist(), strict=True))
        number, around, shared = Counter(color.values()), Counter[int](), Counter[tuple[int, int]]()
        for tile in tiles:
            for other, (length, _) in self._borders[tile].items():
                around[color[tile]] += int(length)
                shared[color[tile], color.get(other, 0)] += int(length)  # 0: colours are counted from 1
        joined = owner.copy()
        for (one, two), length in shared.items():
            alternate = length >= _ALTERNATION * max(around[one], around[two])
            if 0 < one < two and alternate and min(number[one], number[two]) >= _TILES:
                parts = [joined == joined[tile] for tile in tiles if color[tile] in (one, two)]
                joined[np.logical_or.reduce(parts)] = joined[parts[0]][0]
        return joined

    def _entry(self, a: int, b: int) -> tuple[float, int, int, int, int]:
        """Return a border for the heap: how hard it is to merge, its sides, and the state of both."""
        length, gradient = self._borders[a][b]
        distance = sum((x - y) ** 2 for x, y in zip(self._color[a], self._color[b])) ** 0.5
        contrast = 0.5 * (distance + _GRADIENT_WEIGHT * gradient / length)
        small = min(self._count[a], self._count[b])
        # What is too small merges at every limit; the contrast then decides with whom.
        weight = (small / self._total) ** _SIZE_POWER if small >= self._min_count else 1e-9
        return contrast * weight, a, b, self._version[a], self._version[b]

    def _join(self, a: int, b: int) -> None:
        """Let region a take in region b."""
        count_a, count_b = self._count[a], self._count[b]
        self._count[a] = total = count_a + count_b
        self._color[a] = [(count_a * x + count_b * y) / total for x, y in zip(self._color[a], self._color[b])]
        self._owner[b] = a
        self._version[a] += 1
        self._version[b] = -1
        del self._borders[a][b], self._borders[b][a]
        for other, border in self._borders[b].items():
            del self._borders[other][b]
            shared = self._borders[a].setdefault(other, [0, 0.0])
            self._borders[other][a] = shared  # one list serves both directions
            shared[:] = shared[0] + border[0], shared[1] + border[1]
        self._borders[b] = {}


GENERATOR = GeneratorEntry(
    name="regions",
    settings=RegionSettings,
    load=RegionGenerator,
    on_cores=True,
    caution="masks of --provider regions are patches of like colour, a stop-gap for trying the commands "
    "(a synthetic room of 25 objects came out as 80, mIoU 53); for objects make them with --provider sam or hf",
)
