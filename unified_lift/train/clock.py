"""How long the parts of a run take, and on a GPU how much memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class RunClock:
    """Seconds and peak GPU bytes by part; a part that is done in pieces, or over a resumption, adds up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.done: dict[str, float] = {}
        self.peak_gpu_bytes: dict[str, dict[str, int]] = {}
        self._running: tuple[str, float] | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the block, without GPU memory that earlier parts have left reserved."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._running = name, time.perf_counter()
        try:
            yield
        finally:
            self.done, self._running = self.seconds(), None
        if self.device.type == "cuda":
            peak = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
            before = self.peak_gpu_bytes.get(name, peak)
            self.peak_gpu_bytes[name] = {kind: max(peak[kind], before[kind]) for kind in peak}

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part, of the running one up to now."""
        if self._running is None:
            return dict(self.done)
        name, since = self._running
        return self.done | {name: self.done.get(name, 0.0) + time.perf_counter() - since}
