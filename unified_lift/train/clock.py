"""What the parts of a run take: seconds, memory of the GPU, and what to lower where that is more than there is."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from unified_lift import ranks
from unified_lift.memory import enough_memory, resident_memory
from unified_lift.modelfolder.settings import TrainSettings

_MUCH = 2**32  # bytes: from there on it is worth a third of a second to look for what is no longer used
_NAMES = {"load": "loading", "finish": "labels"}  # of parts, in messages


class RunClock:
    """Seconds and peak GPU bytes by part; a part that is done in pieces, or over a resumption, adds up."""

    def __init__(self, settings: TrainSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.done: dict[str, float] = {}
        self.peak_gpu_bytes: dict[str, dict[str, int]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the block, without GPU memory that earlier parts have left reserved.

        An OutOfMemory names the part, and what to lower.
        """
        on_gpu = self.device.type == "cuda"
        if (torch.cuda.memory_allocated() if on_gpu else resident_memory()) > _MUCH:
            gc.collect()  # a stage that is done is part of circles, and holds its moments until they are found
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._running = name, time.perf_counter()
        with enough_memory(_NAMES.get(name, name), lower=what_to_lower(name, self.settings, self.device)):
            yield
        self.done = self.seconds()
        if self.device.type == "cuda":
            peak = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
            before = self.peak_gpu_bytes.get(name, peak)
            self.peak_gpu_bytes[name] = {kind: max(peak[kind], before[kind]) for kind in peak}

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part, of the running one up to now."""
        name, since = self._running
        return self.done | {name: self.done.get(name, 0.0) + time.perf_counter() - since}


def what_to_lower(part: str, settings: TrainSettings, device: torch.device) -> str:
    """Return which settings ask for the memory that a part of a run takes, and how the run goes on with lower ones."""
    smaller = "--resolution (2 halves the photos)"
    of_geometry = [smaller, "--sh_degree"]
    of_geometry += ["--max_gaussians"] if hasattr(settings.density, "max_gaussians") else []
    of_geometry += ["--feature_dim"] if settings.schedule == "joint" else []
    points = ["--num_random_points"] if settings.data.random_init else []
    flags, then = {
        "load": ([smaller, "--n_views", *points], "or keep photos on disk: --data_device disk"),
        "lift": (["--lift_pixels", "--lift_cache_mb", "--feature_dim"], "and go on with --resume auto"),
        "refine": (["--refine_pixels"], "or leave it out (--sharpen_steps 0), and go on with --resume auto"),
    }.get(part, (of_geometry, "and train again with --overwrite"))
    if part == "geometry" and ranks.current().count > 1 and settings.schedule == "staged":
        then += "" if settings.run.shard_gaussians else " and --shard_gaussians"
    if device.type == "cuda" and settings.run.data_device in ("auto", "cuda") and part != "load":
        then += ", or keep photos elsewhere: --resume auto --data_device cpu"
    first = ", ".join(flags[:-1])
    return f"lower {f'{first} or ' if first else ''}{flags[-1]}, {then}; checkpoints are intact"
