"""COLMAP model files, binary and text: cameras, images, points3D.

Rigs and frames, which newer versions write beside them, add nothing that a loader needs and are not read. All numbers
are little-endian without padding.
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
_MODEL_IDS = {name: (model, count) for model, (name, count) in MODELS.items()}
_POINT_2D = np.dtype([("xy", "<f8", 2), ("point3d", "<i8")])
_POINT_3D = struct.Struct("<Q3d3BdQ")


@dataclass(frozen=True, kw_only=True)
class ColmapCamera:
    """A camera: model name, size in pixels and the model's parameters in COLMAP's order."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ColmapImage:
    """A registered image: world-to-camera quaternion wxyz and translation, camera id, name, 2D points."""

    qvec: tuple[float, ...]
    tvec: tuple[float, ...]
    camera_id: int
    name: str
    points2d: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=_POINT_2D))


@dataclass(frozen=True, kw_only=True)
class ColmapPoints:
    """The sparse points: ids [M], positions float64 [M, 3], colours uint8 [M, 3], errors in px [M], tracks."""

    ids: np.ndarray
    positions: np.ndarray
    colors: np.ndarray
    errors: np.ndarray
    tracks: tuple[np.ndarray, ...]


def table_path(folder: Path, table: str) -> Path | None:
    """Return `<table>.bin`, else `<table>.txt`, else None; binary wins as in COLMAP."""
    found = [path for path in (folder / f"{table}.bin", folder / f"{table}.txt") if path.is_file()]
    return found[0] if found else None


def read_cameras(path: Path) -> dict[int, ColmapCamera]:
    """Return the cameras by id.

    Raises:
        UserError: The file is cut short, malformed or names an unknown camera model.
    """
    return dict(_cameras_text(path) if path.suffix == ".txt" else _cameras_binary(path))


def read_images(path: Path) -> dict[int, ColmapImage]:
    """Return the registered images by id.

    Raises:
        UserError: The file is cut short or malformed.
    """
    return dict(_images_text(path) if path.suffix == ".txt" else _images_binary(path))


def read_points(path: Path) -> ColmapPoints:
    """Return the sparse points.

    Raises:
        UserError: The file is cut short or malformed.
    """
    rows = list(_points_text(path) if path.suffix == ".txt" else _points_binary(path))
    return ColmapPoints(
        ids=np.array([row[0] for row in rows], dtype=np.int64),
        positions=np.array([row[1:4] for row in rows], dtype=np.float64).reshape(-1, 3),
        colors=np.clip(np.array([row[4:7] for row in rows], dtype=np.int64), 0, 255).astype(np.uint8).reshape(-1, 3),
        errors=np.array([row[7] for row in rows], dtype=np.float64),
        tracks=tuple(row[8] for row in rows),
    )


class _Cursor:
    """Reads packed numbers from a file's bytes and names the file when they run out."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def take(self, layout: struct.Struct) -> tuple:
        end = self.at + layout.size
        if end > len(self.data):
            raise self.cut()
        values = layout.unpack_from(self.data, self.at)
        self.at = end
        return values

    def array(self, dtype: np.dtype, count: int) -> np.ndarray:
        end = self.at + count * dtype.itemsize
        if end > len(self.data):
            raise self.cut()
        values = np.frombuffer(self.data, dtype=dtype, count=count, offset=self.at)
        self.at = end
        return values

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise self.cut()
        value = self.data[self.at : end].decode("utf-8", "surrogateescape")
        self.at = end + 1
        return value

    def cut(self) -> UserError:
        return UserError(f"{self.path}: cut short after {len(self.data)} bytes; copy or export the model again")


_COUNT, _CAMERA, _IMAGE = struct.Struct("<Q"), struct.Struct("<IiQQ"), struct.Struct("<I7dI")
_TRACK = np.dtype([("image", "<u4"), ("point2d", "<u4")])


def _cameras_binary(path: Path) -> Iterator[tuple[int, ColmapCamera]]:
    cursor = _Cursor(path)
    for _ in range(cursor.take(_COUNT)[0]):
        key, model, width, height = cursor.take(_CAMERA)
        if model not in MODELS:
            raise UserError(
                f"{path}: unknown camera model {model}; run colmap image_undistorter to get PINHOLE cameras"
            )
        name, count = MODELS[model]
        params = tuple(cursor.array(np.dtype("<f8"), count).tolist())
        yield key, ColmapCamera(model=name, width=width, height=height, params=params)


def _images_binary(path: Path) -> Iterator[tuple[int, ColmapImage]]:
    cursor = _Cursor(path)
    for _ in range(cursor.take(_COUNT)[0]):
        key, *pose, camera = cursor.take(_IMAGE)
        name = cursor.text()
        points = cursor.array(_POINT_2D, cursor.take(_COUNT)[0])
        yield key, ColmapImage(qvec=tuple(pose[:4]), tvec=tuple(pose[4:]), camera_id=camera, name=name, points2d=points)


def _points_binary(path: Path) -> Iterator[tuple]:
    cursor = _Cursor(path)
    for _ in range(cursor.take(_COUNT)[0]):
        *values, length = cursor.take(_POINT_3D)
        yield (*values, cursor.array(_TRACK, length))


def _cameras_text(path: Path) -> Iterator[tuple[int, ColmapCamera]]:
    for line in _lines(path):
        words = line.split()
        model = words[1] if len(words) > 1 else ""
        if model not in _MODEL_IDS:
            raise UserError(
                f"{path}: unknown camera model {model!r}; run colmap image_undistorter to get PINHOLE cameras"
            )
        count = _MODEL_IDS[model][1]
        params = tuple(_numbers(words[4:], count, path, line))
        if len(params) > count:
            raise _malformed(path, line)
        width, height = _numbers(words[2:4], 2, path, line)
        yield int(words[0]), ColmapCamera(model=model, width=int(width), height=int(height), params=params)


def _images_text(path: Path) -> Iterator[tuple[int, ColmapImage]]:
    lines = _lines(path, keep_blank=True)
    for line in lines:
        if not line.strip():
            continue
        words = line.split(maxsplit=9)  # the name may hold spaces
        if len(words) < 10:
            raise _malformed(path, line)
        pose = _numbers(words[:9], 9, path, line)
        values = _numbers(next(lines, "").split(), 0, path, line)  # the second line may be empty but is always there
        if len(values) % 3:
            raise _malformed(path, line)
        points = np.empty(len(values) // 3, dtype=_POINT_2D)
        table = np.array(values).reshape(-1, 3)
        points["xy"], points["point3d"] = table[:, :2], table[:, 2]
        yield (
            int(pose[0]),
            ColmapImage(
                qvec=tuple(pose[1:5]),
                tvec=tuple(pose[5:8]),
                camera_id=int(pose[8]),
                name=words[9].strip(),
                points2d=points,
            ),
        )


def _points_text(path: Path) -> Iterator[tuple]:
    for line in _lines(path):
        values = _numbers(line.split(), 8, path, line)
        if len(values) % 2:
            raise _malformed(path, line)
        track = np.empty(len(values) // 2 - 4, dtype=_TRACK)
        track["image"], track["point2d"] = values[8::2], values[9::2]
        yield (int(values[0]), *values[1:4], *map(int, values[4:7]), values[7], track)


def _lines(path: Path, *, keep_blank: bool = False) -> Iterator[str]:
    """Yield the lines without comments."""
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if not line.startswith("#") and (keep_blank or line.strip()):
                yield line.rstrip("\r\n")


def _numbers(words: Sequence[str], at_least: int, path: Path, line: str) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise _malformed(path, line) from None
    if len(values) < at_least:
        raise _malformed(path, line)
    return values


def _malformed(path: Path, line: str) -> UserError:
    return UserError(f"{path}: cannot read the line {line[:60]!r}; copy or export the model again")
