"""Frames of the viewer: what is drawn in each mode, and a loop that draws small while a camera moves, whole at rest."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from unified_lift.evaluation.pictures import object_colors, uncertainty_picture
from unified_lift.metrics.image import quantize_uint8
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import render
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.types import Camera

Mode = Literal["rgb", "ids", "features", "uncertainty"]
MODES: tuple[Mode, ...] = ("rgb", "ids", "features", "uncertainty")

_MAP_SHARE = 0.75  # of the colour in modes ids and uncertainty: shading stays visible
_SPREAD = 3.0  # standard deviations of the objects' features that make a full colour
_OUTLINE = (255, 214, 10)
_OUTLINE_EDGE = (20, 20, 20)  # around the outline, so that it shows on yellow things too
_OUTLINE_WIDTH = 1 / 250  # of the height of the frame
_SETTLED = 0.25  # seconds without news of the camera until it counts as still
_BUDGET = 1 / 24  # seconds a frame may take while the camera moves
_MIN_SHARE, _MAX_STEP = 0.15, 1.4  # of the side of a moving frame; change of that share from one frame to the next
_MAX_SIDE = 2048  # pixels of a whole frame: a screen of twice the density is not worth four times the wait


class FeatureColors:
    """A fixed linear map from features to colours: the three directions in which objects differ most become R, G, B.

    Being linear, it may be applied to Gaussians instead of pixels, so that only three numbers need be blended.
    """

    def __init__(self, scene: TrainedScene) -> None:
        """Choose the directions by the mean features of the objects, so that a large one counts no more than others."""
        features = scene.gaussians.features.detach().float()
        known, index = torch.unique(scene.object_ids, return_inverse=True)
        means = features.new_zeros(len(known), features.shape[1]).index_add_(0, index, features)
        means = means / torch.bincount(index, minlength=len(known))[:, None]
        self._mean = means.mean(dim=0)
        centred = means - self._mean
        strongest = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :3]
        if strongest.numel():  # an eigenvector has no sign of its own: its largest entry is made positive
            strongest = strongest * torch.sign(strongest.gather(0, strongest.abs().argmax(dim=0, keepdim=True)))
        self._axes = torch.nn.functional.pad(strongest, (0, 3 - strongest.shape[1]))
        self._spread = (_SPREAD * (centred @ self._axes).std(dim=0, correction=0)).clamp(min=1e-6)

    def __call__(self, features: Tensor) -> Tensor:
        """Return colours [N, 3]; grey = the mean of the objects, and most objects lie in [0, 1]."""
        return 0.5 + 0.5 * ((features.detach().float() - self._mean) @ self._axes) / self._spread


class Painter:
    """Draws a scene in any mode. One rasterization a frame: what a mode needs rides along as the blended features."""

    def __init__(self, feature_colors: FeatureColors) -> None:
        """Take the colours of mode `features`, the same whatever is edited."""
        self._feature_colors = feature_colors
        self._kept: tuple[TrainedScene, Mode, int | None, Gaussians] | None = None

    @torch.no_grad()
    def paint(self, scene: TrainedScene, camera: Camera, *, mode: Mode, selected: int | None = None) -> np.ndarray:
        """Return a frame, uint8 [H, W, 3].

        Args:
            scene: What is shown; may be empty.
            camera: From where.
            mode: `rgb`; `ids`: colours of the objects over the shading; `features`: see FeatureColors; `uncertainty`:
                dark = every vote was for the object, bright = few.
            selected: Object that is outlined where it is in front.
        """
        background = scene.background
        gaussians = self._dressed(scene, mode, selected)
        out = render(gaussians, camera, background=background, with_features=gaussians.feature_dim > 0)
        extra, empty = out.features, 1 - out.alpha[..., None]
        if mode == "rgb":
            frame = _pixels(out.image)
        elif mode == "features":
            frame = _pixels(extra[..., :3] + empty * background)
        elif mode == "ids":
            frame = _shaded(_pixels(extra[..., :3] + empty * background), out.image)
        else:
            frame = _shaded(uncertainty_picture((extra[..., 0] + empty[..., 0]).cpu().numpy()), out.image)
        if selected is None:
            return frame
        return outlined(frame, (extra[..., -1] > 0.5).cpu().numpy())

    def _dressed(self, scene: TrainedScene, mode: Mode, selected: int | None) -> Gaussians:
        """Return the Gaussians with the columns that the mode and the outline need in place of their features."""
        kept = self._kept
        if kept is not None and kept[0] is scene and kept[1:3] == (mode, selected):
            return kept[3]
        columns: list[Tensor] = []
        if mode == "ids":
            known, index = torch.unique(scene.object_ids, return_inverse=True)
            colors = torch.from_numpy(object_colors(known.cpu().numpy())).to(index.device)
            columns.append(colors.float()[index] / 255)
        elif mode == "features":
            columns.append(self._feature_colors(scene.gaussians.features))
        elif mode == "uncertainty":
            columns.append(scene.confidence.float()[:, None])
        if selected is not None:
            columns.append((scene.object_ids == selected).float()[:, None])
        gaussians = copy.copy(scene.gaussians)  # shares all but the features, which may be gigabytes
        gaussians.table = dict(scene.gaussians.table)
        gaussians.set("features", torch.cat(columns, dim=1) if columns else scene.confidence.new_zeros(len(scene), 0))
        self._kept = (scene, mode, selected, gaussians)
        return gaussians


def _pixels(image: Tensor) -> np.ndarray:
    return quantize_uint8(image).cpu().numpy()


def _shaded(colors: np.ndarray, image: Tensor) -> np.ndarray:
    return cv2.addWeighted(colors, _MAP_SHARE, _pixels(image), 1 - _MAP_SHARE, 0)


def outlined(frame: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the frame [H, W, 3] with a line around what is `inside`, bool [H, W]."""
    mask = inside.astype(np.uint8)
    width = max(1, round(_OUTLINE_WIDTH * len(frame)))
    line, edge = (cv2.dilate(mask, _disc(radius)) > 0 for radius in (width, width + max(1, width // 2)))
    frame = frame.copy()
    frame[edge & ~inside] = _OUTLINE_EDGE
    frame[line & ~inside] = _OUTLINE
    return frame


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


class Pacer:
    """Chooses the size of the frames of a moving camera so that each takes about the budget."""

    def __init__(self, *, budget: float = _BUDGET) -> None:
        """Start with half the side; the first frames correct it."""
        self._budget = budget
        self.share = 0.5

    def size(self, width: int, height: int, *, moving: bool) -> tuple[int, int]:
        """Return the size of the next frame of a window of width x height pixels; the shape stays."""
        share = min(1.0, _MAX_SIDE / max(width, height)) * (self.share if moving else 1.0)
        return max(1, round(width * share)), max(1, round(height * share))

    def took(self, seconds: float) -> None:
        """Learn what the last frame of a moving camera took."""
        wanted = math.sqrt(self._budget / max(seconds, 1e-6))
        self.share = min(1.0, max(_MIN_SHARE, self.share * min(_MAX_STEP, max(1 / _MAX_STEP, wanted))))


class Frame(NamedTuple):
    """A frame for one window: uint8 [H, W, 3], and whether the next one follows at once."""

    picture: np.ndarray
    moving: bool


@dataclass(eq=False)
class _Window:
    camera: Camera
    send: Callable[[Frame], None]
    moved_at: float
    pacer: Pacer = field(default_factory=Pacer)
    due: bool = True  # something has changed since the last frame
    rough: bool = False  # the last frame was a small one


class FrameLoop:
    """Draws for every window what is due: small frames while its camera moves, a whole one once it rests.

    Between frames nothing is drawn, and a window is always served with its newest camera: frames never queue up.
    """

    def __init__(self, draw: Callable[[Camera], np.ndarray], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take what draws a camera; `clock` counts seconds."""
        self._draw = draw
        self._clock = clock
        self._windows: dict[Hashable, _Window] = {}
        self._news = threading.Condition()
        self._running = False
        self._thread: threading.Thread | None = None
        self._rough_until = -math.inf

    def watch(self, key: Hashable, camera: Camera, send: Callable[[Frame], None]) -> None:
        """Tell where the camera of a window is now, and where its frames go."""
        with self._news:
            window = self._windows.get(key)
            if window is None:
                # A new window is still: its first frame is a whole one.
                self._windows[key] = _Window(camera, send, moved_at=-math.inf)
            else:
                window.camera, window.send = camera, send
                window.moved_at, window.due = self._clock(), True
            self._news.notify()

    def forget(self, key: Hashable) -> None:
        """Stop drawing for a window."""
        with self._news:
            self._windows.pop(key, None)

    def redraw(self, *, rough: bool = False) -> None:
        """Draw all windows again, as the scene has changed; `rough`: it is still changing, so small frames will do."""
        with self._news:
            if rough:
                self._rough_until = self._clock() + _SETTLED
            for window in self._windows.values():
                window.due = True
            self._news.notify()

    def step(self) -> float | None:
        """Draw what is due. Return after how many seconds something will be; None = only after news."""
        with self._news:
            windows = list(self._windows.values())
        waits = []
        for window in windows:
            wait = self._serve(window)
            if wait is not None:
                waits.append(wait)
        return min(waits, default=None)

    def _serve(self, window: _Window) -> float | None:
        with self._news:
            start = self._clock()
            settles = max(window.moved_at + _SETTLED, self._rough_until)
            moving = start < settles
            if not window.due and not (window.rough and not moving):
                return settles - start if window.rough else None
            camera, window.due, window.rough = window.camera, False, moving
        size = window.pacer.size(camera.width, camera.height, moving=moving)
        picture = self._draw(camera if size == (camera.width, camera.height) else camera.resized(*size))
        if moving:
            window.pacer.took(self._clock() - start)
        window.send(Frame(picture, moving))
        if window.due:
            return 0.0
        return max(0.0, settles - self._clock()) if moving else None

    def start(self) -> None:
        """Draw in a thread until `stop`."""
        self._running = True
        self._thread = threading.Thread(target=self._run, daemon=True, name="frames")
        self._thread.start()

    def stop(self) -> None:
        """Let the frame being drawn finish, and end the thread."""
        with self._news:
            self._running = False
            self._news.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._running:
            wait = self.step()
            with self._news:
                if self._running and not any(window.due for window in self._windows.values()):
                    self._news.wait(wait)
