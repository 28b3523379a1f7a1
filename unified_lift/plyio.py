"""PLY files, through plyfile: the only place that reads or writes the format."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from plyfile import PlyData, PlyElement, PlyListProperty

from unified_lift.errors import UserError
from unified_lift.fileio import replacing
from unified_lift.reading import reading
from unified_lift.types import PointCloud

_MAX_HEADER = 2**20  # bytes
_COLORS = ("red", "green", "blue")
_AT_ONCE = 2**15  # rows


class Rows(NamedTuple):
    """Rows of an element, as far as they were read."""

    data: np.ndarray  # structured [N], mapped from the file if that is binary
    file: BinaryIO
    comments: tuple[str, ...]  # of the whole header

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Walk over copies of all rows and where they stand, some at a time: what is mapped would stay in memory."""
        if isinstance(self.data, np.memmap):
            self.file.seek(self.data.offset)
        for first in range(0, len(self.data), _AT_ONCE):
            place = slice(first, min(first + _AT_ONCE, len(self.data)))
            block = self.data[place]
            if isinstance(self.data, np.memmap):
                block = np.fromfile(self.file, self.data.dtype, place.stop - first)
            yield place, block

    def whole(self) -> np.ndarray:
        """Return copies of all rows, so that the file can be replaced."""
        rows = np.empty(len(self.data), self.data.dtype)
        for place, block in self.blocks():
            rows[place] = block
        return rows


def read_vertices(path: Path) -> np.ndarray:
    """Return the vertices of an ASCII or binary PLY as a structured array, one field per property, [N].

    A UserError: no such file, no PLY, cut short, no vertices element, or a vertex property that is a list.
    """
    with opened(path) as elements:
        return elements["vertex"].whole()


@contextmanager
def opened(path: Path, *further: str) -> Iterator[dict[str, Rows]]:
    """Give the vertices and those `further` elements that are there, to be read in the block; as `read_vertices`."""
    fix, missing = "fetch or export it again", "no such file; restore it or correct the path"
    with reading(path, "PLY", fix=fix, missing=missing), open(path, "rb") as file:
        head = file.read(_MAX_HEADER).partition(b"end_header")[0]
        if any(int(count) > path.stat().st_size for count in re.findall(rb"(?m)^element\s+\S+\s+(\d+)", head)):
            raise ValueError("it says to hold more than its length allows")  # said before memory is taken for it
        file.seek(0)
        content = PlyData.read(file)  # maps the file; without that it reads number by number
        if "vertex" not in content:
            raise UserError(f"{path}: holds no vertices; export the points or Gaussians again")
        found = {"vertex": content["vertex"]} | {item.name: item for item in content if item.name in further}
        for name, element in found.items():
            lists = [item.name for item in element.properties if isinstance(item, PlyListProperty)]
            if lists:
                raise UserError(f"{path}: {name} property {lists[0]!r} is a list, not a number; export without it")
        told = (*content.comments, *content.obj_info, *(line for item in content for line in item.comments))
        yield {name: Rows(element.data, file, told) for name, element in found.items()}


def write_vertices(path: Path, vertices: np.ndarray) -> None:
    """Write a structured array as the vertices of a little-endian binary PLY, without comments, whole or not at all."""
    write_elements(path, {"vertex": vertices})


def write_elements(path: Path, elements: Mapping[str, np.ndarray]) -> None:
    """Write structured arrays as the elements of these names, in their order, as `write_vertices`."""
    with replacing(path) as partial:
        PlyData([PlyElement.describe(rows, name) for name, rows in elements.items()], byte_order="<").write(
            str(partial)
        )


def write_blocks(path: Path, blocks: Iterable[np.ndarray], *, count: int, comment: str = "") -> None:
    """Write `count` vertices that come in blocks of structured rows, one at least, as `write_vertices`.

    A comment comes last in the header: there are viewers that read its first three lines by their place.
    """
    told = f"comment {comment}\n" if comment else ""
    with replacing(path) as partial, open(partial, "wb") as file:
        for index, block in enumerate(blocks):
            if index == 0:
                alike = np.broadcast_to(np.zeros((), block.dtype), count)  # takes no memory
                header = PlyData([PlyElement.describe(alike, "vertex")], byte_order="<").header
                file.write(f"{header.removesuffix('end_header')}{told}end_header\n".encode())
            file.write(block.view(np.uint8).data)


def read_point_cloud(path: Path) -> PointCloud:
    """Return positions and colours of a PLY file; points that are not finite are dropped, missing colours are grey.

    Colours are 8-bit or 16-bit, or floats in [0, 1] or [0, 255]. A UserError names a file that is no point cloud.
    """
    vertices = read_vertices(path)
    names = set(vertices.dtype.names or ())
    if not {"x", "y", "z"} <= names:
        raise UserError(f"{path}: has no x, y, z; write a point cloud with these properties or use --random_init")
    positions = np.stack([vertices[axis] for axis in "xyz"], axis=1)
    colors = np.full((len(vertices), 3), 127, dtype=np.uint8)
    if set(_COLORS) <= names:
        values = np.stack([vertices[color] for color in _COLORS], axis=1)
        if values.dtype.kind == "f":
            values = np.nan_to_num(values)
            values = values * 255.0 if values.max(initial=0.0) <= 1.0 else values
        elif values.max(initial=0) > 255:  # 16 bits, as programs of surveyors write
            values = values / 257
        colors = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return finite_points(positions, colors)


def finite_points(positions: np.ndarray, colors: np.ndarray) -> PointCloud:
    """Return the cloud without points that are NaN or infinite."""
    keep = np.isfinite(positions).all(axis=1)
    return PointCloud(positions=positions[keep], colors=np.ascontiguousarray(colors[keep]))


def write_point_cloud(path: Path, cloud: PointCloud) -> None:
    """Write a binary PLY with x y z and red green blue."""
    kinds = [*((axis, "<f4") for axis in "xyz"), *((name, "u1") for name in _COLORS)]
    write_vertices(path, np.rec.fromarrays([*cloud.positions.T, *cloud.colors.T], dtype=kinds))
