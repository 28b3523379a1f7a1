"""Where photos and masks are kept while a scene trains: on the GPU, in main memory, or in the files they came in."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unified_lift.data.on_demand import Pixels
from unified_lift.errors import UserError
from unified_lift.memory import available_memory
from unified_lift.types import DataDevice, Scene, View

Wanted = Literal["auto", "cuda", "cpu", "disk"]

# Shares of what is free there that photos and masks may take: unasked, and where the user asks for it.
_SHARES: dict[DataDevice, tuple[float, float]] = {"cuda": (0.25, 0.8), "cpu": (0.5, 0.9)}
_SHARE_OF_DECODED = 0.4  # of main memory that photos and masks may take that are decoded when they are asked for
_NAMES: dict[DataDevice, str] = {"cuda": "on the GPU", "cpu": "in main memory", "disk": "on disk"}
_FIELDS = (*Pixels._fields, "points")  # of a view
_GIB = 2**30
_CHUNK = 64 * 2**20  # pinned memory is asked for in powers of two, because torch rounds up to them
_ALIGNMENT = 64


class CacheChoice(NamedTuple):
    """Where photos and masks are kept, the bytes they need, and those that were free there, or in main memory."""

    kept_on: DataDevice
    num_bytes: int
    free_bytes: int

    @property
    def max_decoded(self) -> int:
        """Return how many bytes of photos and masks that are decoded when they are asked for may be kept."""
        return int(_SHARE_OF_DECODED * self.free_bytes)

    def __str__(self) -> str:
        where = f"photos and masks: {self.num_bytes / _GIB:.2f} GiB {_NAMES[self.kept_on]}"
        if self.kept_on == "disk":
            return f"{where}, decoded when they are used, {self.max_decoded / _GIB:.1f} GiB kept"
        return f"{where} ({self.free_bytes / _GIB:.1f} GiB free)"


def choose_cache(wanted: Wanted, num_bytes: int, free: dict[DataDevice, int]) -> CacheChoice:
    """Return where `num_bytes` of photos and masks are kept; a UserError says that they do not fit.

    `auto` takes the first of GPU and main memory of which they fill only a part, as the Gaussians, their moments and
    working memory must fit as well; else they stay on disk. `free` holds the free bytes of each place there is; without
    a GPU no `cuda`.
    """
    if wanted == "auto":
        fitting = [place for place in _SHARES if place in free and num_bytes <= _SHARES[place][0] * free[place]]
        wanted = fitting[0] if fitting else "disk"
    if wanted == "disk":
        return CacheChoice("disk", num_bytes, free["cpu"])
    if wanted not in free:
        raise UserError(f"--data_device {wanted}: this run computes on the CPU; use auto, cpu or disk")
    if num_bytes > _SHARES[wanted][1] * free[wanted]:
        place = f"of {free[wanted] / _GIB:.2f} GiB free {_NAMES[wanted]} they may take {_SHARES[wanted][1]:.0%}"
        what = f"photos and masks need {num_bytes / _GIB:.2f} GiB, {place}"
        raise UserError(f"--data_device {wanted}: {what}; use auto or disk, or free some")
    return CacheChoice(wanted, num_bytes, free[wanted])


def as_tensor(array: np.ndarray) -> Tensor:
    """Return the array as a tensor in main memory."""
    return torch.from_numpy(np.ascontiguousarray(array))


class DataCache:
    """Keeps the pixels of a scene: arrays as the reader decodes them, so that they need not all fit in memory first."""

    def __init__(self, wanted: Wanted, *, device: torch.device) -> None:
        self._wanted, self._device = wanted, device
        self._write: Callable[[Tensor], Tensor] | None = None  # None: as the reader made them
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # by id: a tensor and the one that takes its place
        self.choice: CacheChoice | None = None  # where they are kept; None before that is decided

    def expect(self, num_bytes: int) -> CacheChoice:
        """Decide, before anything is decoded, where about `num_bytes` are going to be kept."""
        self.choice = choose_cache(self._wanted, num_bytes, free_bytes(self._device))
        if self.choice.kept_on == "cpu" and self._device.type == "cuda":
            self._write = _Chunks(pinned=True)
        return self.choice

    def keep(self, array: np.ndarray) -> Tensor:
        """Return a decoded array as a tensor where it is kept while the rest is loaded; safe to call from threads."""
        tensor = as_tensor(array)
        if self._write is None:
            return tensor
        kept = self._write(tensor)
        self._kept[id(kept)] = (kept, kept)
        return kept

    def cached(self, scene: Scene) -> Scene:
        """Return the scene with all photos and masks where they are kept; those that are there already stay.

        What is on disk was not decoded; of a scene that was not read from there, it is what is in memory.
        """
        if self.choice is not None and self.choice.kept_on == "disk":
            return replace(scene, kept_on="disk")
        num_bytes = scene_bytes(scene)
        choice = self.choice = (self.choice or self.expect(num_bytes))._replace(num_bytes=num_bytes)
        write = self._write or (lambda tensor: tensor.to(self._device if choice.kept_on == "cuda" else "cpu"))

        def moved(view: View) -> View:
            """Return the view with its tensors where they are kept; views that share one (a black frame) still do."""
            placed: dict[str, Any] = {}
            for name in _FIELDS:
                if (tensor := getattr(view, name)) is not None:
                    if id(tensor) not in self._kept:
                        self._kept[id(tensor)] = (tensor, write(tensor))
                    placed[name] = self._kept[id(tensor)][1]
            return view.having(**placed)

        train, test = (tuple(map(moved, views)) for views in (scene.train, scene.test))
        self._kept.clear()
        return replace(scene, train=train, test=test, kept_on=choice.kept_on)


class _Chunks:
    """Puts tensors side by side into large blocks of main memory, pinned for a GPU to read."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned, self._lock = pinned, threading.Lock()
        self._chunk, self._used = torch.empty(0, dtype=torch.uint8), 0

    def __call__(self, tensor: Tensor) -> Tensor:
        with self._lock:
            if self._used + tensor.nbytes > len(self._chunk):
                size = max(_CHUNK, tensor.nbytes)
                self._chunk, self._used = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned), 0
            place = self._chunk[self._used : self._used + tensor.nbytes]
            self._used += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def scene_bytes(scene: Scene) -> int:
    """Return the bytes of all photos and masks, what views share counted once."""
    found = [getattr(view, name) for view in (*scene.train, *scene.test) for name in _FIELDS]
    return sum({id(tensor): tensor.nbytes for tensor in found if tensor is not None}.values())


def free_bytes(device: torch.device) -> dict[DataDevice, int]:
    """Return the free bytes of GPU (if the run computes there) and main memory."""
    free: dict[DataDevice, int] = {"cpu": available_memory()}
    if device.type == "cuda":
        free["cuda"] = torch.cuda.mem_get_info()[0]
    return free
