"""train.py: one scene in, one model folder out."""

import argparse
import shlex
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic

from unified_lift import ranks
from unified_lift.capture.mask_runs import caution
from unified_lift.cli.flags import canonical, parsed
from unified_lift.cli.names import program
from unified_lift.data.scene import detect_reader, mask_folder
from unified_lift.device import chosen_device, training_device
from unified_lift.errors import UserError
from unified_lift.fileio import locked
from unified_lift.modelfolder.checkpoint import checkpoints
from unified_lift.modelfolder.outputs import holds_run, holds_work, iteration_dir, level_dir, read_run_settings
from unified_lift.modelfolder.settings import D, M, TrainSettings, changed, implied_strategy, with_file, with_preset
from unified_lift.settings.yaml import read_settings_file
from unified_lift.train.hooks import Interrupted
from unified_lift.train.logs import read_log
from unified_lift.train.profiling import profile_table
from unified_lift.train.run import latest_checkpoint, run
from unified_lift.train.schedule import OWN_BOUND, gives_bound


@dataclass(frozen=True, kw_only=True)
class TrainCommand(Generic[M, D]):
    """Train a scene: posed photos with per-view segment ids in, labelled 3D Gaussians out.

    Example: unified-lift train -s data/desk -m output/desk --eval

    Precedence: defaults < preset < --config < command line.
    """

    resume: bool = False
    """Go on from the last checkpoint in the model folder, with the settings stored there."""
    resume_auto: bool = False
    """The same as `--resume auto`: go on if the model folder holds a checkpoint, else start. For requeued jobs."""
    start_checkpoint: Path | None = None
    """Go on from this checkpoint [3DGS]."""
    overwrite: bool = False
    """Train again into a model folder that already holds a run."""
    levels: tuple[str, ...] = ()
    """More mask folders to lift on the same geometry, NAME=FOLDER each, such as part=object_mask_part; every level is a
    model of its own in <model>/levels/<NAME>."""
    config: Path | None = None
    """YAML (or Unified-Lift JSON) of differences, applied on top of the preset."""
    settings: TrainSettings[M, D] = field(default_factory=TrainSettings)


def train_main(argv: list[str], *, says_next: bool = True) -> int:
    """Parse, train, print how good the result is, where it is and what comes next. Return the exit code."""
    command = parse(argv)
    settings = command.settings
    together = ranks.join(chosen_device(settings.run.device, rasterizer=settings.geometry.rasterizer).type)
    if together.count > 1:
        print(together)
    # What is found in the folder stays so until it is trained into.
    with locked(settings.model_path, "training") if together.is_first else nullcontext():
        return _train(command, together, says_next=says_next)


def _started_from(command: TrainCommand) -> Path | None:
    """Return the checkpoint to go on from, None = start anew."""
    model, start = command.settings.model_path, command.start_checkpoint
    if start is None and (command.resume or command.resume_auto):
        start = latest_checkpoint(command.settings)
        if start is None and not command.resume_auto:
            fix = "leave --resume out to start, or say --resume auto"
            raise UserError(f"{model}: no chkpnt<N>.pth there to resume from; {fix}")
    if start is None and holds_work(model) and not command.overwrite:
        goes_on = "--resume goes on with it" if checkpoints(model) else "none of its checkpoints is left to go on from"
        raise UserError(f"{model}: already holds a run; {goes_on}, --overwrite replaces it")
    return start


def _level_started_from(command: TrainCommand, settings: TrainSettings) -> Path | None:
    go_on = (command.resume or command.resume_auto) and holds_run(settings.model_path)
    return latest_checkpoint(settings) if go_on else None


def _train(command: TrainCommand, together: ranks.Ranks, *, says_next: bool) -> int:
    model, start = command.settings.model_path, together.of_first(lambda: _started_from(command))
    levels = list(_granularities(command))  # for errors before anything is trained
    for number in range(1 + len(levels)):
        settings = levels[number - 1] if number else command.settings
        if number:
            start = together.of_first(partial(_level_started_from, command, settings))
        try:
            state = run(settings, resume_from=start)
        except Interrupted:
            launcher = f"torchrun --nproc_per_node {together.count} " if together.count > 1 else ""
            print(f"\ninterrupted; go on with: {launcher}{program('train')} -m {settings.model_path} --resume")
            return 130
        if not number:  # the run has chosen how long it is, and an --init_ply may have said how it is drawn
            levels = list(_granularities(replace(command, settings=state.settings)))
        if settings.run.profile:
            print(profile_table(state.profile))
        if not number and (scores := held_out_scores(settings.model_path)):
            print("held-out views: " + scores)
        if not state.scene.labelled:
            fix = f"make masks with unified-lift masks -s {settings.data.source_path}, then go on with --resume"
            print(f"note: no training view has a mask, so no object can be told from another; {fix}")
        elif warning := caution(mask_folder(detect_reader(settings.data), settings.data)):
            print(f"note: {warning}")
        codes, minutes = state.manifest["num_codes"], sum(state.manifest["seconds"].values()) / 60
        print(f"{settings.model_path}: {len(state.gaussians)} Gaussians, {codes} object codes, {minutes:.1f} min")
    if says_next and state.scene.labelled:  # else the note says it
        door, does = ("eval", "scores") if state.scene.test else ("render", "pictures and a video")
        print(f"next: {program(door)} -m {shlex.quote(str(model))}  ({does})")
    return 0


def held_out_scores(model: Path) -> str:
    """Return what the log of a model folder says last of its held-out views, "" if they were not scored."""
    scored = [line for line in read_log(model) if line["stage"] == "test"]
    return f"PSNR {scored[-1]['psnr']:.2f} dB after {scored[-1]['step']} iterations" if scored else ""


def parse(argv: list[str]) -> TrainCommand:
    """Return the command line as settings, on top of preset, --config and, with --resume, the stored settings."""
    argv = _one_word(canonical(argv))
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("preset", "method-name", "strategy", "device", "max-gaussians"):
        early.add_argument(f"--{flag}")
    for flag in ("config", "model-path"):
        early.add_argument(f"--{flag}", type=Path)
    early.add_argument("--resume", action="store_true")
    early.add_argument("--resume-auto", action="store_true")
    known, _ = early.parse_known_args(argv)
    content = {} if known.config is None else read_settings_file(known.config)
    # As in the JSON of Unified-Lift and Gaussian Grouping; only the latter's code runs their 3D regulariser.
    content = {key: value for key, value in content.items() if str(key)[:6] != "reg3d_"}
    content = {"num_codes" if key == "num_classes" else key: value for key, value in content.items()}
    goes_on = known.model_path and (known.resume or (known.resume_auto and checkpoints(known.model_path)))
    if goes_on and (known.model_path / "config.yaml").exists():
        base = read_run_settings(known.model_path)
    else:
        given = {} if known.method_name is None else {"method_name": known.method_name}
        base = changed(TrainSettings(), given, origin="command line")
        device = training_device(content if known.device is None else {"device": known.device})
        base = with_preset(base, known.preset or known.method_name or base.preset, device=device)
    if known.strategy:
        base = changed(base, {"strategy": known.strategy}, origin="command line")
    bounded = known.max_gaussians is not None
    if known.config:
        base = with_file(base, content, known.config)
        bounded |= gives_bound(content)
    flags = [word.partition("=")[0][2:].replace("-", "_") for word in argv if word.startswith("--")]
    if known.strategy is None and (implied := implied_strategy(base, flags)) is not None:
        known.strategy = implied
        print(f"note: --strategy {implied}, whose settings are given; the preset has {base.strategy}", file=sys.stderr)
        base = changed(base, {"strategy": implied}, origin="command line")
    if bounded:
        base = changed(base, OWN_BOUND, origin="command line")
    generic: Any = TrainCommand  # the types are known only now
    form: type[TrainCommand[Any, Any]] = generic[type(base.method), type(base.density)]
    own = {"method": ("method", known.method_name), "density": ("strategy", known.strategy)}
    shown = {group: f"{title} {word}" for group, (title, word) in own.items() if word}
    command = parsed(form, argv, command="train", default=TrainCommand(settings=base), shown=shown)
    chosen = command.settings
    for flag, name in (("--method", "method_name"), ("--strategy", "strategy")):
        if (now := getattr(chosen, name)) != (before := getattr(base, name)):
            raise UserError(f"{flag} {now}: contradicts {name} {before} of the settings; give one of them")
    for path, what in ((chosen.data.source_path, "scene"), (chosen.model_path, "model folder")):
        if path == Path():
            raise UserError(f"no {what} given: {program('train')} -s SCENE_FOLDER -m MODEL_FOLDER")
    chosen.check()
    return command


def _one_word(argv: list[str]) -> list[str]:
    """Return the words of a command line, `--resume auto` being one: a flag either takes a value or does not."""
    words: list[str] = []
    for word in argv:
        if word == "auto" and words[-1:] == ["--resume"]:
            words[-1] = "--resume-auto"
        else:
            words.append("--resume-auto" if word == "--resume=auto" else word)
    return words


def _granularities(command: TrainCommand) -> Iterator[TrainSettings]:
    """Yield the settings that lift the masks of each level onto the geometry of the run, into a folder of its own."""
    base, names = command.settings, set()
    for word in command.levels:
        name, equals, folder = word.partition("=")
        if not (name.isidentifier() and equals and folder) or name in names:
            raise UserError(f"--levels {word}: write NAME=FOLDER, each name once, such as part=object_mask_part")
        path = base.data.source_path / folder
        if not path.is_dir():
            raise UserError(f"{path}: no such mask folder; correct --levels or make the masks first")
        names.add(name)
        yield replace(
            base,
            model_path=level_dir(base.model_path, name),
            schedule="staged",
            init_ply=iteration_dir(base.model_path, base.geometry.iterations) / "point_cloud.ply",
            data=replace(base.data, object_path=folder, random_init=True, num_random_points=4),  # the splat has its own
            geometry=replace(base.geometry, iterations=0),
        )
