"""The run: stages in order, checkpoints, logs, and the model folder at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from unified_lift.config import differences, merged, to_dict
from unified_lift.engine import outputs
from unified_lift.engine.checkpoint import checkpoint_path, checkpoints, load_checkpoint, save_checkpoint
from unified_lift.engine.device import chosen_device, on_device, require_rasterizer
from unified_lift.engine.geometry import GeometryStage, target_image
from unified_lift.engine.labels import by_falling_area, label_gaussians
from unified_lift.engine.lift import LiftStage
from unified_lift.engine.logs import RunLog, rewind_log
from unified_lift.engine.settings import TrainSettings
from unified_lift.engine.stage import Stage
from unified_lift.engine.terms import weighted_sum
from unified_lift.methods import METHODS
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.model.ply import read_gaussians
from unified_lift.rendering import render
from unified_lift.types import Scene, UserError

# What may differ between a run and its resumption: how long it is and what it prints, not what it computes.
_FREE_TO_CHANGE = ("model_path", "run.", "data.source_path", "geometry.iterations", "lift.lift_iterations")


class Interrupted(Exception):  # noqa: N818 (not an error: the run can be resumed)
    """The run was asked to stop and has saved a checkpoint."""


class Trainer:
    """Trains one scene into one model folder."""

    def __init__(self, settings: TrainSettings, scene: Scene) -> None:
        """Create Gaussians and method; nothing is written yet."""
        self.settings, self.device = settings, chosen_device(settings.run.device)
        require_rasterizer(settings.geometry.rasterizer, self.device)
        self.scene = on_device(scene, self.device)
        self.gaussians = start_gaussians(settings, scene).to(self.device)
        self.method = METHODS["unified_lift"](settings.method, zero_id=scene.zero_id, seed=settings.seed)
        self.method.to(self.device)
        self.seconds: dict[str, float] = {}
        self.stop_requested = False

    def run(self, *, resume_from: Path | None = None) -> dict[str, Any]:
        """Train, save, and return the manifest.

        Args:
            resume_from: Checkpoint to go on from.
        Raises:
            Interrupted: `stop_requested` was set; a checkpoint is saved.
            UserError: The checkpoint belongs to other settings; the disk is full.
        """
        model, run = self.settings.model_path, self.settings.run
        saved = load_checkpoint(resume_from) if resume_from else None
        if saved is not None:
            self._require_same_run(saved, resume_from)
            self.seconds = dict(saved.get("seconds", {}))
        model.mkdir(parents=True, exist_ok=True)
        if saved is None:
            outputs.forget_earlier_run(model)
        else:
            rewind_log(model, stage=saved["stage"], step=saved["step"])
        outputs.write_run_header(self.settings, self.scene)
        log = RunLog(model, tensorboard=run.logger == "tensorboard")
        try:
            for stage, start, done_before in self._stages(saved):
                self._run_stage(stage, start, done_before, log)
        finally:
            log.close()
        return self._finish()

    def _stages(self, saved: dict | None) -> Iterator[tuple[Stage, int, int]]:
        """Yield each stage still to do, its first step and the number of steps before it."""
        s = self.settings
        seeds = (s.seed * 1000 + 1, s.seed * 1000 + 2)
        joint = s.schedule == "joint"
        has_masks = any(view.segments is not None for view in self.scene.train)
        if saved is not None:
            self.gaussians = Gaussians(saved["gaussians"]).to(self.device)
            self.method.load_state_dict(saved["method"])
        if saved is None or saved["stage"] == "geometry":
            method = self.method if joint and has_masks else None
            geometry = GeometryStage(self.scene, self.gaussians, s.geometry, s.density, seed=seeds[0], method=method)
            if saved is not None:
                geometry.load_state_dict(saved["stage_state"])
            yield geometry, saved["step"] if saved else 0, 0
        if not joint and has_masks and s.lift.lift_iterations:
            lift = LiftStage(self.scene, self.gaussians, self.method, s.lift, seed=seeds[1])
            if saved is not None and saved["stage"] == "lift":
                lift.load_state_dict(saved["stage_state"])
                yield lift, saved["step"], s.geometry.iterations
            else:
                yield lift, 0, s.geometry.iterations

    def _run_stage(self, stage: Stage, start: int, done_before: int, log: RunLog) -> None:
        run = self.settings.run
        bar = tqdm(total=stage.num_steps, initial=start, desc=stage.name, disable=run.quiet, dynamic_ncols=True)
        spent, began = self.seconds.get(stage.name, 0.0), time.perf_counter()
        logged_step, logged_at = start, began
        for step in range(start, stage.num_steps):
            terms = stage.train_step(step)
            total_steps, now = done_before + step + 1, time.perf_counter()
            self.seconds[stage.name] = spent + now - began
            bar.update()
            if (step + 1) % run.log_interval == 0 or step + 1 == stage.num_steps:
                values = self._values(terms) | {"seconds_per_step": (now - logged_at) / (step + 1 - logged_step)}
                log.scalars(stage.name, step + 1, total_steps, values)
                bar.set_postfix({"loss": f"{values['total']:.4f}", "N": len(self.gaussians)})
                logged_step, logged_at = step + 1, now
            self._after_step(stage, step, total_steps, log)
        bar.close()
        if start < stage.num_steps:
            self._save(stage, stage.num_steps, done_before + stage.num_steps)

    def _after_step(self, stage: Stage, step: int, total_steps: int, log: RunLog) -> None:
        run, iteration = self.settings.run, step + 1
        if stage.name == "geometry":
            if iteration in run.save_iterations and iteration != self.settings.geometry.iterations:
                outputs.write_geometry(self.settings.model_path, iteration, self.gaussians)
            if iteration in run.test_iterations or iteration == stage.num_steps:
                self._score_test_views(iteration, total_steps, log)
        if self.stop_requested:
            self._save(stage, iteration, total_steps)
            raise Interrupted
        if total_steps in run.checkpoint_iterations or (
            run.checkpoint_interval and total_steps % run.checkpoint_interval == 0
        ):
            self._save(stage, iteration, total_steps)

    def _save(self, stage: Stage, step: int, total_steps: int) -> None:
        """Write a checkpoint and drop the rolling ones before it; the end of geometry is always kept."""
        path = checkpoint_path(self.settings.model_path, total_steps)
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
        save_checkpoint(path, state)
        kept = {total_steps, self.settings.geometry.iterations, *self.settings.run.checkpoint_iterations}
        for number, old in checkpoints(self.settings.model_path).items():
            if number not in kept and number < total_steps:
                with suppress(OSError):
                    old.unlink()

    def _values(self, terms: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(value) for name, value in terms.items()}
        values["total"] = float(weighted_sum(terms, self.method.weights))
        values |= self.method.statistics if len(terms) > 1 else {}
        return values | {"num_gaussians": len(self.gaussians)}

    @torch.no_grad()
    def _score_test_views(self, iteration: int, total_steps: int, log: RunLog) -> None:
        scores = []
        for view in self.scene.test:
            image = render(self.gaussians, view.camera, background=self._background(), with_features=False).image
            error = (image.clamp(0, 1) - target_image(view)).square().mean(dim=2)
            scores.append(-10 * torch.log10((error if view.valid is None else error[view.valid]).mean()))
            if len(scores) == 1:
                log.image(f"test/{view.name}", total_steps, image)
        if scores:
            log.scalars("test", iteration, total_steps, {"psnr": float(torch.stack(scores).mean())})

    def _background(self) -> Tensor | None:
        return torch.ones(3, device=self.device) if self.settings.geometry.white_background else None

    def _finish(self) -> dict[str, Any]:
        model, iteration = self.settings.model_path, self.settings.geometry.iterations
        outputs.write_geometry(model, iteration, self.gaussians)
        codebook = self.method.parameters()["codebook"]
        if len(codebook):
            cameras = [view.camera for view in self.scene.train]
            labels = by_falling_area(self.method, label_gaussians(self.gaussians, self.method, cameras))
            outputs.write_objects(model, iteration, self.gaussians, self.method.parameters()["codebook"], labels)
        facts = {
            "scene": self.scene.name,
            "dataset": self.scene.dataset,
            "train_views": len(self.scene.train),
            "test_views": len(self.scene.test),
            "notes": list(self.scene.notes),
            "iteration": iteration,
            "num_gaussians": len(self.gaussians),
            "num_codes": len(codebook),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }
        manifest = outputs.provenance(self.settings, facts)
        outputs.write_text(model / "manifest.json", json.dumps(manifest, indent=1))
        return manifest

    def _require_same_run(self, saved: dict, path: Path) -> None:
        old = merged(TrainSettings(), saved["settings"], origin=str(path))
        changed = {
            name: pair for name, pair in differences(old, self.settings).items() if not name.startswith(_FREE_TO_CHANGE)
        }
        if changed:
            name, (before, now) = next(iter(changed.items()))
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
