"""How many things the masks of a scene really contain, counted without any lifting: the number to hold objects against.

    python scripts/count_mask_things.py -m output/room_25
    python scripts/count_mask_things.py -m output/room_25 --object_path object_mask_net --stride 2

The depth that the trained geometry renders says which pixel of another training view shows the same point. Two segments
of two views that overlap agree if their intersection over union is above one half, among the pixels of the first that
the second view shows too. Clusters of segments are joined, those that agree most first, while most of the pairs between
them that overlap agree (average linkage). A cluster with segments of three views that at least a share of the views
showing it bear out is a thing. Nothing of the model but its depth is used, and nothing is written into it.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from unified_lift.device import chosen_device
from unified_lift.errors import UserError
from unified_lift.fileio import write_json
from unified_lift.model.render import render
from unified_lift.modelfolder.inference import load_model, views_of
from unified_lift.ops.cameras import project, unproject
from unified_lift.types import Camera

FEWEST_VIEWS = 3
DEPTH_TOLERANCE = 0.03  # of the depth: the two views see the same point, not one behind the other
SHARES = (0.25, 0.5, 0.75)  # of the views; the middle one is the count that we quote


Pairs = dict[tuple[int, int], list[int]]


class Seen(NamedTuple):
    """A view as it is counted: the points of its pixels, and what lies where."""

    camera: Camera
    depth: np.ndarray  # float64 [H, W], 0 = nothing
    segments: np.ndarray  # int64 [H, W]; indices over all views, -1 = in no mask


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model_path", type=Path, required=True, help="a trained scene, for its geometry")
    parser.add_argument("-s", "--source_path", type=Path, help="scene folder, if it has moved since training")
    parser.add_argument("--object_path", type=Path, help="other masks than those it was trained with")
    parser.add_argument("--stride", type=int, default=2, help="every so many pixels of a row and column, %(default)s")
    parser.add_argument("--min_pixels", type=int, default=40, help="fewest pixels of a segment, %(default)s")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    args = parser.parse_args(argv)
    if args.stride < 1 or args.min_pixels < 1:
        parser.error("--stride and --min_pixels must be at least 1")
    try:
        counts = count(args)
    except UserError as error:
        parser.error(str(error))
    print("".join(f"{name:>22}" for name in counts))
    print("".join(f"{value:22}" for value in counts.values()))
    if args.json:
        write_json(args.json, counts)
    return 0


def count(args: argparse.Namespace) -> dict[str, int]:
    """Return the number of things for each share of the views, and of the objects of the model."""
    device = chosen_device(args.device)
    model = load_model(args.model_path, source_path=args.source_path, device=device)
    if args.object_path is not None:
        data = replace(model.settings.data, object_path=args.object_path)
        model = replace(model, settings=replace(model.settings, data=data))
    scene = views_of(model)
    views, num_segments = list[Seen](), 0
    for view in scene.labelled:
        assert view.segments is not None
        with torch.no_grad():
            out = render(model.gaussians, view.camera)
        depth = torch.where(out.alpha > 0.5, out.depth / out.alpha.clamp(min=1e-6), 0.0).cpu().double().numpy()
        numbered, found = numbered_from(view.segments.cpu().numpy(), num_segments, args.min_pixels)
        num_segments += found
        views.append(Seen(view.camera, depth, numbered))
    pairs, showing = comparisons(views, num_segments, args.stride, args.min_pixels)
    found = clusters(pairs, num_segments)
    view_of = np.concatenate([np.full(len(np.unique(v.segments[v.segments >= 0])), i) for i, v in enumerate(views)])
    counts = {f"seen in {share:.0%}": things(found, view_of, showing, share) for share in SHARES}
    return counts | {"objects of the model": len(model.object_ids.unique()) if model.labels is not None else 0}


def numbered_from(segments: np.ndarray, first: int, min_pixels: int) -> tuple[np.ndarray, int]:
    """Return segments [H, W] numbered from `first` on, int64, -1 for 0 and what is small; and how many."""
    ids, inverse, sizes = np.unique(segments, return_inverse=True, return_counts=True)
    counts = (ids > 0) & (sizes >= min_pixels)
    index = np.where(counts, first + np.cumsum(counts) - 1, -1)
    return index[inverse.reshape(segments.shape)], int(counts.sum())


def comparisons(views: list[Seen], num: int, stride: int, min_pixels: int) -> tuple[Pairs, np.ndarray]:
    """Return pairs of segments that overlap -> [agreements, comparisons]; and how many views show each, int64 [num]."""
    pairs, showing = dict[tuple[int, int], list[int]](), np.ones(num, dtype=np.int64)
    fewest = max(1, min_pixels // stride**2)
    for index, view in enumerate(tqdm(views, desc="views", unit="view", disable=None)):
        rows, columns = np.nonzero(view.depth[::stride, ::stride] > 0)
        rows, columns = rows * stride, columns * stride
        points = unproject(np.stack([columns, rows], axis=1) + 0.5, view.depth[rows, columns], view.camera)
        mine = view.segments[rows, columns]
        totals = np.bincount(mine[mine >= 0], minlength=num)
        for other in (other for place, other in enumerate(views) if place != index):
            theirs, is_shown = looked_up(points, other)
            mine_shown, theirs_shown = mine[is_shown], theirs[is_shown]
            size = np.bincount(mine_shown[mine_shown >= 0], minlength=num)
            # A view that shows less than half of a segment may miss it for that.
            showing += (size >= fewest) & (size >= 0.5 * totals)
            for a, b, agree in overlapping(mine_shown, theirs_shown, fewest):
                found = pairs.setdefault((min(a, b), max(a, b)), [0, 0])
                found[0] += agree
                found[1] += 1
    return pairs, showing


def looked_up(points: np.ndarray, view: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Return the segment of a view that shows each point [M], and whether the view shows the point, bool [M]."""
    pixels, depth = project(points, view.camera)
    height, width = view.depth.shape
    inside = (depth > 0) & (pixels >= 0).all(axis=1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
    column, row = (np.where(inside, pixels[:, axis], 0).astype(np.int64) for axis in (0, 1))
    rendered = view.depth[row, column]
    shown = inside & (rendered > 0) & (np.abs(rendered - depth) < DEPTH_TOLERANCE * depth)
    return view.segments[row, column], shown


def overlapping(mine: np.ndarray, theirs: np.ndarray, fewest: int) -> list[tuple[int, int, bool]]:
    """Return pairs of segments sharing `fewest` of the pixels [P] that two views show, and if their IoU is over 1/2."""
    both = (mine >= 0) & (theirs >= 0)
    found, shared = np.unique(np.stack([mine[both], theirs[both]]), axis=1, return_counts=True)
    sizes = [np.bincount(ids[ids >= 0]) for ids in (mine, theirs)]
    return [
        (int(a), int(b), bool(2 * n > sizes[0][a] + sizes[1][b] - n))
        for (a, b), n in zip(found.T, shared, strict=True)
        if n >= fewest
    ]


def clusters(pairs: Pairs, num: int) -> list[list[int]]:
    """Return segments 0 to num - 1 in clusters by average linkage: joined while most comparisons between two agree."""
    members = {segment: [segment] for segment in range(num)}
    links: dict[int, dict[int, list[int]]] = {segment: {} for segment in range(num)}
    for (a, b), counts in pairs.items():
        links[a][b] = links[b][a] = counts
    heap = [(-agree / total, -total, a, b) for (a, b), (agree, total) in pairs.items() if 2 * agree > total]
    heapq.heapify(heap)
    while heap:
        share, total, a, b = heapq.heappop(heap)
        if links.get(a, {}).get(b) is None or (-links[a][b][0] / links[a][b][1], -links[a][b][1]) != (share, total):
            continue  # one of them was joined with another since
        members[a] += members.pop(b)
        for other, (agree, compared) in links.pop(b).items():
            links[other].pop(b)
            if other == a:
                continue
            before = links[a].get(other, [0, 0])
            links[a][other] = links[other][a] = [before[0] + agree, before[1] + compared]
            agree, compared = links[a][other]
            if 2 * agree > compared:
                heapq.heappush(heap, (-agree / compared, -compared, a, other))
    return list(members.values())


def things(found: list[list[int]], view_of: np.ndarray, showing: np.ndarray, share: float) -> int:
    """Return how many clusters are a thing: of three views, and of a share of those that show their usual segment."""
    views = [len(np.unique(view_of[cluster])) for cluster in found]
    shown = [float(np.median(showing[cluster])) for cluster in found]
    return sum(n >= max(FEWEST_VIEWS, share * of) for n, of in zip(views, shown, strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
