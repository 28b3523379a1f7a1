"""Coloured point clouds in PLY files: ASCII and binary of either byte order."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from unified_lift.types import PointCloud, UserError

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_COLORS = ("red", "green", "blue")
_GREY = 127


def read_point_cloud(path: Path) -> PointCloud:
    """Return positions and colours of a PLY file; points that are not finite are dropped, missing colours are grey.

    Colours are 8-bit, or floats in [0, 1] or [0, 255]. Other elements and properties are ignored.

    Raises:
        UserError: The file is missing, cut short or no point cloud.
    """
    try:
        with path.open("rb") as file:
            order, fields, count = _read_header(file, path)
            rows = _read_rows(file, path, order=order, fields=fields, count=count)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it or use --random_init") from None
    if not {"x", "y", "z"} <= set(rows.dtype.names or ()):
        raise UserError(f"{path}: has no x, y, z; write a point cloud with these properties or use --random_init")
    positions = np.stack([rows[axis] for axis in "xyz"], axis=1).astype(np.float32)
    colors = np.full((len(rows), 3), _GREY, dtype=np.uint8)
    if set(_COLORS) <= set(rows.dtype.names or ()):
        values = np.stack([rows[color] for color in _COLORS], axis=1)
        colors = _to_bytes(values)
    return finite_points(positions, colors)


def finite_points(positions: np.ndarray, colors: np.ndarray) -> PointCloud:
    """Return the cloud without points that are NaN or infinite."""
    keep = np.isfinite(positions).all(axis=1)
    return PointCloud(positions=positions[keep].astype(np.float32), colors=np.ascontiguousarray(colors[keep]))


def write_point_cloud(path: Path, cloud: PointCloud) -> None:
    """Write a binary PLY with x y z and red green blue."""
    rows = np.empty(len(cloud.positions), dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
    rows["xyz"], rows["rgb"] = cloud.positions, cloud.colors
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    lines += [f"property float {axis}" for axis in "xyz"] + [f"property uchar {color}" for color in _COLORS]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join([*lines, "end_header\n"]).encode() + rows.tobytes())


def _read_header(file: BinaryIO, path: Path) -> tuple[str, list[tuple[str, str]], int]:
    """Return the byte order ("" for ASCII), the vertex fields (name, type) and the vertex count."""
    if file.readline().strip() != b"ply":
        raise UserError(f"{path}: not a PLY file; export the points as PLY or use --random_init")
    order, fields, count, element = None, [], -1, ""
    for raw in iter(file.readline, b""):
        words = raw.decode("ascii", "replace").split()
        match words:
            case ["end_header"]:
                break
            case ["format", kind, *_] if kind in _FORMATS:
                order = _FORMATS[kind]
            case ["element", name, number] if number.isdecimal():
                if count < 0 and name != "vertex" and int(number) > 0:
                    raise UserError(f"{path}: element {name} stands before the vertices; export a plain point cloud")
                element, count = name, int(number) if name == "vertex" else count
            case ["property", kind, name] if element == "vertex" and kind in _TYPES:
                fields.append((name, _TYPES[kind]))
            case ["property", *_] if element == "vertex":
                raise UserError(
                    f"{path}: vertex property {' '.join(words[1:])!r} is not a plain number; export without it"
                )
    else:
        raise UserError(f"{path}: the PLY header has no end; the file is cut short, fetch it again")
    if order is None or count < 0:
        raise UserError(f"{path}: the PLY header names no format or no vertices; export the points again")
    return order, fields, count


def _read_rows(file: BinaryIO, path: Path, *, order: str, fields: list[tuple[str, str]], count: int) -> np.ndarray:
    """Return the vertices as a structured array, [count]."""
    cut = UserError(f"{path}: cut short, {count} points were announced; fetch or export it again")
    if order == "":
        lines = [line for _, line in zip(range(count), file, strict=False)]
        try:
            table = np.array([line.split()[: len(fields)] for line in lines], dtype=np.float64)
        except ValueError:
            raise cut from None
        if table.shape != (count, len(fields)) and count > 0:
            raise cut
        rows = np.empty(count, dtype=[(name, kind) for name, kind in fields])
        for column, (name, _) in enumerate(fields if count else []):
            rows[name] = table[:, column]
        return rows
    dtype = np.dtype([(name, order + kind) for name, kind in fields])
    data = file.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise cut
    return np.frombuffer(data, dtype=dtype, count=count)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Return colours as uint8; floats are read as [0, 1] unless they exceed one."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
        values = values * 255.0 if values.max(initial=0.0) <= 1.0 else values
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
