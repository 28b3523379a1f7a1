"""The synthetic objects: a few solids each, in a unit frame (on z = 0, footprint radius about 1, height about 2)."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unified_lift.synthetic.solids import Shape, Solid, turn_about_z
from unified_lift.synthetic.textures import Rgb

CREAM: Rgb = (0.97, 0.92, 0.80)
BROWN: Rgb = (0.45, 0.28, 0.17)
EYE: Rgb = (0.08, 0.08, 0.1)
# Tilts a ring from lying flat to standing upright (handles).
UPRIGHT = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
# Turns the z axis of a solid to +x (noses, bills).
FORWARD = np.array([[0, 0, 1.0], [0, 1, 0], [-1, 0, 0]])


@dataclass(frozen=True, kw_only=True)
class SyntheticObject:
    """An object of the room.

    Attributes:
        object_id: Its id in the annotations, 1-based.
        kind: Name in `BUILDERS`, or `table`.
        name: Kind and colour in words, for listings.
        position: Its place, world units, [3].
        radius: Radius of its footprint, world units.
        solids: Its solids in world coordinates.
    """

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


def _part(
    shape: Shape,
    size: tuple[float, ...],
    centre: Sequence[float],
    colors: tuple[Rgb, Rgb],
    pattern: str = "plain",
    frequency: float = 1.0,
    rotation: np.ndarray | None = None,
) -> Solid:
    rotation = np.eye(3) if rotation is None else rotation
    return Solid(shape, size, np.array(centre, dtype=float), rotation, colors, pattern, frequency)


def _hue(hue: float, saturation: float = 0.72, brightness: float = 0.92) -> Rgb:
    return colorsys.hsv_to_rgb(hue % 1, saturation, brightness)


def _shade(color: Rgb, factor: float = 0.86) -> tuple[Rgb, Rgb]:
    return color, (color[0] * factor, color[1] * factor, color[2] * factor)


def _ball(tint: float) -> list[Solid]:
    return [_part("ellipsoid", (0.9, 0.9, 0.9), (0, 0, 0.9), (_hue(tint), CREAM), "wedges", 4)]


def _gift(tint: float) -> list[Solid]:
    colors = (_hue(tint), _hue(tint + 0.45, 0.5, 1))
    return [
        _part("box", (0.7, 0.7, 0.6), (0, 0, 0.6), colors, "ribbon"),
        _part("box", (0.76, 0.76, 0.13), (0, 0, 1.22), colors, "ribbon"),
        _part("ellipsoid", (0.3, 0.17, 0.17), (0, 0, 1.45), _shade(colors[1])),
    ]


def _mug(tint: float) -> list[Solid]:
    color = _hue(tint, 0.65)
    return [
        _part("frustum", (0.62, 0.7, 0.75), (-0.15, 0, 0.75), (color, CREAM), "rings", 1.3),
        _part("frustum", (0.6, 0.6, 0.01), (-0.15, 0, 1.505), _shade(BROWN)),
        _part("torus", (0.38, 0.12), (0.56, 0, 0.78), _shade(color), rotation=UPRIGHT),
    ]


def _donut(tint: float) -> list[Solid]:
    return [_part("torus", (0.6, 0.38), (0, 0, 0.38), ((0.86, 0.62, 0.34), _hue(tint, 0.55, 0.97)), "icing")]


def _mushroom(tint: float) -> list[Solid]:
    return [
        _part("frustum", (0.42, 0.3, 0.5), (0, 0, 0.5), _shade(CREAM)),
        _part("ellipsoid", (0.95, 0.95, 0.62), (0, 0, 1.15), (_hue(tint, 0.85, 0.85), CREAM), "dots", 1.6),
    ]


def _tree(tint: float) -> list[Solid]:
    colors = (_hue(tint, 0.65, 0.62), _hue(tint - 0.05, 0.6, 0.8))
    layers = [(0.92, 0.75, 0.45), (0.74, 1.25, 0.42), (0.54, 1.75, 0.4)]
    crown = [_part("frustum", (radius, 0.04, half), (0, 0, z), colors, "leaves", 0.9) for radius, z, half in layers]
    return [_part("frustum", (0.22, 0.22, 0.25), (0, 0, 0.25), _shade(BROWN)), *crown]


def _duck(tint: float) -> list[Solid]:
    color = _hue(tint, 0.75, 0.97)
    return [
        _part("ellipsoid", (0.95, 0.72, 0.58), (-0.05, 0, 0.58), _shade(color)),
        _part("ellipsoid", (0.5, 0.5, 0.5), (0.42, 0, 1.4), _shade(color)),
        _part("frustum", (0.24, 0.06, 0.18), (0.94, 0, 1.33), _shade((0.95, 0.45, 0.1)), rotation=FORWARD),
        _part("ellipsoid", (0.1, 0.1, 0.1), (0.78, 0.3, 1.55), (EYE, EYE)),
        _part("ellipsoid", (0.1, 0.1, 0.1), (0.78, -0.3, 1.55), (EYE, EYE)),
    ]


def _rocket(tint: float) -> list[Solid]:
    body, accent = (0.93, 0.94, 0.96), _hue(tint, 0.8)
    angles = np.arange(3) * 2 * np.pi / 3
    centres = [(0.55 * np.cos(angle), 0.55 * np.sin(angle), 0.4) for angle in angles]
    return [
        _part("frustum", (0.45, 0.5, 0.8), (0, 0, 1.0), (body, accent), "rings", 0.8),
        _part("frustum", (0.5, 0.03, 0.4), (0, 0, 2.2), _shade(accent)),
        *(
            _part("box", (0.3, 0.07, 0.35), centre, _shade(accent), rotation=turn_about_z(angle))
            for centre, angle in zip(centres, angles, strict=True)
        ),
    ]


def _plant(tint: float) -> list[Solid]:
    leaves: tuple[Rgb, Rgb] = ((0.10, 0.38, 0.16), (0.48, 0.76, 0.30))
    return [
        _part("frustum", (0.45, 0.66, 0.42), (0, 0, 0.42), (_hue(tint), _hue(tint, brightness=0.7)), "rings", 1.6),
        _part("ellipsoid", (0.85, 0.85, 0.75), (0, 0, 1.45), leaves, "leaves", 0.8),
    ]


def _books(tint: float) -> list[Solid]:
    sizes = [(0.85, 0.62, 0.18), (0.78, 0.55, 0.18), (0.7, 0.5, 0.18)]
    return [
        _part(
            "box", size, (0, 0, 0.18 + 0.36 * n), _shade(_hue(tint + 0.3 * n, 0.7, 0.8)), rotation=turn_about_z(angle)
        )
        for n, (size, angle) in enumerate(zip(sizes, (0.0, 0.35, -0.2), strict=True))
    ]


def _lamp(tint: float) -> list[Solid]:
    return [
        _part("frustum", (0.55, 0.5, 0.08), (0, 0, 0.08), _shade(BROWN)),
        _part("frustum", (0.13, 0.13, 0.6), (0, 0, 0.7), _shade((0.75, 0.6, 0.3))),
        _part("frustum", (0.85, 0.5, 0.45), (0, 0, 1.6), (_hue(tint, 0.35, 1), _hue(tint, 0.6, 0.95)), "wedges", 10),
    ]


def _cone(tint: float) -> list[Solid]:
    color = _hue(tint, 0.88, 0.95)
    return [
        _part("box", (0.72, 0.72, 0.1), (0, 0, 0.1), _shade(color)),
        _part("frustum", (0.55, 0.1, 0.85), (0, 0, 1.05), (color, (0.97, 0.97, 0.97)), "rings", 1.25),
    ]


def _cube(tint: float) -> list[Solid]:
    colors = (_hue(tint, 0.75), _hue(tint + 0.12, 0.45, 1))
    return [_part("box", (0.66, 0.66, 0.66), (0, 0, 0.66), colors, "checker", 1.5)]


def table_parts(radius: float, height: float) -> list[Solid]:
    """Return a round table of the given radius and height, already in world units."""
    wood: tuple[Rgb, Rgb] = ((0.96, 0.84, 0.64), (0.86, 0.68, 0.46))
    return [
        _part("frustum", (radius, radius, 0.05), (0, 0, height - 0.05), wood, "grain", 1.6),
        _part("frustum", (0.2, 0.12, height / 2 - 0.05), (0, 0, height / 2 - 0.05), wood),
        _part("frustum", (0.5 * radius, 0.42 * radius, 0.04), (0, 0, 0.04), wood),
    ]


# kind -> (builder, hue of the first of its kind)
BUILDERS: dict[str, tuple[Callable[[float], list[Solid]], float]] = {
    "duck": (_duck, 0.14),
    "mushroom": (_mushroom, 0.0),
    "gift": (_gift, 0.78),
    "plant": (_plant, 0.05),
    "rocket": (_rocket, 0.60),
    "donut": (_donut, 0.92),
    "ball": (_ball, 0.55),
    "tree": (_tree, 0.38),
    "mug": (_mug, 0.47),
    "cone": (_cone, 0.06),
    "cube": (_cube, 0.68),
    "books": (_books, 0.0),
    "lamp": (_lamp, 0.10),
}
