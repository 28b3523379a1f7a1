"""Gaussian PLY files, exactly as 3D-GS viewers read them, plus the variant with instance features."""

import math
from pathlib import Path

import numpy as np
import torch

from unified_lift.errors import UserError
from unified_lift.model.gaussians import Gaussians
from unified_lift.plyio import read_vertices, write_vertices
from unified_lift.types import IDENTITY, PointCloud, Similarity

_PLACE = ("x", "y", "z", "nx", "ny", "nz")  # position and normal, which is 0
_MAX_LOGIT = 15.0  # of an opacity: 1 - 3e-7
_FEATURE_PREFIXES = ("obj_dc_", "semantic_", "f_extra_")  # GG/UL/OmniSeg/Gaga, Feature-3DGS, EgoLifter


def write_gaussians(
    path: Path, gaussians: Gaussians, *, object_ids: np.ndarray | None = None, frame: Similarity = IDENTITY
) -> None:
    """Write a Gaussian PLY, in the user's coordinates of a frame that the Gaussians are inside of.

    Columns: x y z nx ny nz f_dc_* f_rest_* (channel-major) opacity (logit) scale_* (log) rot_* (wxyz), float32 little
    endian, no comment line: some viewers read a fixed struct. With `object_ids` [N], obj_dc_0..D-1 and object_id
    (float, since a converter rejects other types) follow, as Gaussian Grouping and Unified-Lift expect. Far from the
    origin x y z are float64: float32 would lose the scene.
    """
    table = {name: value.detach().cpu().numpy() for name, value in gaussians}
    count = len(gaussians)
    means = frame.outside(table["means"])
    blocks = [
        (_PLACE, np.pad(means, ((0, 0), (0, 3)))),
        (_numbered("f_dc_", 3), table["sh0"].reshape(count, 3)),
        (_numbered("f_rest_", 3 * table["shN"].shape[1]), table["shN"].transpose(0, 2, 1)),
        (("opacity",), table["logit_opacities"][:, None]),
        (_numbered("scale_", 3), table["log_scales"] - math.log(frame.scale)),
        (_numbered("rot_", 4), table["quats"]),
    ]
    if object_ids is not None:
        blocks.append((_numbered("obj_dc_", gaussians.feature_dim), table["features"]))
        blocks.append((("object_id",), object_ids[:, None]))
    names = [name for block, _ in blocks for name in block]
    values, column = np.empty((count, len(names)), "<f4"), 0
    for block, value in blocks:
        values[:, column : column + len(block)].reshape(value.shape)[...] = value  # reshape splits columns: a view
        column += len(block)
    rows = values.view([(name, "<f4") for name in names])[:, 0]
    write_vertices(path, with_place(rows, means, frame))


def read_gaussians(path: Path, frame: Similarity = IDENTITY) -> Gaussians:
    """Return the Gaussians of a 3DGS PLY from any trainer, with instance features where columns have a known prefix.

    They are inside of `frame`, the file is in the user's coordinates.
    A UserError: not a PLY, a column is missing, no Gaussian, or numbers that are not finite.
    """
    rows = read_vertices(path)
    columns = rows.dtype.names or ()
    needed = ("x", "y", "z", *_numbered("f_dc_", 3), "opacity", *_numbered("scale_", 3), *_numbered("rot_", 4))
    missing = [name for name in needed if name not in columns]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; a 3D Gaussian PLY has x y z f_dc_* opacity scale_* rot_*")
    widths = {prefix: sum(name.startswith(prefix) for name in columns) for prefix in ("f_rest_", *_FEATURE_PREFIXES)}
    num_rest = widths.pop("f_rest_")
    if num_rest not in (0, 9, 24, 45):
        raise UserError(f"{path}: {num_rest} f_rest columns; SH degrees 0 to 3 have 0, 9, 24 or 45")
    if len(rows) == 0:
        raise UserError(f"{path}: holds no Gaussian")

    def block(names: tuple[str, ...]) -> torch.Tensor:
        stacked = [np.asarray(rows[name], np.float32) for name in names]
        return torch.from_numpy(np.stack(stacked, axis=1) if stacked else np.zeros((len(rows), 0), np.float32))

    table = {
        "means": torch.from_numpy(frame.inside(np.stack([rows[axis] for axis in "xyz"], axis=1)).astype(np.float32)),
        "quats": block(_numbered("rot_", 4)),
        "log_scales": block(_numbered("scale_", 3)) - math.log(1 / frame.scale),
        "logit_opacities": block(("opacity",))[:, 0],
        "sh0": block(_numbered("f_dc_", 3))[:, None, :],
        "shN": block(_numbered("f_rest_", num_rest)).reshape(len(rows), 3, num_rest // 3).transpose(1, 2),
        "features": block(next((_numbered(prefix, width) for prefix, width in widths.items() if width), ())),
    }
    # Converters from quantised formats write alpha 0 and 255 as infinite logits.
    table["logit_opacities"].nan_to_num_(nan=math.nan, posinf=_MAX_LOGIT, neginf=-_MAX_LOGIT)
    for name, value in table.items():
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{path}: {name} holds NaN or infinite numbers; repair or retrain the splat")
    return Gaussians(table)


def write_points(path: Path, points: PointCloud, frame: Similarity = IDENTITY) -> None:
    """Write coloured points as 3DGS `input.ply`, x y z as `write_gaussians`: nx ny nz float32, red green blue uint8."""
    fields = [*((name, "<f4") for name in _PLACE), *((name, "u1") for name in ("red", "green", "blue"))]
    positions = frame.outside(points.positions)
    columns = (*positions.T, *np.zeros_like(positions).T, *points.colors.T)
    write_vertices(path, with_place(np.rec.fromarrays(columns, dtype=fields), positions, frame))


def with_place(rows: np.ndarray, positions: np.ndarray, frame: Similarity) -> np.ndarray:
    """Return rows with x y z [N, 3] as float64, if these lie far from the origin; else `rows`, with float32."""
    if not any(frame.offset):
        return rows
    kinds = {name: rows.dtype[name] for name in rows.dtype.names or ()} | dict.fromkeys("xyz", np.dtype("<f8"))
    wide = rows.astype(list(kinds.items()))
    for axis, values in zip("xyz", positions.T, strict=True):
        wide[axis] = values
    return wide


def _numbered(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{index}" for index in range(count))
