"""The tables of a COLMAP model: cameras, images and points3D, binary or text, as COLMAP or people write them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from unified_lift.errors import UserError
from unified_lift.fileio import text_encoding

MODELS: dict[int, tuple[str, str]] = {
    0: ("SIMPLE_PINHOLE", "f cx cy"),
    1: ("PINHOLE", "fx fy cx cy"),
    2: ("SIMPLE_RADIAL", "f cx cy k1"),
    3: ("RADIAL", "f cx cy k1 k2"),
    4: ("OPENCV", "fx fy cx cy k1 k2 p1 p2"),
    5: ("OPENCV_FISHEYE", "fx fy cx cy k1 k2 k3 k4"),
    6: ("FULL_OPENCV", "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6"),
    7: ("FOV", "fx fy cx cy omega"),
    8: ("SIMPLE_RADIAL_FISHEYE", "f cx cy k1"),
    9: ("RADIAL_FISHEYE", "f cx cy k1 k2"),
    10: ("THIN_PRISM_FISHEYE", "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1"),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", "fx fy cx cy k0 k1 k2 k3 k4 k5 p0 p1 s0 s1 s2 s3"),
    12: ("SIMPLE_DIVISION", "f cx cy k"),
    13: ("DIVISION", "fx fy cx cy k"),
    14: ("SIMPLE_FISHEYE", "f cx cy"),
    15: ("FISHEYE", "fx fy cx cy"),
    16: ("EUCM", "fx fy cx cy alpha beta"),
    17: ("EQUIRECTANGULAR", "w h"),
}
"""Camera model id -> name and parameters; without every count a reader loses its place in the file."""
PARAMS = {model: names.split() for model, names in MODELS.values()}
POINT_2D = np.dtype([("xy", "<f8", 2), ("point3d", "<i8")])
"""A 2D point of an image: pixel, and the id of its 3D point or -1."""
COUNT, CAMERA, IMAGE, POINT_3D = (struct.Struct(layout) for layout in ("<Q", "<IiQQ", "<I7dI", "<Q3d3BdQ"))
"""The packed little-endian records of the binary files; variable parts follow each."""
Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class ColmapCamera:
    """A camera: model name, size in pixels and parameters, in the order of `MODELS`."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ColmapImage:
    """A registered image: world-to-camera quaternion wxyz and translation, camera id, name, 2D points (`POINT_2D`)."""

    qvec: tuple[float, ...]
    tvec: tuple[float, ...]
    camera_id: int
    name: str
    points2d: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=POINT_2D))


@dataclass(frozen=True, kw_only=True)
class ColmapPoints:
    """The sparse points: ids [M], positions float64 [M, 3], colours uint8 [M, 3]."""

    ids: np.ndarray
    positions: np.ndarray
    colors: np.ndarray


def table_path(folder: Path, table: str) -> Path | None:
    """Return `<table>.bin`, else `<table>.txt`, else None; binary wins as in COLMAP."""
    return next((path for end in ("bin", "txt") if (path := folder / f"{table}.{end}").is_file()), None)


def num_records(path: Path) -> int:
    """Return how many records a table has: what a binary one says, the lines of a text one."""
    if path.suffix == ".txt":
        return sum(bool(line.strip()) for line in text_lines(path))
    with path.open("rb") as file:
        return COUNT.unpack(file.read(COUNT.size).ljust(COUNT.size, b"\0"))[0]


def read_cameras(path: Path) -> dict[int, ColmapCamera]:
    """Return the cameras by id; a UserError names a file that is cut short, malformed or of an unknown model."""

    def num_params(model: str, shown: object) -> int:
        if model not in PARAMS:
            fix = "run colmap image_undistorter to get PINHOLE cameras"
            raise UserError(f"{path}: unknown camera model {shown}; {fix}")
        return len(PARAMS[model])

    def from_line(line: str, _: _Lines) -> tuple:
        first, model, *others = line.partition("#")[0].upper().split()
        count = num_params(model, repr(model))
        key, width, height, *params = map(float, (first, *others))
        if len(params) != count:
            raise ValueError(line)
        return int(key), ColmapCamera(model=model, width=int(width), height=int(height), params=tuple(params))

    def from_bytes(cursor: _Cursor) -> tuple:
        key, number, width, height = cursor.take(CAMERA)
        model = MODELS.get(number, ("",))[0]
        params = cursor.array(np.dtype("<f8"), num_params(model, number)).tolist()
        return key, ColmapCamera(model=model, width=width, height=height, params=tuple(params))

    return dict(_records(path, from_line, from_bytes))


def read_images(path: Path) -> dict[int, ColmapImage]:
    """Return the registered images by id; a UserError names a file that is cut short or malformed."""

    def image(numbers: Iterable[float], name: str, points: np.ndarray) -> tuple:
        key, *pose, camera = numbers
        qvec, tvec = tuple(pose[:4]), tuple(pose[4:])
        return int(key), ColmapImage(qvec=qvec, tvec=tvec, camera_id=int(camera), name=name, points2d=points)

    def from_line(line: str, following: _Lines) -> tuple:
        words = line.split(maxsplit=9)  # the name may hold spaces
        # The line of 2D points may be empty; who writes the table by hand may leave it out.
        values = np.array((following.take_if(_holds_points) or "").split(), dtype=np.float64).reshape(-1, 3)
        points = np.empty(len(values), dtype=POINT_2D)
        known = np.abs(values[:, 2]) < 2**63  # else the number of no point, NaN included
        points["xy"], points["point3d"] = values[:, :2], np.where(known, values[:, 2], -1)
        return image(map(float, words[:9]), words[9].strip(), points)

    def from_bytes(cursor: _Cursor) -> tuple:
        return image(cursor.take(IMAGE), cursor.text(), cursor.array(POINT_2D, cursor.take(COUNT)[0]))

    return dict(_records(path, from_line, from_bytes))


def read_points(path: Path) -> ColmapPoints:
    """Return the sparse points; a UserError names a file that is cut short or malformed."""

    def point(values: Sequence[float]) -> Sequence[float]:
        if not abs(values[0]) < 2**63 or not np.isfinite(values[4:7]).all():  # of a position: later, and by point
            raise UserError(f"{path}: point {values[0]} has no number or no colour; copy or export the model again")
        return values

    def from_line(line: str, _: _Lines) -> Sequence[float]:
        values = [float(word) for word in line.partition("#")[0].split()]
        if len(values) != 7 and (len(values) < 8 or len(values) % 2):  # written by hand they may end with the colour
            raise ValueError(line)
        return point(values)

    def from_bytes(cursor: _Cursor) -> Sequence[float]:
        *values, length = cursor.take(POINT_3D)
        cursor.skip(8 * length)  # the track: so many bytes an observation
        return point(values)

    values = list(_records(path, from_line, from_bytes))
    return ColmapPoints(
        ids=np.array([row[0] for row in values], dtype=np.int64),
        positions=np.array([row[1:4] for row in values], dtype=np.float64).reshape(-1, 3),
        colors=np.array([row[4:7] for row in values]).clip(0, 255).astype(np.uint8).reshape(-1, 3),
    )


def _holds_points(line: str) -> bool:
    """Return whether a line of images.txt holds 2D points, x y id each, rather than the next image."""
    words = line.split(maxsplit=12)
    try:
        list(map(float, words[9:12]))  # where an image has its name
    except ValueError:
        return False
    return len(words) % 3 == 0 or len(words) > 12


class _Cursor:
    """Reads packed numbers from a file's bytes and names the file when they run out."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def skip(self, size: int) -> int:
        """Move on by `size` bytes and return where they begin."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise UserError(f"{self.path}: cut short after {len(self.data)} bytes; copy or export the model again")
        return start

    def take(self, layout: struct.Struct) -> tuple:
        return layout.unpack_from(self.data, self.skip(layout.size))

    def array(self, dtype: np.dtype, count: int) -> np.ndarray:
        return np.frombuffer(self.data, dtype=dtype, count=count, offset=self.skip(count * dtype.itemsize))

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        start = self.skip((end if end >= 0 else len(self.data)) + 1 - self.at)
        return self.data[start:end].decode("utf-8", "surrogateescape")


class _Lines:
    """Lines one after the other, of which the next can be taken only if it is what it should be."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines, self._next = iter(lines), list[str]()

    def __iter__(self) -> Iterator[str]:
        while (line := self.take_if(lambda _: True)) is not None:
            yield line

    def take_if(self, fits: Callable[[str], bool]) -> str | None:
        """Return the next line if it fits, else None: it then stays the next."""
        if not self._next:
            self._next = [line for line in [next(self._lines, None)] if line is not None]
        return self._next.pop() if self._next and fits(self._next[0]) else None


def _records(
    path: Path, from_line: Callable[[str, _Lines], Record], from_bytes: Callable[[_Cursor], Record]
) -> Iterator[Record]:
    """Yield the records of a text file, each from a line and those that follow it, or of a binary one."""
    if path.suffix != ".txt":
        cursor = _Cursor(path)
        for _ in range(cursor.take(COUNT)[0]):
            yield from_bytes(cursor)
        return
    lines = _Lines(text_lines(path))
    for line in lines:
        try:
            if line.strip():
                yield from_line(line, lines)
        except UserError:
            raise
        except (ValueError, IndexError, OverflowError):
            what = f"cannot read the line {line[:60]!r}"
            raise UserError(f"{path}: {what}; copy or export the model again") from None


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file without comments and line ends, however it is coded."""
    with path.open(encoding=text_encoding(path), errors="surrogateescape") as file:
        yield from (line.rstrip("\r\n") for line in file if not line.lstrip().startswith("#"))
