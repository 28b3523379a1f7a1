"""A run: one scene in, one model folder out."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from unified_lift.density import strategy_entry
from unified_lift.fileio import write_json
from unified_lift.model.ply import write_gaussians
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.labels import Labelling, by_falling_area, label_gaussians
from unified_lift.modelfolder.settings import TrainSettings
from unified_lift.train.geometry import GeometryStage
from unified_lift.train.hooks import Checkpoints, Finite, GeometryResults, Hook, Log, fit
from unified_lift.train.lift import LiftStage
from unified_lift.train.logs import RunLog, rewind_log
from unified_lift.train.profiling import Profile
from unified_lift.train.refine import RefineStage
from unified_lift.train.stage import Stage
from unified_lift.train.start import TrainingState, start
from unified_lift.types import Scene


def run(
    settings: TrainSettings, scene: Scene | None = None, *, resume_from: Path | None = None, hooks: Sequence[Hook] = ()
) -> TrainingState:
    """Train a scene into its model folder: geometry, lift, label voting, refinement.

    Args:
        settings: The run.
        scene: What to train on; None = load it.
        resume_from: Checkpoint to go on from.
        hooks: Further hooks of the training loop.
    Raises:
        Interrupted: It was asked to stop; a checkpoint is saved.
        UserError: The data or the checkpoint do not fit; the disk is full.
        FloatingPointError: A loss or a parameter became NaN or infinite; nothing of it was saved.
    """
    state = start(settings, scene, resume_from)
    _open_folder(state)
    finite = Finite()
    log = RunLog(settings.model_path, tensorboard=settings.run.logger == "tensorboard")
    with closing(log), Checkpoints(state, finite) as checkpoints:
        watch = [finite, Log(state, log, finite), GeometryResults(state, log, finite), checkpoints, *hooks]
        if settings.run.profile:
            watch.insert(0, Profile(state))
        begin = state.checkpoint["stage"] if state.checkpoint else "geometry"
        scene, gaussians, method, seed = state.scene, state.gaussians, state.method, 1000 * settings.seed
        lifts, joint, labels = bool(scene.labelled), settings.schedule == "joint", None
        if begin == "geometry":
            with state.clock.part("geometry"):
                strategy, joined = strategy_entry(settings.strategy).build(settings.density), joint and lifts
                trained = method if joined else None
                stage = GeometryStage(scene, gaussians, settings.geometry, strategy, seed=seed + 1, method=trained)
                fit(_placed(stage, state), watch)
                del stage  # with the moments of its optimiser
            gaussians.zero_grad()
        if lifts and not joint and settings.lift.lift_iterations and begin != "refine":
            with state.clock.part("lift"):
                fit(_placed(LiftStage(scene, gaussians, method, settings.lift, seed=seed + 2), state), watch)
            gaussians.zero_grad()
        if method.num_objects:
            with state.clock.part("finish"):
                labels = _labelled(state)
            if labels.features is not None:
                with state.clock.part("refine"):
                    refine = RefineStage(scene, gaussians, method, settings.refine, labels, seed=seed + 3)
                    fit(_placed(refine, state), watch)
                labels = replace(labels, features=refine.features.detach())
        with state.clock.part("finish"):
            _write_results(state, labels)
            checkpoints.writer.wait()
        _write_manifest(state)
        return state


def _open_folder(state: TrainingState) -> None:
    """Make the model folder ready: what an earlier run left goes, or what a resumed run is going to do again."""
    model, saved = state.settings.model_path, state.checkpoint
    model.mkdir(parents=True, exist_ok=True)
    for unfinished in model.glob("chkpnt*.pth.partial"):  # of a run that was killed
        unfinished.unlink()
    if saved is None:
        outputs.forget_earlier_run(model)
    else:
        rewind_log(model, stage=saved["stage"], step=saved["step"])
    outputs.write_run_header(state.settings, state.scene)


def _placed(stage: Stage, state: TrainingState) -> Stage:
    """Return the stage in its place among the steps of the run; if the checkpoint was taken in it, where that was."""
    saved, stage.steps_before = state.checkpoint, state.total_steps
    if saved is not None and saved["stage"] == stage.name:
        stage.load_state_dict(saved["stage_state"])
        stage.first, stage.steps_before = saved["step"], saved["total_steps"] - saved["step"]
    state.total_steps = stage.steps_before + stage.num_steps
    return stage


def _labelled(state: TrainingState) -> Labelling:
    """Return the object of each Gaussian by label voting, which renumbers the method's objects by falling area."""
    if state.checkpoint is not None and state.checkpoint["stage"] == "refine":
        saved = state.checkpoint["stage_state"]
        tensors = saved["labels"] | {"features": saved["features"]}
        return Labelling(**{name: value.to(state.gaussians.device) for name, value in tensors.items()})
    cameras = [view.camera for view in state.scene.train]
    return by_falling_area(state.method, label_gaussians(state.gaussians, state.method, cameras))


def _write_results(state: TrainingState, labels: Labelling | None) -> None:
    model, iteration = state.settings.model_path, state.settings.geometry.iterations
    folder = outputs.iteration_dir(model, iteration)
    write_gaussians(folder / "point_cloud.ply", state.gaussians)
    if labels is not None:
        if labels.features is not None:
            state.gaussians.set("features", labels.features)
        num_views = dict(enumerate(labels.num_views.tolist()))
        outputs.write_objects(folder, state.gaussians, labels, method=state.method, num_views=num_views)
    if state.profile:
        write_json(model / "profile.json", state.profile)


def _write_manifest(state: TrainingState) -> None:
    scene, clock = state.scene, state.clock
    facts = {
        "scene": scene.name,
        "dataset": scene.dataset,
        "train_views": len(scene.train),
        "test_views": len(scene.test),
        "notes": list(scene.notes),
        "device": clock.device.type,
        "data": state.data._asdict(),
        "iteration": state.settings.geometry.iterations,
        "num_gaussians": len(state.gaussians),
        "num_codes": state.method.num_objects,
        "method": {"name": state.settings.method_name} | state.method.summary,
        "seconds": {name: round(value, 2) for name, value in clock.done.items()},
        **({"peak_gpu_bytes": clock.peak_gpu_bytes} if clock.peak_gpu_bytes else {}),
    }
    state.manifest = outputs.provenance(state.settings, facts)
    write_json(state.settings.model_path / "manifest.json", state.manifest)
