"""Where the time of a training step goes: wall, host time of its phases, and on a GPU its kernels (--profile)."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unified_lift.methods.base import Method
from unified_lift.train.hooks import Hook
from unified_lift.train.stage import Stage, no_op

_MOST_STEPS = 100  # steps of a window that are timed, and as many again that are traced
_KERNELS_SHOWN = 25
_BETWEEN_STEPS = "between steps"  # where hooks log, save and move the bar
_WAITING = "wait at the end"  # for a GPU that is behind


def windows(start: int, num_steps: int) -> list[range]:
    """Return the steps to look at: some after a quarter of those from `start` to `num_steps`, and as many at the end.

    The first half of a window is timed by the clock, the second traced by torch's profiler, which slows it down.
    """
    size = min(_MOST_STEPS, (num_steps - start) // 8)
    firsts = (start + (num_steps - start) // 4, num_steps - 2 * size) if size else ()
    return [range(first, first + 2 * size) for first in firsts]


class Profile(Hook):
    """Looks at windows of steps of each stage that is long enough; their results go to `profile`."""

    def __init__(self, method: Method, profile: dict[str, list[dict[str, Any]]]) -> None:
        self._method, self._profile = method, profile
        self._trace: torch.profiler.profile | None = None

    def before_stage(self, stage: Stage) -> None:
        self._windows = windows(stage.first // stage.ranks.batch, stage.num_steps // stage.ranks.batch)
        self._on_gpu = stage.gaussians.device.type == "cuda"
        self._wait: Callable[[], None] = torch.cuda.synchronize if self._on_gpu else lambda: None

    def after_step(self, stage: Stage, step: int, terms: Mapping[str, Tensor]) -> None:
        stage.on_phase(_BETWEEN_STEPS)
        if not self._windows:
            return
        window, done = self._windows[0], (step + 1) // stage.ranks.batch
        size = len(window) // 2
        if done == window.start:
            sizes = {"gaussians": len(stage.gaussians), "codes": self._method.num_objects}
            self._result: dict[str, Any] = {"steps": [done + 1, done + size], **sizes}
            self._profile.setdefault(stage.name, []).append(self._result)
            self._wait()
            self._marks: list[tuple[str, float]] = []
            stage.on_phase = self._mark
            self._mark(_BETWEEN_STEPS)
        elif done == window.start + size:
            self._mark(_WAITING)
            stage.on_phase = no_op
            self._wait()
            self._mark("")
            self._result |= host_times(self._marks, steps=size)
            if self._on_gpu:
                self._trace = torch.profiler.profile(activities=list(torch.profiler.supported_activities()))
                self._trace.start()
        elif done == window.stop:
            if self._trace is not None:
                self._wait()
                self._trace.stop()
                self._result |= device_times(self._trace, steps=size)
                self._trace = None
            self._windows.pop(0)

    def close(self, stage: Stage) -> None:
        stage.on_phase = no_op
        if self._trace is not None:
            self._trace.stop()

    def _mark(self, phase: str) -> None:
        self._marks.append((phase, time.perf_counter()))


def host_times(marks: Sequence[tuple[str, float]], *, steps: int) -> dict[str, Any]:
    """Return milliseconds per step, in all and by phase, from the phases and the seconds at which they began."""
    host_ms: dict[str, float] = {}
    for (phase, since), (_, until) in itertools.pairwise(marks):
        host_ms[phase] = host_ms.get(phase, 0.0) + 1e3 / steps * (until - since)
    return {"wall_ms": 1e3 / steps * (marks[-1][1] - marks[0][1]), "host_ms": host_ms}


def device_times(trace: torch.profiler.profile, *, steps: int) -> dict[str, Any]:
    """Return device time and launches per step, in all and by kernel, copies and fills among them."""
    events = [e for e in trace.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: -event.self_device_time_total)
    times = [(event.key, event.self_device_time_total / steps / 1e3, event.count / steps) for event in events]
    kernels = [dict(zip(("name", "ms", "launches"), values)) for values in times]
    return {"device_ms": sum(t[1] for t in times), "launches": sum(t[2] for t in times), "kernels": kernels}


def profile_table(profile: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the results of all stages as text."""
    lines = []
    for stage, result in ((stage, result) for stage, found in profile.items() for result in found):
        first, last = result["steps"]
        sizes = f"{result['gaussians']} gaussians, {result['codes']} codes"
        lines.append(f"{stage}, steps {first} to {last} ({sizes}): {result['wall_ms']:.3f} ms a step")
        lines += [f"  {milliseconds:9.3f} ms  {phase}" for phase, milliseconds in result["host_ms"].items()]
        if "kernels" in result:
            lines.append(f"  on the GPU {result['device_ms']:.3f} ms in {result['launches']:.1f} launches a step")
        for kernel in result.get("kernels", [])[:_KERNELS_SHOWN]:
            lines.append(f"  {kernel['ms']:9.4f} ms  {kernel['launches']:6.1f} x  {kernel['name'][:90]}")
    return "\n".join(lines)
