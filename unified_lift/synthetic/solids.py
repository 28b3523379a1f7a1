"""Solids that a ray meets at a closed-form point: ellipsoid, box, frustum (cylinder, cone) and torus.

All functions work in the solid's own frame after one rigid change of coordinates, so a ray parameter t is the
distance in world units everywhere (directions have unit length).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from unified_lift.synthetic.textures import Texture

Shape = Literal["ellipsoid", "box", "frustum", "torus"]

# A hit closer than this is the surface the ray starts on.
MIN_T = 1e-4
# The distance at which a march to a torus has arrived, and the number of steps it may take to get there: grazing
# rays converge slowly, but they are few. A ray that has not arrived by then touches no more than a skin: it passes by.
TORUS_ARRIVED = 1e-5
TORUS_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Solid:
    """A textured solid in world coordinates.

    Attributes:
        shape: Which surface.
        size: ellipsoid: three radii; box: three half sizes; frustum: radius at the bottom, radius at the top, half
            height along local z; torus: ring radius in the local xy plane, tube radius.
        centre: Centre, world units, [3].
        rotation: world_from_local rotation, [3, 3].
        texture: Colour as a function of the local point.
    """

    shape: Shape
    size: tuple[float, ...]
    centre: np.ndarray
    rotation: np.ndarray
    texture: Texture

    @property
    def bounding_radius(self) -> float:
        """Return the radius of a sphere around `centre` that holds the solid."""
        if self.shape == "ellipsoid":
            return max(self.size)
        if self.shape == "box":
            return float(np.linalg.norm(self.size))
        if self.shape == "torus":
            return self.size[0] + self.size[1]
        return float(np.hypot(max(self.size[:2]), self.size[2]))

    def local(self, points: np.ndarray) -> np.ndarray:
        """Return world points in the solid's frame, [n, 3]."""
        return (points - self.centre) @ self.rotation

    def intersect(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Return the distance along each ray to its first hit, infinite where it misses, [n].

        Args:
            origins: Ray starts, world units, [3] or [n, 3].
            directions: Unit vectors, [n, 3].
        """
        to_centre = np.atleast_2d(self.centre - origins)
        along = dot(directions, to_centre)
        away = dot(to_centre, to_centre) - along * along
        radius = self.bounding_radius
        near = np.flatnonzero((away <= radius * radius) & (along > -radius))
        hit = np.full(len(directions), np.inf)
        if near.size:
            start = origins if origins.ndim == 1 else origins[near]
            start = np.broadcast_to(self.local(start), (near.size, 3))
            hit[near] = _INTERSECT[self.shape](self.size, start, directions[near] @ self.rotation)
        return hit

    def normal(self, points: np.ndarray) -> np.ndarray:
        """Return outward unit normals at world points on the surface, [n, 3]."""
        return _NORMAL[self.shape](self.size, self.local(points)) @ self.rotation.T

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Return the signed distance to the surface, negative inside, [n] (first order for an ellipsoid)."""
        return _DISTANCE[self.shape](self.size, self.local(points))


def dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return row-wise scalar products of [n, 3] and [n, 3] or [1, 3]: column by column, as short rows sum slowly."""
    return first[:, 0] * second[:, 0] + first[:, 1] * second[:, 1] + first[:, 2] * second[:, 2]


def _nearest_root(candidates: list[np.ndarray], valid: list[np.ndarray]) -> np.ndarray:
    """Return the smallest candidate in front of the ray, infinite without one."""
    best = np.full(candidates[0].shape, np.inf)
    for t, ok in zip(candidates, valid, strict=True):
        np.minimum(best, np.where(ok & (t > MIN_T), t, np.inf), out=best)
    return best


def _nonzero(values: np.ndarray) -> np.ndarray:
    """Return values with zeros moved to a tiny number, so that a parallel ray divides to something huge."""
    return np.where(np.abs(values) < 1e-12, 1e-12, values)


def _intersect_ellipsoid(size: tuple[float, ...], start: np.ndarray, ray: np.ndarray) -> np.ndarray:
    radii = np.asarray(size)
    o, d = start / radii, ray / radii
    a, b, c = dot(d, d), dot(o, d), dot(o, o) - 1
    root = b * b - a * c
    hits = root >= 0
    root = np.sqrt(np.maximum(root, 0))
    return _nearest_root([(-b - root) / a, (-b + root) / a], [hits, hits])


def _intersect_box(size: tuple[float, ...], start: np.ndarray, ray: np.ndarray) -> np.ndarray:
    half = np.asarray(size)
    inverse = 1 / _nonzero(ray)
    low, high = (-half - start) * inverse, (half - start) * inverse
    enter = np.maximum.reduce(np.minimum(low, high).T.copy())
    leave = np.minimum.reduce(np.maximum(low, high).T.copy())
    hits = enter <= leave
    return _nearest_root([enter, leave], [hits, hits])


def _intersect_frustum(size: tuple[float, ...], start: np.ndarray, ray: np.ndarray) -> np.ndarray:
    bottom, top, half = size
    slope, middle = (top - bottom) / (2 * half), (top + bottom) / 2
    radius = middle + slope * start[:, 2]
    # Side: x^2 + y^2 = (middle + slope z)^2, a quadratic in t.
    a = _nonzero(ray[:, 0] ** 2 + ray[:, 1] ** 2 - (slope * ray[:, 2]) ** 2)
    b = start[:, 0] * ray[:, 0] + start[:, 1] * ray[:, 1] - slope * ray[:, 2] * radius
    c = start[:, 0] ** 2 + start[:, 1] ** 2 - radius**2
    root = b * b - a * c
    hits = root >= 0
    root = np.sqrt(np.maximum(root, 0))
    candidates = [(-b - root) / a, (-b + root) / a]
    valid = [hits & (np.abs(start[:, 2] + t * ray[:, 2]) <= half) for t in candidates]
    for height, cap in ((-half, bottom), (half, top)):
        t = (height - start[:, 2]) / _nonzero(ray[:, 2])
        x, y = start[:, 0] + t * ray[:, 0], start[:, 1] + t * ray[:, 1]
        candidates.append(t)
        valid.append(x * x + y * y <= cap * cap)
    return _nearest_root(candidates, valid)


def _intersect_torus(size: tuple[float, ...], start: np.ndarray, ray: np.ndarray) -> np.ndarray:
    # Sphere tracing with the exact distance: simpler than the roots of a quartic and as precise as the tolerance.
    t = np.full(len(ray), MIN_T)
    farthest = np.linalg.norm(start, axis=1) + sum(size)
    active = np.arange(len(ray))
    for _ in range(TORUS_STEPS):
        distance = _distance_torus(size, start[active] + t[active, None] * ray[active])
        t[active] += np.abs(distance)
        active = active[(np.abs(distance) > TORUS_ARRIVED) & (t[active] < farthest[active])]
        if not active.size:
            break
    arrived = t < farthest
    arrived[active] = False
    return np.where(arrived, t, np.inf)


def _normal_ellipsoid(size: tuple[float, ...], points: np.ndarray) -> np.ndarray:
    return _unit(points / np.square(size))


def _normal_box(size: tuple[float, ...], points: np.ndarray) -> np.ndarray:
    axis = (np.abs(points) - np.asarray(size)).argmax(1)
    rows = np.arange(len(points))
    normals = np.zeros_like(points)
    normals[rows, axis] = np.sign(points[rows, axis])
    return normals


def _normal_frustum(size: tuple[float, ...], points: np.ndarray) -> np.ndarray:
    bottom, top, half = size
    slope = (top - bottom) / (2 * half)
    rho = np.hypot(points[:, 0], points[:, 1])
    to_side = np.abs(rho - (top + bottom) / 2 - slope * points[:, 2])
    side = _unit(np.column_stack([points[:, :2], -slope * rho]))
    cap = np.zeros_like(points)
    cap[:, 2] = np.sign(points[:, 2])
    return np.where((half - np.abs(points[:, 2]) < to_side)[:, None], cap, side)


def _normal_torus(size: tuple[float, ...], points: np.ndarray) -> np.ndarray:
    ring = points * [1, 1, 0]
    return _unit(points - size[0] * _unit(ring))


def _distance_ellipsoid(size: tuple[float, ...], points: np.ndarray) -> np.ndarray:
    # Level of the quadric over the length of its gradient: exact on the surface and to first order around it.
    level = np.linalg.norm(points / size, axis=1)
    gradient = np.linalg.norm(points / np.square(size), axis=1)
    return level * (level - 1) / np.maximum(gradient, 1e-9)


def _distance_box(size: tuple[float, ...], points: np.ndarray) -> np.ndarray:
    beyond = np.abs(points) - np.asarray(size)
    return np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(1), 0)


def _distance_frustum(size: tuple[float, ...], points: np.ndarray) -> np.ndarray:
    # The half plane (rho, z): distance to the slanted side segment and to the two caps.
    bottom, top, half = size
    rho, z = np.hypot(points[:, 0], points[:, 1]), points[:, 2]
    side = np.array([top - bottom, 2 * half])
    share = np.clip(((rho - bottom) * side[0] + (z + half) * side[1]) / (side @ side), 0, 1)
    to_side = np.hypot(rho - bottom - share * side[0], z + half - share * side[1])
    to_cap = np.hypot(np.maximum(rho - np.where(z > 0, top, bottom), 0), np.abs(z) - half)
    inside = (np.abs(z) < half) & (rho < bottom + (z + half) / (2 * half) * (top - bottom))
    return np.where(inside, -1, 1) * np.minimum(to_side, to_cap)


def _distance_torus(size: tuple[float, ...], points: np.ndarray) -> np.ndarray:
    return np.hypot(np.hypot(points[:, 0], points[:, 1]) - size[0], points[:, 2]) - size[1]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.sqrt(dot(vectors, vectors)), 1e-12)[:, None]


_INTERSECT = {
    "ellipsoid": _intersect_ellipsoid,
    "box": _intersect_box,
    "frustum": _intersect_frustum,
    "torus": _intersect_torus,
}
_NORMAL = {"ellipsoid": _normal_ellipsoid, "box": _normal_box, "frustum": _normal_frustum, "torus": _normal_torus}
_DISTANCE = {
    "ellipsoid": _distance_ellipsoid,
    "box": _distance_box,
    "frustum": _distance_frustum,
    "torus": _distance_torus,
}
