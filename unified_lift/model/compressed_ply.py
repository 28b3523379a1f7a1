"""SuperSplat's compressed `.ply`, read and written: vertices packed into four integers, bounds for each 256 of them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.model.raw import (
    RawSplat,
    base_coefficients,
    by_channel,
    from_smallest_three,
    logits_of,
    morton_order,
    smallest_three,
)

_CHUNK = 256
_AT_ONCE = 2**8 * _CHUNK  # Gaussians
_MOST_LOG_SCALE = 20.0
_XYZ, _RGBA = ((21, 11), (11, 10), (0, 11)), ((24, 8), (16, 8), (8, 8), (0, 8))  # first bit and bits of each field
_OTHERS = ((20, 10), (10, 10), (0, 10))


def is_compressed(vertex: np.dtype) -> bool:
    """Return whether vertices of these columns are packed."""
    return "packed_position" in (vertex.names or ())


def unpacked(elements: Mapping[str, np.ndarray], path: Path) -> RawSplat:
    """Return the splat of the elements vertex, chunk and, where there are higher harmonics, sh.

    Source: the format as splat-transform reads and writes it: 11, 10 and 11 bits of x, y, z between the bounds of the
    chunk, log scales likewise; 2 bits say which of w, x, y, z is the largest, 10 each are the others; 8 bits of red,
    green, blue, between bounds if the chunk has them, and opacity.
    A UserError: a column is missing, or the numbers of rows do not fit.
    """
    try:
        return _splat(**elements)
    except (IndexError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a readable compressed .ply ({error}); export it again") from None


def packed(gaussians: Gaussians) -> dict[str, np.ndarray]:
    """Return the elements chunk, vertex and, with higher harmonics, sh of Gaussians; `unpacked` reads them.

    Rows are sorted along a Z curve, so that chunks are small and their bounds near.
    Source: as `unpacked`. Sizes outside of e^-20 .. e^20 and coefficients outside of -4 .. 4 are clipped, as there.
    """
    order = torch.from_numpy(morton_order(gaussians.means.detach().cpu().double().numpy()))
    found = [_packed(gaussians, rows.to(gaussians.device)) for rows in order.split(_AT_ONCE)]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _packed(gaussians: Gaussians, rows: Tensor) -> dict[str, np.ndarray]:
    """Return the elements of some of the Gaussians, int64 [n], in this order."""
    table = {name: value[rows].cpu().double().numpy() for name, value in gaussians.state_dict().items()}
    count = len(rows)
    starts = np.arange(0, count, _CHUNK)
    owner = np.arange(count) // _CHUNK
    log_scales = table["log_scales"].clip(-_MOST_LOG_SCALE, _MOST_LOG_SCALE)
    bounded = {"xyz": table["means"], "scale": log_scales, "rgb": table["sh0"][:, 0] * SH_C0 + 0.5}
    bounds, shares = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for key, values in bounded.items():
        low, high = (extreme.reduceat(values, starts).astype("<f4") for extreme in (np.minimum, np.maximum))
        shares[key] = (values - low[owner]) / np.maximum(high - low, 1e-30)[owner]
        names = [f"scale_{axis}" for axis in "xyz"] if key == "scale" else list(key)
        for index, name in enumerate(names):
            bounds |= {f"min_{name}": low[:, index], f"max_{name}": high[:, index]}

    def fields(share: np.ndarray, layout: tuple[tuple[int, int], ...]) -> np.ndarray:
        levels = np.rint(share.clip(0, 1) * [2**bits - 1 for _, bits in layout]).astype(np.uint32)
        return (levels << np.array([first for first, _ in layout], np.uint32)).sum(axis=1, dtype=np.uint32)

    largest, others = smallest_three(table["quats"])
    opacity = 1 / (1 + np.exp(-table["logit_opacities"]))
    columns = {
        "position": fields(shares["xyz"], _XYZ),
        "rotation": fields(others / np.sqrt(2) + 0.5, _OTHERS) | (largest << 30).astype(np.uint32),
        "scale": fields(shares["scale"], _XYZ),
        "color": fields(np.column_stack([shares["rgb"], opacity]), _RGBA),
    }
    elements: dict[str, np.ndarray] = {
        "chunk": np.rec.fromarrays(list(bounds.values()), [(name, "<f4") for name in bounds]),
        "vertex": np.rec.fromarrays(list(columns.values()), [(f"packed_{name}", "<u4") for name in columns]),
    }
    rest = table["shN"].transpose(0, 2, 1).reshape(count, -1)
    if rest.shape[1]:
        levels = np.trunc((rest / 8 + 0.5) * 256).clip(0, 255).astype(np.uint8)
        elements["sh"] = np.rec.fromarrays(
            list(levels.T), [(f"f_rest_{index}", "u1") for index in range(len(levels.T))]
        )
    return elements


def _splat(vertex: np.ndarray, chunk: np.ndarray, sh: np.ndarray | None = None) -> RawSplat:
    def shares(name: str, fields: tuple[tuple[int, int], ...]) -> np.ndarray:
        packed = vertex[f"packed_{name}"].astype(np.uint32)
        return np.stack([(packed >> first & 2**bits - 1) / (2**bits - 1) for first, bits in fields], axis=1)

    def between(share: np.ndarray, *names: str) -> np.ndarray:
        owner = np.arange(len(vertex)) // _CHUNK
        low, high = (np.stack([chunk[f"{end}_{name}"][owner] for name in names], axis=1) for end in ("min", "max"))
        return low * (1 - share) + high * share

    rgba, largest = shares("color", _RGBA), vertex["packed_rotation"].astype(np.uint32) >> 30
    rgb = between(rgba[:, :3], "r", "g", "b") if "min_r" in (chunk.dtype.names or ()) else rgba[:, :3]
    table = {
        "means": between(shares("position", _XYZ), "x", "y", "z"),
        "quats": from_smallest_three(largest, (shares("rotation", _OTHERS) - 0.5) * np.sqrt(2)),
        "log_scales": between(shares("scale", _XYZ), "scale_x", "scale_y", "scale_z"),
        "logit_opacities": logits_of(rgba[:, 3]),
        "sh0": base_coefficients(rgb)[:, None],
    }
    if sh is not None:
        level = np.stack([sh[f"f_rest_{index}"] for index in range(len(sh.dtype.names or ()))], axis=1)
        if level.shape[0] != len(vertex) or level.shape[1] not in (9, 24, 45):
            raise ValueError(f"{level.shape[1]} coefficients of {len(level)} Gaussians for {len(vertex)}")
        steps = np.concatenate([[0], np.arange(1.5, 255), [256]]) / 256  # the middles of 256, but for both ends
        table["shN"] = by_channel((8 * steps - 4).astype(np.float32)[level])
    return RawSplat(table, [])
