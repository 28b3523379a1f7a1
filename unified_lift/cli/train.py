"""train.py: one scene in, one model folder out."""

from __future__ import annotations

import argparse
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic

import tyro
from tqdm import tqdm

from unified_lift.cli.flags import canonical
from unified_lift.data import load_scene
from unified_lift.data.cache import DataCache
from unified_lift.device import chosen_device
from unified_lift.errors import UserError
from unified_lift.modelfolder.outputs import holds_run, iteration_dir, level_dir, read_run_settings
from unified_lift.modelfolder.settings import M, TrainSettings, changed, with_preset
from unified_lift.settings.yaml import read_settings_file
from unified_lift.train.profiling import profile_table
from unified_lift.train.run import Interrupted, Trainer, latest_checkpoint
from unified_lift.types import Scene


@dataclass(frozen=True, kw_only=True)
class TrainCommand(Generic[M]):
    """Train a scene: posed photos with per-view segment ids in, labelled 3D Gaussians out.

    Example: train.py -s data/desk -m output/desk --eval
    Short flags: -s source_path, -m model_path, -i images, -r resolution, -w white_background.
    Precedence: defaults < preset < --config < command line.
    """

    resume: bool = False
    """Go on from the last checkpoint in the model folder, with the settings stored there."""
    start_checkpoint: Path | None = None
    """Go on from this checkpoint [3DGS]."""
    overwrite: bool = False
    """Train again into a model folder that already holds a run."""
    levels: tuple[str, ...] = ()
    """More mask folders to lift on the same geometry, NAME=FOLDER each, such as part=object_mask_part; every level is a
    model of its own in <model>/levels/<NAME>."""
    config: Path | None = None
    """YAML (or Unified-Lift JSON) of differences, applied on top of the preset."""
    settings: TrainSettings[M] = field(default_factory=TrainSettings)


def train_main(argv: list[str]) -> int:
    """Parse, load, train. Return the exit code."""
    command = parse(argv)
    settings, levels = command.settings, _levels(command)
    resume_from = _where_to_start(command)
    code = _run(settings, resume_from)
    for name, folder in levels.items():
        if code == 0:
            code = _lift_level(settings, name, folder, resume=command.resume)
    return code


def _run(settings: TrainSettings, resume_from: Path | None) -> int:
    """Train one model folder; return the exit code."""
    trainer = _prepared(settings)

    def ask_to_stop(*_: object) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True

    previous = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        manifest = trainer.run(resume_from=resume_from)
    except Interrupted:
        print(f"\ninterrupted; go on with: train.py -m {settings.model_path} --resume")
        return 130
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if settings.run.profile:
        print(profile_table(trainer.profile))
    minutes = sum(manifest["seconds"].values()) / 60
    print(
        f"{settings.model_path}: {manifest['num_gaussians']} Gaussians, {manifest['num_codes']} object codes, "
        f"{minutes:.1f} min"
    )
    return 0


def _levels(command: TrainCommand) -> dict[str, str]:
    """Return name -> mask folder of the further levels, having looked that they are there.

    Raises:
        UserError: Not NAME=FOLDER, a name twice, or no such folder.
    """
    levels: dict[str, str] = {}
    for word in command.levels:
        name, equals, folder = word.partition("=")
        if not (name.isidentifier() and equals and folder) or name in levels:
            raise UserError(f"--levels {word}: write NAME=FOLDER, each name once, such as part=object_mask_part")
        path = command.settings.data.source_path / folder
        if not path.is_dir():
            raise UserError(f"{path}: no such mask folder; correct --levels or make the masks first")
        levels[name] = folder
    return levels


def _lift_level(base: TrainSettings, name: str, folder: str, *, resume: bool) -> int:
    """Lift another set of masks onto the geometry of a finished run, into a model folder of its own."""
    ply = iteration_dir(base.model_path, base.geometry.iterations) / "point_cloud.ply"
    settings = replace(
        base,
        model_path=level_dir(base.model_path, name),
        schedule="staged",
        init_ply=ply,
        data=replace(base.data, object_path=folder, random_init=True, num_random_points=4),  # the splat has its own
        geometry=replace(base.geometry, iterations=0),
    )
    resume_from = latest_checkpoint(settings) if resume and holds_run(settings.model_path) else None
    return _run(settings, resume_from)


def parse(argv: list[str]) -> TrainCommand:
    """Return the command line as settings, on top of preset, --config and, with --resume, the stored settings."""
    argv = canonical(argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    early.add_argument("--method-name")
    early.add_argument("--config", type=Path)
    early.add_argument("--model-path", type=Path)
    early.add_argument("--resume", action="store_true")
    known, _ = early.parse_known_args(argv)
    if known.resume and known.model_path and (known.model_path / "config.yaml").exists():
        base = read_run_settings(known.model_path)
    else:
        base = _base(known.preset, known.method_name)
    if known.config:
        base = changed(base, _translated(read_settings_file(known.config)), origin=str(known.config))
    command = tyro.cli(
        tyro.conf.OmitArgPrefixes[TrainCommand[type(base.method)]],
        args=argv,
        default=TrainCommand(settings=base),
        prog="train.py",
    )
    if command.settings.method_name != base.method_name:
        raise UserError(
            f"--method {command.settings.method_name}: contradicts method_name {base.method_name} of the settings; "
            "give one of them"
        )
    _check(command.settings)
    return command


def _base(preset: str | None, method_name: str | None) -> TrainSettings:
    """Return the settings below the command line: those of the preset, by default the method's own."""
    base = TrainSettings()
    if method_name is not None and method_name != base.method_name:
        base = changed(base, {"method_name": method_name}, origin="command line")
    return with_preset(base, preset or method_name or base.preset)


def _translated(content: dict) -> dict:
    """Return settings with the keys of Unified-Lift's and Gaussian Grouping's train.json in our words."""
    names = {"num_classes": "num_codes"}
    # Their 3D regulariser belongs to Gaussian Grouping; Unified-Lift's own code never runs it.
    return {names.get(key, key): value for key, value in content.items() if not key.startswith("reg3d_")}


def _check(settings: TrainSettings) -> None:
    if settings.data.source_path == Path():
        raise UserError("no scene given: train.py -s SCENE_FOLDER -m MODEL_FOLDER")
    if settings.model_path == Path():
        raise UserError("no model folder given: train.py -s SCENE_FOLDER -m MODEL_FOLDER")
    limits = {
        "iterations": (settings.geometry.iterations, 0 if settings.init_ply else 1),
        "lift_iterations": (settings.lift.lift_iterations, -1),
        "sh_degree": (settings.geometry.sh_degree, 0),
        "lift_pixels": (settings.lift.lift_pixels, 1),
        "lift_min_samples": (settings.lift.lift_min_samples, 0),
        "checkpoint_minutes": (settings.run.checkpoint_minutes, 0),
        "checkpoint_interval": (settings.run.checkpoint_interval, 0),
        "log_interval": (settings.run.log_interval, 1),
        "densification_interval": (settings.density.densification_interval, 1),
    }
    for name, (value, least) in limits.items():
        if value < least:
            raise UserError(f"--{name} must be at least {least}, received {value}")
    settings.method.check()
    if settings.geometry.sh_degree > 3:
        raise UserError(f"--sh_degree goes up to 3, received {settings.geometry.sh_degree}")


def _prepared(settings: TrainSettings) -> Trainer:
    """Return the trainer of the loaded scene; nobody else holds on to photos that it has copied elsewhere."""
    began = time.perf_counter()
    store = DataCache(settings.run.data_device, device=chosen_device(settings.run.device), folder=settings.model_path)
    scene = _load(settings, store)
    _print_scene(settings, scene)
    trainer = Trainer(settings, scene, store=store)
    print(trainer.placement)
    trainer.seconds["load"] = time.perf_counter() - began
    return trainer


def _load(settings: TrainSettings, store: DataCache) -> Scene:
    with tqdm(desc="load", unit=" views", disable=settings.run.quiet, dynamic_ncols=True, leave=False, delay=1) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:
                bar.set_description("load: initial points")

        return load_scene(settings.data, progress=show, cache=store)


def _where_to_start(command: TrainCommand) -> Path | None:
    model = command.settings.model_path
    if command.start_checkpoint is not None:
        return command.start_checkpoint
    if command.resume:
        found = latest_checkpoint(command.settings)
        if found is None:
            raise UserError(f"{model}: no chkpnt<N>.pth there to resume from; leave --resume out to start anew")
        return found
    if holds_run(model) and not command.overwrite:
        raise UserError(f"{model}: already holds a run; --resume goes on with it, --overwrite replaces it")
    return None


def _print_scene(settings: TrainSettings, scene: Scene) -> None:
    sizes = {(view.camera.width, view.camera.height) for view in (*scene.train, *scene.test)}
    size = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:3]) + (" ..." if len(sizes) > 3 else "")
    masks = sum(view.segments is not None for view in scene.train)
    print(
        f"{scene.name}: {scene.dataset}, {len(scene.train)} training views ({masks} with masks), "
        f"{len(scene.test)} held out, {size}, {len(scene.points.positions)} initial points"
    )
    for note in scene.notes:
        print(f"note: {note}")
    if not settings.run.quiet:
        print(f"preset {settings.preset}, schedule {settings.schedule}, seed {settings.seed} -> {settings.model_path}")
