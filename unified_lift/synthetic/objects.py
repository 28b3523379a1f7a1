"""The synthetic objects: a few solids each, in a unit frame (on z = 0, footprint radius about 1, height about 2)."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unified_lift.synthetic.solids import Shape, Size, Solid, turn_about_z
from unified_lift.synthetic.textures import Rgb

KINDS = {"duck": 0.14, "mushroom": 0.0, "gift": 0.78, "plant": 0.05, "rocket": 0.60, "donut": 0.92, "ball": 0.55}
KINDS |= {"tree": 0.38, "mug": 0.47, "cone": 0.06, "cube": 0.68, "books": 0.0, "lamp": 0.10}
"""What `build` can make -> hue of the first of its kind."""
CREAM, BROWN = (0.97, 0.92, 0.80), (0.45, 0.28, 0.17)
UPRIGHT = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # tilts a ring from lying to standing (handles)
FORWARD = np.array([[0, 0, 1.0], [0, 1, 0], [-1, 0, 0]])  # turns the z axis of a solid to +x (noses, bills)


@dataclass(frozen=True)
class SyntheticObject:
    """An object of the room: id from 1, kind (in `KINDS`, or `table`), kind and colour, place [3], footprint radius."""

    object_id: int
    kind: str
    name: str
    position: np.ndarray
    radius: float
    solids: tuple[Solid, ...]

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and upper corner of a box around the object, each [3]."""
        low = np.min([solid.centre - solid.bounding_radius for solid in self.solids], axis=0)
        high = np.max([solid.centre + solid.bounding_radius for solid in self.solids], axis=0)
        return low, high


def _part(shape: Shape, size: Size, centre: Sequence[float], *looks: Any, **turned: Any) -> Solid:
    return Solid(shape, size, np.array(centre, dtype=float), *looks, **turned)


def _shade(color: Rgb, factor: float = 0.86) -> tuple[Rgb, Rgb]:
    return color, (color[0] * factor, color[1] * factor, color[2] * factor)


def build(kind: str, tint: float) -> list[Solid]:
    """Return the solids of an object of a kind in the hue `tint`, one turn of the colour circle = 1."""

    def hue(saturation: float = 0.72, brightness: float = 0.92, *, shift: float = 0.0) -> Rgb:
        return colorsys.hsv_to_rgb((tint + shift) % 1, saturation, brightness)

    paper = (hue(), hue(0.5, 1, shift=0.45))
    needles = (hue(0.65, 0.62), hue(0.6, 0.8, shift=-0.05))
    down = _shade(hue(0.75, 0.97))
    fins = [
        _part("box", (0.3, 0.07, 0.35), (0.55 * x, 0.55 * y, 0.4), _shade(hue(0.8)), rotation=turn_about_z(angle))
        for angle in np.arange(3) * 2 * np.pi / 3
        for x, y in [(np.cos(angle), np.sin(angle))]
    ]
    covers = [_shade(hue(0.7, 0.8, shift=0.3 * n)) for n in range(3)]
    return {
        "ball": [_part("ellipsoid", (0.9, 0.9, 0.9), (0, 0, 0.9), (hue(), CREAM), "wedges", 4)],
        "gift": [
            _part("box", (0.7, 0.7, 0.6), (0, 0, 0.6), paper, "ribbon"),
            _part("box", (0.76, 0.76, 0.13), (0, 0, 1.22), paper, "ribbon"),
            _part("ellipsoid", (0.3, 0.17, 0.17), (0, 0, 1.45), _shade(paper[1])),
        ],
        "mug": [
            _part("frustum", (0.62, 0.7, 0.75), (-0.15, 0, 0.75), (hue(0.65), CREAM), "rings", 1.3),
            _part("frustum", (0.6, 0.6, 0.01), (-0.15, 0, 1.505), _shade(BROWN)),
            _part("torus", (0.38, 0.12), (0.56, 0, 0.78), _shade(hue(0.65)), rotation=UPRIGHT),
        ],
        "donut": [_part("torus", (0.6, 0.38), (0, 0, 0.38), ((0.86, 0.62, 0.34), hue(0.55, 0.97)), "icing")],
        "mushroom": [
            _part("frustum", (0.42, 0.3, 0.5), (0, 0, 0.5), _shade(CREAM)),
            _part("ellipsoid", (0.95, 0.95, 0.62), (0, 0, 1.15), (hue(0.85, 0.85), CREAM), "dots", 1.6),
        ],
        "tree": [
            _part("frustum", (0.22, 0.22, 0.25), (0, 0, 0.25), _shade(BROWN)),
            _part("frustum", (0.92, 0.04, 0.45), (0, 0, 0.75), needles, "leaves", 0.9),
            _part("frustum", (0.74, 0.04, 0.42), (0, 0, 1.25), needles, "leaves", 0.9),
            _part("frustum", (0.54, 0.04, 0.4), (0, 0, 1.75), needles, "leaves", 0.9),
        ],
        "duck": [
            _part("ellipsoid", (0.95, 0.72, 0.58), (-0.05, 0, 0.58), down),
            _part("ellipsoid", (0.5, 0.5, 0.5), (0.42, 0, 1.4), down),
            _part("frustum", (0.24, 0.06, 0.18), (0.94, 0, 1.33), _shade((0.95, 0.45, 0.1)), rotation=FORWARD),
            *(_part("ellipsoid", (0.1, 0.1, 0.1), (0.78, y, 1.55), _shade((0.08, 0.08, 0.1), 1)) for y in (0.3, -0.3)),
        ],
        "rocket": [
            _part("frustum", (0.45, 0.5, 0.8), (0, 0, 1.0), ((0.93, 0.94, 0.96), hue(0.8)), "rings", 0.8),
            _part("frustum", (0.5, 0.03, 0.4), (0, 0, 2.2), _shade(hue(0.8))),
            *fins,
        ],
        "plant": [
            _part("frustum", (0.45, 0.66, 0.42), (0, 0, 0.42), (hue(), hue(brightness=0.7)), "rings", 1.6),
            _part("ellipsoid", (0.85, 0.85, 0.75), (0, 0, 1.45), ((0.1, 0.38, 0.16), (0.48, 0.76, 0.3)), "leaves", 0.8),
        ],
        "books": [
            _part("box", (0.85, 0.62, 0.18), (0, 0, 0.18), covers[0]),
            _part("box", (0.78, 0.55, 0.18), (0, 0, 0.54), covers[1], rotation=turn_about_z(0.35)),
            _part("box", (0.7, 0.5, 0.18), (0, 0, 0.18 + 0.72), covers[2], rotation=turn_about_z(-0.2)),
        ],
        "lamp": [
            _part("frustum", (0.55, 0.5, 0.08), (0, 0, 0.08), _shade(BROWN)),
            _part("frustum", (0.13, 0.13, 0.6), (0, 0, 0.7), _shade((0.75, 0.6, 0.3))),
            _part("frustum", (0.85, 0.5, 0.45), (0, 0, 1.6), (hue(0.35, 1), hue(0.6, 0.95)), "wedges", 10),
        ],
        "cone": [
            _part("box", (0.72, 0.72, 0.1), (0, 0, 0.1), _shade(hue(0.88, 0.95))),
            _part("frustum", (0.55, 0.1, 0.85), (0, 0, 1.05), (hue(0.88, 0.95), (0.97, 0.97, 0.97)), "rings", 1.25),
        ],
        "cube": [_part("box", (0.66, 0.66, 0.66), (0, 0, 0.66), (hue(0.75), hue(0.45, 1, shift=0.12)), "checker", 1.5)],
    }[kind]


def table_parts(radius: float, height: float) -> tuple[Solid, ...]:
    """Return a round table of the given radius and height, already in world units."""
    wood = ((0.96, 0.84, 0.64), (0.86, 0.68, 0.46))
    return (
        _part("frustum", (radius, radius, 0.05), (0, 0, height - 0.05), wood, "grain", 1.6),
        _part("frustum", (0.2, 0.12, height / 2 - 0.05), (0, 0, height / 2 - 0.05), wood),
        _part("frustum", (0.5 * radius, 0.42 * radius, 0.04), (0, 0, 0.04), wood),
    )
