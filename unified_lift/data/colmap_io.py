"""COLMAP model files, binary and text: cameras, images, points3D.

Rigs and frames, which newer versions write beside them, and the tracks of points add nothing that a loader needs and
are not kept. All numbers are little-endian without padding.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from unified_lift.errors import UserError

MODELS: dict[int, tuple[str, int]] = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 6),
    17: ("EQUIRECTANGULAR", 2),
}
"""Camera model id -> name and number of parameters; without every count a reader loses its place in the file."""
NUM_PARAMS = dict(MODELS.values())
POINT_2D = np.dtype([("xy", "<f8", 2), ("point3d", "<i8")])
"""A 2D point of an image: pixel, and the id of its 3D point or -1."""
COUNT, CAMERA, IMAGE, POINT_3D = (struct.Struct(layout) for layout in ("<Q", "<IiQQ", "<I7dI", "<Q3d3BdQ"))
"""The packed records of the binary files; variable parts follow each."""
Record = TypeVar("Record")
_TRACK_BYTES = 8  # of each observation of a 3D point


@dataclass(frozen=True, kw_only=True)
class ColmapCamera:
    """A camera: model name, size in pixels and the model's parameters in COLMAP's order."""

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
    paths = (folder / f"{table}.bin", folder / f"{table}.txt")
    return next((path for path in paths if path.is_file()), None)


def read_cameras(path: Path) -> dict[int, ColmapCamera]:
    """Return the cameras by id; a UserError names a file that is cut short, malformed or of an unknown model."""

    def camera(key: float, model: str, width: float, height: float, params: Iterable[float]) -> tuple:
        return int(key), ColmapCamera(model=model, width=int(width), height=int(height), params=tuple(params))

    def from_line(line: str, _: Iterator[str]) -> tuple:
        first, model, *others = line.split()
        count = _num_params(model, repr(model), path)
        key, width, height, *params = map(float, (first, *others))
        if len(params) != count:
            raise ValueError(line)
        return camera(key, model, width, height, params)

    def from_bytes(cursor: _Cursor) -> tuple:
        key, number, width, height = cursor.take(CAMERA)
        model = MODELS.get(number, ("", 0))[0]
        count = _num_params(model, str(number), path)
        return camera(key, model, width, height, cursor.array(np.dtype("<f8"), count).tolist())

    return dict(_records(path, from_line, from_bytes))


def read_images(path: Path) -> dict[int, ColmapImage]:
    """Return the registered images by id; a UserError names a file that is cut short or malformed."""

    def image(numbers: Iterable[float], name: str, points: np.ndarray) -> tuple:
        key, *pose, camera = numbers
        qvec, tvec = tuple(pose[:4]), tuple(pose[4:])
        return int(key), ColmapImage(qvec=qvec, tvec=tvec, camera_id=int(camera), name=name, points2d=points)

    def from_line(line: str, following: Iterator[str]) -> tuple:
        words = line.split(maxsplit=9)  # the name may hold spaces
        values = np.array(next(following, "").split(), dtype=np.float64).reshape(-1, 3)  # may be empty, is always there
        points = np.empty(len(values), dtype=POINT_2D)
        points["xy"], points["point3d"] = values[:, :2], values[:, 2]
        return image(map(float, words[:9]), words[9].strip(), points)

    def from_bytes(cursor: _Cursor) -> tuple:
        return image(cursor.take(IMAGE), cursor.text(), cursor.array(POINT_2D, cursor.take(COUNT)[0]))

    return dict(_records(path, from_line, from_bytes))


def read_points(path: Path) -> ColmapPoints:
    """Return the sparse points; a UserError names a file that is cut short or malformed."""

    def from_line(line: str, _: Iterator[str]) -> Sequence[float]:
        values = [float(word) for word in line.split()]
        if len(values) < 8 or len(values) % 2:
            raise ValueError(line)
        return values

    def from_bytes(cursor: _Cursor) -> Sequence[float]:
        *values, length = cursor.take(POINT_3D)
        cursor.skip(length * _TRACK_BYTES)
        return values

    values = list(_records(path, from_line, from_bytes))
    return ColmapPoints(
        ids=np.array([row[0] for row in values], dtype=np.int64),
        positions=np.array([row[1:4] for row in values], dtype=np.float64).reshape(-1, 3),
        colors=np.array([row[4:7] for row in values]).clip(0, 255).astype(np.uint8).reshape(-1, 3),
    )


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


def _records(
    path: Path, from_line: Callable[[str, Iterator[str]], Record], from_bytes: Callable[[_Cursor], Record]
) -> Iterator[Record]:
    """Yield the records of a text file, each from a line and those that follow it, or of a binary one."""
    if path.suffix != ".txt":
        cursor = _Cursor(path)
        for _ in range(cursor.take(COUNT)[0]):
            yield from_bytes(cursor)
        return
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        lines = (line.rstrip("\r\n") for line in file if not line.startswith("#"))
        for line in lines:
            try:
                if line.strip():
                    yield from_line(line, lines)
            except UserError:
                raise
            except (ValueError, IndexError, OverflowError):
                what = f"cannot read the line {line[:60]!r}"
                raise UserError(f"{path}: {what}; copy or export the model again") from None


def _num_params(model: str, shown: str, path: Path) -> int:
    if model not in NUM_PARAMS:
        raise UserError(f"{path}: unknown camera model {shown}; run colmap image_undistorter to get PINHOLE cameras")
    return NUM_PARAMS[model]
