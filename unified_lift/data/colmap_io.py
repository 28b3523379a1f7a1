"""COLMAP model files, binary and text: cameras, images, points3D.

Rigs and frames, which newer versions write beside them, and the tracks of points add nothing that a loader needs and
are not kept. All numbers are little-endian without padding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    return {
        int(key): ColmapCamera(model=model, width=int(width), height=int(height), params=tuple(params))
        for key, model, width, height, params in (_cameras_text if path.suffix == ".txt" else _cameras_binary)(path)
    }


def read_images(path: Path) -> dict[int, ColmapImage]:
    """Return the registered images by id; a UserError names a file that is cut short or malformed."""
    return {
        int(key): ColmapImage(
            qvec=tuple(pose[:4]), tvec=tuple(pose[4:]), camera_id=int(camera), name=name, points2d=points
        )
        for (key, *pose, camera), name, points in (_images_text if path.suffix == ".txt" else _images_binary)(path)
    }


def read_points(path: Path) -> ColmapPoints:
    """Return the sparse points; a UserError names a file that is cut short or malformed."""
    values = list((_points_text if path.suffix == ".txt" else _points_binary)(path))
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

    def records(self, layout: struct.Struct) -> Iterator[tuple]:
        return (self.take(layout) for _ in range(self.take(COUNT)[0]))

    def array(self, dtype: np.dtype, count: int) -> np.ndarray:
        return np.frombuffer(self.data, dtype=dtype, count=count, offset=self.skip(count * dtype.itemsize))

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        start = self.skip((end if end >= 0 else len(self.data)) + 1 - self.at)
        return self.data[start:end].decode("utf-8", "surrogateescape")


def _num_params(model: str, shown: str, path: Path) -> int:
    if model not in NUM_PARAMS:
        raise UserError(f"{path}: unknown camera model {shown}; run colmap image_undistorter to get PINHOLE cameras")
    return NUM_PARAMS[model]


def _cameras_binary(path: Path) -> Iterator[tuple]:
    cursor = _Cursor(path)
    for key, number, width, height in cursor.records(CAMERA):
        model = MODELS.get(number, ("", 0))[0]
        count = _num_params(model, str(number), path)
        yield key, model, width, height, cursor.array(np.dtype("<f8"), count).tolist()


def _cameras_text(path: Path) -> Iterator[tuple]:
    for line in _lines(path):
        words = [*line.split(), ""]
        count = _num_params(words[1], repr(words[1]), path)
        key, width, height, *params = _numbers([words[0], *words[2:-1]], path, line, at_least=3 + count)
        if len(params) > count:
            raise _malformed(path, line)
        yield key, words[1], width, height, params


def _images_binary(path: Path) -> Iterator[tuple]:
    cursor = _Cursor(path)
    for record in cursor.records(IMAGE):
        yield record, cursor.text(), cursor.array(POINT_2D, cursor.take(COUNT)[0])


def _images_text(path: Path) -> Iterator[tuple]:
    lines = _lines(path, keep_blank=True)
    for line in lines:
        if not line.strip():
            continue
        words = line.split(maxsplit=9)  # the name may hold spaces
        values = _numbers(next(lines, "").split(), path, line)  # the second line may be empty but is always there
        if len(words) < 10 or len(values) % 3:
            raise _malformed(path, line)
        points = np.empty(len(values) // 3, dtype=POINT_2D)
        points["xy"], points["point3d"] = np.reshape(values, (-1, 3))[:, :2], values[2::3]
        yield _numbers(words[:9], path, line), words[9].strip(), points


def _points_binary(path: Path) -> Iterator[Sequence[float]]:
    cursor = _Cursor(path)
    for *values, length in cursor.records(POINT_3D):
        cursor.skip(length * _TRACK_BYTES)
        yield values


def _points_text(path: Path) -> Iterator[Sequence[float]]:
    for line in _lines(path):
        values = _numbers(line.split(), path, line, at_least=8)
        if len(values) % 2:
            raise _malformed(path, line)
        yield values


def _lines(path: Path, *, keep_blank: bool = False) -> Iterator[str]:
    """Yield the lines without comments."""
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if not line.startswith("#") and (keep_blank or line.strip()):
                yield line.rstrip("\r\n")


def _numbers(words: Sequence[str], path: Path, line: str, *, at_least: int = 0) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise _malformed(path, line) from None
    if len(values) < at_least:
        raise _malformed(path, line)
    return values


def _malformed(path: Path, line: str) -> UserError:
    return UserError(f"{path}: cannot read the line {line[:60]!r}; copy or export the model again")
