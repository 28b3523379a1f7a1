"""Training views: which comes next, its photo and ids on the device that computes, and the segments of its pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unified_lift.ops.segments import dense_slots
from unified_lift.types import DataDevice, View

ViewField = Literal["image", "segments", "valid"]
_FIELDS: tuple[ViewField, ...] = ("image", "segments", "valid")
_Arrival = Callable[[], dict[str, Tensor]]
"""Called when the copies are needed; it returns them by field."""


class ViewOrder:
    """An endless shuffled order over `count` views with its own generator: without replacement, refilled [3DGS]."""

    def __init__(self, count: int, *, seed: int) -> None:
        """Start with an empty stack."""
        self.count = count
        self.generator = torch.Generator().manual_seed(seed)
        self.stack: list[int] = []

    def next_index(self) -> int:
        """Return the index of the next view."""
        self._refill()
        return self.stack.pop()

    def peek(self) -> int:
        """Return what `next_index` is going to return."""
        self._refill()
        return self.stack[-1]

    def state_dict(self) -> dict:
        """Return stack and generator."""
        return {"stack": list(self.stack), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` returned."""
        self.stack = list(state["stack"])
        self.generator.set_state(state["generator"])

    def _refill(self) -> None:
        if not self.stack:
            self.stack = torch.randperm(self.count, generator=self.generator).tolist()


class ViewSource:
    """Views with photos and ids on the computing device, wherever they are kept; the next one is fetched ahead.

    Kept on that device, a view is handed out as it is. From pinned memory the next view is copied on a stream of its
    own; from disk a thread reads it, so that a step waits neither for a copy nor, if the disk keeps up, for reading.
    """

    def __init__(
        self,
        views: Sequence[View],
        *,
        kept_on: DataDevice,
        device: torch.device,
        fields: Sequence[ViewField] = _FIELDS,
    ) -> None:
        """Serve `views`, whose pixels are kept on `kept_on`, with these fields on `device`."""
        self._views, self._fields = views, fields
        self._carrier: _FromPinned | _FromDisk | None = None
        if kept_on == "disk":
            self._carrier = _FromDisk(device)
        elif kept_on == "cpu" and device.type == "cuda":
            self._carrier = _FromPinned(device)
        self._coming: tuple[int, _Arrival] | None = None

    def __len__(self) -> int:
        return len(self._views)

    def get(self, index: int, *, then: int | None = None) -> View:
        """Return view `index`; `then` is the one that will be asked for next.

        Fields that this source does not serve stay where the scene keeps them.
        """
        if self._carrier is None:
            return self._views[index]
        if self._coming is None or self._coming[0] != index:
            self._coming = (index, self._start(index))
        moved = self._coming[1]()
        self._coming = None if then is None else (then, self._start(then))
        return replace(self._views[index], **moved)

    def all(self) -> Iterator[View]:  # noqa: A003
        """Walk over all views in order."""
        for index in range(len(self)):
            yield self.get(index, then=index + 1 if index + 1 < len(self) else None)

    def close(self) -> None:
        """Drop what was fetched ahead and end the thread."""
        if self._carrier is not None:
            self._carrier.close()
            self._coming = None

    def _start(self, index: int) -> _Arrival:
        tensors = {name: getattr(self._views[index], name) for name in self._fields}
        return self._carrier.start({name: tensor for name, tensor in tensors.items() if tensor is not None})


class _FromPinned:
    """Copies from pinned memory to a GPU beside the work of the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def start(self, tensors: dict[str, Tensor]) -> _Arrival:
        """Queue the copies; the arrival makes the current stream wait for them, not the host."""
        with torch.cuda.stream(self._stream):
            moved = {name: tensor.to(self._device, non_blocking=True) for name, tensor in tensors.items()}
            ready = self._stream.record_event()

        def arrive() -> dict[str, Tensor]:
            _hand_over(moved, ready)
            return moved

        return arrive

    def close(self) -> None:
        """Nothing is open."""


class _FromDisk:
    """Reads memory-mapped tensors in a thread: into memory or, for a GPU, into a pinned buffer and on from there."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, ThreadPoolExecutor(1, thread_name_prefix="views")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffers: dict[str, Tensor] = {}

    def start(self, tensors: dict[str, Tensor]) -> _Arrival:
        """Let the thread begin; the arrival waits for it, which takes no time if the disk was fast enough."""
        if self._stream is None:
            return self._pool.submit(lambda: {name: tensor.clone() for name, tensor in tensors.items()}).result
        future = self._pool.submit(self._copy, tensors)

        def arrive() -> dict[str, Tensor]:
            moved, ready = future.result()
            _hand_over(moved, ready)
            return moved

        return arrive

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _copy(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], torch.cuda.Event]:
        moved = {}
        with torch.cuda.stream(self._stream):
            for name, tensor in tensors.items():
                staged = self._staged(name, tensor)
                staged.copy_(tensor)  # here the disk is read
                moved[name] = staged.to(self._device, non_blocking=True)
            ready = self._stream.record_event()
        ready.synchronize()  # in this thread only: the next view overwrites the buffers
        return moved, ready

    def _staged(self, name: str, like: Tensor) -> Tensor:
        """Return pinned memory of the shape of `like`; it grows with the largest view."""
        if name not in self._buffers or self._buffers[name].numel() < like.numel():
            self._buffers[name] = torch.empty(like.numel(), dtype=like.dtype, pin_memory=True)
        return self._buffers[name][: like.numel()].view(like.shape)


def _hand_over(moved: dict[str, Tensor], ready: torch.cuda.Event) -> None:
    """Let the current stream use tensors that another one has made, and keep their memory until it is through."""
    current = torch.cuda.current_stream()
    current.wait_event(ready)
    for tensor in moved.values():
        tensor.record_stream(current)


class SegmentMap(NamedTuple):
    """The pixels of a labelled view that its lens saw.

    Attributes:
        slot: Dense segment index of each, -1 = no label, int32 [P].
        num_segments: S, all of which have a pixel here.
        rows: Where each stands in the image, y * width + x, int32 [P]; None = all pixels, row by row.
    """

    slot: Tensor
    num_segments: int
    rows: Tensor | None


class SegmentMaps:
    """Segment maps of the views of a stage: the ids of a view never change, so each is made once, at first use.

    They take twice the memory of the masks. Where those do not stay on the computing device, neither do the maps: then
    each is made anew for every step, for which a GPU makes the host wait.
    """

    def __init__(self, *, ignore_zero: bool, keep: bool, by_slot: bool = False) -> None:
        """Make none yet.

        Args:
            ignore_zero: Whether id 0 means "unlabelled".
            keep: Keep the maps.
            by_slot: Put the pixels in the order of their slots rather than row by row.
        """
        self.ignore_zero, self.keep, self.by_slot = ignore_zero, keep, by_slot
        self.kept: dict[int, SegmentMap] = {}

    def of(self, index: int, view: View) -> SegmentMap:
        """Return the map of `view`, which is number `index` and on the computing device."""
        made = self.kept[index] if index in self.kept else self._make(view)
        if self.keep:
            self.kept[index] = made
        return made

    def _make(self, view: View) -> SegmentMap:
        seen = None if view.valid is None else view.valid.flatten().nonzero()[:, 0]
        segments = view.segments.flatten() if seen is None else view.segments.flatten()[seen]
        slot, ids = dense_slots(segments, ignore_zero=self.ignore_zero)
        if self.by_slot:
            order = slot.argsort(stable=True)
            slot, seen = slot[order], order if seen is None else seen[order]
        return SegmentMap(slot, len(ids), None if seen is None else seen.int())
