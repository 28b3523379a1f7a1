"""The room, and houses of rooms: where the objects are, how light falls on them, the exact picture a camera takes."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
from scipy import ndimage

from unified_lift.synthetic.objects import KINDS, SyntheticObject, build, table_parts
from unified_lift.synthetic.solids import Solid, dot, nonzero, unit
from unified_lift.synthetic.textures import DOOR_HEIGHT, DOOR_PAINT, DOOR_WIDTH, floor_color, smoothstep, wall_color
from unified_lift.types import Camera

MIN_OBJECTS_FOR_TABLE = 8  # from here on one of them is a table with some of the others on top
TABLE_HEIGHT = 0.62
SUBPIXELS = np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
LAMP_RADIUS = 0.7
CORNER_SHADE = 0.28
SKY = np.array([0.58, 0.60, 0.65])
BOUNCE = np.array([0.53, 0.47, 0.41])
SUNLIGHT = np.array([0.66, 0.61, 0.53])
WALL_THICKNESS = 0.05  # of half a room's width; it is between the rooms of a house

LightMap = Callable[[np.ndarray], np.ndarray]
"""Gives the shares of the lamp and of the sky that points [n, 3] on a horizontal square see, [2, n]."""


@dataclass(frozen=True)
class SyntheticRoom:
    """An analytic scene. Id 0 is the room itself (floor, rug, walls); objects carry ids from 1.

    Everything in it is in the room's frame, whose origin lies at `centre` [3] of the world, in the middle of the floor.
    `half` is half of the room's width in world units; all objects stand within the radius of the rug. `number` counts
    the rooms of a house; `doors` are the rooms behind walls +x, -x, +y, -y (0..3).
    """

    objects: tuple[SyntheticObject, ...]
    half: float
    height: float
    rug_radius: float
    number: int = 0
    centre: np.ndarray = field(default_factory=lambda: np.zeros(3))
    doors: dict[int, "SyntheticRoom"] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def solids(self) -> tuple[Solid, ...]:
        """Return all solids, object by object."""
        return tuple(solid for one in self.objects for solid in one.solids)

    @cached_property
    def owner(self) -> np.ndarray:
        """Return the object id of every solid, and 0 as last entry for the room, int32 [solids + 1]."""
        return np.array([one.object_id for one in self.objects for _ in one.solids] + [0], dtype=np.int32)

    def without(self, object_id: int) -> "SyntheticRoom":
        """Return the room as it is without an object, whose shadow goes too."""
        return replace(self, objects=tuple(one for one in self.objects if one.object_id != object_id))

    @cached_property
    def lamp(self) -> np.ndarray:
        """Return the centre of the lamp, a disc near the ceiling, [3]."""
        return np.array([-0.35 * self.half, -0.45 * self.half, 0.95 * self.height])

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which solid (len(solids): the room) rays from [3] or [n, 3] with unit directions meet, and how far."""
        walls = np.where(directions > 0, [self.half, self.half, self.height], [-self.half, -self.half, 0.0])
        nearest = np.minimum.reduce(((walls - origins) * (1 / nonzero(directions))).T.copy())
        which = np.full(len(directions), len(self.solids))
        for index, solid in enumerate(self.solids):
            t = solid.intersect(origins, directions)
            closer = t < nearest
            nearest[closer], which[closer] = t[closer], index
        return which, nearest

    def trace(self, origins: np.ndarray, directions: np.ndarray, *, lit: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the colours [n, 3] (lit) or ids [n] that rays as in `cast` end on, doors being open, and how far.

        Only rays through a door are traced in the room behind it: a view costs about as much as in a room alone.
        """
        which, t = self.cast(origins, directions)
        points, passed = origins + t[:, None] * directions, []
        width, height = self.half * DOOR_WIDTH, self.height * DOOR_HEIGHT
        for wall, behind in self.doors.items():
            axis, sides = wall // 2, [1 - wall // 2, 2]
            at_wall = (which == len(self.solids)) & (points[:, axis] * (-1) ** wall > self.half * (1 - 1e-9))
            rays = np.flatnonzero(at_wall & (np.abs(points[:, sides[0]]) < width) & (points[:, 2] < height))
            along = directions[rays]
            # A door is a tunnel: a ray ends on a side of it, which is part of this room, or leaves it into the other.
            limits = np.where(along[:, sides] > 0, [width, height], [-width, 0])
            to_side = ((limits - points[rays][:, sides]) / nonzero(along[:, sides])).min(axis=1)
            to_end = self.half * WALL_THICKNESS / np.abs(along[:, axis])
            ahead = np.minimum(to_side, to_end)
            t[rays] += ahead
            points[rays] += ahead[:, None] * along
            passed.append((behind, rays[to_side > to_end]))
        found = self.shade(points, which) if lit else self.owner[which]
        for behind, rays in ((behind, rays) for behind, rays in passed if rays.size):
            start = points[rays] + self.centre - behind.centre
            found[rays], further = behind.trace(start, directions[rays], lit=lit)
            t[rays] += further
        return found, t

    def render(self, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what a camera inside the room sees: colour uint8 [H, W, 3] by 2 x 2 rays a pixel, and by its centre
        ids int32 [H, W] and depth along the camera's z axis float32 [H, W].
        """
        height, width, rotation = camera.height, camera.width, camera.cam_from_world[:3, :3]
        corners = np.indices((height, width)).reshape(2, -1).T[:, ::-1].astype(float)
        rays, origin = _rays(camera, corners + 0.5), camera.position - self.centre
        ids, t = self.trace(origin, rays @ rotation, lit=False)
        depth = (t * rays[:, 2]).astype(np.float32)
        fine = _rays(camera, (corners[:, None] + SUBPIXELS).reshape(-1, 2)) @ rotation
        color, _ = self.trace(origin, fine, lit=True)
        color = color.reshape(height, width, len(SUBPIXELS), 3).mean(axis=2)
        picture = np.floor(np.clip(color * 255 + 0.5, 0, 255)).astype(np.uint8)
        return picture, ids.reshape(height, width), depth.reshape(height, width)

    def shade(self, points: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Return the colour in [0, 1] of points [n, 3] on the solids that `cast` named, the same from all sides."""
        color = np.empty_like(points)
        # One sort groups the points by solid; a mask for every solid would read all points that often.
        order = np.argsort(which, kind="stable")
        starts = np.searchsorted(which[order], np.arange(len(self.solids) + 2))
        for index in np.flatnonzero(np.diff(starts)).tolist():
            chosen = order[starts[index] : starts[index + 1]]
            shade = self._shade_room if index == len(self.solids) else partial(self._shade_object, index)
            color[chosen] = shade(points[chosen])
        return np.clip(color, 0, 1)

    def _light(self, points: np.ndarray, normals: np.ndarray, lamp: np.ndarray, sky: np.ndarray) -> np.ndarray:
        """Return the light that arrives, given the shares of lamp and sky that are not hidden, [n, 3]."""
        to_lamp = self.lamp - points
        facing = dot(normals, to_lamp) / np.sqrt(dot(to_lamp, to_lamp))
        ambient = BOUNCE + (SKY - BOUNCE) * (0.5 + 0.5 * normals[:, 2:])
        # A wrapped cosine: the large lamp also reaches a little behind the edge of a shape.
        direct = np.maximum((facing + 0.15) / 1.15, 0) * lamp
        return ambient * sky[:, None] + SUNLIGHT * direct[:, None]

    def _shade_object(self, index: int, points: np.ndarray) -> np.ndarray:
        solid = self.solids[index]
        under = next(one for one in self.objects if one.object_id == self.owner[index])
        normals = solid.normal(points)
        clearance = points[:, 2] - under.position[2]
        sky = 0.62 + 0.38 * smoothstep(clearance, 0.0, 0.35)
        lamp = np.ones(len(points))
        if under.kind == "table":
            top = (normals[:, 2] > 0.9) & (clearance > TABLE_HEIGHT - 0.01)
            lamp[top], sky[top] = self._table_light(points[top])
            lamp[(clearance < TABLE_HEIGHT - 0.09) | (normals[:, 2] < -0.9)] = 0.0
        return solid.color(points) * self._light(points, normals, lamp, sky)

    def _shade_room(self, points: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        gaps = np.stack([self.half - x, self.half + x, self.half - y, self.half + y, z, self.height - z])  # [6, n]
        face = gaps.argmin(axis=0)
        normals = np.array([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1.0]])[face]
        color = np.full_like(points, 0.92)
        walls, floor = face < 4, face == 4
        color[walls] = wall_color(points[walls], face[walls], [*self.doors], half=self.half, height=self.height)
        color[floor] = floor_color(points[floor], rug_radius=self.rug_radius, style=self.number)
        # Corners of a room are darker: every face but the point's own, at distance 0, takes its share of the sky.
        sky = np.prod(1 - CORNER_SHADE * np.exp(-gaps / (0.12 * self.half)), axis=0) / (1 - CORNER_SHADE)
        lamp = np.ones(len(points))
        lamp[floor], sky_share = self._floor_light(points[floor])
        sky[floor] *= sky_share
        # The sides of a door lie beyond the wall; two rooms show them, so that they have the light of neither.
        beyond = gaps.min(axis=0)[:, None] < -1e-9
        return np.where(beyond, 0.8 * DOOR_PAINT, color * self._light(points, normals, lamp, sky))

    @cached_property
    def _floor_light(self) -> LightMap:
        return self._light_map(np.zeros(3), 1.25 * self.rug_radius + 0.3, texels=112)

    @cached_property
    def _table_light(self) -> LightMap:
        table = next(one for one in self.objects if one.kind == "table")
        return self._light_map(table.position + [0, 0, TABLE_HEIGHT], table.radius, texels=48)

    def _light_map(self, centre: np.ndarray, half: float, *, texels: int) -> LightMap:
        """Return the light on the horizontal square around centre; 12 rays to the lamp and 12 to the sky a texel."""
        axis = (np.arange(texels) + 0.5) / texels * 2 * half - half
        grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        points = np.column_stack([grid + centre[:2], np.full(len(grid), centre[2] + 2e-3)])
        # A sunflower pattern: the evenest cheap spread of a few directions over a disc.
        order = np.arange(12) + 0.5
        rho, angle = np.sqrt(order / 12), order * np.pi * (3 - np.sqrt(5))
        disc = np.column_stack([rho * np.cos(angle), rho * np.sin(angle)])
        lamp = np.mean([self._free(points, self.lamp + [*(LAMP_RADIUS * spot), 0]) for spot in disc], axis=0)
        # Lifted from the disc to the hemisphere, directions weigh as the cosine of a diffuse surface does.
        sky = np.mean([self._free(points, points + [*(9 * d), 9 * np.sqrt(1 - d @ d)]) for d in disc], axis=0)
        values = np.stack([lamp, sky]).reshape(2, texels, texels).astype(np.float32)
        values = ndimage.gaussian_filter(values, (0, 0.9, 0.9), mode="nearest")

        def shares(points: np.ndarray) -> np.ndarray:
            at = ((points[:, :2] - centre[:2] + half) / (2 * half) * texels - 0.5).T[::-1]
            return np.stack([ndimage.map_coordinates(one, at, order=1, cval=1) for one in values])  # lit outside

        return shares

    def _free(self, points: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return 1 where nothing is between a point and its target, else 0, [n]."""
        ray = targets - points
        length = np.sqrt(dot(ray, ray))
        which, t = self.cast(points, ray / length[:, None])
        return ((which == len(self.solids)) | (t > length)).astype(float)


def _rays(camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """Return unit ray directions through corner-origin pixels, camera frame, [n, 3]."""
    x, y = (pixels[:, 0] - camera.cx) / camera.fx, (pixels[:, 1] - camera.cy) / camera.fy
    return unit(np.column_stack([x, y, np.ones(len(x))]))


def build_house(count: int, num_objects: int, seed: int) -> tuple[SyntheticRoom, ...]:
    """Return rooms on a grid of ceil(sqrt(count)) columns, as large as the largest, with doors between neighbours."""
    # A last word of 0 leaves a seed what it was: the first room is furnished as if it were alone.
    rooms = [build_room(num_objects, np.random.default_rng([seed, 0, number]), number) for number in range(count)]
    half, height = max(room.half for room in rooms), max(room.height for room in rooms)
    columns, pitch = int(np.ceil(count**0.5)), (2 + WALL_THICKNESS) * half
    for n, room in enumerate(rooms):
        rooms[n] = replace(room, half=half, height=height, centre=pitch * np.array([n % columns, n // columns, 0]))
    for n, room in enumerate(rooms):
        for wall, step in ((0, 1), (2, columns)):
            if n + step < count and (wall == 2 or (n + 1) % columns):
                room.doors[wall], rooms[n + step].doors[wall + 1] = rooms[n + step], room
    return tuple(rooms)


def build_room(num_objects: int, rng: np.random.Generator, number: int = 0) -> SyntheticRoom:
    """Return a furnished room; ids and kinds go on where those of the room before, `number` - 1, end.

    The last two objects are twins side by side (with four objects or more).
    """
    with_table = num_objects >= MIN_OBJECTS_FOR_TABLE
    count = num_objects - with_table
    # One kind after the other, a new hue each round.
    rounds = (divmod(number * count + index, len(KINDS)) for index in range(count))
    kinds = [(list(KINDS)[index], 0.37 * turn) for turn, index in rounds]
    scales = rng.uniform(0.27, 0.4, count)
    if count > 3:
        kinds[-1] = kinds[-2]
        scales[-1] = scales[-2] = 0.27
    num_on_table = round(0.3 * count) if with_table else 0
    scales[:num_on_table] = np.minimum(scales[:num_on_table], 0.3)
    table_radius = 0.45 + 0.16 * num_on_table if with_table else 0.0
    spots, rug_radius = _arrange(scales, num_on_table, table_radius, rng)
    first, parts = number * num_objects + 1, table_parts(table_radius, TABLE_HEIGHT)
    table = SyntheticObject(first, "table", "table", np.zeros(3), table_radius, parts)
    objects = [table] if with_table else []
    for (kind, shift), scale, spot, yaw in zip(kinds, scales, spots, rng.uniform(0, 2 * np.pi, count), strict=True):
        tint = KINDS[kind] + shift
        solids = tuple(part.placed(scale=scale, position=spot, yaw=yaw) for part in build(kind, tint))
        objects.append(SyntheticObject(first + len(objects), kind, f"{kind} (hue {tint % 1:.2f})", spot, scale, solids))
    return SyntheticRoom(tuple(objects), 2.35 * rug_radius, 1.75 * rug_radius, rug_radius, number)


def _arrange(
    scales: np.ndarray, num_on_table: int, table_radius: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return the place of each object [n, 3] and the rug's radius; footprints (1.15 x scale) never overlap."""
    spots = np.zeros((len(scales), 3))
    for index in range(num_on_table):
        angle = 2 * np.pi * index / num_on_table + 0.4
        reach = table_radius - 0.34 if num_on_table > 1 else 0.0
        spots[index] = reach * np.cos(angle), reach * np.sin(angle), TABLE_HEIGHT
    footprints, outer = 1.15 * scales, table_radius + 0.9
    twin = len(scales) - 2 if len(scales) > 3 else len(scales)
    for index in range(num_on_table, min(twin + 1, len(scales))):
        radius = footprints[index] * (2.1 if index == twin else 1)
        on_floor = slice(num_on_table, index)
        for throw in itertools.count(1):
            angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0, 1)) * outer
            spots[index] = reach * np.cos(angle), reach * np.sin(angle), 0.0
            apart = np.linalg.norm(spots[on_floor] - spots[index], axis=1)
            if (apart > footprints[on_floor] + radius).all() and (not table_radius or reach >= table_radius + radius):
                break
            if throw % 60 == 0:  # it is too narrow
                outer *= 1.06
    if len(scales) > 3:
        spot = spots[twin]
        side = np.array([-spot[1], spot[0], 0]) / max(np.hypot(*spot[:2]), 1e-6) * footprints[twin]
        spots[twin:] = spot - side, spot + side
    return spots, outer + 0.35
