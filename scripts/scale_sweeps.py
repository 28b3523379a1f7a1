"""The sweeps of bench_scale.py: made-up scenes of a size, and what their parts cost.

Add one by a function of a `Setup` that returns figures, and a line in `SWEEPS`. A figure whose name ends with ` s`,
` ms/step`, ` ms/view` or ` MiB` is a time or a peak of memory, and is drawn.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_ranks import trained
from scale_scenes import balls, cameras_of, height_of, house, scene_of, with_photos, write_photos
from torch import Tensor

from unified_lift.density.default import DefaultStrategy, DefaultStrategySettings
from unified_lift.methods.base import ViewPixels
from unified_lift.methods.unified_lift import UnifiedLift, UnifiedLiftSettings
from unified_lift.metrics.matched import matched_scores
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.ply import read_gaussians, write_gaussians
from unified_lift.model.render import points_seen, render
from unified_lift.modelfolder.labels import by_falling_area, describe_objects, label_gaussians
from unified_lift.modelfolder.settings import GeometrySettings, LiftSettings, RefineSettings
from unified_lift.ops.segments import dense_slots
from unified_lift.synthetic.scene import SyntheticSettings, write_synthetic
from unified_lift.train.geometry import GeometryStage
from unified_lift.train.hooks import Hook
from unified_lift.train.lift import LiftStage
from unified_lift.train.refine import RefineStage
from unified_lift.types import Scene

_WIDTH, _REFINE_STEPS, _WARM = 96, 40, 4  # photos of --objects; steps, and those that are not counted
_FIXED = {"cpu": 100_000, "cuda": 1_000_000}  # Gaussians of --sizes
_LATE = 20_000  # a geometry step with all harmonics, after densification
_STEPS = {"cpu": (1, 3), "cuda": (5, 20)}  # to warm up, and counted
_ITERATIONS = {"cpu": 300, "cuda": 3_000}  # of --ranks
Figures = dict[str, Any]


class Setup(NamedTuple):
    """What a sweep is asked for: a size, where, and how wide photos are."""

    size: int
    device_name: str
    width: int = 0

    @property
    def device(self) -> torch.device:
        """Return where to compute."""
        return torch.device(self.device_name)


class Meter:
    """Figures of parts: seconds of the processor or, on a GPU, of the clock; and the peak of memory while one runs."""

    def __init__(self, setup: Setup) -> None:
        self.figures: Figures = {}
        self._on_gpu = setup.device_name == "cuda"

    @contextmanager
    def timed(self, name: str, unit: str = "s", *, count: int = 1) -> Iterator[None]:
        """Note what the block takes, `ms/...` for each of `count`."""
        self._wait()
        clock = time.perf_counter if self._on_gpu else time.process_time
        start = clock()
        yield
        self._wait()
        spent = clock() - start
        self.figures[f"{name} {unit}"] = round(spent, 2) if unit == "s" else round(1000 * spent / max(count, 1), 1)

    @contextmanager
    def peak(self, name: str, *, on_host: bool = False) -> Iterator[None]:
        """Note the most memory that is taken during the block: of the GPU, or of the process (Linux)."""
        on_gpu = self._on_gpu and not on_host
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # begins VmHWM anew
        yield
        self._wait()
        size = torch.cuda.max_memory_allocated() if on_gpu else 1024 * _status("VmHWM")
        self.figures[f"{name} MiB"] = size // 2**20

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def _status(name: str, file: str = "status") -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self", file).read_text().splitlines())
    return int(lines[name].split()[0])


def measured(sweep: str, setup: Setup) -> Figures:
    """Return the figures of one size, with the peaks of memory of the whole process."""
    found = SWEEPS[sweep].measure(setup)
    peaks = {name: size for name, size in found.items() if name.endswith(" MiB")}
    files, on_gpu = peaks.pop("files MiB", 0), torch.cuda.is_initialized()
    whole = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, files]  # without what `peak` has forgotten
    found["peak MiB"] = max(whole if on_gpu else [*whole, *peaks.values()])
    if on_gpu:
        found["GPU MiB"] = max(torch.cuda.max_memory_allocated() // 2**20, *peaks.values(), 0)
    return found


# ---- Gaussians, photo sizes, objects ----


def gaussians(setup: Setup) -> Figures:
    """Return what geometry, lift, finish and files of so many Gaussians cost: four rooms, 48 balls on a floor."""
    return _parts(setup, setup.size, setup.width, with_files=True)


def sizes(setup: Setup) -> Figures:
    """Return what a fixed number of Gaussians cost with photos of such a width."""
    return _parts(setup, _FIXED[setup.device_name], setup.size, with_files=False)


def _parts(setup: Setup, number: int, width: int, *, with_files: bool) -> Figures:
    meter, (warm, steps) = Meter(setup), _STEPS[setup.device_name]
    with meter.timed("scene"):
        own, owner, origin = house(number, setup.device)
        cameras = cameras_of(origin, width)
        scene, ids = scene_of(own, owner, cameras, setup.device, origin.cpu().numpy())
        scene = with_photos(scene, own)
    if with_files:
        with TemporaryDirectory() as folder, meter.peak("files", on_host=True):
            with meter.timed("write"):
                write_gaussians(Path(folder, "splat.ply"), own)
            with meter.timed("read"):
                read_gaussians(Path(folder, "splat.ply"))
    with meter.peak("geometry"):
        table = {name: value.detach() for name, value in own}
        trained_ones = Gaussians(table | {"features": own.means.new_zeros(number, 0)})
        quiet = DefaultStrategy(DefaultStrategySettings(densify_until_iter=1))
        stage = GeometryStage(scene, trained_ones, GeometrySettings(iterations=30_000), quiet, seed=0)
        for _ in range(warm):
            stage.step(_LATE)
        with meter.timed("geometry", "ms/step", count=steps):
            for _ in range(steps):
                stage.step(_LATE)
        del stage, trained_ones
    views = cameras[:: max(1, len(cameras) // steps)]
    with meter.peak("render"), torch.no_grad():
        render(own, cameras[0], with_features=False)
        with meter.timed("render", "ms/view", count=len(views)):
            for camera in views:
                render(own, camera, with_features=False)
    kept = own.features.detach().clone()  # the lift moves them
    with meter.peak("lift"):
        method = UnifiedLift(UnifiedLiftSettings(), zero_id="segment", seed=0).to(setup.device)
        with meter.timed("lift setup"):
            lift = LiftStage(scene, own, method, LiftSettings(lift_iterations=30_000), seed=0)
        with meter.timed("lift, first visit,", "ms/step", count=len(cameras)):
            for step in range(len(cameras)):
                lift.step(step)
        for step in range(warm):
            lift.step(len(cameras) + step)
        with meter.timed("lift", "ms/step", count=steps):
            for step in range(steps):
                lift.step(len(cameras) + warm + step)
        del lift, method
    own.set("features", kept)
    found = _finish(meter, own, owner, scene, ids, setup.device)
    return {"Gaussians": number, "views": len(cameras), "pixels": width * height_of(width)} | meter.figures | found


def objects(setup: Setup) -> Figures:
    """Return what follows the lift of so many objects: rooms of twelve balls, 110 Gaussians each."""
    meter, device = Meter(setup), setup.device
    with meter.timed("scene"):
        own, owner, origin = balls(setup.size, device)
        scene, ids = scene_of(own, owner, cameras_of(origin, _WIDTH), device, origin.numpy())
    found = _finish(meter, own, owner, scene, ids, device)
    return {"Gaussians": len(own), "views": len(scene.train)} | meter.figures | found


def _finish(
    meter: Meter, own: Gaussians, owner: Tensor, scene: Scene, ids: list[np.ndarray], device: torch.device
) -> Figures:
    """Measure codebook, label voting, refinement, read-out and scoring, as a training and `eval.py` do them."""
    with meter.peak("finish"):
        settings = UnifiedLiftSettings(sharpen_steps=_REFINE_STEPS)
        method = UnifiedLift(settings, zero_id="segment", seed=0).to(device)
        with meter.timed("codebook"):
            method.before_step(1.0, lambda: _pixels(own, scene))
        if not method.num_objects:  # photos too small to show any: a training ends here too
            return {"found": 0}
        with meter.timed("labels"):
            labels = by_falling_area(method, label_gaussians(own, method, [view.camera for view in scene.train]))
        refine = RefineStage(scene, own, method, RefineSettings(), labels, seed=0)
        for step in range(_WARM):
            refine.step(step)
        with meter.timed("refine", "ms/step", count=refine.num_steps - _WARM):
            for step in range(_WARM, refine.num_steps):
                refine.step(step)
        own.set("features", refine.features)
        method.load_object_state(labels.codes)
        views = scene.train[:: max(1, len(scene.train) // 50)]
        with meter.timed("read-out", "ms/view", count=len(views)), torch.no_grad():
            for view in views:
                method.segment(render(own, view.camera).features)
        with meter.timed("objects.json"):
            describe_objects(own, labels)
    known, rank = torch.unique(owner, return_inverse=True)
    first = torch.full((len(known),), len(owner), device=device)
    first.scatter_reduce_(0, rank, torch.arange(len(owner), device=device), "amin")  # a Gaussian of each object
    found = labels.object_ids[first].cpu()
    pairs = list(zip([_shown(found, each) for each in ids], ids, strict=True))
    with meter.timed("scores"):
        scores = matched_scores(*zip(*pairs, strict=True))
    return {"found": method.num_objects, "mIoU": round(scores.miou, 3)}


@torch.no_grad()
def _pixels(own: Gaussians, scene: Scene) -> Iterator[ViewPixels]:
    for view in scene.train:
        assert view.segments is not None
        out = render(own, view.camera)
        slot, ids = dense_slots(view.segments.flatten(), ignore_zero=False)
        yield ViewPixels(out.features.flatten(0, 1), slot, len(ids), points_seen(out, view.camera), ids)


def _shown(found: Tensor, ids: np.ndarray) -> np.ndarray:
    """Return the found object of each pixel, where its true one is known by the label of its first Gaussian."""
    return np.where(ids > 0, found.numpy()[np.maximum(ids - 1, 0)] + 1, 0)


# ---- photos, processes ----


class _FirstStep(Hook):
    """Ends a training after its first step."""

    class Done(Exception):  # noqa: N818 (nothing went wrong)
        """The step is done."""

    def after_step(self, stage: object, step: int, terms: Mapping[str, Tensor]) -> None:
        """End it."""
        raise self.Done


def photos(setup: Setup) -> Figures:
    """Return what happens until the first step of a training of so many photos of 1600x1066 with masks."""
    from unified_lift.cli.train import parse
    from unified_lift.train.run import run

    with TemporaryDirectory() as folder:
        write_photos(Path(folder, "scene"), setup.size)
        flags = ["-s", f"{folder}/scene", "-m", f"{folder}/model", "--device", setup.device_name, "--quiet"]
        settings = parse([*flags, "--iterations", "1000", "--logger", "none"]).settings
        before, wall, cpu = _status("rchar", "io"), time.perf_counter(), time.process_time()
        try:
            with redirect_stdout(None):
                run(settings, hooks=[_FirstStep()])
        except _FirstStep.Done:
            pass
        seconds, processor = time.perf_counter() - wall, time.process_time() - cpu
        read = (_status("rchar", "io") - before) / 2**30
    return {"first step s": round(seconds, 1), "processor s": round(processor, 1), "read GiB": round(read, 3)}


def ranks(setup: Setup) -> Figures:
    """Return what a short training of the demo's room takes in so many processes, as bench_ranks.py measures it."""
    with TemporaryDirectory() as folder:
        write_synthetic(Path(folder, "scene"), SyntheticSettings(width=setup.width, height=height_of(setup.width)))
        iterations = ["--iterations", str(_ITERATIONS[setup.device_name])]
        flags = [*iterations, "--lift_iterations", "500", "--device", setup.device_name, "--log-interval", "20"]
        found = trained(Path(folder, "scene"), Path(folder, "model"), setup.size, 0, flags)
    rates = {name: round(found[name], 2) for name in ("images_per_s", "pixels_per_s", "PSNR", "PQ") if name in found}
    seconds = {f"{name} s": round(value, 1) for name, value in found["stages_s"].items()}
    return rates | seconds | {"process MiB": round(1024 * found["peak_GiB"])}


class Sweep(NamedTuple):
    """What can be swept."""

    measure: Callable[[Setup], Figures]
    what: str  # the axis
    help: str  # noqa: A003
    clock: str
    widths: Mapping[str, int] = {}  # of photos where none is given, by device


_CLOCK, _WALL = "seconds of the processor (cpu), of the clock (cuda)", "seconds of the clock"
SWEEPS = {
    "objects": Sweep(objects, "objects", "objects in rooms of twelve: what follows the lift", _CLOCK),
    "gaussians": Sweep(
        gaussians, "Gaussians", "Gaussians of four rooms: all parts", _CLOCK, {"cpu": 640, "cuda": 1296}
    ),
    "sizes": Sweep(sizes, "width of a photo, pixels", "widths of photos, Gaussians fixed: all parts", _CLOCK),
    "photos": Sweep(photos, "photos of 1600x1066", "photos on disk: until the first step", _WALL),
    "ranks": Sweep(ranks, "processes", "processes: a short training", _WALL, {"cpu": 160, "cuda": 640}),
}
