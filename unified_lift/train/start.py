"""What a run starts from: the loaded scene, Gaussians and method, or a checkpoint of an earlier run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from unified_lift.data import load_scene
from unified_lift.data.cache import CacheChoice, DataCache
from unified_lift.device import chosen_device, require_rasterizer
from unified_lift.errors import UserError
from unified_lift.methods.base import Method
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.model.ply import read_gaussians
from unified_lift.modelfolder.checkpoint import checkpoints, load_checkpoint
from unified_lift.modelfolder.settings import TrainSettings, changed
from unified_lift.progress import progress_bar
from unified_lift.settings.yaml import differences
from unified_lift.train.losses import chosen_losses
from unified_lift.types import Scene

# What may differ between a run and its resumption: how long it is and what it prints, not what it computes.
_FREE_TO_CHANGE = ("model_path", "run.", "data.source_path", "geometry.iterations", "lift.lift_iterations")


class RunClock:
    """Seconds and peak GPU bytes by part; a part that is done in pieces, or over a resumption, adds up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.done: dict[str, float] = {}
        self.peak_gpu_bytes: dict[str, dict[str, int]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the block, without GPU memory that earlier parts have left reserved."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._running = name, time.perf_counter()
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


@dataclass
class TrainingState:
    """What a run trains, and what it knows about itself."""

    settings: TrainSettings
    scene: Scene
    data: CacheChoice  # where photos and masks are kept
    gaussians: Gaussians
    method: Method
    clock: RunClock
    checkpoint: dict[str, Any] | None = None  # what it goes on from
    total_steps: int = 0  # of the stages that were begun
    profile: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # times of steps by stage, with --profile
    manifest: dict[str, Any] = field(default_factory=dict)  # of the finished run


def start(settings: TrainSettings, scene: Scene | None, resume_from: Path | None) -> TrainingState:
    """Return the state before the first step: from the scene's points, a trained .ply, or a checkpoint.

    Args:
        settings: The run.
        scene: What to train on; None = load it, and print what was found.
        resume_from: Checkpoint to go on from.
    Raises:
        UserError: The data cannot be read; the checkpoint belongs to other settings; the method cannot be trained so.
    """
    device = chosen_device(settings.run.device)
    require_rasterizer(settings.geometry.rasterizer, device)
    chosen_losses(settings.geometry.loss_weights)
    clock, cache = RunClock(device), DataCache(settings.run.data_device, device=device, folder=settings.model_path)
    if scene is None:
        with clock.part("load"):
            scene = cache.cached(_loaded(settings, cache))
        tqdm.write(str(cache.choice))
    else:
        scene = cache.cached(scene)
    assert cache.choice is not None
    method = settings.build_method(zero_id=scene.zero_id).to(device)
    if settings.schedule == "joint" and not method.allows_joint:
        raise UserError(f"--method {settings.method_name} needs finished geometry; leave --schedule joint out")
    saved = None if resume_from is None else load_checkpoint(resume_from)
    if saved is not None:
        _require_same_run(settings, saved, origin=str(resume_from))
        gaussians = Gaussians(saved["gaussians"])
        method.load_state_dict(saved["method"])
        for name, spent in saved.get("seconds", {}).items():
            clock.done[name] = clock.done.get(name, 0.0) + spent
    elif settings.init_ply is not None:
        gaussians = read_gaussians(settings.init_ply)
    else:
        gaussians = gaussians_from_points(scene.points, sh_degree=settings.geometry.sh_degree)
    return TrainingState(settings, scene, cache.choice, gaussians.to(device), method, clock, checkpoint=saved)


def latest_checkpoint(settings: TrainSettings) -> Path | None:
    """Return the last checkpoint after which nothing is to be longer than it was: more geometry asks for geometry's."""
    for path in reversed(checkpoints(settings.model_path).values()):
        state = load_checkpoint(path)
        stage, before = state["stage"], state["settings"]
        same_geometry = before["geometry"]["iterations"] == settings.geometry.iterations
        same_lift = before["lift"]["lift_iterations"] == settings.lift.lift_iterations
        if stage == "geometry" or (same_geometry and (stage == "lift" or same_lift)):
            return path
    return None


def _require_same_run(settings: TrainSettings, saved: dict[str, Any], *, origin: str) -> None:
    old = changed(TrainSettings(), saved["settings"], origin=origin)
    found = {name: pair for name, pair in differences(old, settings).items() if not name.startswith(_FREE_TO_CHANGE)}
    flags = {"method_name": "--method", "strategy": "--strategy"}  # whose other settings follow from them
    for name, (before, now) in sorted(found.items(), key=lambda item: item[0] not in flags):
        was = f"{flags[name]} {before}" if name in flags else f"{name} = {before}"
        raise UserError(f"{origin}: was trained with {was}, now {now}; keep it or start a new -m folder")
    if saved["stage"] == "geometry" and saved["step"] > settings.geometry.iterations:
        raise UserError(f"{origin}: is already at iteration {saved['step']}; ask for more --iterations")


def _loaded(settings: TrainSettings, cache: DataCache) -> Scene:
    """Return the scene, and print what it holds."""
    looks: dict[str, Any] = {"then": "load: initial points", "unit": " views", "leave": False, "delay": 1}
    with progress_bar("load", quiet=settings.run.quiet, **looks) as show:
        scene = load_scene(settings.data, progress=show, cache=cache)
    sizes = sorted({(view.camera.width, view.camera.height) for view in (*scene.train, *scene.test)})
    size = ", ".join(f"{w}x{h}" for w, h in sizes[:3]) + (" ..." if len(sizes) > 3 else "")
    tqdm.write(
        f"{scene.name}: {scene.dataset}, {len(scene.train)} training views ({len(scene.labelled)} with masks), "
        f"{len(scene.test)} held out, {size}, {len(scene.points.positions)} initial points"
    )
    for note in scene.notes:
        tqdm.write(f"note: {note}")
    if not settings.run.quiet:
        run = f"preset {settings.preset}, schedule {settings.schedule}, seed {settings.seed}"
        tqdm.write(f"{run} -> {settings.model_path}")
    return scene
