"""Pictures of a scene in the modes of the viewer. A further mode is one entry of `MODES`."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from unified_lift.evaluation.pictures import object_colors, uncertainty_picture
from unified_lift.metrics.image import quantize_uint8
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import RenderOutput, render
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.ops.segments import segment_mean
from unified_lift.types import Camera

_MAP_SHARE = 0.75  # of the colour in modes ids and uncertainty: shading stays visible
_FULL_COLOR = 3.0  # standard deviations of the objects' features that make a full colour
_OUTLINE = (255, 214, 10)
_OUTLINE_EDGE = (20, 20, 20)  # around the outline, so that it shows on yellow things too
_OUTLINE_WIDTH = 1 / 250  # of the height of the frame


class FeatureColors:
    """A fixed linear map from features to colours: the three directions in which objects differ most become R, G, B.

    Being linear, it may be applied to Gaussians instead of pixels, so that only three numbers need be blended.
    """

    def __init__(self, scene: TrainedScene) -> None:
        features = scene.gaussians.features.detach().float()
        known, index = torch.unique(scene.object_ids, return_inverse=True)
        means = segment_mean(features, index, len(known))  # of each object, so that a large one counts no more
        self._mean = means.mean(dim=0)
        centred = means - self._mean
        strongest = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :3]
        if strongest.numel():  # an eigenvector has no sign of its own: its largest entry is made positive
            strongest = strongest * torch.sign(strongest.gather(0, strongest.abs().argmax(dim=0, keepdim=True)))
        self._axes = torch.nn.functional.pad(strongest, (0, 3 - strongest.shape[1]))
        self._range = (_FULL_COLOR * (centred @ self._axes).std(dim=0, correction=0)).clamp(min=1e-6)

    def __call__(self, features: Tensor) -> Tensor:
        """Return colours [N, 3]; grey = the mean of the objects, and most objects lie in [0, 1]."""
        return 0.5 + 0.5 * ((features.detach().float() - self._mean) @ self._axes) / self._range


class Mode(NamedTuple):
    """How a scene is shown.

    Attributes:
        label: What the user chooses.
        values: What is blended beside the colours: of each Gaussian, [N, K].
        picture: Makes uint8 [H, W, 3] of the rendering and the blended values [H, W, K] over their background.
        empty: Value of the background; None = the scene's colour.
    """

    label: str
    values: Callable[[TrainedScene, FeatureColors], Tensor]
    picture: Callable[[RenderOutput, Tensor], np.ndarray]
    empty: float | None = None


def _id_colors(scene: TrainedScene, _: FeatureColors) -> Tensor:
    known, index = torch.unique(scene.object_ids, return_inverse=True)
    return torch.from_numpy(object_colors(known.cpu().numpy())).to(index.device).float()[index] / 255


def _pixels(image: Tensor) -> np.ndarray:
    return quantize_uint8(image).cpu().numpy()


def _shaded(colors: np.ndarray, out: RenderOutput) -> np.ndarray:
    return cv2.addWeighted(colors, _MAP_SHARE, _pixels(out.image), 1 - _MAP_SHARE, 0)


MODES: dict[str, Mode] = {
    "rgb": Mode("RGB", lambda scene, _: scene.confidence.new_zeros(len(scene), 0), lambda out, _: _pixels(out.image)),
    "ids": Mode("Object ids", _id_colors, lambda out, colors: _shaded(_pixels(colors), out)),
    "features": Mode(
        "Features", lambda scene, colors: colors(scene.gaussians.features), lambda _, colors: _pixels(colors)
    ),
    "uncertainty": Mode(
        "Uncertainty",
        lambda scene, _: scene.confidence.float()[:, None],
        lambda out, confidence: _shaded(uncertainty_picture(confidence[..., 0].cpu().numpy()), out),
        empty=1.0,
    ),
}
"""All modes: `ids` and `uncertainty` (dark = every vote was for the object, bright = few) lie over the shading."""


class Renderer:
    """Draws a scene in any mode. One rasterization a frame: what a mode needs is blended as the features."""

    def __init__(self, feature_colors: FeatureColors) -> None:
        self.feature_colors = feature_colors
        self._kept: tuple[tuple[TrainedScene, str, int | None], Gaussians] | None = None

    @torch.no_grad()
    def frame(self, scene: TrainedScene, camera: Camera, *, mode: str, selected: int | None = None) -> np.ndarray:
        """Return a frame in one of `MODES`, uint8 [H, W, 3]; `selected` is outlined where it is in front."""
        gaussians, chosen = self._with_values(scene, mode, selected), MODES[mode]
        out = render(gaussians, camera, background=scene.background, with_features=gaussians.feature_dim > 0)
        values, inside = out.features, None
        if selected is not None:
            values, inside = values[..., :-1], (values[..., -1] > 0.5).cpu().numpy()
        if gaussians.feature_dim > (selected is not None):
            empty = scene.background if chosen.empty is None else chosen.empty
            values = values + (1 - out.alpha[..., None]) * empty
        frame = chosen.picture(out, values)
        return frame if inside is None else outlined(frame, inside)

    def _with_values(self, scene: TrainedScene, mode: str, selected: int | None) -> Gaussians:
        """Return the Gaussians with what the mode and the outline need in place of their features."""
        wanted = (scene, mode, selected)
        if self._kept is None or self._kept[0] != wanted:
            values = [MODES[mode].values(scene, self.feature_colors)]
            if selected is not None:
                values.append((scene.object_ids == selected).float()[:, None])
            gaussians = copy.copy(scene.gaussians)  # shares all but the features, which may be gigabytes
            gaussians.table = dict(scene.gaussians.table)
            gaussians.set("features", torch.cat(values, dim=1))
            self._kept = (wanted, gaussians)
        return self._kept[1]


def outlined(frame: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the frame [H, W, 3] with a line around what is `inside`, bool [H, W]."""
    width = max(1, round(_OUTLINE_WIDTH * len(frame)))
    frame = frame.copy()
    for color, radius in ((_OUTLINE_EDGE, width + max(1, width // 2)), (_OUTLINE, width)):
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        frame[(cv2.dilate(inside.astype(np.uint8), disc) > 0) & ~inside] = color
    return frame
