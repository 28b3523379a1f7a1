"""Light on a plane: how much of it the things that stand there take away, found from the colours of the plane alone."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from torch import no_grad

from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import render
from unified_lift.ops.cameras import project
from unified_lift.types import Camera

_DIRECTIONS, _LAMPS = 128, 512  # from which light may come; in which a lamp is sought
_SPREAD = 17.0  # degrees, of the lamp: at least about the distance of the directions
_CLOSE, _CAP = 64, (24.0, 14.0)  # directions around the lamp that is found; degrees up to which they, and lamps, lie
_SPREADS = (7.0, 10.0, 14.0)  # of lamps there
_LOWEST = 0.25  # sine of the lowest elevation of a lamp
_RESOLUTION = 192  # pixels of the picture in which a direction sees what stands
_SOLID = (0.6, 1.0)  # alpha at which things hide nothing and all: Gaussians reach beyond the surface they make
_SHARES = np.linspace(0, 0.9, 10)  # of the light, that sky and lamp may give
_FIRST = 0.4  # both shares while the lamp is sought
_EDGE = 0.2  # difference of log luminance between pixels from which on it is an edge of the material
_STEPS = (1, 3)  # pixels between which luminances are compared
_ELSEWHERE = 0.1  # weight of places where the removed object can cast no shadow
_DARKEST = 0.03
_MIN_GAIN = 0.03  # by how much light must explain the picture better than none does


class Light(NamedTuple):
    """Shares of full light that reach the points of a plane with the removed object and without it, each [H, W]."""

    before: np.ndarray
    after: np.ndarray


def light_on(
    luminance: np.ndarray, known: np.ndarray, points: np.ndarray, normal: np.ndarray, rest: Gaussians, gone: Gaussians
) -> Light | None:
    """Return the light on a plane as the sum of a sky and one lamp of which `rest` and `gone` hide parts; None: neither
    explains the picture of the plane.

    Light = 1 - a (hidden share of the sky) - b (hidden share of the lamp), a and b >= 0, a + b <= 1. The materials of
    the plane are not known, so differences of log luminance to pixels 1 and 3 away are compared with those of log
    light, and large ones, edges of materials, count little [Geman-McClure]. Every direction of the hemisphere is tried,
    then smaller lamps close to the best one.
    Source: Sato, Sato, Ikeuchi, Illumination from shadows, PAMI 2003, with a lamp and a sky in place of many lamps.

    Args:
        luminance: Of the plane, [H, W]; `known` says where it is, bool [H, W].
        points: Places of its pixels, [H, W, 3].
        normal: Unit normal of the plane, [3].
    """
    directions, candidates = _hemisphere(normal, _DIRECTIONS), _hemisphere(normal, _LAMPS)
    candidates = candidates[candidates @ normal > _LOWEST]
    left, hidden = (_hidden(one, points, directions) for one in (rest, gone))
    both = 1 - (1 - left) * (1 - hidden)
    skies = both.mean(axis=0)
    seen = known & (luminance > 2 * _DARKEST)
    target = _differences(np.log(np.maximum(luminance, _DARKEST)), seen)
    weight = _differences(hidden.max(axis=0) + _ELSEWHERE, seen, sign=1)
    weight /= max(float(weight.sum()), 1e-9)

    def cost(sky: float, lamp: float, hides: np.ndarray) -> float:
        light = 1 - sky * skies - lamp * hides
        error = (target - _differences(np.log(np.maximum(light, _DARKEST)), seen)) ** 2
        return float((weight * error / (error + _EDGE**2)).sum())

    def best(lamps: np.ndarray, directions: np.ndarray, left: np.ndarray, both: np.ndarray, spread: float) -> _Lamp:
        near = np.maximum(lamps @ directions.T - np.cos(np.radians(spread)), 0)
        near /= near.sum(axis=1, keepdims=True)
        all_hide = np.tensordot(near, both, 1)
        costs = [cost(_FIRST, _FIRST, hides) for hides in all_hide]
        index = int(np.argmin(costs))
        return _Lamp(costs[index], lamps[index], all_hide[index], np.tensordot(near[index], left, 1))

    found = best(candidates, directions, left, both, _SPREAD)
    wide, narrow = np.cos(np.radians(_CAP))
    close = _hemisphere(found.direction, round(_CLOSE / (1 - wide**2)))
    close = close[(close @ found.direction > wide) & (close @ normal > 0)]
    near_left, near_hidden = (_hidden(one, points, close) for one in (rest, gone))
    near_both = 1 - (1 - near_left) * (1 - near_hidden)
    lamps = close[close @ found.direction > narrow]
    found = min(
        [found, *(best(lamps, close, near_left, near_both, spread) for spread in _SPREADS)], key=lambda one: one.cost
    )
    shares = [(sky, lamp) for sky in _SHARES for lamp in _SHARES if sky + lamp <= 1]
    costs = [cost(sky, lamp, found.hides) for sky, lamp in shares]
    if min(costs) >= (1 - _MIN_GAIN) * costs[0]:
        return None
    sky, lamp = shares[int(np.argmin(costs))]
    return Light(1 - sky * skies - lamp * found.hides, 1 - sky * left.mean(axis=0) - lamp * found.left)


class _Lamp(NamedTuple):
    """How badly it explains the picture, its direction [3], its shares hidden by all and by what is left, [H, W]."""

    cost: float
    direction: np.ndarray
    hides: np.ndarray
    left: np.ndarray


def _hemisphere(normal: np.ndarray, count: int) -> np.ndarray:
    """Return directions around a normal, as dense as the cosine with it, [count, 3]."""
    order = np.arange(count) + 0.5
    up, angle = np.sqrt(1 - order / count), order * np.pi * (3 - np.sqrt(5))
    first = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
    first /= np.linalg.norm(first)
    second = np.cross(normal, first)
    flat = np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second
    return np.sqrt(1 - up**2)[:, None] * flat + up[:, None] * normal


@no_grad()
def _hidden(gaussians: Gaussians, points: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return how much of each direction the Gaussians hide from points [H, W, 3], [K, H, W]."""
    flat, found = points.reshape(-1, 3), np.zeros((len(directions), *points.shape[:2]))
    centre = flat.mean(axis=0)
    radius = 1.3 * float(np.linalg.norm(flat - centre, axis=1).max())
    distance, middle = 60 * radius, _RESOLUTION / 2  # so far away that rays are nearly parallel
    focal = middle * distance / radius
    for out, direction in zip(found, directions, strict=True):
        if len(gaussians):
            right = np.cross(-direction, np.eye(3)[np.abs(direction).argmin()])
            right /= np.linalg.norm(right)
            pose = np.eye(4)
            pose[:3, :3] = np.stack([right, np.cross(-direction, right), -direction])
            pose[:3, 3] = -pose[:3, :3] @ (centre + distance * direction)
            lens = {"fx": focal, "fy": focal, "cx": middle, "cy": middle}
            camera = Camera(cam_from_world=pose, **lens, width=_RESOLUTION, height=_RESOLUTION)
            alpha = render(gaussians, camera, with_features=False).alpha.cpu().numpy()
            alpha = np.clip((alpha - _SOLID[0]) / (_SOLID[1] - _SOLID[0]), 0, 1)
            at = (project(flat, camera)[0] - 0.5).T[::-1]
            out[:] = ndimage.map_coordinates(alpha, at, order=1, cval=0).reshape(out.shape)
    return ndimage.gaussian_filter(found, (0, 1, 1))


def _differences(values: np.ndarray, known: np.ndarray, *, sign: int = -1) -> np.ndarray:
    """Return differences (with sign 1 sums) of known pixels [H, W] and those some steps before, in both axes, [n]."""
    found = []
    for step in _STEPS:
        for one, sure in ((values, known), (values.T, known.T)):
            found.append((one[step:] + sign * one[:-step])[sure[step:] & sure[:-step]])
    return np.concatenate(found)
