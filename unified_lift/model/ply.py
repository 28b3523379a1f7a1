"""Gaussian PLY files, exactly as 3D-GS viewers read them, plus the variant with instance features."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from unified_lift.errors import UserError
from unified_lift.memory import available_memory
from unified_lift.model.compressed_ply import is_compressed, unpacked
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.raw import MAX_LOGIT, RawSplat, base_coefficients, by_row, logits_of, placed
from unified_lift.plyio import Rows, opened, write_blocks, write_vertices
from unified_lift.types import IDENTITY, PointCloud, Similarity

_PLACE = ("x", "y", "z", "nx", "ny", "nz")  # position and normal, which is 0
_COLORS = ("red", "green", "blue")
_FILTER = "filter_3D"
_FEATURE_PREFIXES = ("obj_dc_", "semantic_", "f_extra_")  # GG/UL/OmniSeg/Gaga, Feature-3DGS, EgoLifter
# Columns that are read, or that say nothing of the picture.
_KNOWN = re.compile(
    r"[xyz]|n[xyz]|f_dc_[012]|f_rest_\d+|opacity|scale_[012]|rot_[0123]|red|green|blue|alpha|filter_3D"
    r"|(obj_dc_|semantic_|f_extra_)\d+|(object_|instance_|class_|semantic_)?(id|label|segment)s?|confidence"
)
_OTHERS = {
    "f_anchor_feat": "it holds anchors of Scaffold-GS: export its Gaussians as a 3DGS .ply",
    "motion_": "it holds a moving scene: export one moment of it as a 3DGS .ply",
    "trbf_": "it holds a moving scene: export one moment of it as a 3DGS .ply",
}
_SHOWN = 6
_ANTIALIASED = "antialiased"  # a comment of ours: no column and no other program tells it


def write_gaussians(
    path: Path, gaussians: Gaussians, *, object_ids: np.ndarray | None = None, frame: Similarity = IDENTITY
) -> None:
    """Write a Gaussian PLY, in the user's coordinates of a frame that the Gaussians are inside of.

    Columns: x y z nx ny nz f_dc_* f_rest_* (channel-major) opacity (logit) scale_* (log) rot_* (wxyz), float32 little
    endian; where the Gaussians are antialiased, a comment ends the header. With `object_ids` [N], obj_dc_0..D-1 and
    object_id (float, since a converter rejects other types) follow, as Gaussian Grouping and Unified-Lift expect. Far
    from the origin x y z are float64: float32 would lose the scene.
    """
    names = [*_PLACE, *_numbered("f_dc_", 3), *_numbered("f_rest_", 3 * gaussians.shN.shape[1]), "opacity"]
    names += [*_numbered("scale_", 3), *_numbered("rot_", 4)]
    if object_ids is not None:
        names += [*_numbered("obj_dc_", gaussians.feature_dim), "object_id"]
    kinds = np.dtype([(name, "<f4") for name in names])

    def blocks() -> Iterator[np.ndarray]:
        first = 0
        for part in gaussians.parts():
            ids = None if object_ids is None else object_ids[first : first + len(part)]
            yield _rows(part, ids, kinds, frame)
            first += len(part)

    write_blocks(path, blocks(), count=len(gaussians), comment=_ANTIALIASED if gaussians.antialiased else "")


def _rows(gaussians: Gaussians, object_ids: np.ndarray | None, kinds: np.dtype, frame: Similarity) -> np.ndarray:
    """Return the rows of a file whose float columns are `kinds`, structured [N]."""
    table = {name: value.detach().cpu().numpy() for name, value in gaussians}
    count = len(gaussians)
    means = frame.outside(table["means"])
    blocks = [
        np.pad(means, ((0, 0), (0, 3))),
        table["sh0"].reshape(count, 3),
        table["shN"].transpose(0, 2, 1),
        table["logit_opacities"][:, None],
        table["log_scales"] - math.log(frame.scale),
        table["quats"],
    ]
    if object_ids is not None:
        blocks += [table["features"], object_ids[:, None]]
    values, column = np.empty((count, len(kinds.names or ())), "<f4"), 0
    for block in blocks:
        width = math.prod(block.shape[1:])
        values[:, column : column + width].reshape(block.shape)[...] = block  # reshape splits columns: a view
        column += width
    return with_place(values.view(kinds)[:, 0], means, frame)


def read_gaussians(path: Path, frame: Similarity = IDENTITY) -> Gaussians:
    """Return the Gaussians of a .ply of this program, all of them, inside of `frame`; the file is in the user's units.

    A UserError: as `read_ply`, or a broken number.
    """
    table, _, antialiased = read_ply(path)
    if len(table["means"]) == 0:
        raise UserError(f"{path}: holds no Gaussian")
    for name, rows in by_row(table, np.isfinite).items():
        if not rows.all():
            raise UserError(f"{path}: {name} holds NaN or infinite numbers; repair or retrain the splat")
    return placed(table, frame, antialiased=antialiased)


def read_ply(path: Path) -> RawSplat:
    """Return the splat in a PLY of any trainer or of SuperSplat, with features where columns have a known prefix.

    Columns may stand in any order and be of any type. Colours may also be red, green, blue, as nerfstudio writes them;
    without scale_2 the Gaussians are discs; Mip-Splatting's filter_3D is fused into sizes and opacities.
    A UserError: not a PLY, or a column is missing.
    """
    with opened(path, "chunk", "sh") as elements:
        if is_compressed(elements["vertex"].data.dtype):
            return unpacked({name: rows.whole() for name, rows in elements.items()}, path)
        return _read(elements["vertex"], path)


def _read(rows: Rows, path: Path) -> RawSplat:
    columns, notes = rows.data.dtype.names or (), list[str]()
    flat = int("scale_1" in columns and "scale_2" not in columns)
    num_rest = sum(name.startswith("f_rest_") for name in columns)
    prefix = next((prefix for prefix in _FEATURE_PREFIXES if f"{prefix}0" in columns), "none")
    width = next(index for index in count() if f"{prefix}{index}" not in columns)
    by_color = _COLORS[0] in columns and "f_dc_0" not in columns
    groups = {"means": ("x", "y", "z"), "quats": _numbered("rot_", 4)}
    groups |= {"sh0": _COLORS if by_color else _numbered("f_dc_", 3), "logit_opacities": ("opacity",)}
    groups |= {"log_scales": _numbered("scale_", 3 - flat), "shN": _numbered("f_rest_", num_rest)}
    groups |= {"features": _numbered(prefix, width)} | ({_FILTER: (_FILTER,)} if _FILTER in columns else {})
    if num_rest not in (0, 9, 24, 45, 72):
        raise UserError(f"{path}: {num_rest} f_rest columns; SH degrees 0 to 3 have 0, 9, 24 or 45")
    if missing := [name for names in groups.values() for name in names if name not in columns]:
        fix = "a 3D Gaussian PLY has x y z f_dc_* opacity scale_* rot_*"
        raise UserError(f"{path}: no column {missing[0]!r}; {_what_else(columns) or fix}")
    # The file has all red coefficients first, the table the three colours of each together.
    groups["shN"] = tuple(groups["shN"][index] for index in np.arange(num_rest).reshape(3, -1).T.flatten())
    table = _by_group(rows, groups)
    table["shN"] = table["shN"].reshape(len(rows.data), num_rest // 3, 3)
    if by_color:
        colors = table["sh0"]
        is_share = colors.dtype.kind == "f" and not colors.max(initial=0) > 1
        table["sh0"] = base_coefficients(colors if is_share else colors / 255)
    table["sh0"] = table["sh0"][:, None]
    # Converters from quantised formats write alpha 0 and 255 as infinite logits.
    logits = np.nan_to_num(table["logit_opacities"][:, 0], nan=np.nan, posinf=MAX_LOGIT, neginf=-MAX_LOGIT)
    table["logit_opacities"] = logits
    table["log_scales"] = np.pad(table["log_scales"], ((0, 0), (0, flat)), constant_values=-np.inf)
    if _FILTER in columns:
        table |= _with_filter(table["log_scales"], logits, table.pop(_FILTER)[:, 0])
        notes.append(f"{_FILTER} of Mip-Splatting is fused into sizes and opacities")
    if unknown := [name for name in columns if not _KNOWN.fullmatch(name)]:
        listed = ", ".join(unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
        other = _what_else(columns) or "if its program draws with them, it looks different here"
        notes.append(f"columns that are not read: {listed}; {other}")
    return RawSplat(table, notes, antialiased=_ANTIALIASED in rows.comments)


def _by_group(rows: Rows, groups: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Return the columns of each group, [N, number of them], of a type that holds them all."""
    found = dict[str, np.ndarray]()
    for key, names in groups.items():
        kind = np.result_type(*(rows.data.dtype[name] for name in names)) if names else np.float32
        found[key] = np.empty((len(rows.data), len(names)), kind)  # no memory is taken before it is written
    needed = sum(values.nbytes for values in found.values())
    if needed > available_memory():
        raise MemoryError(f"{len(rows.data):,} Gaussians need {needed / 2**30:.1f} GiB")
    for place, block in rows.blocks():
        for key, names in groups.items():
            for index, name in enumerate(names):
                found[key][place, index] = block[name]
    return found


def write_points(path: Path, points: PointCloud, frame: Similarity = IDENTITY) -> None:
    """Write coloured points as 3DGS `input.ply`, x y z as `write_gaussians`: nx ny nz float32, red green blue uint8."""
    fields = [*((name, "<f4") for name in _PLACE), *((name, "u1") for name in _COLORS)]
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


def _with_filter(log_scales: np.ndarray, logits: np.ndarray, filter_3d: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of sizes and opacities smoothed by filters, standard deviations in world units [N].

    Source: Mip-Splatting, create_fused_ply: s'^2 = s^2 + f^2, and opacity times prod(s) / prod(s').
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares, added = np.exp(2 * log_scales.astype(np.float64)), filter_3d.astype(np.float64)[:, None] ** 2
        smooth = squares + added
        share = np.sqrt((squares / smooth).prod(axis=1)) / (1 + np.exp(-logits.astype(np.float64)))
        return {"log_scales": np.log(smooth) / 2, "logit_opacities": logits_of(share)}


def _what_else(columns: Sequence[str]) -> str:
    """Return what a file of other columns than those of 3DGS is, and what to do; empty where that is not known."""
    for prefix, text in _OTHERS.items():
        if any(name.startswith(prefix) for name in columns):
            return text
    if "x" in columns and not any(name.startswith(("opacity", "scale_", "rot_")) for name in columns):
        return "it is a point cloud: put it into the scene folder as points3D.ply and train without --init_ply"
    return ""


def _numbered(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{index}" for index in range(count))
