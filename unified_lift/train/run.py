"""The run: stages in order, checkpoints, logs, and the model folder at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from unified_lift.data.cache import DataCache
from unified_lift.device import chosen_device, require_rasterizer
from unified_lift.errors import UserError
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.model.ply import read_gaussians
from unified_lift.model.render import render
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.checkpoint import (
    CheckpointWriter,
    checkpoint_path,
    checkpoints,
    load_checkpoint,
    named_tensors,
    remove_unfinished,
    snapshot,
)
from unified_lift.modelfolder.labels import by_falling_area, label_gaussians
from unified_lift.modelfolder.settings import TrainSettings, changed
from unified_lift.settings.yaml import differences, to_dict
from unified_lift.train.geometry import GeometryStage, target_image
from unified_lift.train.lift import LiftStage
from unified_lift.train.logs import RunLog, rewind_log
from unified_lift.train.profiling import BETWEEN_STEPS, StepProfiler
from unified_lift.train.refine import sharpened, steps_of
from unified_lift.train.stage import Interrupted, Stage
from unified_lift.train.terms import TermRecord, require_finite_state
from unified_lift.train.views import ViewSource
from unified_lift.types import Scene

# What may differ between a run and its resumption: how long it is and what it prints, not what it computes.
_FREE_TO_CHANGE = ("model_path", "run.", "data.source_path", "geometry.iterations", "lift.lift_iterations")


class Trainer:
    """Trains one scene into one model folder."""

    def __init__(self, settings: TrainSettings, scene: Scene, *, store: DataCache | None = None) -> None:
        """Create Gaussians and method and see that photos and masks are where they are to be kept.

        Args:
            settings: The run.
            scene: What to train on.
            store: What the scene was loaded with.
        """
        self.settings, self.device = settings, chosen_device(settings.run.device)
        require_rasterizer(settings.geometry.rasterizer, self.device)
        store = store or DataCache(settings.run.data_device, device=self.device, folder=settings.model_path)
        self.scene, self.placement = store.cached(scene), store.choice
        self.gaussians = start_gaussians(settings, scene).to(self.device)
        self.method = settings.build_method(zero_id=scene.zero_id)
        self.method.to(self.device)
        if settings.schedule == "joint" and not self.method.allows_joint:
            raise UserError(f"--method {settings.method_name} needs finished geometry; leave --schedule joint out")
        self.seconds: dict[str, float] = {}
        self.peak_gpu_bytes: dict[str, dict[str, int]] = {}
        self.profile: dict[str, list[dict[str, Any]]] = {}
        self.stop_requested = False
        self.record, self.writer = TermRecord(), CheckpointWriter()
        self._saved_at = 0.0

    def run(self, *, resume_from: Path | None = None) -> dict[str, Any]:
        """Train, save, and return the manifest.

        Args:
            resume_from: Checkpoint to go on from.
        Raises:
            Interrupted: `stop_requested` was set; a checkpoint is saved.
            UserError: The checkpoint belongs to other settings; the disk is full.
            FloatingPointError: A loss or a parameter became NaN or infinite; nothing of it was saved.
        """
        model, run = self.settings.model_path, self.settings.run
        saved = load_checkpoint(resume_from) if resume_from else None
        if saved is not None:
            self._require_same_run(saved, resume_from)
            for name, spent in saved.get("seconds", {}).items():
                self.seconds[name] = self.seconds.get(name, 0.0) + spent
        model.mkdir(parents=True, exist_ok=True)
        remove_unfinished(model)
        if saved is None:
            outputs.forget_earlier_run(model)
        else:
            rewind_log(model, stage=saved["stage"], step=saved["step"])
        outputs.write_run_header(self.settings, self.scene)
        log = RunLog(model, tensorboard=run.logger == "tensorboard")
        try:
            for build, start, done_before in self._stages(saved):
                self._run_stage(build, start, done_before, log)
            return self._finish()
        finally:
            log.close()
            self.writer.close()

    def _stages(self, saved: dict | None) -> Iterator[tuple[Callable[[], Stage], int, int]]:
        """Yield each stage still to do: what builds it, its first step and the number of steps before it."""
        s = self.settings
        has_masks = any(view.segments is not None for view in self.scene.train)
        if saved is not None:
            self.gaussians = Gaussians(saved["gaussians"]).to(self.device)
            self.method.load_state_dict(saved["method"])
        at_lift = saved is not None and saved["stage"] == "lift"
        first = saved["step"] if saved is not None else 0
        state = saved["stage_state"] if saved is not None else None
        if not at_lift:
            yield lambda: self._geometry(state, lifts=s.schedule == "joint" and has_masks), first, 0
        if s.schedule != "joint" and has_masks and s.lift.lift_iterations:
            yield lambda: self._lift(state if at_lift else None), first if at_lift else 0, s.geometry.iterations

    def _geometry(self, state: dict | None, *, lifts: bool) -> Stage:
        s, method = self.settings, self.method if lifts else None
        seed = s.seed * 1000 + 1
        stage = GeometryStage(self.scene, self.gaussians, s.geometry, s.density, seed=seed, method=method)
        if state is not None:
            stage.load_state_dict(state)
        return stage

    def _lift(self, state: dict | None) -> Stage:
        s = self.settings
        stage = LiftStage(self.scene, self.gaussians, self.method, s.lift, seed=s.seed * 1000 + 2)
        if state is not None:
            stage.load_state_dict(state)
        return stage

    def _run_stage(self, build: Callable[[], Stage], start: int, done_before: int, log: RunLog) -> None:
        """Do the steps of a stage. What it held, such as moments, is free again afterwards: nobody else knows it."""
        self._saved_at = time.perf_counter()
        self._watch_memory()
        stage = build()
        began = self._saved_at - self.seconds.get(stage.name, 0.0)  # as if the steps before a resumption were just done
        profiler = StepProfiler(stage, start=start, device=self.device) if self.settings.run.profile else None
        try:
            self._steps(stage, start, done_before, log, began, profiler)
            if start < stage.num_steps:
                self._save(stage, stage.num_steps, done_before + stage.num_steps)
                self.seconds[stage.name] = time.perf_counter() - began
        finally:
            stage.views.close()
            if profiler is not None:
                profiler.close()
                self.profile[stage.name] = profiler.results
        self.gaussians.zero_grad()
        self._note_memory(stage.name)

    def _steps(
        self, stage: Stage, start: int, done_before: int, log: RunLog, began: float, profiler: StepProfiler | None
    ) -> None:
        run = self.settings.run
        bar = tqdm(total=stage.num_steps, initial=start, desc=stage.name, disable=run.quiet, dynamic_ncols=True)
        logged_step, logged_at = start, time.perf_counter()
        for step in range(start, stage.num_steps):
            if profiler is not None:
                profiler.before_step(step, gaussians=len(self.gaussians), codes=self._num_codes())
            self._step(stage, step)
            total_steps, now = done_before + step + 1, time.perf_counter()
            self.seconds[stage.name] = now - began
            bar.update()
            if (step + 1) % run.log_interval == 0 or step + 1 == stage.num_steps:
                values = self._values() | {"seconds_per_step": (now - logged_at) / (step + 1 - logged_step)}
                log.scalars(stage.name, step + 1, total_steps, values)
                bar.set_postfix({"loss": f"{values['total']:.4f}", "N": len(self.gaussians)}, refresh=False)
                logged_step, logged_at = step + 1, now
            self._after_step(stage, step, total_steps, log)
        if profiler is not None:
            profiler.before_step(stage.num_steps)
        bar.close()

    def _step(self, stage: Stage, step: int) -> None:
        try:
            terms = stage.train_step(step)
        except Exception:
            self.record.require_finite()  # NaN of an earlier step, if that is the cause, makes a better message
            raise
        stage.mark(BETWEEN_STEPS)
        self.record.add(step, terms)

    def _after_step(self, stage: Stage, step: int, total_steps: int, log: RunLog) -> None:
        run, iteration = self.settings.run, step + 1
        if stage.name == "geometry":
            if iteration in run.save_iterations and iteration != self.settings.geometry.iterations:
                self._require_finite({"gaussians": self.gaussians.table}, iteration)
                outputs.write_geometry(self.settings.model_path, iteration, self.gaussians)
            if iteration in run.test_iterations or iteration == stage.num_steps:
                self._score_test_views(iteration, total_steps, log)
        if self.stop_requested:
            self._save(stage, iteration, total_steps)
            self.writer.wait()
            raise Interrupted
        if iteration < stage.num_steps and self._is_checkpoint_due(total_steps):
            self._save(stage, iteration, total_steps)

    def _is_checkpoint_due(self, total_steps: int) -> bool:
        run = self.settings.run
        if total_steps in run.checkpoint_iterations:
            return True
        if run.checkpoint_interval and total_steps % run.checkpoint_interval == 0:
            return True
        waited_s = time.perf_counter() - self._saved_at
        # By time only if the disk is through with the one before; asking also brings up an error of its thread.
        return not self.writer.is_busy() and 0 < 60 * run.checkpoint_minutes <= waited_s

    def _save(self, stage: Stage, step: int, total_steps: int) -> None:
        """Begin to write a checkpoint, after which the rolling ones before it go; the end of geometry is kept."""
        state = {
            "stage": stage.name,
            "step": step,
            "total_steps": total_steps,
            "gaussians": self.gaussians.state_dict(),
            "stage_state": stage.state_dict(),
            "method": self.method.state_dict(),
            "settings": to_dict(self.settings),
            "seconds": dict(self.seconds),
        }
        self._require_finite(state, step)
        path = checkpoint_path(self.settings.model_path, total_steps)
        kept = {total_steps, self.settings.geometry.iterations, *self.settings.run.checkpoint_iterations}
        self.writer.write(path, snapshot(state), kept=kept)
        self._saved_at = time.perf_counter()

    def _require_finite(self, state: dict[str, Any], step: int) -> None:
        """Raise FloatingPointError if a recent loss or a tensor of `state`, which is to be saved, is not finite."""
        self.record.require_finite()
        require_finite_state(named_tensors(state), step)

    def _values(self) -> dict[str, float]:
        terms = self.record.require_finite()
        total = sum(self.method.weights.get(name, 1.0) * value for name, value in terms.items())
        statistics = self.method.statistics if set(terms) - {"photometric"} else {}
        values = terms | {"total": total} | {name: float(value) for name, value in statistics.items()}
        return values | {"num_gaussians": len(self.gaussians)}

    @torch.no_grad()
    def _score_test_views(self, iteration: int, total_steps: int, log: RunLog) -> None:
        scores = []
        views = ViewSource(self.scene.test, kept_on=self.scene.kept_on, device=self.device, fields=("image", "valid"))
        for view in views.all():
            image = render(self.gaussians, view.camera, background=self._background(), with_features=False).image
            error = (image.clamp(0, 1) - target_image(view)).square().mean(dim=2)
            scores.append(-10 * torch.log10((error if view.valid is None else error[view.valid]).mean()))
            if len(scores) == 1:
                log.image(f"test/{view.name}", total_steps, image)
        views.close()
        if scores:
            log.scalars("test", iteration, total_steps, {"psnr": float(torch.stack(scores).mean())})

    def _background(self) -> Tensor | None:
        return torch.ones(3, device=self.device) if self.settings.geometry.white_background else None

    def _num_codes(self) -> int:
        return self.method.num_objects

    def _finish(self) -> dict[str, Any]:
        """Write the model folder's results and wait for the last checkpoint; return the manifest."""
        began, model, iteration = time.perf_counter(), self.settings.model_path, self.settings.geometry.iterations
        self._watch_memory()
        outputs.write_geometry(model, iteration, self.gaussians)
        if self._num_codes():
            cameras = [view.camera for view in self.scene.train]
            labels = by_falling_area(self.method, label_gaussians(self.gaussians, self.method, cameras))
            if labels.features is not None:
                self.gaussians.set("features", self._sharpened(labels.features))
            num_views = dict(enumerate(labels.num_views.tolist()))
            outputs.write_objects(model, iteration, self.gaussians, self.method, labels, num_views=num_views)
        if self.profile:
            outputs.write_text(model / "profile.json", json.dumps(self.profile, indent=1))
        self._note_memory("finish")
        self.writer.wait()
        self.seconds["finish"] = time.perf_counter() - began
        manifest = outputs.provenance(self.settings, self._facts())
        outputs.write_text(model / "manifest.json", json.dumps(manifest, indent=1))
        return manifest

    def _sharpened(self, start: Tensor) -> Tensor:
        """Return the features to save: those of the votes, `start`, sharpened. What they were made of stays."""
        run, final = self.settings.run, self.method.final_features()
        return sharpened(
            self.scene,
            self.gaussians,
            self.method,
            final.codes,
            start,
            num_steps=steps_of(final.refine_steps, self.scene),
            seed=self.settings.seed * 1000 + 3,
            should_stop=lambda: self.stop_requested,
            quiet=run.quiet,
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "scene": self.scene.name,
            "dataset": self.scene.dataset,
            "train_views": len(self.scene.train),
            "test_views": len(self.scene.test),
            "notes": list(self.scene.notes),
            "device": self.device.type,
            "data": self.placement._asdict(),
            "iteration": self.settings.geometry.iterations,
            "num_gaussians": len(self.gaussians),
            "num_codes": self._num_codes(),
            "method": {"name": self.settings.method_name} | self.method.summary,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            **({"peak_gpu_bytes": self.peak_gpu_bytes} if self.peak_gpu_bytes else {}),
        }

    def _watch_memory(self) -> None:
        """Begin to measure the GPU memory of a part of the run, without what earlier parts have left reserved."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _note_memory(self, part: str) -> None:
        if self.device.type == "cuda":
            self.peak_gpu_bytes[part] = {
                "allocated": torch.cuda.max_memory_allocated(),
                "reserved": torch.cuda.max_memory_reserved(),
            }

    def _require_same_run(self, saved: dict, path: Path) -> None:
        old = changed(TrainSettings(), saved["settings"], origin=str(path))
        if old.method_name != self.settings.method_name:
            name, now = old.method_name, self.settings.method_name
            raise UserError(f"{path}: was trained with --method {name}, now {now}; keep it or start a new -m folder")
        found = {
            name: pair for name, pair in differences(old, self.settings).items() if not name.startswith(_FREE_TO_CHANGE)
        }
        if found:
            name, (before, now) = next(iter(found.items()))
            raise UserError(f"{path}: was trained with {name} = {before}, now {now}; keep it or start a new -m folder")
        if saved["stage"] == "geometry" and saved["step"] > self.settings.geometry.iterations:
            raise UserError(f"{path}: is already at iteration {saved['step']}; ask for more --iterations")


def start_gaussians(settings: TrainSettings, scene: Scene) -> Gaussians:
    """Return the Gaussians a run starts from: the scene's points, or a trained .ply."""
    if settings.init_ply is None:
        return gaussians_from_points(scene.points, sh_degree=settings.geometry.sh_degree)
    return read_gaussians(settings.init_ply)


def latest_checkpoint(settings: TrainSettings) -> Path | None:
    """Return the checkpoint to go on from: the last one or, if the run is to have more geometry, geometry's last."""
    found = checkpoints(settings.model_path)
    for path in reversed(found.values()):
        state = load_checkpoint(path)
        done = state["settings"]["geometry"]["iterations"]
        if state["stage"] == "lift" and done != settings.geometry.iterations:
            continue
        return path
    return None
