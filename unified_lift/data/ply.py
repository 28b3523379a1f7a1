"""Coloured point clouds in PLY files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unified_lift.errors import UserError
from unified_lift.plyio import read_vertices, write_vertices
from unified_lift.types import PointCloud

_COLORS = ("red", "green", "blue")
_GREY = 127


def read_point_cloud(path: Path) -> PointCloud:
    """Return positions and colours of a PLY file; points that are not finite are dropped, missing colours are grey.

    Colours are 8-bit, or floats in [0, 1] or [0, 255]. Other elements and properties are ignored.

    Raises:
        UserError: The file is missing, cut short or no point cloud.
    """
    rows = read_vertices(path)
    names = set(rows.dtype.names or ())
    if not {"x", "y", "z"} <= names:
        raise UserError(f"{path}: has no x, y, z; write a point cloud with these properties or use --random_init")
    positions = np.stack([rows[axis] for axis in "xyz"], axis=1).astype(np.float32)
    colors = np.full((len(rows), 3), _GREY, dtype=np.uint8)
    if set(_COLORS) <= names:
        colors = _to_bytes(np.stack([rows[color] for color in _COLORS], axis=1))
    return finite_points(positions, colors)


def finite_points(positions: np.ndarray, colors: np.ndarray) -> PointCloud:
    """Return the cloud without points that are NaN or infinite."""
    keep = np.isfinite(positions).all(axis=1)
    return PointCloud(positions=positions[keep].astype(np.float32), colors=np.ascontiguousarray(colors[keep]))


def write_point_cloud(path: Path, cloud: PointCloud) -> None:
    """Write a binary PLY with x y z and red green blue."""
    rows = np.empty(len(cloud.positions), [(axis, "<f4") for axis in "xyz"] + [(color, "u1") for color in _COLORS])
    for column, axis in enumerate("xyz"):
        rows[axis] = cloud.positions[:, column]
    for column, color in enumerate(_COLORS):
        rows[color] = cloud.colors[:, column]
    write_vertices(path, rows)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Return colours as uint8; floats are read as [0, 1] unless they exceed one."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
        values = values * 255.0 if values.max(initial=0.0) <= 1.0 else values
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
