"""Continuing a picture into a hole."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.optimize import least_squares
from scipy.signal import fftconvolve
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import spsolve

_COARSE, _TURN = 128, 5.0  # pixels of the picture in which all turns are tried; degrees between these
_LOWEST, _STARTS = 3, 40  # motions that are refined: of each turn, of all
_REACH, _MAX_RING = 2.5, 2000  # of the width: surroundings that count; how many of their pixels
_MIN_RING, _MIN_SHOWN = 0.5, 0.25  # shares of a hole's surroundings and of the hole that a piece must show
_UNLIKE, _PLAIN = 0.42, 0.02  # error over variance from which on a piece is not like the surroundings; their variance
_EXACT = 1e-3  # of the variance: errors below are no errors
_NEARLY = 1.25  # times the least error: other pieces that may be as good
_POWERS = 6  # of a motion that fits
_SAME = 3.0  # pixels by which motions differ that are two
_SEAM = 4  # pixels over which a piece fades at its border
_FADE = 0.2  # of the width: standard deviation of the Gaussian by which the difference at the rim fades inwards


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


def similar_piece(values: np.ndarray, known: np.ndarray, hole: np.ndarray, width: float) -> np.ndarray | None:
    """Return the picture [H, W, C] with its `hole` covered by turned pieces of its `known` parts, both bool [H, W].

    All turns and shifts are tried by Fourier transforms in a small picture and refined to parts of a pixel. What is
    around the hole counts by a Gaussian of the distance with a standard deviation of `width` pixels. The motion that
    maps it to what is most like it, but for the mean, is taken for a symmetry of the pattern; so its inverse and powers
    are tried too. These pieces and those nearly as good are averaged, which shows more of the hole than one does. Each
    has the mean of what is around the hole; so what differs at the rim is taken for an error there (shadows): smoothed
    and continued into the hole it is added, but fades within `_FADE` of the width, to hide the seam and keep the middle
    as the pieces have it. None: no piece is known enough, or all are unlike what is around the hole.
    Source: exemplar-based completion with shifts [He, Sun, Statistics of patch offsets, 2012; turns and powers are
        ours], parts of a pixel by least squares [Lucas, Kanade 1981], seamless cloning [Perez, Gangnet, Blake 2003].
    """
    away = ndimage.distance_transform_edt(~hole)
    weight = np.where(known & (away <= _REACH * width), np.exp(-0.5 * (away / width) ** 2), 0.0)
    if not hole.any() or not weight.any():
        return None
    ring = _Ring.of(values, known, weight, hole)
    found = _distinct(ring, [ring.refined(start) for start in _starts(values, known, weight, hole)], [])
    variance = ring.mean((ring.colors - ring.mean(ring.colors)) ** 2).mean()
    if not found or found[0].error > _UNLIKE * variance or variance < _PLAIN:
        return None
    noise = _EXACT * variance
    found = [one for one in found if one.error <= _NEARLY * (found[0].error + noise)]
    implied = [power for one in found for motion in (one, one.inverse()) for power in ring.powers(motion)]
    found = [one for one in _distinct(ring, implied, found) if one.error <= _UNLIKE * variance]
    rows, columns = np.nonzero(away <= _SEAM)
    places, pieces, shares = rows + 1j * columns, np.zeros_like(values), np.zeros(hole.shape)
    fade = np.minimum(ndimage.distance_transform_edt(known) / _SEAM, 1.0)
    for one in found:
        own = ring.shown(one, places) * _sampled(fade, one.at(places)) / (one.error + noise) ** 2
        offset = ring.mean(ring.colors - _sampled(values, one.at(ring.places)), ring.seen_weight(one))
        pieces[rows, columns] += own[:, None] * (_sampled(values, one.at(places)) + offset)
        shares[rows, columns] += own
    pieces /= np.maximum(shares, 1e-300)[..., None]
    rim = (shares > 0) & known & ~hole
    smooth = ndimage.gaussian_filter(rim.astype(float), 2)
    offset = ndimage.gaussian_filter(np.where(rim[..., None], values - pieces, 0), (2, 2, 0))
    offset = harmonic(offset / np.maximum(smooth, 1e-6)[..., None], ~rim)
    offset *= np.exp(-0.5 * (ndimage.distance_transform_edt(hole) / (_FADE * width)) ** 2)[..., None]
    return harmonic(np.where(hole[..., None], pieces + offset, values), hole & (shares == 0))


class _Motion(NamedTuple):
    """Takes the pixel z = row + i column to turn z + shift, |turn| = 1; the error of what it finds."""

    turn: complex
    shift: complex
    error: float = np.inf

    def at(self, places: np.ndarray) -> np.ndarray:
        return self.turn * places + self.shift

    def inverse(self) -> "_Motion":
        return _Motion(self.turn.conjugate(), -self.turn.conjugate() * self.shift)

    def then(self, other: "_Motion") -> "_Motion":
        return _Motion(other.turn * self.turn, other.turn * self.shift + other.shift)


@dataclass(frozen=True)
class _Ring:
    """What is around a hole: places, weights and colours; and the picture in which others like it are sought."""

    places: np.ndarray  # row + i column, [n]
    weight: np.ndarray
    colors: np.ndarray  # [n, C]
    hole: np.ndarray  # places of the hole
    values: np.ndarray
    known: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, known: np.ndarray, weight: np.ndarray, hole: np.ndarray) -> "_Ring":
        rows, columns = np.nonzero(weight)
        some = np.s_[:: -(-len(rows) // _MAX_RING)]
        rows, columns = rows[some], columns[some]
        places, within = rows + 1j * columns, np.nonzero(hole)[0] + 1j * np.nonzero(hole)[1]
        return cls(places, weight[rows, columns], values[rows, columns], within, values, known.astype(float))

    def mean(self, values: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        weight = self.weight if weight is None else weight
        return weight @ values / weight.sum()

    def shown(self, motion: _Motion, places: np.ndarray) -> np.ndarray:
        return _sampled(self.known, motion.at(places)) > 0.999

    def seen_weight(self, motion: _Motion) -> np.ndarray:
        return self.weight * self.shown(motion, self.places)

    def unlike(self, motion: _Motion, weight: np.ndarray) -> np.ndarray:
        """Return the differences but for their mean, each times the root of its weight, [n, C]."""
        differ = _sampled(self.values, motion.at(self.places)) - self.colors
        return np.sqrt(weight)[:, None] * (differ - self.mean(differ, weight))

    def scored(self, motion: _Motion) -> _Motion:
        weight = self.seen_weight(motion)
        if weight.sum() < _MIN_RING * self.weight.sum():
            return motion._replace(error=np.inf)
        return motion._replace(error=float((self.unlike(motion, weight) ** 2).sum(axis=0).mean() / weight.sum()))

    def refined(self, motion: _Motion) -> _Motion:
        """Return the motion nearby with the least error."""
        start, weight, centre = self.scored(motion), self.seen_weight(motion), motion.at(self.hole.mean())
        if start.error == np.inf:
            return start

        def near(step: np.ndarray) -> _Motion:
            turn = np.exp(1j * step[0] / len(self.hole) ** 0.5)
            return _Motion(turn * motion.turn, turn * (motion.shift - centre) + centre + complex(*step[1:]))

        found = least_squares(
            lambda step: self.unlike(near(step), weight).ravel(), np.zeros(3), method="lm", max_nfev=40, xtol=1e-3
        )
        return min(start, self.scored(near(found.x)), key=lambda one: one.error)

    def powers(self, motion: _Motion) -> list[_Motion]:
        """Return powers of a motion, each refined, where it stays what it is."""
        found, power, centre = [], motion, self.hole.mean()
        for _ in range(_POWERS):
            near = self.refined(power)
            found += [near] if abs(near.at(centre) - power.at(centre)) < _SAME else []
            power = power.then(motion)
        return found


def _distinct(ring: _Ring, motions: list[_Motion], known: list[_Motion]) -> list[_Motion]:
    """Return `known` and those of `motions` that differ from all before and show some of the hole, best first."""
    found, centre, radius = list(known), ring.hole.mean(), len(ring.hole) ** 0.5
    for one in sorted(motions, key=lambda one: one.error):
        apart = [abs(one.turn - other.turn) * radius + abs(one.at(centre) - other.at(centre)) for other in found]
        if one.error < np.inf and min(apart, default=np.inf) > _SAME and ring.shown(one, ring.hole).any():
            found.append(one)
    return sorted(found, key=lambda one: one.error)


def _sampled(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return values between the pixels of [H, W] or [H, W, C] at places row + i column; outside 0."""
    if image.ndim == 3:
        return np.stack([_sampled(one, places) for one in np.moveaxis(image, 2, 0)], axis=-1)
    return ndimage.map_coordinates(image, [places.real, places.imag], order=1)


def _starts(values: np.ndarray, known: np.ndarray, weight: np.ndarray, hole: np.ndarray) -> list[_Motion]:
    """Return the motions with the least errors that are found in a small picture, all turns and shifts tried."""
    step = -(-max(hole.shape) // _COARSE)
    height, width = (size // step * step for size in hole.shape)

    def blocks(one: np.ndarray) -> np.ndarray:
        return one[:height, :width].reshape(height // step, step, width // step, step, -1)

    values = blocks(values).mean(axis=(1, 3))
    known = blocks(known).min(axis=(1, 3))[..., 0]
    hole = blocks(hole).max(axis=(1, 3))[..., 0] & ~known
    weight = blocks(weight).mean(axis=(1, 3))[..., 0] * ~hole
    used = (weight > 0) | hole
    if not used.any():
        return []
    rows, columns = ndimage.find_objects(used.astype(np.int8))[0]
    part, weight, gap = values[rows, columns], weight[rows, columns], hole[rows, columns].astype(float)
    middle, found = (np.array(used.shape) - 1) / 2, []

    def correlated(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return fftconvolve(one, other[::-1, ::-1], mode="valid")

    for turn in np.exp(1j * np.radians(np.arange(0, 360, _TURN))):
        matrix = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
        frame = {"matrix": matrix, "offset": middle - matrix @ middle, "order": 1}
        shows = (ndimage.affine_transform(known.astype(float), **frame) > 0.999).astype(float)
        share = correlated(shows, weight)
        safe, error = np.maximum(share, 1e-9), np.zeros_like(share)
        for one, other in zip(np.moveaxis(values, 2, 0), np.moveaxis(part, 2, 0), strict=True):
            turned = ndimage.affine_transform(np.where(known, one, 0), **frame) * shows
            first, second = correlated(turned, weight), correlated(shows, weight * other)
            error += correlated(turned**2, weight) - 2 * correlated(turned, weight * other)
            error += correlated(shows, weight * other**2) - (first - second) ** 2 / safe
        error = np.where(share < _MIN_RING * weight.sum(), np.inf, error / safe)
        error[correlated(shows, gap) < _MIN_SHOWN * gap.sum()] = np.inf
        lowest = ndimage.minimum_filter(error, size=max(3, min(part.shape[:2]) // 3))
        at = np.argwhere((error == lowest) & np.isfinite(error))
        shift = complex(*middle) * (1 - turn) + turn * ((at[:, 0] - rows.start) + 1j * (at[:, 1] - columns.start))
        shift = step * shift + (step - 1) / 2 * (1 + 1j) * (1 - turn)  # from centres of blocks to those of pixels
        near = [_Motion(turn, b, float(error[r, c])) for b, (r, c) in zip(shift, at, strict=True)]
        found += sorted(near, key=lambda one: one.error)[:_LOWEST]
    return sorted(found, key=lambda one: one.error)[:_STARTS]
