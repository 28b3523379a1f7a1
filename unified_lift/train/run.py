"""A run: one scene in, one model folder out; what it starts from, and what it leaves."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from unified_lift import ranks
from unified_lift.data import load_scene
from unified_lift.data.cache import CacheChoice, DataCache
from unified_lift.data.points import MIN_SEEN, hardly_seen, in_pictures
from unified_lift.data.sparse import with_sparse_points
from unified_lift.density import strategy_entry
from unified_lift.device import chosen_device
from unified_lift.errors import UserError
from unified_lift.fileio import locked, write_json
from unified_lift.methods.base import Method
from unified_lift.model.files import read_splat
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.model.ply import write_gaussians
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.checkpoint import checkpoints, load_checkpoint, reading_checkpoint
from unified_lift.modelfolder.labels import Labelling, by_falling_area, label_gaussians, unclaimed_object
from unified_lift.modelfolder.outputs import NO_OBJECT
from unified_lift.modelfolder.settings import TrainSettings, absolute, with_file
from unified_lift.progress import progress_bar
from unified_lift.settings.yaml import differences
from unified_lift.train.clock import RunClock
from unified_lift.train.exposure import NO_EXPOSURE, exposure_kind
from unified_lift.train.hooks import Checkpoints, Finite, GeometryResults, Hook, Log, fit
from unified_lift.train.lift import LiftStage
from unified_lift.train.logs import RunLog, rewind_log
from unified_lift.train.losses import chosen_losses
from unified_lift.train.needs import forecast
from unified_lift.train.profiling import Profile
from unified_lift.train.refine import RefineStage
from unified_lift.train.schedule import Forecast, Photos, chosen
from unified_lift.train.shards import geometry_stage
from unified_lift.train.stage import Stage, share_method
from unified_lift.types import Scene, Similarity, View, ZeroId

_MUCH_UNCLAIMED = 0.25  # masks of whole pictures leave gaps of a few percent
# What may differ between a run and its resumption: how long it is and what it prints, not what it computes; from a
# checkpoint of staged geometry on, what the lift computes too, and from one of the lift on, what the refinement does.
_OF_THE_REFINEMENT = ("refine.", "method.sharpen_steps")
_OF_THE_LIFT = (*_OF_THE_REFINEMENT, "lift.", "method.", "method_name", "preset")
_CHOOSING = ("gpu_iterations", "gpu_visits", "megapixel_gaussians", "cpu_minutes", "cpu_gaussians")
_BY_WHICH_CHOSEN = tuple(f"geometry.{name}" for name in _CHOOSING)
_FREE_TO_CHANGE = ("model_path", "run.", "data.source_path", "geometry.iterations", "lift.lift_iterations")


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

    @property
    def learns_unclaimed(self) -> bool:
        """Return whether pixels that no mask claims are a segment, though the dataset calls them unlabelled."""
        return self.scene.zero_id == "ignore" and not self.method.ignore_zero and self.settings.method.zero_id == "auto"


def run(
    settings: TrainSettings, scene: Scene | None = None, *, resume_from: Path | None = None, hooks: Sequence[Hook] = ()
) -> TrainingState:
    """Train a scene into its model folder: geometry, lift, label voting, refinement.

    Args:
        scene: What to train on; None = load it, and print what was found.
        resume_from: Checkpoint to go on from.
        hooks: Further hooks of the training loop.
    Raises:
        Interrupted: It was asked to stop; a checkpoint is saved.
        UserError: The data, the checkpoint or the method do not fit the settings; the disk is full.
        OutOfMemory: A part of it needs more than there is; it says what to lower. Checkpoints are intact.
        FloatingPointError: A loss or a parameter became NaN or infinite; nothing of it was saved.
    """
    is_first = ranks.join(chosen_device(settings.run.device, rasterizer=settings.geometry.rasterizer).type).is_first
    with locked(settings.model_path, "training") if is_first else nullcontext():
        return _run(settings, scene, resume_from, hooks)


def _run(
    settings: TrainSettings, scene: Scene | None, resume_from: Path | None, hooks: Sequence[Hook]
) -> TrainingState:
    state, together = _start(settings, scene, resume_from), ranks.current()
    settings, finite = state.settings, Finite()
    with ExitStack() as stack:
        saving = Checkpoints(settings, state.method, state.clock.seconds, finite)
        watch = [finite, GeometryResults(settings, state.scene, None, finite), saving, *hooks]
        if together.is_first:
            watch = _watch(state, saving, finite, hooks, stack)
        stack.enter_context(saving)
        begin = state.checkpoint["stage"] if state.checkpoint else "geometry"
        scene, gaussians, method, seed = state.scene, state.gaussians, state.method, 1000 * settings.seed
        lifts, joint, labels = bool(scene.labelled), settings.schedule == "joint", None
        if begin == "geometry":
            with state.clock.part("geometry"):
                stage = geometry_stage(scene, gaussians, settings, method if joint and lifts else None, seed=seed + 1)
                gaussians = state.gaussians = stage.gaussians
                if not settings.run.quiet:
                    for choice in stage.choices:
                        tqdm.write(choice)
                fit(_placed(stage, state), watch)
                gaussians = state.gaussians = stage.whole()
                del stage  # with the moments of its optimiser
            gaussians.zero_grad()
        if lifts and not joint and settings.lift.lift_iterations and begin != "refine":
            with state.clock.part("lift"):
                fit(_placed(LiftStage(scene, gaussians, method, settings.lift, seed=seed + 2), state), watch)
            gaussians.zero_grad()
        if lifts and "no_objects" in method.summary:
            tqdm.write(f"warning: the model has colours only: {method.summary['no_objects']}")
        if method.num_objects:
            with state.clock.part("finish"):
                found = _labelled(state)  # on a GPU sums depend on the order of threads: all take those of one
                labels = together.of_first(lambda: found)
                share_method(method, together)
            if labels.features is not None:
                with state.clock.part("refine"):
                    refine = RefineStage(scene, gaussians, method, settings.refine, labels, seed=seed + 3)
                    fit(_placed(refine, state), watch)
                labels = replace(labels, features=refine.features.detach())
        with state.clock.part("finish"):
            if together.is_first:
                _write_results(state, labels)
            saving.writer.wait()
        state.manifest = _manifest(state)
        if together.is_first:
            write_json(settings.model_path / "manifest.json", state.manifest)
            shutil.rmtree(settings.model_path / outputs.REPLACED, ignore_errors=True)
        together.sums(0)  # until everything is written
        return state


def _watch(
    state: TrainingState, saving: Checkpoints, finite: Finite, hooks: Sequence[Hook], stack: ExitStack
) -> list[Hook]:
    """Return the hooks of the process that writes and prints; what they hold is released with the stack."""
    settings, run = state.settings, state.settings.run
    log = RunLog(settings.model_path, tensorboard=run.logger == "tensorboard", provenance=run.provenance)
    stack.callback(log.close)
    results = GeometryResults(settings, state.scene, log, finite)
    forecast = Forecast(settings, state.scene, state.clock.seconds)
    watch = [finite, Log(run, log, finite), results, saving, forecast, *hooks]
    return [Profile(state.method, state.profile), *watch] if run.profile else watch


def _placed(stage: Stage, state: TrainingState) -> Stage:
    """Return the stage in its place among the steps of the run; if the checkpoint was taken in it, where that was."""
    saved, stage.steps_before = state.checkpoint, state.total_steps
    if saved is not None and saved["stage"] == stage.name:
        with reading_checkpoint(saved):
            stage.load_state_dict(saved["stage_state"])
        stage.first, stage.steps_before = saved["step"], saved["total_steps"] - saved["step"]
    state.total_steps = stage.steps_before + stage.num_steps
    return stage


def _labelled(state: TrainingState) -> Labelling:
    """Return the object of each Gaussian by label voting, which renumbers the method's objects by falling area."""
    if state.checkpoint is not None and state.checkpoint["stage"] == "refine":
        with reading_checkpoint(state.checkpoint):
            saved, final = state.checkpoint["stage_state"], state.method.final_features()
            assert final is not None
            # Older ones lack codes.
            tensors = {"codes": final.codes} | saved["labels"] | {"features": saved["features"]}
            return Labelling(**{name: value.to(state.gaussians.device) for name, value in tensors.items()})
    gaussians, method, scene = state.gaussians, state.method, state.scene
    labels = label_gaussians(gaussians, method, [view.camera for view in scene.train])
    last = unclaimed_object(gaussians, method, _sample(scene.labelled)) if state.learns_unclaimed else None
    return by_falling_area(method, labels, last=last)


def _write_results(state: TrainingState, labels: Labelling | None) -> None:
    model, iteration = state.settings.model_path, state.settings.geometry.iterations
    folder = outputs.iteration_dir(model, iteration)
    if not (folder / "point_cloud.ply").is_file():  # geometry is written at its end
        write_gaussians(folder / "point_cloud.ply", state.gaussians, frame=state.scene.frame)
    if labels is not None:
        if labels.features is not None:
            state.gaussians.set("features", labels.features)
            state.method.load_object_state(labels.codes)
        num_views = dict(enumerate(labels.num_views.tolist()))
        names = {len(num_views) - 1: NO_OBJECT} if state.learns_unclaimed and len(num_views) > 1 else None
        facts: dict[str, Any] = {"names": names, "num_views": num_views, "frame": state.scene.frame}
        outputs.write_objects(folder, state.gaussians, labels, method=state.method, **facts)
    if state.profile:
        write_json(model / "profile.json", state.profile)


def _manifest(state: TrainingState) -> dict[str, Any]:
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
        **({"processes": count} if (count := ranks.current().count) > 1 else {}),
        **({"peak_gpu_bytes": clock.peak_gpu_bytes} if clock.peak_gpu_bytes else {}),
    }
    return outputs.provenance(state.settings, facts, folder=state.settings.model_path)


def _start(settings: TrainSettings, scene: Scene | None, resume_from: Path | None) -> TrainingState:
    """Return the state before the first step: from the scene's points, a trained .ply, or a checkpoint.

    The model folder is made ready: what an earlier run left goes, or what a resumed run is going to do again.
    """
    geometry = settings.geometry
    device = chosen_device(settings.run.device, rasterizer=geometry.rasterizer)
    sparse = bool(geometry.iterations) and any(loss.needs_points for loss in chosen_losses(geometry.loss_weights))
    exposure_kind(geometry.exposure)
    strategy = strategy_entry(settings.strategy).build(settings.density)
    if strategy.absolute_gradients and geometry.rasterizer == "gsplat":
        raise UserError("--rasterizer gsplat: has no absolute gradients here; leave it out, or --absgrad")
    clock = RunClock(settings, device)
    cache = DataCache(settings.run.data_device, device=device)
    saved = None if resume_from is None else load_checkpoint(resume_from)
    frame = None if saved is None else Similarity(**saved["frame"])
    if scene is None:
        with clock.part("load"):
            scene = cache.cached(_loaded(settings, cache, frame, sparse=sparse))
        tqdm.write(f"{cache.choice}, loaded in {clock.done['load']:.1f} s")
    else:
        scene = cache.cached(with_sparse_points(scene) if sparse else scene)
    assert cache.choice is not None
    photos = Photos.of([view.camera for view in scene.train], len(scene.points.positions))
    settings, choice = chosen(settings, photos, device.type, earlier=None if saved is None else saved["settings"])
    if choice:
        tqdm.write(choice)
    zero_id = _zero_id(scene) if settings.method.zero_id == "auto" else scene.zero_id
    method = _about_void(settings, scene).build_method(zero_id=zero_id).to(device)
    if settings.schedule == "joint" and not method.allows_joint:
        raise UserError(f"--method {settings.method_name} needs finished geometry; leave --schedule joint out")
    if saved is not None:
        if scene.frame != frame:
            raise UserError(f"{resume_from}: was trained inside of {frame}; load the scene with this frame")
        _require_same_run(settings, saved, origin=str(resume_from))
        with reading_checkpoint(saved):
            gaussians = Gaussians(saved["gaussians"], antialiased=settings.geometry.antialiased)
            if saved["stage"] != "geometry" or settings.schedule != "staged":
                method.load_state_dict(saved["method"])
            for name, spent in saved.get("seconds", {}).items():
                clock.done[name] = clock.done.get(name, 0.0) + float(spent)
    elif (ply := settings.init_ply) is not None:
        gaussians, notes = read_splat(ply, scene.frame, strict=settings.data.strict)
        for note in notes:
            tqdm.write(f"note: {ply}: {note}")
        if gaussians.antialiased and not settings.geometry.antialiased:
            tqdm.write(f"note: {ply}: was trained with anti-aliasing; --antialiased is turned on")
            settings = replace(settings, geometry=replace(settings.geometry, antialiased=True))
        _require_in_sight(gaussians, scene, ply)
    else:
        gaussians = gaussians_from_points(scene.points, sh_degree=settings.geometry.sh_degree)
        strategy.begin(gaussians)
    gaussians.antialiased = settings.geometry.antialiased
    tqdm.write(forecast(settings, scene, gaussians, cache.choice, device, None if saved is None else saved["stage"]))
    if ranks.current().is_first:
        if saved is not None:
            rewind_log(settings.model_path, stage=saved["stage"], step=saved["step"])
        elif outputs.set_earlier_run_aside(settings.model_path):
            kept = settings.model_path / outputs.REPLACED
            tqdm.write(f"note: the earlier run is kept in {kept} until this one is done")
        outputs.write_run_header(settings, scene)
    return TrainingState(settings, scene, cache.choice, gaussians.to(device), method, clock, checkpoint=saved)


def _sample(views: Sequence[View], most: int = 32) -> Sequence[View]:
    """Return at most so many views, evenly spaced."""
    return views[:: -(-len(views) // most)] if views else views


def _zero_id(scene: Scene) -> ZeroId:
    """Return what id 0 of the masks means: not unlabelled where much of the pictures is in no mask, but no object."""
    shares = []
    for view in _sample(scene.labelled) if scene.zero_id == "ignore" else ():
        assert view.segments is not None
        free = view.segments == 0
        shares.append(float((free if view.valid is None else free[view.valid]).float().mean()))
    share = sum(shares) / max(1, len(shares))
    if share < _MUCH_UNCLAIMED:
        return scene.zero_id
    what = f"they are learnt as `{NO_OBJECT}`, the last id; --zero_id ignore leaves them out"
    tqdm.write(f"note: {share:.0%} of the pixels are in no mask: {what}")
    return "segment"


def _about_void(settings: TrainSettings, scene: Scene) -> TrainSettings:
    """Return the settings; where masks have void ids and --zero_id is given, with one that never learns these."""
    void, asked = scene.void_ids, settings.method.zero_id
    if not void or asked == "auto":
        return settings
    if asked == "ignore" and 0 not in void:
        both = ",".join(map(str, sorted((0, *void), reverse=True)))
        tqdm.write(f"note: --zero_id ignore: void pixels are unlabelled; --void_id {both} leaves out those of id 0 too")
    return replace(settings, method=replace(settings.method, zero_id="ignore"))


def _require_in_sight(gaussians: Gaussians, scene: Scene, ply: Path) -> None:
    """Warn if the training cameras hardly see the Gaussians of a file; a UserError says that they see nearly none."""
    seen = in_pictures(gaussians.means.detach().numpy(), [view.camera for view in scene.train])
    if problem := hardly_seen(seen, "its Gaussians"):
        fix = f"export the splat in the frame of the poses of {scene.name}, or take the poses that belong to it"
        if seen.any(axis=0).mean() < MIN_SEEN:
            raise UserError(f"{ply}: {problem}; {fix}")
        tqdm.write(f"warning: {ply}: {problem}; {fix}")


def latest_checkpoint(settings: TrainSettings) -> Path | None:
    """Return the last checkpoint after which nothing is to be longer or lifted otherwise than it was.

    More geometry asks for geometry's, and so do other settings of the lift. One that is damaged is passed over with a
    note; a UserError says that all are.
    """
    problem = None
    for path in reversed(checkpoints(settings.model_path).values()):
        try:
            state = load_checkpoint(path)
        except UserError as error:
            tqdm.write(f"note: {error}")
            problem = problem or error
            continue
        stage, before = state["stage"], state["settings"]
        same_geometry = settings.geometry.iterations in (-1, before["geometry"]["iterations"])
        same_lift = before["lift"]["lift_iterations"] == settings.lift.lift_iterations
        lifted_alike = not any(
            name.startswith(_OF_THE_LIFT) for name in _differences(settings, state, origin=str(path))
        )
        if stage == "geometry" or (same_geometry and lifted_alike and (stage == "lift" or same_lift)):
            return path
    if problem is not None:
        raise problem
    return None


def _differences(settings: TrainSettings, saved: dict[str, Any], *, origin: str) -> dict[str, tuple[Any, Any]]:
    """Return the settings that are not those of a checkpoint, and both values, except those free to change."""
    old = with_file(TrainSettings(), saved["settings"], Path(origin))
    free: tuple[str, ...] = (*_FREE_TO_CHANGE, *_BY_WHICH_CHOSEN)
    free += _OF_THE_LIFT if saved["stage"] == "geometry" and settings.schedule == "staged" else ()
    free += _OF_THE_REFINEMENT if saved["stage"] == "lift" else ()
    return {
        name: pair for name, pair in differences(absolute(old), absolute(settings)).items() if not name.startswith(free)
    }


def _require_same_run(settings: TrainSettings, saved: dict[str, Any], *, origin: str) -> None:
    found = _differences(settings, saved, origin=origin)
    flags = {"method_name": "--method", "strategy": "--strategy"}  # whose other settings follow from them
    for name, (before, now) in sorted(found.items(), key=lambda item: item[0] not in flags):
        was = f"{flags[name]} {before}" if name in flags else f"{name} = {before}"
        raise UserError(f"{origin}: was trained with {was}, now {now}; keep it or start a new -m folder")
    if saved["stage"] == "geometry" and saved["step"] > settings.geometry.iterations:
        raise UserError(f"{origin}: is already at iteration {saved['step']}; ask for more --iterations")


def _loaded(settings: TrainSettings, cache: DataCache, frame: Similarity | None, *, sparse: bool) -> Scene:
    """Return the scene inside of a frame, None = that which suits it, and print what it holds; `sparse` as there."""
    looks: dict[str, Any] = {"then": "load: initial points", "unit": " views", "leave": False, "delay": 1}
    with progress_bar("load", quiet=settings.run.quiet, **looks) as show:
        white = settings.geometry.white_background
        keep_alpha = settings.geometry.random_background or settings.geometry.exposure != NO_EXPOSURE
        keep: dict[str, Any] = {"cache": cache, "sparse": sparse, "keep_alpha": keep_alpha}
        scene = load_scene(settings.data, frame=frame, white=white, refuse_unused=True, progress=show, **keep)
    sizes = sorted({(view.camera.width, view.camera.height) for view in (*scene.train, *scene.test)})
    size = ", ".join(f"{w}x{h}" for w, h in sizes[:3]) + (" ..." if len(sizes) > 3 else "")
    tqdm.write(
        f"{scene.name}: {scene.dataset}, {len(scene.train)} training views ({len(scene.labelled)} with masks), "
        f"{len(scene.test)} held out, {size}, {len(scene.points.positions)} initial points"
    )
    for note in scene.notes:
        tqdm.write(f"note: {note}")
    if not settings.run.quiet:
        of_run = f"preset {settings.preset}, schedule {settings.schedule}, seed {settings.seed}"
        tqdm.write(f"{of_run} -> {settings.model_path}")
    return scene
