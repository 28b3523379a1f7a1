"""SuperSplat's compressed `.ply`: vertices packed into four integers, with bounds for every 256 of them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from unified_lift.errors import UserError
from unified_lift.model.raw import RawSplat, base_coefficients, by_channel, from_smallest_three, logits_of, raw_splat

_CHUNK = 256
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")


def is_compressed(elements: Mapping[str, np.ndarray]) -> bool:
    """Return whether the vertices of a PLY are packed."""
    return _PACKED[0] in (elements["vertex"].dtype.names or ())


def unpacked(elements: Mapping[str, np.ndarray], path: Path) -> RawSplat:
    """Return the splat of the elements vertex, chunk and, where there are higher harmonics, sh.

    Source: the format as splat-transform reads and writes it: 11, 10 and 11 bits of x, y, z between the bounds of the
    chunk, log scales likewise; 2 bits say which of w, x, y, z is the largest, 10 each are the others; 8 bits of red,
    green, blue, between bounds if the chunk has them, and opacity.
    A UserError: a column is missing, or the numbers of rows do not fit.
    """
    vertex, chunk = elements["vertex"], elements.get("chunk", np.zeros(0))
    if len(chunk) != -(-len(vertex) // _CHUNK) or not set(_PACKED) <= set(vertex.dtype.names or ()):
        raise UserError(f"{path}: a compressed .ply needs a chunk for every {_CHUNK} vertices; export it again")
    owner = np.arange(len(vertex)) // _CHUNK

    def between(shares: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        try:
            low, high = (np.stack([chunk[f"{end}_{name}"] for name in names], axis=1)[owner] for end in ("min", "max"))
        except ValueError as error:
            raise UserError(f"{path}: not a compressed .ply ({error}); export it again") from None
        return low * (1 - shares) + high * shares

    position, rotation, scale, color = (vertex[name].astype(np.uint32) for name in _PACKED)
    means, log_scales = _shares(position, (21, 11, 0), (11, 10, 11)), _shares(scale, (21, 11, 0), (11, 10, 11))
    rgba = _shares(color, (24, 16, 8, 0), (8, 8, 8, 8))
    rgb = between(rgba[:, :3], ("r", "g", "b")) if "min_r" in (chunk.dtype.names or ()) else rgba[:, :3]
    small = (_shares(rotation, (20, 10, 0), (10, 10, 10)) - 0.5) * np.sqrt(2)
    return raw_splat(
        means=between(means, ("x", "y", "z")),
        quats=from_smallest_three(rotation >> 30, small),
        log_scales=between(log_scales, ("scale_x", "scale_y", "scale_z")),
        logit_opacities=logits_of(rgba[:, 3]),
        sh0=base_coefficients(rgb),
        shN=None if "sh" not in elements else _harmonics(elements["sh"], len(vertex), path),
    )


def _shares(packed: np.ndarray, shifts: tuple[int, ...], widths: tuple[int, ...]) -> np.ndarray:
    """Return bit fields as shares of their largest value, float64 [N, len(shifts)]."""
    fields = [(packed >> shift & (1 << width) - 1) / ((1 << width) - 1) for shift, width in zip(shifts, widths)]
    return np.stack(fields, axis=1)


def _harmonics(sh: np.ndarray, count: int, path: Path) -> np.ndarray:
    """Return coefficients of 8 bits: 0 and 255 are -4 and 4, the others the middles of 256 steps between."""
    names = [f"f_rest_{index}" for index in range(len(sh.dtype.names or ()))]
    if len(sh) != count or len(names) not in (9, 24, 45) or set(names) != set(sh.dtype.names or ()):
        raise UserError(f"{path}: its element sh does not fit its {count} vertices; export it again")
    level = np.stack([sh[name] for name in names], axis=1).astype(np.float32)
    return by_channel(8 * (np.select([level == 0, level == 255], [0, 1], (level + 0.5) / 256) - 0.5))
