"""The nouns of the project: cameras, views, scenes and what a render returns.

Letters used in every shape comment: N Gaussians, C cameras, H W image, P sampled pixels, S segments of a view,
L codebook rows, D feature width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

ZeroId = Literal["segment", "ignore"]
"""What segment id 0 means in a data set: a segment of its own (background), or unlabelled."""
DataDevice = Literal["cuda", "cpu", "disk"]
"""Where photos and masks are: GPU memory, main memory (pinned if a GPU reads it), or the files of the scene."""
STILL = 1e-3
"""Cameras that lie closer together than this share of the points' distance only turn: no depth is seen from them."""


class Range(NamedTuple):
    """Least and greatest value of a setting, or of each number of a tuple; it must also be larger than `above`.

    Whole numbers without a `most` go up to 2^31 - 1. Checked by `settings.limits`.
    """

    least: float = -1e38
    most: float = 1e38
    above: float = -math.inf


@dataclass(frozen=True, kw_only=True, eq=False)  # compared and hashed by identity, so that it can key a cache
class Camera:
    """A pinhole camera: OpenCV axes (x right, y down, z forward), corner-origin pixels (first pixel centre at 0.5)."""

    cam_from_world: np.ndarray  # rigid transform, float64 [4, 4]
    fx: float  # intrinsics and image size in pixels
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    _tensors: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.cam_from_world.shape != (4, 4):
            raise ValueError(f"cam_from_world must be [4, 4], received {self.cam_from_world.shape}")
        if not (np.isfinite(self.cam_from_world).all() and np.isfinite([self.fx, self.fy, self.cx, self.cy]).all()):
            raise ValueError("camera holds NaN or infinite numbers")
        if self.fx <= 0 or self.fy <= 0 or self.width < 1 or self.height < 1:
            raise ValueError(f"focal lengths and image size must be positive, received {self}")

    @property
    def intrinsics(self) -> np.ndarray:
        """Return the intrinsic matrix K, float32 [3, 3]."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=np.float32)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return `cam_from_world` and K on `device`, float32; kept, since a copy to a GPU would stall it every step."""
        if device not in self._tensors:
            viewmat = torch.from_numpy(self.cam_from_world.astype(np.float32))
            self._tensors[device] = viewmat.to(device), torch.from_numpy(self.intrinsics).to(device)
        return self._tensors[device]

    @property
    def position(self) -> np.ndarray:
        """Return the camera centre in world coordinates, float64 [3]."""
        rotation, translation = self.cam_from_world[:3, :3], self.cam_from_world[:3, 3]
        return -rotation.T @ translation

    def resized(self, width: int, height: int) -> Camera:
        """Return the camera of the same photo resampled to another size: all four intrinsics scale."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy, width=width, height=height
        )


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Where a scene is worked on: inside = scale x (outside - offset). Outside are the user's coordinates: all files.

    The identity returns what it is given, so that an ordinary scene does not change by a bit.
    """

    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)  # in the user's units
    scale: float = 1.0  # a power of two: float32 numbers lose nothing

    @property
    def is_identity(self) -> bool:
        """Return whether inside and outside are the same."""
        return self == IDENTITY

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Return the user's points [..., 3] as the scene has them, float64."""
        return points if self.is_identity else self.scale * (np.asarray(points, np.float64) - self.offset)

    def outside(self, points: np.ndarray) -> np.ndarray:
        """Return points [..., 3] of the scene as the user has them, float64."""
        return points if self.is_identity else np.asarray(points, np.float64) / self.scale + self.offset

    def camera_inside(self, camera: Camera) -> Camera:
        """Return a camera of the user's as the scene has it."""
        if self.is_identity:
            return camera
        pose = camera.cam_from_world.copy()
        pose[:3, 3] = self.scale * (pose[:3, 3] + pose[:3, :3] @ self.offset)
        return replace(camera, cam_from_world=pose)


IDENTITY = Similarity()


@dataclass(frozen=True, kw_only=True)
class View:
    """A posed photo with the segment ids a 2D model gave it."""

    name: str  # relative path of the image without suffix, unique in the scene; names every output of this view
    camera: Camera  # of the size of the image
    image: Tensor  # uint8 [H, W, 3]
    segments: Tensor | None = None  # predicted ids, local to this view, int32 [H, W]; None: the view has no mask
    # Pixels that count, bool [H, W], None = all; those the lens did not see or the scene leaves out do not, nor train.
    valid: Tensor | None = None
    # Of a photo that lies over the background, uint8 [H, W], None = opaque or not asked for.
    alpha: Tensor | None = None
    # Sparse points that it shows, float32 [K, 3]: column and row of the pixel, depth. None = not asked for, or none.
    points: Tensor | None = None

    @property
    def has_mask(self) -> bool:
        """Return whether a 2D model gave it segments."""
        return self.segments is not None

    @property
    def has_alpha(self) -> bool:
        """Return whether the photo may be transparent somewhere."""
        return self.alpha is not None

    def having(self, **changes: Any) -> View:
        """Return the view with other values of some fields."""
        return replace(self, **changes)

    def begin(self) -> None:
        """Begin to read the pixels, where they are not in memory."""


@dataclass(frozen=True, kw_only=True)
class PointCloud:
    """Coloured points: positions [M, 3], of a scene float32, as read up to float64, and colours uint8 [M, 3]."""

    positions: np.ndarray
    colors: np.ndarray
    num_random: int = 0  # the last so many lie on no surface


def distances(points: np.ndarray, centre: np.ndarray) -> tuple[float, float]:
    """Return the distances from the centre that 1 % and half of the points [M, 3] have at most; 0 of none."""
    with np.errstate(over="ignore"):
        found = np.linalg.norm(points - centre, axis=1) if len(points) else np.zeros(1)
    near, usual = np.quantile(found, [0.01, 0.5]).tolist()
    return near, usual


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A loaded scene. Annotations are not part of it: only evaluation reads them, through the reader."""

    name: str  # of the folder
    dataset: str  # name of the reader that made it
    train: tuple[View, ...]
    test: tuple[View, ...]  # empty where nothing is held out
    points: PointCloud  # initial points of the geometry
    frame: Similarity = IDENTITY  # cameras and points are inside of it
    zero_id: ZeroId = "ignore"
    void_ids: tuple[int, ...] = ()  # of the mask files: made 0, where others count up by one; () = as in the files
    kept_on: DataDevice = "cpu"
    notes: tuple[str, ...] = ()  # what the reader did that the user should know (such as rescaling), printed once

    @property
    def labelled(self) -> tuple[View, ...]:
        """Return the training views with masks."""
        return tuple(view for view in self.train if view.has_mask)

    @property
    def radius(self) -> float:
        """Return the scene extent: 1.1 x the largest distance of a training camera from their mean [3DGS].

        Cameras 20 times as far out as 90 % of them do not count: their poses are wrong. Of a camera that only turns it
        is a quarter of the points' distance, at least 1. [ours]
        """
        centres = np.stack([view.camera.position for view in self.train])
        outward = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
        bulk = float(np.quantile(outward, 0.9))
        centres = centres[outward <= 20 * bulk] if bulk > 0 else centres
        distance = np.linalg.norm(centres - centres.mean(axis=0), axis=1).max()
        near, usual = distances(self.points.positions, centres.mean(axis=0))
        return float(1.1 * distance) if distance > STILL * near else max(1.0, usual / 4)


@dataclass(frozen=True, kw_only=True)
class RenderOutput:
    """One rendered view."""

    image: Tensor  # colour, not clamped, [H, W, 3]
    features: Tensor  # blended instance features, composited over zero, [H, W, D]
    alpha: Tensor  # accumulated opacity in [0, 1], [H, W]
    depth: Tensor  # sum of weight x camera depth in world units, not normalised, [H, W]
    radii: Tensor  # screen radius of each Gaussian in pixels, 0 = culled, int32 [N]
