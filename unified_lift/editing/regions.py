"""Edits of where objects end: split, grow, shrink, relabel. They change labels only; every Gaussian stays as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial import cKDTree

from unified_lift.editing.operations import WHOLE, ObjectOperation, Operation, Vector, next_ids, pieces
from unified_lift.errors import UserError
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.ops.blocks import Blocks

_BLOCK = 1_024  # Gaussians that lie together
_MIN_PIECE_SHARE = 0.05  # of an object's Gaussians: a smaller piece makes no object of its own


@dataclass(frozen=True, kw_only=True)
class Split(ObjectOperation):
    """Make pieces of objects that lie apart objects of their own or, with `box`, what lies in a box.

    Apart are pieces about `gap` times the usual distance between the object's Gaussians from each other. The largest
    keeps the id, those under 5 % of the object go with the nearest larger one. `box` is two opposite corners in the
    user's coordinates. New objects have the ids of `next_ids`, the pieces of each object by falling size.
    """

    gap: float = 3.0
    box: tuple[Vector, Vector] | None = None

    def _edited(self, scene: TrainedScene) -> TrainedScene:
        scene.mask(self.objects)  # raises where one is not there
        means, ids = _places(scene), scene.object_ids.cpu().numpy()
        new, names, fresh = ids.copy(), dict(scene.names), next_ids(scene, 1)[0]
        for object_id in self.objects:
            own = scene.rows[object_id].cpu().numpy()
            piece = self._pieces(scene, means[own])
            for index in range(1, int(piece.max()) + 1):
                new[own[piece == index]], names[fresh] = fresh, f"part of {scene.name_of(object_id)}"
                fresh += 1
        if (new == ids).all():
            why = f"no piece is {self.gap:g} spacings apart; lower gap" if self.box is None else "the box cuts none"
            raise UserError(f"objects {', '.join(map(str, self.objects))}: {why}, or relabel Gaussians by hand")
        labels = replace(scene.require_labels(), object_ids=torch.from_numpy(new).to(scene.object_ids))
        return replace(scene, labels=labels, names=names)

    def _pieces(self, scene: TrainedScene, points: np.ndarray) -> np.ndarray:
        """Return the piece of each point of an object [n, 3], 0 = that which keeps the id, int [n]."""
        if self.box is not None:
            low, high = np.sort(scene.frame.inside(np.array(self.box)), axis=0)
            inside = ((points >= low) & (points <= high)).all(axis=1)
            return inside.astype(int) * (not inside.all())
        part = pieces(points, self.gap)
        count = np.bincount(part)
        large = np.flatnonzero(count >= _MIN_PIECE_SHARE * len(points))
        large = large[np.argsort(-count[large], kind="stable")] if len(large) else np.array([count.argmax()])
        rank = np.full(len(count), -1)
        rank[large] = np.arange(len(large))
        piece = rank[part]
        if (lost := piece < 0).any():
            piece[lost] = piece[~lost][cKDTree(points[~lost]).query(points[lost])[1]]
        return piece


@dataclass(frozen=True, kw_only=True)
class Grow(ObjectOperation):
    """Give objects the Gaussians of others up to `distance` from theirs, in the user's units, with confidence 1."""

    distance: float

    def _edited(self, scene: TrainedScene) -> TrainedScene:
        chosen, means = scene.mask(self.objects).cpu().numpy(), _places(scene)
        rows = np.flatnonzero(~chosen), np.flatnonzero(chosen)
        near, nearest = _near(means, *rows, self.distance * scene.frame.scale)
        return _given(scene, near, scene.object_ids.cpu().numpy()[nearest], 1.0, f"within {self.distance:g} of")


@dataclass(frozen=True, kw_only=True)
class Shrink(ObjectOperation):
    """Give Gaussians of objects up to `distance` from another object's to that one, with confidence 0."""

    distance: float

    def _edited(self, scene: TrainedScene) -> TrainedScene:
        scene.mask(self.objects)
        means, ids = _places(scene), scene.object_ids.cpu().numpy()
        reach = self.distance * scene.frame.scale
        blocks = Blocks.of(scene.gaussians.means.detach(), torch.zeros(len(scene)), size=_BLOCK)
        found = []
        for object_id in self.objects:
            own = scene.rows[object_id].cpu().numpy()
            low, high = (torch.from_numpy(end(means[own], axis=0)) for end in (np.min, np.max))
            others = blocks.points_in(blocks.touching(low, high, reach)).cpu().numpy()  # all that are so near
            found.append(_near(means, own, others[ids[others] != object_id], reach))
        for object_id, (near, _) in zip(self.objects, found, strict=True):
            if len(near) == scene.objects[object_id]:
                raise UserError(f"nothing would be left of object {object_id}; lower distance")
        near, nearest = (np.concatenate(each) for each in zip(*found, strict=True))
        return _given(scene, near, ids[nearest], 0.0, f"within {self.distance:g} of")


@dataclass(frozen=True, kw_only=True)
class Relabel(Operation):
    """Give Gaussians to an object, old or new, with confidence 1: a brush.

    They are named by their numbers, or lie in a ball around `centre`, or around any of several points, in the user's
    coordinates; only those of `objects` change.
    """

    object: int
    gaussians: tuple[int, ...] = ()
    centre: Vector | tuple[Vector, ...] | None = None
    radius: float = 0.0
    objects: tuple[int, ...] = WHOLE

    def _edited(self, scene: TrainedScene) -> TrainedScene:
        if bool(self.gaussians) == (self.centre is not None) or (self.centre is None) != (self.radius == 0):
            raise UserError("relabel needs either gaussians, their numbers, or centre and radius")
        chosen = np.zeros(len(scene), dtype=bool)
        if self.centre is None:
            if max(self.gaussians) >= len(scene):
                raise UserError(f"there is no Gaussian {max(self.gaussians)}; the last is {len(scene) - 1}")
            chosen[list(self.gaussians)] = True
        else:
            middles, places = np.atleast_2d(scene.frame.inside(np.array(self.centre))), _places(scene)
            reach = self.radius * scene.frame.scale
            chosen = ((places >= middles.min(axis=0) - reach) & (places <= middles.max(axis=0) + reach)).all(axis=1)
            chosen[chosen] = cKDTree(middles).query(places[chosen])[0] <= reach
        chosen &= scene.mask(self.objects).cpu().numpy() & (scene.object_ids.cpu().numpy() != self.object)
        rows = np.flatnonzero(chosen)
        return _given(scene, rows, np.full(len(rows), self.object), 1.0, "in")


def _places(scene: TrainedScene) -> np.ndarray:
    """Return the centres of all Gaussians in the scene's frame, float64 [N, 3]."""
    return scene.gaussians.means.detach().cpu().double().numpy()


def _near(means: np.ndarray, rows: np.ndarray, to: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Return those of some rows up to `reach` from one of the rows `to`, and that one, int64 [n] each."""
    if not len(rows) or not len(to):
        return rows[:0], to[:0]
    distance, index = cKDTree(means[to]).query(means[rows])
    return rows[distance <= reach], to[index[distance <= reach]]


def _given(scene: TrainedScene, rows: np.ndarray, ids: np.ndarray, confidence: float, where: str) -> TrainedScene:
    """Return the scene with the Gaussians `rows` given to objects `ids`, [n] each; a UserError: there are none."""
    if not len(rows):
        raise UserError(f"no Gaussian lies {where} what was named that could change; give more")
    labels = replace(scene.require_labels(), object_ids=scene.object_ids.clone(), confidence=scene.confidence.clone())
    labels.object_ids[rows] = torch.from_numpy(ids).to(labels.object_ids)
    labels.confidence[rows] = confidence
    return replace(scene, labels=labels)
