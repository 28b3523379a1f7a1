"""Continuing a picture into a hole."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.signal import fftconvolve
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import spsolve

_COARSE = 224  # pixels of the picture in which all turns are tried
_MIN_RING, _MAX_MISSING = 0.5, 0.25  # shares of a hole's surroundings and of the hole that a piece must show, may lack
_UNLIKE, _PLAIN = 0.42, 0.02  # error over variance from which on a piece is not like the surroundings; their variance


def harmonic(values: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Return values [H, W, C] whose `unknown` pixels, bool [H, W], are the mean of their four neighbours.

    Source: the Laplace equation with the known pixels as boundary and none across the edge of the picture. Planes of
    inverse depth are continued exactly. Where no pixel is known, 0.
    """
    index = np.full(unknown.shape, -1)
    index[unknown] = np.arange(count := int(unknown.sum()))
    rows, columns = [], []
    known_sum, degree = np.zeros((count, values.shape[2])), np.full(count, 1e-12)
    for axis in (0, 1):
        for here, there in ((np.s_[:-1], np.s_[1:]), (np.s_[1:], np.s_[:-1])):
            own, near = (np.moveaxis(index, axis, 0)[part].ravel() for part in (here, there))
            value = np.moveaxis(values, axis, 0)[there].reshape(-1, values.shape[2])
            linked, bound = (own >= 0) & (near >= 0), (own >= 0) & (near < 0)
            np.add.at(degree, own[own >= 0], 1)
            np.add.at(known_sum, own[bound], value[bound])
            rows.append(own[linked])
            columns.append(near[linked])
    pairs = np.concatenate(rows), np.concatenate(columns)
    links = coo_matrix((np.ones(len(pairs[0])), pairs), shape=(count, count))
    found = values.astype(np.float64)
    if count:
        found[unknown] = spsolve((diags(degree) - links).tocsc(), known_sum).reshape(count, -1)
    return found


def similar_piece(values: np.ndarray, known: np.ndarray, hole: np.ndarray, width: int) -> np.ndarray | None:
    """Return the picture [H, W, C] with its `hole` covered by a turned piece of its `known` parts, both bool [H, W].

    All turns and shifts are tried by Fourier transforms, coarse to fine; the piece whose surroundings are most like
    those of the hole up to `width` pixels away, but for their mean, is taken; the difference at the rim, smoothed, is
    continued into the hole and added. None: no piece is known enough, or its surroundings are far from the hole's.
    Source: exemplar-based completion with one rigid shift [He, Sun, Statistics of patch offsets, 2012; turns are ours];
        seamless cloning [Perez, Gangnet, Blake 2003].
    """
    step = -(-max(hole.shape) // _COARSE)
    height, columns = (size // step * step for size in hole.shape)

    def blocks(one: np.ndarray) -> np.ndarray:
        return one[:height, :columns].reshape(height // step, step, columns // step, step, -1)

    shrunk = blocks(np.where(known[..., None], values, 0)).mean(axis=(1, 3))
    few = blocks(known).min(axis=(1, 3))[..., 0]
    gap = blocks(hole).max(axis=(1, 3))[..., 0]
    coarse = _best_turn(shrunk, few, gap & ~few, max(2, width // step), np.arange(0, 360, 6.0))
    if coarse is None:
        return None
    found = _best_turn(values, known, hole, width, coarse.turn + np.arange(-4, 5, 2.0))
    if found is None or found.error > _UNLIKE * found.variance or found.variance < _PLAIN:
        return None
    ring = found.known & known & ~hole
    weight = ndimage.gaussian_filter(ring.astype(float), 2)
    offset = ndimage.gaussian_filter(np.where(ring[..., None], values - found.values, 0), (2, 2, 0))
    offset = harmonic(offset / np.maximum(weight, 1e-6)[..., None], ~ring)
    patched = np.where(hole[..., None], found.values + offset, values)
    return harmonic(patched, hole & ~found.known)


class _Turned(NamedTuple):
    """A piece where the hole is: its mean square error around it, the variance there, degrees, colours, where known."""

    error: float
    variance: float
    turn: float
    values: np.ndarray
    known: np.ndarray


def _best_turn(
    values: np.ndarray, known: np.ndarray, hole: np.ndarray, width: int, turns: np.ndarray
) -> _Turned | None:
    distance = ndimage.distance_transform_edt(~hole)
    ring = known & (distance > 0) & (distance <= width)
    if not ring.any() or not hole.any():
        return None
    rows, columns = ndimage.find_objects((ring | hole).astype(np.int8))[0]
    part, weight, gap = values[rows, columns], ring[rows, columns].astype(float), hole[rows, columns].astype(float)
    middle, best = (np.array(hole.shape) - 1) / 2, None
    variance = float(values[ring].var(axis=0).mean())

    def correlated(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return fftconvolve(one, other[::-1, ::-1], mode="valid")

    for turn in turns.tolist():
        c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        matrix = np.array([[c, -s], [s, c]])
        frame = {"matrix": matrix, "offset": middle - matrix @ middle, "order": 1}
        there = ndimage.affine_transform(known.astype(float), **frame) > 0.999
        channels = [ndimage.affine_transform(np.where(known, one, 0), **frame) for one in np.moveaxis(values, 2, 0)]
        turned = np.stack(channels, axis=2) * there[..., None]
        shows = there.astype(float)
        share = correlated(shows, weight)
        error = np.zeros_like(share)
        for one, other in zip(np.moveaxis(turned, 2, 0), np.moveaxis(part, 2, 0), strict=True):
            error += correlated(one**2, weight) - 2 * correlated(one, weight * other)
            error += correlated(there.astype(float), weight * other**2)
            error -= (correlated(one, weight) - correlated(there.astype(float), weight * other)) ** 2 / np.maximum(
                share, 1
            )
        error = error / np.maximum(share, 1) / values.shape[2]
        missing = gap.sum() - correlated(shows, gap)
        error[(share < _MIN_RING * weight.sum()) | (missing > _MAX_MISSING * gap.sum())] = np.inf
        row, column = np.unravel_index(error.argmin(), error.shape)
        if error[row, column] < (best.error if best else np.inf):
            colors, is_known = np.zeros_like(values), np.zeros_like(known)
            window = np.s_[row : row + len(part), column : column + part.shape[1]]
            colors[rows, columns], is_known[rows, columns] = turned[window], there[window]
            best = _Turned(float(error[row, column]), variance, turn, colors, is_known)
    return best
