"""The nouns of the project: cameras, views, scenes and what a render returns.

Letters used in every shape comment: N Gaussians, C cameras, H W image, P sampled pixels, S segments of a view,
L codebook rows, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

ZeroId = Literal["segment", "ignore"]
DataDevice = Literal["cuda", "cpu", "disk"]
"""Where photos and masks are kept: GPU memory, main memory (pinned if a GPU reads it), or memory-mapped files."""


@dataclass(frozen=True, kw_only=True, eq=False)  # compared and hashed by identity, so that it can key a cache
class Camera:
    """A pinhole camera: OpenCV axes (x right, y down, z forward), corner-origin pixels (first pixel centre at 0.5).

    Attributes:
        cam_from_world: Rigid transform, float64 [4, 4].
        fx, fy, cx, cy: Intrinsics in pixels.
        width, height: Image size in pixels.
    """

    cam_from_world: np.ndarray
    fx: float
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
    def viewmat(self) -> Tensor:
        """Return cam_from_world, float32 [4, 4]."""
        return torch.from_numpy(self.cam_from_world.astype(np.float32))

    @property
    def K(self) -> Tensor:  # noqa: N802 (the field's name for the intrinsic matrix)
        """Return the intrinsic matrix, float32 [3, 3]."""
        return torch.tensor([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=torch.float32)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return viewmat and K on `device`; kept, since a copy to a GPU would stall it every step."""
        if device not in self._tensors:
            self._tensors[device] = self.viewmat.to(device), self.K.to(device)
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
class View:
    """A posed photo with the segment ids a 2D model gave it.

    Attributes:
        name: Relative path of the image without suffix, unique in the scene; names every output of this view.
        camera: Its camera; size equals the image's.
        image: Colour, uint8 [H, W, 3].
        segments: Per-view ids, int32 [H, W]; predictions, local to this view. None where the view has no mask.
        valid: Pixels the lens saw, bool [H, W]; the others neither train nor count. None = all.
    """

    name: str
    camera: Camera
    image: Tensor
    segments: Tensor | None = None
    valid: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PointCloud:
    """Coloured points: positions float32 [M, 3] in world units and colours uint8 [M, 3]."""

    positions: np.ndarray
    colors: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A loaded scene. Annotations are not part of it: only evaluation reads them, through the reader.

    Attributes:
        name: Folder name.
        dataset: Name of the reader that made it.
        train, test: Views; `test` is empty where nothing is held out.
        points: Initial points of the geometry.
        zero_id: What segment id 0 means in this data: a `segment` of its own (background) or `ignore` (unlabelled).
        kept_on: Where the pixels of the views are kept.
        notes: What the reader did that the user should know (rescaling, undistortion, missing masks), printed once.
    """

    name: str
    dataset: str
    train: tuple[View, ...]
    test: tuple[View, ...]
    points: PointCloud
    zero_id: ZeroId = "ignore"
    kept_on: DataDevice = "cpu"
    notes: tuple[str, ...] = field(default=())

    @property
    def labelled(self) -> tuple[View, ...]:
        """Return the training views with masks."""
        return tuple(view for view in self.train if view.segments is not None)

    @property
    def radius(self) -> float:
        """Return the scene extent: 1.1 x the largest distance of a training camera from their mean [3DGS]."""
        centres = np.stack([view.camera.position for view in self.train])
        distance = np.linalg.norm(centres - centres.mean(axis=0), axis=1).max()
        return float(1.1 * distance) if distance > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class RenderOutput:
    """One rendered view.

    Attributes:
        image: Colour, not clamped, [H, W, 3].
        features: Blended instance features, composited over zero, [H, W, D].
        alpha: Accumulated opacity in [0, 1], [H, W].
        depth: Sum of weight x camera depth in world units, not normalised, [H, W].
        radii: Screen radius of each Gaussian in pixels, 0 = culled, int32 [N].
    """

    image: Tensor
    features: Tensor
    alpha: Tensor
    depth: Tensor
    radii: Tensor
