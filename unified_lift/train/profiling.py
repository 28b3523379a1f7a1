"""Where the time of a training step goes: wall, host time of its phases, and on a GPU its kernels (--profile)."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from unified_lift.train.hooks import Hook
from unified_lift.train.stage import Stage, no_op
from unified_lift.train.start import TrainingState

_MOST_STEPS = 100  # steps of a window that are timed, and as many again that are traced
_KERNELS_SHOWN = 25
_BETWEEN_STEPS = "between steps"  # where hooks log, save and move the bar
_WAITING = "wait at the end"  # for a GPU that is behind


def windows(start: int, num_steps: int) -> list[range]:
    """Return the steps to look at: some after a quarter of those from `start` to `num_steps`, and as many at the end.

    The first half of a window is timed by the clock, the second traced by torch's profiler, which slows it down.
    """
    count = num_steps - start
    size = min(_MOST_STEPS, count // 8)
    firsts = (start + count // 4, num_steps - 2 * size) if size else ()
    return [range(first, first + 2 * size) for first in firsts]


class Profile(Hook):
    """Looks at windows of steps of each stage."""

    def __init__(self, state: TrainingState) -> None:
        self._state, self._on_gpu = state, state.clock.device.type == "cuda"
        self._trace: torch.profiler.profile | None = None

    def before_stage(self, stage: Stage) -> None:
        self._windows = windows(stage.first, stage.num_steps) if self._state.settings.run.profile else []
        self._results: list[dict[str, Any]] = []
        if self._windows:
            self._state.profile[stage.name] = self._results

    def before_step(self, stage: Stage, step: int) -> None:
        if not self._windows:
            return
        window = self._windows[0]
        size = len(window) // 2
        if step == window.start:
            sizes = {"gaussians": len(stage.gaussians), "codes": self._state.method.num_objects}
            self._results.append({"steps": [step + 1, step + size], **sizes})
            self._wait()
            self._seconds: dict[str, float] = {}
            self._phase, self._began = _BETWEEN_STEPS, time.perf_counter()
            self._since, stage.on_phase = self._began, self._begin_phase
        elif step == window.start + size:
            self._end_timing(stage, size)
        elif step == window.stop:
            if self._trace is not None:
                self._wait()
                self._trace.stop()
                self._results[-1] |= device_times(self._trace, steps=size)
                self._trace = None
            self._windows.pop(0)

    def after_step(self, stage: Stage, step: int, terms: Mapping[str, Tensor]) -> None:
        stage.on_phase(_BETWEEN_STEPS)

    def after_stage(self, stage: Stage) -> None:
        self.before_step(stage, stage.num_steps)

    def close(self, stage: Stage) -> None:
        stage.on_phase = no_op
        if self._trace is not None:
            self._trace.stop()
            self._trace = None

    def _begin_phase(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def _end_timing(self, stage: Stage, steps: int) -> None:
        self._begin_phase(_WAITING)
        stage.on_phase = no_op
        self._wait()
        self._begin_phase(_BETWEEN_STEPS)
        host_ms = {phase: 1e3 / steps * seconds for phase, seconds in self._seconds.items()}
        self._results[-1] |= {"wall_ms": 1e3 / steps * (self._since - self._began), "host_ms": host_ms}
        if self._on_gpu:
            self._trace = torch.profiler.profile(activities=list(torch.profiler.supported_activities()))
            self._trace.start()

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
    device_ms, launches = (sum(kernel[key] for kernel in kernels) for key in ("ms", "launches"))
    return {"device_ms": device_ms, "launches": launches, "kernels": kernels}


def profile_table(profile: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the results of all stages as text."""
    return "\n".join(line for stage, found in profile.items() for result in found for line in _lines(stage, result))


def _lines(stage: str, result: Mapping[str, Any]) -> Iterator[str]:
    first, last = result["steps"]
    sizes = ", ".join(f"{value} {name}" for name, value in result.items() if name in ("gaussians", "codes"))
    yield f"{stage}, steps {first} to {last} ({sizes}): {result['wall_ms']:.3f} ms a step"
    for phase, milliseconds in result["host_ms"].items():
        yield f"  {milliseconds:9.3f} ms  {phase}"
    if "kernels" in result:
        yield f"  on the GPU {result['device_ms']:.3f} ms in {result['launches']:.1f} launches a step"
    for kernel in result.get("kernels", [])[:_KERNELS_SHOWN]:
        yield f"  {kernel['ms']:9.4f} ms  {kernel['launches']:6.1f} x  {kernel['name'][:90]}"
