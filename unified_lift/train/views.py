"""Training views: which comes next, its photo and ids on the device that computes, and the segments of its pixels."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from diff_gaussian_rasterization import PixelWeights
from torch import Tensor

from unified_lift.data.on_demand import NUM_THREADS
from unified_lift.methods.base import ViewPixels
from unified_lift.model.render import points_seen
from unified_lift.ops.segments import dense_slots
from unified_lift.types import Camera, DataDevice, RenderOutput, View

_Copies = tuple[dict[str, Any], torch.cuda.Event | None]  # by field, and when a GPU has them


class ViewOrder:
    """An endless shuffled order over `count` views with its own generator: without replacement, refilled [3DGS]."""

    def __init__(self, count: int, *, seed: int) -> None:
        self.count, self.stack = count, list[int]()
        self.generator = torch.Generator().manual_seed(seed)

    def next_index(self) -> int:
        self.peek()
        return self.stack.pop()

    def peek(self, ahead: int = 0) -> int:
        """Return what `next_index` is going to return, `ahead` calls later."""
        while len(self.stack) <= ahead:
            self.stack = torch.randperm(self.count, generator=self.generator).tolist() + self.stack
        return self.stack[-1 - ahead]

    def upcoming(self, count: int) -> list[int]:
        """Return what `next_index` is going to return, at least once and at most `count` times."""
        self.peek()
        return self.stack[: -count - 1 : -1]

    def state_dict(self) -> dict:
        return {"stack": list(self.stack), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self.stack = list(state["stack"])
        if any(type(index) is not int or not 0 <= index < self.count for index in self.stack):
            raise ValueError(f"its views are not the {self.count} of the scene")
        self.generator.set_state(state["generator"])


class Prefetcher:
    """Views with photos and ids on the computing device, wherever they are kept; the next ones are fetched ahead.

    Kept there, a view is handed out as it is. From pinned memory the next one is copied on a stream of its own; from
    files the next ones are decoded in threads, so that a step waits neither for a copy nor, if they keep up, for that.

    Attributes:
        ahead: How many of the views that come next are worth telling.
    """

    def __init__(
        self, views: Sequence[View], fields: Sequence[str], *, kept_on: DataDevice, device: torch.device
    ) -> None:
        self._views, self._fields, self._device = views, fields, device
        self._hands_out = kept_on != "disk" and kept_on in ("cuda", device.type)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="views") if kept_on == "disk" else None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and not self._hands_out else None
        self._coming: tuple[int, Callable[[], _Copies]] | None = None
        self.ahead = 2 * NUM_THREADS if kept_on == "disk" else 1

    def get(self, index: int, *, then: Sequence[int] = ()) -> View:
        """Return view `index`, its other fields where the scene keeps them; `then` will be asked for next."""
        if self._hands_out:
            return self._views[index]
        if self._coming is None or self._coming[0] != index:
            self._coming = (index, self._fetch(index))
        moved, ready = self._coming[1]()
        if ready is not None:  # the current stream may use them once they are there; their memory stays until it has
            current = torch.cuda.current_stream()
            current.wait_event(ready)
            for tensor in moved.values():
                tensor.record_stream(current)
        self._coming = (then[0], self._fetch(then[0])) if then else None
        for later in then[1:]:
            self._views[later].begin()
        return self._views[index].having(**moved)

    def all(self) -> Iterator[View]:  # noqa: A003
        """Walk over all views in order."""
        for index in range(len(self._views)):
            yield self.get(index, then=range(index + 1, min(index + 1 + self.ahead, len(self._views))))

    def close(self) -> None:
        """Drop what was fetched ahead and end the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._coming = None

    def _fetch(self, index: int) -> Callable[[], _Copies]:
        """Begin to copy a view; the result is called when the copies are needed."""
        if self._thread is not None:
            return self._thread.submit(self._copy, self._views[index]).result
        copies = self._copy(self._views[index])
        return lambda: copies

    def _copy(self, view: View) -> _Copies:
        tensors = {name: value for name in self._fields if (value := getattr(view, name)) is not None}
        if self._stream is None:
            return tensors, None
        with torch.cuda.stream(self._stream):
            if self._thread is not None:
                tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
            moved = {name: tensor.to(self._device, non_blocking=True) for name, tensor in tensors.items()}
            return moved, self._stream.record_event()


class SegmentPixels(NamedTuple):
    """Pixels of a labelled view that its lens saw: all, or a part in which those of a small segment may be repeated."""

    slot: Tensor  # local segment index of each, -1 = no label, int32 [P]
    num_segments: int  # S; some may have no pixel in a part
    pixel_ids: Tensor | None  # y * width + x of each, int32 [P]; None = all pixels, row by row
    weights: PixelWeights | None = None  # which Gaussians make up each pixel, P rows, where they are kept
    segment_ids: Tensor | None = None  # the id that each slot has in the mask file, int64 [S], rising, if these are all

    def seen(self, rendered: RenderOutput, camera: Camera | None = None) -> ViewPixels:
        """Return what a method sees of the rendered view; with its camera, where the pixels lie as well."""
        features = rendered.features.flatten(0, 1)
        points = None if camera is None else points_seen(rendered, camera)
        if self.pixel_ids is not None:
            features = features.index_select(0, self.pixel_ids)
            points = None if points is None else points.index_select(0, self.pixel_ids)
        return ViewPixels(features, self.slot, self.num_segments, points, self.segment_ids)


class SegmentMaps:
    """All seen pixels of each view of a stage, made at first use; `by_slot`: in the order of their slots.

    Kept, they take twice the memory of the masks. Made anew for every step, a GPU makes the host wait for each.
    """

    def __init__(self, *, ignore_zero: bool, keep: bool, by_slot: bool = False) -> None:
        self._ignore_zero, self._keep, self._by_slot = ignore_zero, keep, by_slot
        self._kept: dict[int, SegmentPixels] = {}

    def of(self, index: int, view: View) -> SegmentPixels:
        """Return the pixels of `view`, which is number `index`, labelled, and on the computing device."""
        if index in self._kept:
            return self._kept[index]
        assert view.segments is not None
        seen = None if view.valid is None else view.valid.flatten().nonzero()[:, 0]
        segments = view.segments.flatten() if seen is None else view.segments.flatten()[seen]
        slot, ids = dense_slots(segments, ignore_zero=self._ignore_zero)
        if self._by_slot:
            order = slot.argsort(stable=True)
            slot, seen = slot[order], order if seen is None else seen[order]
        found = SegmentPixels(slot, len(ids), None if seen is None else seen.int(), segment_ids=ids)
        if self._keep:
            self._kept[index] = found
        return found
