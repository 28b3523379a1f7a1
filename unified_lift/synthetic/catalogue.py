"""The toys: each a few solids in a unit frame (standing on z = 0, footprint radius about 1, height about 2)."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unified_lift.synthetic.solids import Shape, Solid
from unified_lift.synthetic.textures import Rgb, Texture

CREAM: Rgb = (0.97, 0.92, 0.80)
BROWN: Rgb = (0.45, 0.28, 0.17)
# Tilts a ring from lying flat to standing upright (handles).
UPRIGHT = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
# Turns the z axis of a solid to +x (noses, bills).
FORWARD = np.array([[0, 0, 1.0], [0, 1, 0], [-1, 0, 0]])


@dataclass(frozen=True, kw_only=True)
class Part:
    """A solid of a toy in the toy's unit frame. Fields as in `Solid` and `Texture`."""

    shape: Shape
    size: tuple[float, ...]
    centre: tuple[float, float, float]
    colors: tuple[Rgb, Rgb]
    pattern: str = "plain"
    frequency: float = 1.0
    rotation: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Toy:
    """An object of the room.

    Attributes:
        object_id: Its id in the annotations, 1-based.
        kind: Name in `CATALOGUE`.
        name: Kind and colour in words, for listings.
        position: Where it stands, world units, [3].
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
        """Return the lower and upper corner of a box around the toy, each [3]."""
        low = np.min([solid.centre - solid.bounding_radius for solid in self.solids], axis=0)
        high = np.max([solid.centre + solid.bounding_radius for solid in self.solids], axis=0)
        return low, high


def hue(value: float, *, saturation: float = 0.72, brightness: float = 0.92) -> Rgb:
    """Return the colour of a hue in [0, 1)."""
    return colorsys.hsv_to_rgb(value % 1, saturation, brightness)


def _shade(color: Rgb, factor: float = 0.86) -> tuple[Rgb, Rgb]:
    return color, (color[0] * factor, color[1] * factor, color[2] * factor)


def _ball(tint: float) -> list[Part]:
    return [
        Part(
            shape="ellipsoid",
            size=(0.9, 0.9, 0.9),
            centre=(0, 0, 0.9),
            pattern="wedges",
            frequency=4,
            colors=(hue(tint), CREAM),
        ),
    ]


def _gift(tint: float) -> list[Part]:
    colors = (hue(tint), hue(tint + 0.45, saturation=0.5, brightness=1))
    return [
        Part(shape="box", size=(0.7, 0.7, 0.6), centre=(0, 0, 0.6), pattern="ribbon", colors=colors),
        Part(shape="box", size=(0.76, 0.76, 0.13), centre=(0, 0, 1.22), pattern="ribbon", colors=colors),
        Part(shape="ellipsoid", size=(0.3, 0.17, 0.17), centre=(0, 0, 1.45), colors=_shade(colors[1])),
    ]


def _mug(tint: float) -> list[Part]:
    color = hue(tint, saturation=0.65)
    return [
        Part(
            shape="frustum",
            size=(0.62, 0.7, 0.75),
            centre=(-0.15, 0, 0.75),
            pattern="rings",
            frequency=1.3,
            colors=(color, CREAM),
        ),
        Part(shape="frustum", size=(0.6, 0.6, 0.01), centre=(-0.15, 0, 1.505), colors=_shade(BROWN)),
        Part(shape="torus", size=(0.38, 0.12), centre=(0.56, 0, 0.78), rotation=UPRIGHT, colors=_shade(color)),
    ]


def _donut(tint: float) -> list[Part]:
    dough: Rgb = (0.86, 0.62, 0.34)
    return [
        Part(
            shape="torus",
            size=(0.6, 0.38),
            centre=(0, 0, 0.38),
            pattern="icing",
            colors=(dough, hue(tint, saturation=0.55, brightness=0.97)),
        ),
    ]


def _mushroom(tint: float) -> list[Part]:
    return [
        Part(shape="frustum", size=(0.42, 0.3, 0.5), centre=(0, 0, 0.5), colors=_shade(CREAM)),
        Part(
            shape="ellipsoid",
            size=(0.95, 0.95, 0.62),
            centre=(0, 0, 1.15),
            pattern="dots",
            frequency=1.6,
            colors=(hue(tint, saturation=0.85, brightness=0.85), CREAM),
        ),
    ]


def _tree(tint: float) -> list[Part]:
    green = hue(tint, saturation=0.65, brightness=0.62)
    bright = hue(tint - 0.05, saturation=0.6, brightness=0.8)
    layers = [(0.92, 0.75, 0.45), (0.74, 1.25, 0.42), (0.54, 1.75, 0.4)]
    return [Part(shape="frustum", size=(0.22, 0.22, 0.25), centre=(0, 0, 0.25), colors=_shade(BROWN))] + [
        Part(
            shape="frustum",
            size=(radius, 0.04, half),
            centre=(0, 0, z),
            pattern="leaves",
            frequency=0.9,
            colors=(green, bright),
        )
        for radius, z, half in layers
    ]


def _duck(tint: float) -> list[Part]:
    color = hue(tint, saturation=0.75, brightness=0.97)
    eye: Rgb = (0.08, 0.08, 0.1)
    return [
        Part(shape="ellipsoid", size=(0.95, 0.72, 0.58), centre=(-0.05, 0, 0.58), colors=_shade(color)),
        Part(shape="ellipsoid", size=(0.5, 0.5, 0.5), centre=(0.42, 0, 1.4), colors=_shade(color)),
        Part(
            shape="frustum",
            size=(0.24, 0.06, 0.18),
            centre=(0.94, 0, 1.33),
            rotation=FORWARD,
            colors=_shade((0.95, 0.45, 0.1)),
        ),
        Part(shape="ellipsoid", size=(0.1, 0.1, 0.1), centre=(0.78, 0.3, 1.55), colors=(eye, eye)),
        Part(shape="ellipsoid", size=(0.1, 0.1, 0.1), centre=(0.78, -0.3, 1.55), colors=(eye, eye)),
    ]


def _rocket(tint: float) -> list[Part]:
    body, accent = (0.93, 0.94, 0.96), hue(tint, saturation=0.8)
    fins = [
        Part(
            shape="box",
            size=(0.3, 0.07, 0.35),
            centre=(0.55 * np.cos(a), 0.55 * np.sin(a), 0.4),
            rotation=_turn(a),
            colors=_shade(accent),
        )
        for a in np.arange(3) * 2 * np.pi / 3
    ]
    return [
        Part(
            shape="frustum",
            size=(0.45, 0.5, 0.8),
            centre=(0, 0, 1.0),
            pattern="rings",
            frequency=0.8,
            colors=(body, accent),
        ),
        Part(shape="frustum", size=(0.5, 0.03, 0.4), centre=(0, 0, 2.2), colors=_shade(accent)),
        *fins,
    ]


def _plant(tint: float) -> list[Part]:
    return [
        Part(
            shape="frustum",
            size=(0.45, 0.66, 0.42),
            centre=(0, 0, 0.42),
            pattern="rings",
            frequency=1.6,
            colors=(hue(tint), hue(tint, brightness=0.7)),
        ),
        Part(
            shape="ellipsoid",
            size=(0.85, 0.85, 0.75),
            centre=(0, 0, 1.45),
            pattern="leaves",
            frequency=0.8,
            colors=((0.10, 0.38, 0.16), (0.48, 0.76, 0.30)),
        ),
    ]


def _books(tint: float) -> list[Part]:
    parts = []
    for level, (length, width, angle) in enumerate([(0.85, 0.62, 0.0), (0.78, 0.55, 0.35), (0.7, 0.5, -0.2)]):
        parts.append(
            Part(
                shape="box",
                size=(length, width, 0.18),
                centre=(0, 0, 0.18 + 0.36 * level),
                rotation=_turn(angle),
                colors=_shade(hue(tint + 0.3 * level, saturation=0.7, brightness=0.8)),
            ),
        )
    return parts


def _lamp(tint: float) -> list[Part]:
    return [
        Part(shape="frustum", size=(0.55, 0.5, 0.08), centre=(0, 0, 0.08), colors=_shade(BROWN)),
        Part(shape="frustum", size=(0.13, 0.13, 0.6), centre=(0, 0, 0.7), colors=_shade((0.75, 0.6, 0.3))),
        Part(
            shape="frustum",
            size=(0.85, 0.5, 0.45),
            centre=(0, 0, 1.6),
            pattern="wedges",
            frequency=10,
            colors=(hue(tint, saturation=0.35, brightness=1), hue(tint, saturation=0.6, brightness=0.95)),
        ),
    ]


def _cone(tint: float) -> list[Part]:
    color = hue(tint, saturation=0.88, brightness=0.95)
    return [
        Part(shape="box", size=(0.72, 0.72, 0.1), centre=(0, 0, 0.1), colors=_shade(color)),
        Part(
            shape="frustum",
            size=(0.55, 0.1, 0.85),
            centre=(0, 0, 1.05),
            pattern="rings",
            frequency=1.25,
            colors=(color, (0.97, 0.97, 0.97)),
        ),
    ]


def _cube(tint: float) -> list[Part]:
    return [
        Part(
            shape="box",
            size=(0.66, 0.66, 0.66),
            centre=(0, 0, 0.66),
            pattern="checker",
            frequency=1.5,
            colors=(hue(tint, saturation=0.75), hue(tint + 0.12, saturation=0.45, brightness=1)),
        ),
    ]


def table_parts(radius: float, height: float) -> list[Part]:
    """Return a round table of the given radius and height, already in world units."""
    wood: tuple[Rgb, Rgb] = ((0.96, 0.84, 0.64), (0.86, 0.68, 0.46))
    return [
        Part(
            shape="frustum",
            size=(radius, radius, 0.05),
            centre=(0, 0, height - 0.05),
            colors=wood,
            pattern="grain",
            frequency=1.6,
        ),
        Part(shape="frustum", size=(0.2, 0.12, height / 2 - 0.05), centre=(0, 0, height / 2 - 0.05), colors=wood),
        Part(shape="frustum", size=(0.5 * radius, 0.42 * radius, 0.04), centre=(0, 0, 0.04), colors=wood),
    ]


def _turn(angle: float) -> np.ndarray:
    """Return the rotation by an angle about z, [3, 3]."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


# kind -> (builder, hue of the first of its kind)
CATALOGUE: dict[str, tuple[Callable[[float], list[Part]], float]] = {
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


def place(parts: list[Part], *, scale: float, position: np.ndarray, yaw: float) -> tuple[Solid, ...]:
    """Return parts as world solids: scaled, turned about z, then moved so that z = 0 stands at `position` [3]."""
    turn = _turn(yaw)
    solids = []
    for part in parts:
        texture = Texture(pattern=part.pattern, colors=part.colors, frequency=_world_frequency(part, scale))
        solids.append(
            Solid(
                shape=part.shape,
                size=tuple(scale * value for value in part.size),
                centre=position + turn @ (scale * np.asarray(part.centre, dtype=float)),
                rotation=turn if part.rotation is None else turn @ part.rotation,
                texture=texture,
            )
        )
    return tuple(solids)


def _world_frequency(part: Part, scale: float) -> float:
    # Wedges count repeats around the axis, which do not depend on size.
    return part.frequency if part.pattern == "wedges" else part.frequency / scale
