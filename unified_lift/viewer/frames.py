"""A loop that draws the frames of all windows: small ones while a camera moves, whole ones at rest."""

import ctypes
import math
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import count

import numpy as np

from unified_lift.errors import UserError
from unified_lift.memory import enough_memory
from unified_lift.types import Camera

_SETTLED, _LATEST = 0.25, 2.0  # seconds without news of the camera until it counts as still, at least and at most
_OF_WHOLE = 0.25  # of the seconds of a whole frame, which a camera that moves again has to wait for: so long it rests
PACE, PACE_OF_MANY = 1 / 24, 1 / 10  # seconds a frame may take while the camera moves; of more Gaussians than that
_MIN_SHARE, _MAX_STEP = 0.15, 1.4  # of the side of a moving frame; change of that share from one frame to the next
_PER_RELEASE = 16  # frames after which freed memory goes back: once a second or so, which costs a few percent of them
LESS = "end other programs that hold some, or use --device cpu"
_MAX_SIDE = 2048  # pixels of a whole frame: a screen of twice the density is not worth four times the wait

release_memory = getattr(ctypes.pythonapi, "malloc_trim", int)
"""Gives freed memory back, which glibc keeps in pieces that no later frame fits into: up to 1 MiB more a frame."""

Send = Callable[[np.ndarray, bool], None]
"""Takes a frame, uint8 [H, W, 3], and whether the next one follows at once."""


@dataclass(eq=False)
class Window:
    """Where the camera of a window is, and how large its moving frames may be to keep the pace."""

    camera: Camera
    send: Send
    moved_at: float = -math.inf
    due: bool = True  # something has changed since the last frame
    rough: bool = False  # the last frame was a small one
    share: float = 0.5  # of the side of a moving frame; the first frames correct it
    pace: float = PACE  # seconds
    settled: float = _SETTLED  # seconds until it counts as still

    def size(self, *, moving: bool) -> tuple[int, int]:
        """Return width and height of the next frame in pixels; the shape stays."""
        width, height = self.camera.width, self.camera.height
        share = min(1.0, _MAX_SIDE / max(width, height)) * (self.share if moving else 1.0)
        return max(1, round(width * share)), max(1, round(height * share))

    def took(self, seconds: float, *, moving: bool = True) -> None:
        """Learn what the last frame of a moving camera, or of one at rest, took."""
        if not moving:
            self.settled = min(max(_SETTLED, _OF_WHOLE * seconds), _LATEST)
            return
        step = math.sqrt(self.pace / max(seconds, 1e-6))
        self.share = min(1.0, max(_MIN_SHARE, self.share * min(_MAX_STEP, max(1 / _MAX_STEP, step))))


class FrameLoop:
    """Draws for every window what is due: small frames while its camera moves, a whole one once it rests.

    Between frames nothing is drawn, and a window is always served with its newest camera: frames never queue up.
    `draw` is given the camera and whether it moves, `pace` are the seconds that a moving frame may take.
    A frame for which there is too little memory is left out; `failed` is told so once, until there is enough again.
    """

    def __init__(
        self,
        draw: Callable[[Camera, bool], np.ndarray],
        *,
        pace: float = PACE,
        failed: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._draw, self._failed, self._clock, self._has_failed, self._pace = draw, failed, clock, False, pace
        self._windows: dict[Hashable, Window] = {}
        self._news = threading.Condition()
        self._running = True
        self._thread = threading.Thread(target=self._run, daemon=True, name="frames")
        self._rough_until = -math.inf
        self._frames = count(1)

    def watch(self, key: Hashable, camera: Camera, send: Send) -> None:
        """Tell where the camera of a window is now, and where its frames go."""
        with self._news:
            if (window := self._windows.get(key)) is None:  # it is still: its first frame is a whole one
                self._windows[key] = Window(camera, send, pace=self._pace)
            else:
                window.camera, window.send, window.moved_at, window.due = camera, send, self._clock(), True
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
        waits = [self._serve(window) for window in windows]
        return min((wait for wait in waits if wait is not None), default=None)

    def _serve(self, window: Window) -> float | None:
        with self._news:
            start = self._clock()
            settles = max(window.moved_at + window.settled, self._rough_until)
            moving = start < settles
            if not window.due and (moving or not window.rough):
                return settles - start if window.rough else None
            camera, size, window.due, window.rough = window.camera, window.size(moving=moving), False, moving
        try:
            with enough_memory("a frame", lower=f"make the window smaller, {LESS}"):
                whole = size == (camera.width, camera.height)
                picture = self._draw(camera if whole else camera.resized(*size), moving)
                window.send(picture, moving)
            self._has_failed = False
        except UserError as error:
            if not self._has_failed:
                self._failed(str(error))
            self._has_failed = True
        window.took(self._clock() - start, moving=moving)
        if next(self._frames) % _PER_RELEASE == 0:
            release_memory(0)
        if window.due:
            return 0.0
        return max(0.0, settles - self._clock()) if moving else None

    def start(self) -> None:
        """Draw in a thread until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Let the frame being drawn finish, and end the thread."""
        with self._news:
            self._running = False
            self._news.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._running:
            wait = self.step()
            with self._news:
                if self._running and not any(window.due for window in self._windows.values()):
                    self._news.wait(wait)
