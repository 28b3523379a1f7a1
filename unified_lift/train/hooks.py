"""The training loop of every stage, and its hooks: one class each for NaN, log, results of geometry, checkpoints."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from unified_lift import ranks
from unified_lift.fileio import write_json
from unified_lift.methods.base import Method
from unified_lift.model.ply import write_gaussians
from unified_lift.model.render import render
from unified_lift.modelfolder.checkpoint import CheckpointWriter, checkpoint_path, named_tensors, snapshot
from unified_lift.modelfolder.outputs import EXPOSURE_FILE, iteration_dir
from unified_lift.modelfolder.settings import RunSettings, TrainSettings, recorded
from unified_lift.progress import Bar
from unified_lift.train.geometry import GeometryStage
from unified_lift.train.logs import RunLog
from unified_lift.train.stage import Stage
from unified_lift.types import Scene

_AGREE_S = 0.5


class Interrupted(Exception):  # noqa: N818 (not an error: the run can be resumed)
    """The run was asked to stop and has saved a checkpoint."""


class Hook:
    """What may be done around the steps of a stage; steps are 0-based. None of it does anything unless a hook says.

    Steps are counted by views: of several that are one step, `before_step` gets the first and `after_step` the last.
    """

    def before_stage(self, stage: Stage) -> None:
        """Act before the first step."""

    def before_step(self, stage: Stage, step: int) -> None:
        """Act before a step."""

    def after_step(self, stage: Stage, step: int, terms: Mapping[str, Tensor]) -> None:
        """Act after a step, with its unweighted, detached loss terms."""

    def after_stage(self, stage: Stage) -> None:
        """Act after the last step."""

    def close(self, stage: Stage) -> None:
        """Release what the hook holds, whether or not the stage came to its end."""


def fit(stage: Stage, hooks: Sequence[Hook]) -> None:
    """Do the steps of a stage that are still to do, with hooks around each, in the order of the list.

    A step trains and returns its loss terms. All else is a hook, which may raise Interrupted or FloatingPointError.
    """
    with ExitStack() as at_the_end:
        at_the_end.callback(stage.views.close)
        for hook in hooks:
            hook.before_stage(stage)
            at_the_end.callback(hook.close, stage)
        for step in range(stage.first, stage.num_steps, stage.ranks.batch):
            for hook in hooks:
                hook.before_step(stage, step)
            terms = stage.step(step)
            for hook in hooks:
                hook.after_step(stage, min(step + stage.ranks.batch, stage.num_steps) - 1, terms)
        for hook in hooks:
            hook.after_stage(stage)


def passed(stage: Stage, done: int, every: int) -> bool:
    """Return whether a multiple of `every`, 0 = none, is among the iterations of the step after which `done` are."""
    return every > 0 and done // every > (done - stage.ranks.batch) // every


class Finite(Hook):
    """Ends a run whose loss or parameters are NaN or infinite, before anything of it is logged or saved.

    Terms of recent steps are kept where they were computed: one small copy per step, no waiting for a GPU.
    """

    def __init__(self) -> None:
        self._recent: list[tuple[int, tuple[str, ...], Tensor]] = []
        self._last: dict[str, float] = {}

    def after_step(self, stage: Stage, step: int, terms: Mapping[str, Tensor]) -> None:
        self._recent.append((step, tuple(terms), torch.stack(tuple(terms.values()))))
        if len(self._recent) >= 1_000:
            self.last_terms()

    def close(self, stage: Stage) -> None:
        self.last_terms()  # NaN of an earlier step, if that is the cause of an error, makes a better message

    def last_terms(self) -> dict[str, float]:
        """Return the terms of the last step; a FloatingPointError names the first one that is not finite."""
        steps, self._recent = self._recent, []
        values = iter(torch.cat([terms for _, _, terms in steps]).tolist() if steps else ())
        for step, names, _ in steps:
            self._last = {name: next(values) for name in names}
            if not all(map(math.isfinite, self._last.values())):
                listed = ", ".join(f"{name} = {value:g}" for name, value in self._last.items())
                raise FloatingPointError(f"the loss is not finite at step {step}: {listed}")
        return self._last

    def check(self, state: dict[str, Any], step: int) -> None:
        """Raise FloatingPointError if a recent loss is not finite, or a tensor of `state`, which is to be saved.

        A finite loss may have had a gradient that was not. The message says that so many steps are done.
        """
        self.last_terms()
        for name, value in named_tensors(state):
            if not value.is_floating_point() or not value.numel():
                continue
            # Minimum and maximum tell, many times faster than marks of all values, and take no memory.
            if not bool(torch.stack(torch.aminmax(value)).isfinite().all()):
                count = int((~torch.isfinite(value)).sum())
                raise FloatingPointError(f"{name} holds {count} values that are not finite after {step} steps")


class Log(Hook):
    """Writes terms, total and statistics every `log_interval` steps, and moves the progress bar."""

    def __init__(self, settings: RunSettings, log: RunLog, finite: Finite) -> None:
        self._settings, self._log, self._finite = settings, log, finite

    def before_stage(self, stage: Stage) -> None:
        self._since = stage.first, time.perf_counter()
        first, count, quiet = stage.first, stage.num_steps, self._settings.quiet
        self._bar = Bar(initial=first, total=count, desc=stage.name, disable=quiet)

    def after_step(self, stage: Stage, step: int, terms: Mapping[str, Tensor]) -> None:
        done, now = step + 1, time.perf_counter()
        self._bar.update(done - self._bar.n)
        if not passed(stage, done, self._settings.log_interval) and done != stage.num_steps:
            return
        values = dict(self._finite.last_terms())
        values["total"] = sum(stage.weights.get(name, 1.0) * value for name, value in values.items())
        values |= {name: float(value) for name, value in stage.statistics().items()}
        values["num_gaussians"] = stage.num_gaussians
        values["seconds_per_step"] = (now - self._since[1]) / (done - self._since[0])
        self._log.scalars(stage.name, done, stage.steps_before + done, values)
        self._bar.set_postfix({"loss": f"{values['total']:.4f}", "N": stage.num_gaussians}, refresh=False)
        self._since = done, now

    def close(self, stage: Stage) -> None:
        self._bar.close()


class GeometryResults(Hook):
    """Writes the geometry after --save_iterations, logs the held-out PSNR after --test_iterations; both at the end."""

    def __init__(self, settings: TrainSettings, scene: Scene, log: RunLog | None, finite: Finite) -> None:
        """Prepare; processes that do not write need no log."""
        self._settings, self._scene, self._log, self._finite = settings, scene, log, finite

    @torch.no_grad()
    def after_step(self, stage: Stage, step: int, terms: Mapping[str, Tensor]) -> None:
        run, scores, of_step = self._settings.run, list[Tensor](), range(step + 1, step + 1 - stage.ranks.batch, -1)
        if not isinstance(stage, GeometryStage):
            return
        saved, iteration = (
            next((one for one in of_step if one in asked or one == stage.num_steps), None)
            for asked in (run.save_iterations, run.test_iterations)
        )
        if saved is None and iteration is None:
            return
        gaussians = stage.whole()
        if not stage.ranks.is_first:
            return
        if saved is not None:
            self._finite.check({"gaussians": gaussians.table}, saved)
            folder = iteration_dir(self._settings.model_path, saved)
            write_gaussians(folder / "point_cloud.ply", gaussians, frame=self._scene.frame)
            if stage.exposures is not None:
                write_json(self._settings.model_path / EXPOSURE_FILE, stage.exposures.matrices())
        if iteration is None or self._log is None:
            return
        for view in self._scene.test:
            image = render(gaussians, view.camera, background=stage.background, with_features=False).image
            error = (image.clamp(0, 1) - view.image.to(image.device).float() / 255).square().mean(dim=2)
            seen = error if view.valid is None else error[view.valid.to(image.device)]
            if seen.numel():  # the scene may leave out all of a view
                scores.append(-10 * torch.log10(seen.mean()))
            if len(scores) == 1:
                self._log.image(f"test/{view.name}", iteration, image)
        if scores:
            self._log.scalars("test", iteration, iteration, {"psnr": float(torch.stack(scores).mean())})


class Checkpoints(Hook):
    """Writes checkpoints when they are due: after chosen steps, at intervals of steps and of time, at a stage's end.

    As a context it listens to Ctrl-C and SIGTERM: the first ends the run after its step, saved; the second at once.
    Of several processes, which torchrun tells of a signal one after another, the first writes, and all end after the
    same step; torchrun itself ends them at once.
    """

    def __init__(
        self, settings: TrainSettings, method: Method, seconds: Callable[[], dict[str, float]], finite: Finite
    ) -> None:
        self._settings, self._method, self._seconds, self._finite = settings, method, seconds, finite
        self.writer = CheckpointWriter()
        self._handlers: dict[int, Any] = {}
        self._asked_to_stop, self._asked_for = False, set[int]()
        self._agree_at, self._agreed = 0, (0, 0.0)  # step of the next agreement; step and time of the last one

    def __enter__(self) -> Checkpoints:
        if threading.current_thread() is threading.main_thread():  # Python lets no other one listen
            self._handlers = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.writer.shutdown()  # waits; hides no error that is on its way up

    def _ask(self, *_: object) -> None:
        if self._asked_to_stop and ranks.current().count == 1:
            raise KeyboardInterrupt
        self._asked_to_stop = True

    def _agree(self, stage: Stage, step: int) -> tuple[bool, bool]:
        """Return whether to stop, and whether to save since it is time; several agree only about twice a second."""
        waited_s = time.perf_counter() - self._saved_at
        # By time only if the disk is through with the one before; asking also brings up an error of its thread.
        is_time = 0 < 60 * self._settings.run.checkpoint_minutes <= waited_s and not self.writer.is_busy()
        if stage.ranks.count == 1:
            return self._asked_to_stop, is_time
        if step < self._agree_at:
            return False, False
        now = time.perf_counter()
        pace = (step + 1 - self._agreed[0]) / max(now - self._agreed[1], 1e-3)  # a second
        own = (int(_AGREE_S * pace), is_time) if stage.ranks.is_first else (0, False)
        asked, wait, saves = stage.ranks.sums(self._asked_to_stop, *own)
        self._agree_at, self._agreed = step + max(1, wait), (step + 1, now)
        return asked > 0, saves > 0

    def before_stage(self, stage: Stage) -> None:
        self._saved_at = now = time.perf_counter()
        self._agree_at, self._agreed = 0, (stage.first, now)

    def after_step(self, stage: Stage, step: int, terms: Mapping[str, Tensor]) -> None:
        run, total_steps = self._settings.run, stage.steps_before + step + 1
        stops, is_time = self._agree(stage, step)
        if stops:
            self.save(stage, step + 1)
            self.writer.wait()
            stage.ranks.sums(0)  # until the first process has saved it
            raise Interrupted
        if step + 1 == stage.num_steps:
            return
        due = any(total_steps - back in run.checkpoint_iterations for back in range(stage.ranks.batch))
        self._asked_for |= {total_steps} if due else set()
        due |= passed(stage, total_steps, run.checkpoint_interval)
        if due or is_time:
            self.save(stage, step + 1)

    def after_stage(self, stage: Stage) -> None:
        if stage.saves_end and stage.first < stage.num_steps:
            self.save(stage, stage.num_steps)

    def save(self, stage: Stage, step: int) -> None:
        """Begin to write a checkpoint, after which the rolling ones before it go; the end of a stage is kept."""
        table, stage_state = stage.table(), stage.state_dict()  # parts come together: all processes do this
        if not stage.ranks.is_first:
            return
        settings, total_steps = self._settings, stage.steps_before + step
        state = {
            "stage": stage.name,
            "step": step,
            "total_steps": total_steps,
            "gaussians": table,
            "frame": asdict(stage.frame),
            "stage_state": stage_state,
            "method": self._method.state_dict(),
            "settings": recorded(settings, settings.model_path),
            "seconds": self._seconds(),
        }
        self._finite.check(state, step)
        path = checkpoint_path(settings.model_path, total_steps)
        kept = {total_steps, stage.steps_before, settings.geometry.iterations, *settings.run.checkpoint_iterations}
        kept |= self._asked_for
        self.writer.write(path, snapshot(state), kept=kept)
        self._saved_at = time.perf_counter()
