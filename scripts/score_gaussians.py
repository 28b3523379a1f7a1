"""How many Gaussians of a trained synthetic room carry the right object: their labels against the room's own surfaces.

    python scripts/score_gaussians.py -m output/demo
    python scripts/score_gaussians.py -m output/demo --min_opacity 0.1 --max_distance 0.02 --json found.json

The room, or house of rooms, is built again from the settings in the scene's scene.json. A Gaussian's true id is that of
the surface nearest to its mean (0: floor, walls, ceiling), its label the saved object. Labels and true ids are matched
one to one so that as many Gaussians as possible agree. Gaussians farther than --max_distance from every surface lie on
nothing, so there is no true id for them: they are counted as floaters and left out of all other figures.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from unified_lift.errors import UserError
from unified_lift.fileio import read_json, write_json
from unified_lift.metrics.matched import iou_from_counts
from unified_lift.modelfolder.inference import load_model
from unified_lift.ops.overlaps import overlap_table
from unified_lift.synthetic.scene import SyntheticRoom, SyntheticSettings, synthetic_house
from unified_lift.synthetic.solids import Solid, dot

# World units. Of the Gaussians on the demo's objects 99 % lie nearer than this; the smallest has a radius of 0.27.
MAX_DISTANCE = 0.1
# Halvings of a bracket that is some tens wide (of logarithms): down to the precision of a double.
BISECTIONS = 60


class ObjectScore(NamedTuple):
    """Of one true id: the label matched with it (-1: none), IoU, Gaussians that lie on it and that agree."""

    true_id: int
    label: int
    iou: float
    gaussians: int
    right: int


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model_path", type=Path, required=True)
    parser.add_argument("-s", "--source_path", type=Path, help="scene folder, if it has moved since training")
    parser.add_argument("--iteration", type=int, default=-1, help="saved iteration; -1 = the last")
    parser.add_argument("--min_opacity", type=float, default=0.5, help="fainter Gaussians are not asked (%(default)s)")
    parser.add_argument("--max_distance", type=float, default=MAX_DISTANCE, help="world units (%(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    try:
        model = load_model(args.model_path, iteration=args.iteration)
        house = read_house(args.source_path or model.settings.data.source_path)
        labels = model.object_ids.numpy()
    except UserError as error:
        parser.error(str(error))
    opaque = model.gaussians.opacities.detach().numpy().reshape(-1) > args.min_opacity
    true_ids, distances = nearest_in_house(house, model.gaussians.means.detach().numpy()[opaque].astype(float))
    on_surface = distances <= args.max_distance
    if not on_surface.any():
        parser.error(f"{args.model_path}: no opaque Gaussian lies on a surface of the room; give its own scene with -s")
    rows = object_scores(labels[opaque][on_surface], true_ids[on_surface])
    found = summary(rows)
    found |= {"floaters": float((~on_surface).mean()), "median_distance": float(np.median(distances))}
    found |= {"num_opaque": int(opaque.sum()), "num_gaussians": len(opaque)}
    print_report(house, rows, found)
    if args.json:
        write_json(args.json, found | {"objects": [row._asdict() for row in rows]})
    return 0


def read_house(scene: Path) -> tuple[SyntheticRoom, ...]:
    """Return the rooms of a folder that `write_synthetic` wrote; a UserError if it is another."""
    path = scene / "scene.json"
    try:
        return synthetic_house(SyntheticSettings(**read_json(path)["settings"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no settings of a synthetic room ({error}); name the folder of one with -s") from None


def nearest_in_house(house: Sequence[SyntheticRoom], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `nearest_surfaces` does, of world points, each in the room it is in or next to."""
    ids, distances = np.empty(len(points), dtype=np.int32), np.empty(len(points))
    rooms = np.argmin([np.abs(points - room.centre)[:, :2].max(axis=1) for room in house], axis=0)
    for room in house:
        here = rooms == room.number
        ids[here], distances[here] = nearest_surfaces(room, points[here] - room.centre)
    return ids, distances


def nearest_surfaces(room: SyntheticRoom, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the object id of the surface nearest to each point of the room's frame, int32 [N], and its distance, [N].

    The id is 0 for the room itself.
    """
    centre, half = np.array([0, 0, room.height / 2]), np.array([room.half, room.half, room.height / 2])
    beyond = np.abs(points - centre) - half
    outside = np.linalg.norm(np.maximum(beyond, 0), axis=1)
    best = np.where(outside > 0, outside, -beyond.max(axis=1))
    ids = np.zeros(len(points), dtype=np.int32)
    for solid, owner in zip(room.solids, room.owner[:-1], strict=True):
        # Where even the sphere around a solid is too far, the solid need not be asked.
        near = np.flatnonzero(np.linalg.norm(points - solid.centre, axis=1) - solid.bounding_radius < best)
        distance = surface_distance(solid, points[near])
        closer = near[distance < best[near]]
        best[closer], ids[closer] = distance[distance < best[near]], owner
    return ids, best


def surface_distance(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Return the distance to a solid's surface, inside as well as outside, [N]."""
    if solid.shape == "ellipsoid":  # `Solid.distance` is exact for all other shapes
        return ellipsoid_distance(np.asarray(solid.size), solid.local(points))
    return np.abs(solid.distance(points))


def ellipsoid_distance(radii: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the distance of points [N, 3] to an ellipsoid at the origin with half axes `radii` along the axes, [N].

    Source: D. Eberly, "Distance from a Point to an Ellipse, an Ellipsoid, or a Hyperellipsoid". The surface point
    nearest to y is a^2 y / (t + a^2) with the t that puts it on the surface. Bisection finds the logarithm of
    u = 1 + t / a_min^2 > 0, a_min being the smallest radius: u may be tiny, and a rounded t would lose it.
    """
    smallest = radii.min()
    squares = (radii / smallest) ** 2
    # By symmetry one octant is enough. A coordinate of 0 would leave no bracket; this moves points by a billionth.
    y = np.maximum(np.abs(points), 1e-9 * smallest)
    low = np.log((y / radii)[:, radii.argmin()])
    high = np.log(np.linalg.norm(y * radii, axis=1) / smallest**2)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        scaled = squares * y / radii / (np.exp(middle)[:, None] + squares - 1)
        is_outside = dot(scaled, scaled) > 1
        low, high = np.where(is_outside, middle, low), np.where(is_outside, high, middle)
    nearest = squares * y / (np.exp((low + high) / 2)[:, None] + squares - 1)
    return np.linalg.norm(nearest - y, axis=1)


def object_scores(labels: np.ndarray, true_ids: np.ndarray) -> list[ObjectScore]:
    """Return a score for each true id that has Gaussians, by id, after matching so that most Gaussians agree.

    `labels` are the saved objects of the Gaussians, `true_ids` those of the surfaces they lie on, 0 = room, [N].
    """
    label_ids, present, counts = overlap_table(labels, true_ids)
    partner = dict(zip(*linear_sum_assignment(counts.T, maximize=True), strict=True))  # column -> row
    scores = []
    for column, true_id in enumerate(present.tolist()):
        row, number = partner.get(column), int(counts[:, column].sum())
        label, iou, right = -1, 0.0, 0
        if row is not None and counts[row, column] > 0:
            label, iou, right = label_ids[row], iou_from_counts(counts)[row, column], counts[row, column]
        scores.append(ObjectScore(true_id, int(label), float(iou), number, int(right)))
    return scores


def summary(rows: list[ObjectScore]) -> dict[str, Any]:
    """Return accuracy over all Gaussians and over those on objects, and the objects' mean IoU (NaN without objects)."""

    def share(of: list[ObjectScore]) -> float:
        return sum(row.right for row in of) / sum(row.gaussians for row in of) if of else math.nan

    objects = [row for row in rows if row.true_id != 0]
    miou = float(np.mean([row.iou for row in objects])) if objects else math.nan
    return {"accuracy": share(rows), "object_accuracy": share(objects), "mean_object_iou": miou}


def print_report(house: Sequence[SyntheticRoom], rows: list[ObjectScore], found: dict[str, Any]) -> None:
    names = {0: "room"} | {thing.object_id: thing.name for room in house for thing in room.objects}
    print("true  label     IoU  Gaussians   right  name")
    for row in rows:
        head = f"{row.true_id:4d}  {row.label:5d}  {row.iou:6.3f}  {row.gaussians:9d}"
        print(f"{head}  {row.right / row.gaussians:6.1%}  {names[row.true_id]}")
    if bare := sorted(set(names) - {row.true_id for row in rows}):
        print(f"without any Gaussian, and in no figure: {', '.join(names[i] for i in bare)}")
    print(f"accuracy: {found['accuracy']:.2%} of all, {found['object_accuracy']:.2%} of those on objects")
    print(f"mean IoU of the objects: {found['mean_object_iou']:.4f}")
    print(f"floaters: {found['floaters']:.2%} of the {found['num_opaque']} opaque Gaussians")
    print(f"median distance from the surface: {found['median_distance']:.4f}")


if __name__ == "__main__":
    sys.exit(main())
