"""Solids that a ray meets at a closed-form point: ellipsoid, box, frustum (cylinder, cone) and torus.

The functions of a shape work in the solid's own frame, a rigid change of coordinates: t is a distance in world units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from unified_lift.synthetic.textures import Rgb, mix, pattern_share

Shape = Literal["ellipsoid", "box", "frustum", "torus"]
Size = tuple[float, ...]

MIN_T = 1e-4  # a hit closer than this is the surface the ray starts on
TORUS_ARRIVED = 1e-5  # distance at which a march to a torus ends
TORUS_STEPS = 200  # of the march; the few rays that need more only graze the torus, and count as passing by


@dataclass(frozen=True)
class Solid:
    """A textured solid.

    Attributes:
        size: ellipsoid: three radii; box: three half sizes; frustum: radius at the bottom, radius at the top, half
            height along local z; torus: ring radius in the local xy plane, tube radius.
        centre: World units, [3].
        colors: The two colours of its pattern, in [0, 1].
        pattern: What `pattern_share` can draw.
        frequency: Repeats of the pattern per world unit (around the axis for wedges).
        rotation: world_from_local, [3, 3].
    """

    shape: Shape
    size: Size
    centre: np.ndarray
    colors: tuple[Rgb, Rgb]
    pattern: str = "plain"
    frequency: float = 1.0
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))

    @property
    def bounding_radius(self) -> float:
        """Return the radius of a sphere around `centre` that holds the solid."""
        return float(_SURFACES[self.shape].reach(self.size))

    def placed(self, *, scale: float, position: np.ndarray, yaw: float) -> Solid:
        """Return the solid scaled, turned about z, then moved so that the origin lies at `position` [3]."""
        turn = turn_about_z(yaw)
        return replace(
            self,
            size=tuple(scale * value for value in self.size),
            centre=position + turn @ (scale * self.centre),
            rotation=turn @ self.rotation,
            # Wedges count repeats around the axis, which do not depend on size.
            frequency=self.frequency if self.pattern == "wedges" else self.frequency / scale,
        )

    def local(self, points: np.ndarray) -> np.ndarray:
        """Return world points in the solid's frame, [n, 3]."""
        return (points - self.centre) @ self.rotation

    def color(self, points: np.ndarray) -> np.ndarray:
        """Return the unlit colour at world points on the surface, [n, 3]."""
        return mix(*self.colors, pattern_share(self.pattern, self.local(points), self.frequency))

    def intersect(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Return the distance along rays from [3] or [n, 3] with unit directions to the first hit, inf: none, [n]."""
        to_centre = np.atleast_2d(self.centre - origins)
        along = dot(directions, to_centre)
        away = dot(to_centre, to_centre) - along * along
        radius = self.bounding_radius
        near = np.flatnonzero((away <= radius * radius) & (along > -radius))
        hit = np.full(len(directions), np.inf)
        if near.size:
            start = origins if origins.ndim == 1 else origins[near]
            start = np.broadcast_to(self.local(start), (near.size, 3))
            hit[near] = _SURFACES[self.shape].intersect(self.size, start, directions[near] @ self.rotation)
        return hit

    def normal(self, points: np.ndarray) -> np.ndarray:
        """Return outward unit normals at world points on the surface, [n, 3]."""
        return _SURFACES[self.shape].normal(self.size, self.local(points)) @ self.rotation.T

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Return the signed distance to the surface, negative inside, [n] (first order for an ellipsoid)."""
        return _SURFACES[self.shape].distance(self.size, self.local(points))


def dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return row-wise scalar products of [n, 3] and [n, 3] or [1, 3]: column by column, as short rows sum slowly."""
    return first[:, 0] * second[:, 0] + first[:, 1] * second[:, 1] + first[:, 2] * second[:, 2]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors [n, 3] at length one."""
    return vectors / np.maximum(np.sqrt(dot(vectors, vectors)), 1e-12)[:, None]


def turn_about_z(angle: float) -> np.ndarray:
    """Return the rotation by an angle about z, [3, 3]."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def _nearest(*candidates: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the smallest t in front of the ray of all (t, whether it is on the surface), infinite without one."""
    return np.minimum.reduce([np.where(ok & (t > MIN_T), t, np.inf) for t, ok in candidates])


def _quadratic(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both roots of a t^2 + 2 b t + c, and where they are real."""
    root = b * b - a * c
    real = root >= 0
    root = np.sqrt(np.maximum(root, 0))
    return (-b - root) / a, (-b + root) / a, real


def nonzero(values: np.ndarray) -> np.ndarray:
    """Return values with zeros moved to a tiny number, so that a parallel ray divides to something huge."""
    return np.where(np.abs(values) < 1e-12, 1e-12, values)


def _intersect_ellipsoid(size: Size, start: np.ndarray, ray: np.ndarray) -> np.ndarray:
    o, d = start / size, ray / size
    near, far, real = _quadratic(dot(d, d), dot(o, d), dot(o, o) - 1)
    return _nearest((near, real), (far, real))


def _intersect_box(size: Size, start: np.ndarray, ray: np.ndarray) -> np.ndarray:
    inverse = 1 / nonzero(ray)
    low, high = (np.negative(size) - start) * inverse, (size - start) * inverse
    enter = np.maximum.reduce(np.minimum(low, high).T.copy())
    leave = np.minimum.reduce(np.maximum(low, high).T.copy())
    return _nearest((enter, enter <= leave), (leave, enter <= leave))


def _intersect_frustum(size: Size, start: np.ndarray, ray: np.ndarray) -> np.ndarray:
    bottom, top, half = size
    slope, middle = (top - bottom) / (2 * half), (top + bottom) / 2
    radius = middle + slope * start[:, 2]
    # Side: x^2 + y^2 = (middle + slope z)^2, a quadratic in t.
    a = nonzero(ray[:, 0] ** 2 + ray[:, 1] ** 2 - (slope * ray[:, 2]) ** 2)
    b = start[:, 0] * ray[:, 0] + start[:, 1] * ray[:, 1] - slope * ray[:, 2] * radius
    *roots, real = _quadratic(a, b, start[:, 0] ** 2 + start[:, 1] ** 2 - radius**2)
    candidates = [(t, real & (np.abs(start[:, 2] + t * ray[:, 2]) <= half)) for t in roots]
    for height, cap in ((-half, bottom), (half, top)):
        t = (height - start[:, 2]) / nonzero(ray[:, 2])
        x, y = start[:, 0] + t * ray[:, 0], start[:, 1] + t * ray[:, 1]
        candidates.append((t, x * x + y * y <= cap * cap))
    return _nearest(*candidates)


def _intersect_torus(size: Size, start: np.ndarray, ray: np.ndarray) -> np.ndarray:
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
    t[active] = np.inf
    return np.where(t < farthest, t, np.inf)


def _normal_frustum(size: Size, points: np.ndarray) -> np.ndarray:
    bottom, top, half = size
    slope = (top - bottom) / (2 * half)
    rho = np.hypot(points[:, 0], points[:, 1])
    to_side = np.abs(rho - (top + bottom) / 2 - slope * points[:, 2])
    side = unit(np.column_stack([points[:, :2], -slope * rho]))
    return np.where((half - np.abs(points[:, 2]) < to_side)[:, None], np.sign(points) * [0, 0, 1], side)


def _distance_ellipsoid(size: Size, points: np.ndarray) -> np.ndarray:
    # Level of the quadric over the length of its gradient: exact on the surface and to first order around it.
    level = np.linalg.norm(points / size, axis=1)
    gradient = np.linalg.norm(points / np.square(size), axis=1)
    return level * (level - 1) / np.maximum(gradient, 1e-9)


def _distance_box(size: Size, points: np.ndarray) -> np.ndarray:
    beyond = np.abs(points) - np.asarray(size)
    return np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(1), 0)


def _distance_frustum(size: Size, points: np.ndarray) -> np.ndarray:
    # The half plane (rho, z): distance to the slanted side segment and to the two caps.
    bottom, top, half = size
    rho, z = np.hypot(points[:, 0], points[:, 1]), points[:, 2]
    side = np.array([top - bottom, 2 * half])
    share = np.clip(((rho - bottom) * side[0] + (z + half) * side[1]) / (side @ side), 0, 1)
    to_side = np.hypot(rho - bottom - share * side[0], z + half - share * side[1])
    to_cap = np.hypot(np.maximum(rho - np.where(z > 0, top, bottom), 0), np.abs(z) - half)
    inside = (np.abs(z) < half) & (rho < bottom + (z + half) / (2 * half) * (top - bottom))
    return np.where(inside, -1, 1) * np.minimum(to_side, to_cap)


def _distance_torus(size: Size, points: np.ndarray) -> np.ndarray:
    return np.hypot(np.hypot(points[:, 0], points[:, 1]) - size[0], points[:, 2]) - size[1]


class _Surface(NamedTuple):
    """What a shape is: radius of a sphere around it; distance of a ray's hit; unit normals; signed distances."""

    reach: Callable[[Size], Any]
    intersect: Callable[[Size, np.ndarray, np.ndarray], np.ndarray]
    normal: Callable[[Size, np.ndarray], np.ndarray]
    distance: Callable[[Size, np.ndarray], np.ndarray]


_SURFACES: dict[Shape, _Surface] = {  # of size s, at points p
    "ellipsoid": _Surface(max, _intersect_ellipsoid, lambda s, p: unit(p / np.square(s)), _distance_ellipsoid),
    "box": _Surface(
        np.linalg.norm, _intersect_box, lambda s, p: np.eye(3)[(abs(p) - s).argmax(1)] * np.sign(p), _distance_box
    ),
    "frustum": _Surface(lambda s: np.hypot(max(s[:2]), s[2]), _intersect_frustum, _normal_frustum, _distance_frustum),
    "torus": _Surface(sum, _intersect_torus, lambda s, p: unit(p - s[0] * unit(p * [1, 1, 0])), _distance_torus),
}
