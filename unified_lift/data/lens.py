"""The lens of a photo as its dataset states it, and the resampling of distorted photos to a pinhole."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

LensModel = Literal["perspective", "brown", "fisheye"]
COEFFICIENTS: dict[LensModel, tuple[str, ...]] = {
    "perspective": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "brown": ("k1", "k2", "p1", "p2", "k3", "k4"),
    "fisheye": ("k1", "k2", "k3", "k4"),
}
"""Names of the distortion coefficients in their order, as COLMAP and transforms files have them."""
PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV", "PERSPECTIVE")
FISHEYE = ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_FISHEYE", "FISHEYE")
"""Names of camera models in those files."""


@dataclass(frozen=True)
class Lens:
    """Intrinsics with distortion, corner-origin pixels of the stored photo.

    `perspective` is Brown-Conrady, rational as in OpenCV; `brown` is a polynomial up to k4 r^8, as in nerfstudio;
    `fisheye` equidistant with a polynomial in the angle.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    model: LensModel = "perspective"
    coefficients: tuple[float, ...] = ()  # in the order of `COEFFICIENTS`; missing ones are zero

    @property
    def size(self) -> tuple[int, int]:
        """Return (width, height)."""
        return self.width, self.height

    @property
    def is_distorted(self) -> bool:
        """Return whether photos must be resampled before a pinhole camera describes them."""
        return self.model == "fisheye" or any(self.coefficients)

    def resized(self, width: int, height: int) -> Lens:
        """Return the lens of the same photo stored at another size."""
        sx, sy = width / self.width, height / self.height
        fx, fy, cx, cy = self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy
        return replace(self, fx=fx, fy=fy, cx=cx, cy=cy, width=width, height=height)


def distort(x: np.ndarray, y: np.ndarray, lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Return the corner-origin pixel (u, v) of pinhole directions (x, y, 1).

    Source: perspective x' = x (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6) + 2 p1 x y +
    p2 (r^2 + 2 x^2), likewise y' with p1 and p2 exchanged; brown with k4 r^8 as a further term and no denominator;
    fisheye r' = theta (1 + k1 theta^2 + ... + k4 theta^8).
    """
    k1, k2, p1, p2, k3, k4, k5, k6 = (*lens.coefficients, *[0.0] * 8)[:8]
    if lens.model == "fisheye":
        radius = np.hypot(x, y)
        theta = np.arctan(radius)
        bent = theta * (1 + sum(k * theta ** (2 * i + 2) for i, k in enumerate((k1, k2, p1, p2))))
        scale = np.where(radius > 1e-9, bent / np.maximum(radius, 1e-9), 1.0)
        return lens.fx * x * scale + lens.cx, lens.fy * y * scale + lens.cy
    square = x * x + y * y
    power, k4 = (k4, 0.0) if lens.model == "brown" else (0.0, k4)
    radial = 1 + square * (k1 + square * (k2 + square * (k3 + square * power)))
    radial /= 1 + square * (k4 + square * (k5 + square * k6))
    bent_x = x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x)
    bent_y = y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y
    return lens.fx * bent_x + lens.cx, lens.fy * bent_y + lens.cy


@functools.lru_cache(maxsize=4)
def _source_pixels(lens: Lens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where each pixel of the pinhole photo (same K) lies in the stored one: u, v [H, W], and if it exists."""
    cols, rows = np.meshgrid(np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5)
    u, v = distort((cols - lens.cx) / lens.fx, (rows - lens.cy) / lens.fy, lens)
    exists = (u >= 0) & (u < lens.width) & (v >= 0) & (v < lens.height)
    if min(lens.size) > 1:  # behind the fold of a strong polynomial the mapping turns over
        jacobian = np.gradient(u, axis=1) * np.gradient(v, axis=0) - np.gradient(u, axis=0) * np.gradient(v, axis=1)
        exists &= jacobian > 0
    return u.astype(np.float32), v.astype(np.float32), exists


def undistort_image(image: np.ndarray, lens: Lens) -> np.ndarray:
    """Return the photo as a pinhole with the lens's K would have taken it, [H, W] or [H, W, 3]; 0 = not seen."""
    u, v, exists = _source_pixels(lens)
    # OpenCV counts from the centre of the first pixel.
    bent = cv2.remap(image, u - 0.5, v - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.where(exists.reshape(*exists.shape, *(1,) * (image.ndim - 2)), bent, image.dtype.type(0))


def undistort_ids(ids: np.ndarray, lens: Lens) -> np.ndarray:
    """Return the label map [H, W] of the undistorted photo: nearest, 0 (unlabelled) where nothing was seen."""
    u, v, exists = _source_pixels(lens)
    rows, cols = v.astype(np.int64).clip(0, lens.height - 1), u.astype(np.int64).clip(0, lens.width - 1)
    return np.where(exists, ids[rows, cols], 0).astype(ids.dtype)
