"""Views whose photos and masks are decoded when they are asked for, and kept as long as there is room for them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from torch import Tensor

from unified_lift.types import Camera, View

NUM_THREADS = min(16, os.cpu_count() or 1)


class Pixels(NamedTuple):
    """What of a view is decoded; each as the field of `View` that is called so."""

    image: Tensor
    segments: Tensor | None = None
    valid: Tensor | None = None
    alpha: Tensor | None = None


class Decoder:
    """Decodes views by their number, in threads, and keeps those asked for last. Safe to call from threads."""

    def __init__(self, decode: Callable[[int], Pixels], *, max_bytes: int) -> None:
        """Keep at most `max_bytes` of views that were asked for, and in any case the last one."""
        self._decode, self._max_bytes = decode, max_bytes
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="decode")
        self._lock = threading.Lock()
        self._begun: dict[int, Future[Pixels]] = {}
        self._sizes: OrderedDict[int, int] = OrderedDict()  # bytes of those that were asked for, longest ago first

    def begin(self, index: int) -> Future[Pixels]:
        """Begin to decode a view that is going to be asked for."""
        with self._lock:
            if index not in self._begun:
                self._begun[index] = self._threads.submit(self._decode, index)
            return self._begun[index]

    def of(self, index: int) -> Pixels:
        """Return the pixels of a view; whatever decoding raised is raised again."""
        found = self.begin(index).result()
        with self._lock:
            self._sizes[index] = sum(tensor.nbytes for tensor in found if tensor is not None)
            self._sizes.move_to_end(index)
            while len(self._sizes) > 1 and sum(self._sizes.values()) > self._max_bytes:
                self._begun.pop(self._sizes.popitem(last=False)[0], None)
        return found

    def forget(self) -> None:
        """Keep nothing: views are going to be decoded in another way."""
        with self._lock:
            self._begun.clear()
            self._sizes.clear()


class ViewOnDemand(View):
    """A view whose pixels are decoded whenever one of their fields is read."""

    _decoder: Decoder
    _index: int
    _present: Collection[str]
    _changed: Mapping[str, Tensor | None]

    def __init__(
        self,
        decoder: Decoder,
        index: int,
        *,
        name: str,
        camera: Camera,
        present: Collection[str] = Pixels._fields,
        points: Tensor | None = None,
        changed: Mapping[str, Tensor | None] | None = None,
    ) -> None:
        """Take what is known of view number `index` of the decoder, and pixels that differ from what it decodes.

        Fields of pixels that are not `present` are None, which is known without decoding.
        """
        known = {"decoder": decoder, "index": index, "name": name, "camera": camera, "points": points}
        for key, value in (known | {"present": present, "changed": changed or {}}).items():
            object.__setattr__(self, key if key in ("name", "camera", "points") else f"_{key}", value)

    @property
    def has_mask(self) -> bool:
        """Return whether it has a mask; nothing is decoded."""
        return self._may_have("segments")

    @property
    def has_alpha(self) -> bool:
        """Return whether the photo may be transparent somewhere; nothing is decoded."""
        return self._may_have("alpha")

    def having(self, **changes: Any) -> ViewOnDemand:
        """Return the view with other values of some fields; nothing is decoded."""
        pixels = {name: changes.pop(name) for name in Pixels._fields if name in changes}
        known: dict[str, Any] = {"name": self.name, "camera": self.camera, "points": self.points}
        changed = {**self._changed, **pixels}
        return ViewOnDemand(self._decoder, self._index, present=self._present, changed=changed, **(known | changes))

    def begin(self) -> None:
        """Begin to decode the view, which is going to be asked for."""
        self._decoder.begin(self._index)

    def _pixels(self, name: str) -> Tensor | None:
        if name in self._changed:
            return self._changed[name]
        return getattr(self._decoder.of(self._index), name) if name in self._present else None

    def _may_have(self, name: str) -> bool:
        return self._changed[name] is not None if name in self._changed else name in self._present

    image = property(lambda self: self._pixels("image"))
    segments = property(lambda self: self._pixels("segments"))
    valid = property(lambda self: self._pixels("valid"))
    alpha = property(lambda self: self._pixels("alpha"))
