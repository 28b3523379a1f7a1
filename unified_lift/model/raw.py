"""What a splat file holds, as its reader found it; and the sound Gaussians of it."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.types import IDENTITY, Similarity

_MAX_SH = 15  # coefficients of a colour above degree 0 that are drawn: those of degree 3
MAX_LOGIT = 15.0  # of an opacity: 1 - 3e-7
_LARGEST = 1e18  # of positions, sizes and coefficients: their squares still fit into float32
_FLATNESS = 1e-3  # thickness of a disc, of the smaller of its other two standard deviations
_NO_TURN = 1e-12  # entries of a quaternion: nothing is left to normalise
_MOST = 0.5  # of the Gaussians: if as many are broken, the file is; if as many have no thickness, they are discs
_SHOWN_ROWS = 5
# Ours is right-down-front, other formats are right-up-back: half a turn about x. Coefficients of y and z change sign,
# those of y z and of even powers do not.
FLIP_AXES = np.array([1, -1, -1], np.float32)
FLIP_SH = np.array([-1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1, -1, 1, -1, 1, 1, -1, 1, -1, 1], np.float32)
_MORTON_BITS = 16  # of each axis
_AT_ONCE = 2**16  # rows that are looked at together
_WORDS = {"means": "position", "quats": "rotation", "log_scales": "size", "logit_opacities": "opacity"}


class RawSplat(NamedTuple):
    """What a file says, in the user's coordinates, with any numbers in it, and what its reader decided."""

    table: dict[str, np.ndarray]  # as `Gaussians` names its columns, of any float type; without those that are empty
    notes: list[str]
    antialiased: bool = False  # it says to have been trained with the low-pass compensated


def logits_of(opacities: np.ndarray) -> np.ndarray:
    """Return the logits of opacities in [0, 1], at most 15 at both ends."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(np.log(opacities) - np.log1p(-opacities), -MAX_LOGIT, MAX_LOGIT)


def base_coefficients(colors: np.ndarray) -> np.ndarray:
    """Return the coefficients of SH degree 0 of colours in [0, 1]."""
    return (colors - 0.5) / SH_C0


def by_channel(rest: np.ndarray) -> np.ndarray:
    """Return coefficients [N, 3 (K-1)], all red ones first, as [N, K-1, 3]."""
    return rest.reshape(len(rest), 3, rest.shape[1] // 3).transpose(0, 2, 1)


def from_smallest_three(largest: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return unit quaternions [N, 4] whose entry `largest` [N] is positive and whose others, in order, are [N, 3]."""
    quats = np.zeros((len(others), 4))
    np.put_along_axis(quats, np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest], others, axis=1)
    rest = np.sqrt(np.maximum(0, 1 - (others**2).sum(axis=1)))
    np.put_along_axis(quats, largest[:, None].astype(np.int64), rest[:, None], axis=1)
    return quats


def turned_over(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return columns in right-up-back axes of those in ours, or the other way round."""
    turned = {"means": table["means"] * FLIP_AXES, "quats": table["quats"] * np.array([1, *FLIP_AXES], np.float32)}
    if "shN" in table:
        turned["shN"] = table["shN"] * FLIP_SH[: table["shN"].shape[1], None]
    return {**table, **turned}


def smallest_three(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `from_smallest_three` takes, of quaternions of any length but zero, [N, 4]: int64 [N], [N, 3]."""
    unit = quats.astype(np.float64) / np.linalg.norm(quats, axis=1, keepdims=True).clip(_NO_TURN)
    largest = np.abs(unit).argmax(axis=1)
    unit *= np.where(np.take_along_axis(unit, largest[:, None], axis=1) < 0, -1, 1)  # -q is the same rotation
    return largest, unit[np.arange(4) != largest[:, None]].reshape(-1, 3)


def morton_order(means: np.ndarray) -> np.ndarray:
    """Return the order along a Z curve through places [N, 3], in which neighbours follow one another, int64 [N]."""
    low, high = means.min(axis=0), means.max(axis=0)
    cell = ((means - low) / np.maximum(high - low, 1e-30) * (2**_MORTON_BITS - 1)).astype(np.uint64)
    code = np.zeros(len(means), np.uint64)
    for bit in range(_MORTON_BITS):
        for axis in range(3):
            code |= (cell[:, axis] >> np.uint64(bit) & np.uint64(1)) << np.uint64(3 * bit + axis)
    return code.argsort(kind="stable")


def by_row(table: Mapping[str, np.ndarray], look: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    """Return for each column in which rows all numbers are as `look` says of each, bool [N]."""
    found = {name: np.empty(len(value), bool) for name, value in table.items()}
    for name, value in table.items():
        for first in range(0, len(value), _AT_ONCE):
            some = value[first : first + _AT_ONCE]
            found[name][first : first + _AT_ONCE] = look(some.reshape(len(some), -1)).all(axis=1)
    return found


def placed(table: dict[str, np.ndarray], frame: Similarity, *, antialiased: bool = False) -> Gaussians:
    """Return the Gaussians of columns in the user's coordinates, inside of a frame, in their memory if that is float32.

    Columns are taken out of the table as they are converted.
    """
    empty = np.zeros((len(table["means"]), 0, 3))
    table["means"] = frame.inside(table["means"])
    table["log_scales"] = table["log_scales"] - math.log(1 / frame.scale)
    tensors = dict[str, Tensor]()
    for name in Gaussians.NAMES:
        values = table.pop(name, empty if name == "shN" else empty[..., 0])
        tensors[name] = torch.from_numpy(np.require(values, np.float32, ["C", "W"]))
    return Gaussians(tensors, antialiased=antialiased, takes_over=True)


def sound_gaussians(
    raw: RawSplat, path: Path, frame: Similarity = IDENTITY, *, strict: bool = False
) -> tuple[Gaussians, list[str]]:
    """Return the Gaussians of a file without those that are broken, inside of `frame`, and notes on what was decided.

    Broken are those with a number that is NaN, infinite or beyond 1e18. Discs become thin, and a rotation of zeros is
    none. A UserError: no Gaussian, most are broken, or with `strict` any.
    """
    table, notes = raw.table, list(raw.notes)  # columns are taken out of it: there may be no room for both
    count = len(table["means"])
    if count == 0:
        raise UserError(f"{path}: holds no Gaussian")
    flat = table["log_scales"] == -np.inf
    num_flat = np.count_nonzero(flat, axis=0)
    if num_flat.max() > _MOST * count:
        axis = int(num_flat.argmax())
        thin = np.delete(table["log_scales"], axis, axis=1).min(axis=1) + np.log(_FLATNESS)
        table["log_scales"] = np.where(flat & (np.arange(3) == axis), thin[:, None], table["log_scales"])
        notes.append(f"its Gaussians are discs, as those of 2DGS; they are made {_FLATNESS:g} of their width thick")
    unturned = (np.abs(table["quats"]) < _NO_TURN).all(axis=1)
    if num_zero := int(unturned.sum()):
        table["quats"] = np.where(unturned[:, None], np.array([1, 0, 0, 0], np.float32), table["quats"])
        notes.append(f"{num_zero} of {count} Gaussians have rotation 0 0 0 0: they are not turned")
    if table.get("shN", flat).shape[1] > _MAX_SH:
        table["shN"] = table["shN"][:, :_MAX_SH]
        notes.append("SH degree 4 is left out: colours are drawn up to degree 3")
    if "features" in table and not by_row({"": table["features"]}, np.isfinite)[""].all():
        table["features"] = np.nan_to_num(table["features"], posinf=0, neginf=0)
    sound = by_row(table, lambda values: np.abs(values) <= _LARGEST)
    broken = {name: ~rows for name, rows in sound.items()}
    broken["log_scales"] |= (table["log_scales"] > np.log(_LARGEST)).any(axis=1)
    left_out = np.any(list(broken.values()), axis=0)
    if num_broken := int(left_out.sum()):
        kinds = [f"{_WORDS.get(name, 'colour')} of {int(rows.sum())}" for name, rows in broken.items() if rows.any()]
        first = ", ".join(map(str, np.flatnonzero(left_out)[:_SHOWN_ROWS])) + ", ..." * (num_broken > _SHOWN_ROWS)
        what = f"NaN, infinite or senseless numbers ({', '.join(kinds)}; rows {first})"
        if strict or num_broken > _MOST * count:
            raise UserError(f"{path}: {num_broken} of {count} Gaussians hold {what}; repair or retrain the splat")
        for name in table:
            table[name] = table[name][~left_out]
        notes.append(f"{num_broken} of {count} Gaussians are left out, as they hold {what}")
    return placed(table, frame, antialiased=raw.antialiased), notes
