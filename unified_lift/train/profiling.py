"""Where the time of a training step goes: wall, host time of its phases, and on a GPU its kernels (--profile)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from unified_lift.train.stage import Stage, unheard

_MOST_STEPS = 100  # steps of a window that are timed, and as many again that are traced
_KERNELS_SHOWN = 25
BETWEEN_STEPS = "between steps"
"""The phase in which the trainer logs, saves and moves the bar."""
_WAITING = "wait at the end"  # for a GPU that is behind


class Window(NamedTuple):
    """Steps that are looked at, 0-based: `first` to `timed` by the clock, `timed` to `traced` by torch's profiler."""

    first: int
    timed: int
    traced: int


def windows(start: int, num_steps: int) -> list[Window]:
    """Return one window after a quarter of the steps from `start` to `num_steps` and one at their end."""
    count = num_steps - start
    size = min(_MOST_STEPS, count // 8)
    if size < 1:
        return []
    return [Window(first, first + size, first + 2 * size) for first in (start + count // 4, num_steps - 2 * size)]


class StepProfiler:
    """Looks at windows of steps of one stage. Timed steps run without torch's profiler, which would slow them down."""

    def __init__(self, stage: Stage, *, start: int, device: torch.device) -> None:
        """Prepare for the steps from `start` on; `device` is where the stage computes."""
        self.results: list[dict[str, Any]] = []
        self._stage, self._on_gpu = stage, device.type == "cuda"
        self._windows = windows(start, stage.num_steps)
        self._trace: torch.profiler.profile | None = None
        self._phase, self._since, self._began = BETWEEN_STEPS, 0.0, 0.0
        self._seconds: dict[str, float] = {}

    def before_step(self, step: int, **facts: int) -> None:
        """Begin or end what begins or ends before this 0-based step; with the number of steps after the last one.

        Args:
            step: The step that comes next.
            facts: Sizes the figures depend on, stored with a window that begins here.
        """
        if not self._windows:
            return
        window = self._windows[0]
        if step == window.first:
            self._begin(window, facts)
        elif step == window.timed:
            self._end_timing(window)
        elif step == window.traced:
            self._end_trace(window)

    def close(self) -> None:
        """Stop whatever a run that ends early has left running."""
        self._stage.mark = unheard
        if self._trace is not None:
            self._trace.stop()
            self._trace = None

    def _begin(self, window: Window, facts: Mapping[str, int]) -> None:
        self.results.append({"steps": [window.first + 1, window.timed], **facts})
        self._seconds = {}
        self._stage.mark = self._mark
        self._wait()
        self._phase, self._began = BETWEEN_STEPS, time.perf_counter()
        self._since = self._began

    def _mark(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def _end_timing(self, window: Window) -> None:
        self._mark(_WAITING)
        self._stage.mark = unheard
        self._wait()
        self._mark(BETWEEN_STEPS)
        scale = 1e3 / (window.timed - window.first)
        self.results[-1] |= {
            "wall_ms": scale * (self._since - self._began),
            "host_ms": {phase: scale * seconds for phase, seconds in self._seconds.items()},
        }
        if self._on_gpu:
            self._trace = torch.profiler.profile(activities=list(torch.profiler.supported_activities()))
            self._trace.start()

    def _end_trace(self, window: Window) -> None:
        if self._trace is not None:
            self._wait()
            self._trace.stop()
            self.results[-1] |= device_times(self._trace, steps=window.traced - window.timed)
            self._trace = None
        self._windows.pop(0)

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def device_times(trace: torch.profiler.profile, *, steps: int) -> dict[str, Any]:
    """Return device time and launches per step, in all and by kernel, copies and fills among them."""
    events = [e for e in trace.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: -event.self_device_time_total)
    kernels = [
        {"name": event.key, "ms": event.self_device_time_total / steps / 1e3, "launches": event.count / steps}
        for event in events
    ]
    return {
        "device_ms": sum(kernel["ms"] for kernel in kernels),
        "launches": sum(kernel["launches"] for kernel in kernels),
        "kernels": kernels,
    }


def profile_table(profile: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the results of all stages as text."""
    return "\n".join(line for stage, found in profile.items() for result in found for line in _lines(stage, result))


def _lines(stage: str, result: Mapping[str, Any]) -> Iterator[str]:
    first, last = result["steps"]
    sizes = ", ".join(f"{value} {name}" for name, value in result.items() if name in ("gaussians", "codes"))
    yield f"{stage}, steps {first} to {last} ({sizes}): {result['wall_ms']:.3f} ms a step"
    for phase, milliseconds in result["host_ms"].items():
        yield f"  {milliseconds:9.3f} ms  {phase}"
    if "kernels" not in result:
        return
    yield f"  on the GPU {result['device_ms']:.3f} ms in {result['launches']:.1f} launches a step"
    for kernel in result["kernels"][:_KERNELS_SHOWN]:
        yield f"  {kernel['ms']:9.4f} ms  {kernel['launches']:6.1f} x  {kernel['name'][:90]}"
