"""What a run starts from: the loaded scene, Gaussians and method, or a checkpoint of an earlier run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from unified_lift.settings.yaml import differences
from unified_lift.train.clock import RunClock
from unified_lift.train.losses import chosen_losses
from unified_lift.types import Scene

# What may differ between a run and its resumption: how long it is and what it prints, not what it computes.
_FREE_TO_CHANGE = ("model_path", "run.", "data.source_path", "geometry.iterations", "lift.lift_iterations")


@dataclass(kw_only=True)
class TrainingState:
    """What a run trains, and what it knows about itself.

    Attributes:
        settings: What it was asked for.
        scene: What it trains on.
        data: Where photos and masks are kept.
        gaussians, method: What it trains.
        total_steps: Steps of the stages that were begun.
        clock: Seconds and memory of its parts.
        checkpoint: What it goes on from; None = from the beginning.
        profile: Times of steps by stage, with --profile.
        manifest: What the folder says about the finished run.
    """

    settings: TrainSettings
    scene: Scene
    data: CacheChoice
    gaussians: Gaussians
    method: Method
    clock: RunClock
    total_steps: int = 0
    checkpoint: dict[str, Any] | None = None
    profile: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)


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
    clock = RunClock(device)
    cache = DataCache(settings.run.data_device, device=device, folder=settings.model_path)
    if scene is None:
        with clock.part("load"):
            scene = cache.cached(_loaded(settings, cache))
        tqdm.write(str(cache.choice))
    else:
        scene = cache.cached(scene)
    method = settings.build_method(zero_id=scene.zero_id).to(device)
    if settings.schedule == "joint" and not method.allows_joint:
        raise UserError(f"--method {settings.method_name} needs finished geometry; leave --schedule joint out")
    saved = None if resume_from is None else load_checkpoint(resume_from)
    if saved is None:
        gaussians = start_gaussians(settings, scene).to(device)
    else:
        _require_same_run(settings, saved, resume_from)
        gaussians = Gaussians(saved["gaussians"]).to(device)
        method.load_state_dict(saved["method"])
        for name, spent in saved.get("seconds", {}).items():
            clock.done[name] = clock.done.get(name, 0.0) + spent
    return TrainingState(
        settings=settings,
        scene=scene,
        data=cache.choice,
        gaussians=gaussians,
        method=method,
        clock=clock,
        checkpoint=saved,
    )


def start_gaussians(settings: TrainSettings, scene: Scene) -> Gaussians:
    """Return the Gaussians a run starts from: the scene's points, or a trained .ply."""
    if settings.init_ply is None:
        return gaussians_from_points(scene.points, sh_degree=settings.geometry.sh_degree)
    return read_gaussians(settings.init_ply)


def latest_checkpoint(settings: TrainSettings) -> Path | None:
    """Return the last checkpoint after which nothing is to be longer than it was: more geometry asks for geometry's."""
    for path in reversed(checkpoints(settings.model_path).values()):
        state = load_checkpoint(path)
        geometry, lift = state["settings"]["geometry"]["iterations"], state["settings"]["lift"]["lift_iterations"]
        if state["stage"] != "geometry" and geometry != settings.geometry.iterations:
            continue
        if state["stage"] == "refine" and lift != settings.lift.lift_iterations:
            continue
        return path
    return None


def _require_same_run(settings: TrainSettings, saved: dict[str, Any], path: Path) -> None:
    old = changed(TrainSettings(), saved["settings"], origin=str(path))
    for flag, before, now in (
        ("--method", old.method_name, settings.method_name),
        ("--strategy", old.strategy, settings.strategy),
    ):
        if before != now:
            raise UserError(f"{path}: was trained with {flag} {before}, now {now}; keep it or start a new -m folder")
    for name, (before, now) in differences(old, settings).items():
        if not name.startswith(_FREE_TO_CHANGE):
            raise UserError(f"{path}: was trained with {name} = {before}, now {now}; keep it or start a new -m folder")
    if saved["stage"] == "geometry" and saved["step"] > settings.geometry.iterations:
        raise UserError(f"{path}: is already at iteration {saved['step']}; ask for more --iterations")


def _loaded(settings: TrainSettings, cache: DataCache) -> Scene:
    with tqdm(desc="load", unit=" views", disable=settings.run.quiet, dynamic_ncols=True, leave=False, delay=1) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:
                bar.set_description("load: initial points")

        scene = load_scene(settings.data, progress=show, cache=cache)
    sizes = {(view.camera.width, view.camera.height) for view in (*scene.train, *scene.test)}
    size = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:3]) + (" ..." if len(sizes) > 3 else "")
    masks = sum(view.segments is not None for view in scene.train)
    tqdm.write(
        f"{scene.name}: {scene.dataset}, {len(scene.train)} training views ({masks} with masks), "
        f"{len(scene.test)} held out, {size}, {len(scene.points.positions)} initial points"
    )
    for note in scene.notes:
        tqdm.write(f"note: {note}")
    if not settings.run.quiet:
        tqdm.write(
            f"preset {settings.preset}, schedule {settings.schedule}, seed {settings.seed} -> {settings.model_path}"
        )
    return scene
