"""How long a training is where nothing says so, by device and scene; and a forecast of the time it takes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from unified_lift.model.gaussians import MANY
from unified_lift.modelfolder.settings import GeometrySettings, TrainSettings
from unified_lift.settings.limits import leaves
from unified_lift.train.hooks import Hook
from unified_lift.train.lift import steps_of as lift_steps_of
from unified_lift.train.refine import steps_of as refine_steps_of
from unified_lift.train.stage import Stage
from unified_lift.types import Camera, Scene


class Costs(NamedTuple):
    """Milliseconds on one machine. A forecast is a multiple of them, as many times as the first steps took longer."""

    step: float  # of a geometry step, whatever it renders
    pixels: float  # of it for each million pixels of the view
    gaussians: float  # of it for each million Gaussians
    lift: float  # of a lift step for each 8,192 pixels drawn
    weights: float  # of a view's blending weights, which the lift computes twice, for each million pixels
    refine: float  # of a refinement step for each 16,384 pixels drawn
    label: float  # of a view where Gaussians are labelled, for each million pixels
    look: float  # of the first look of the lift at a view, for each million of many Gaussians
    again: float  # of later ones, for each million: what a view shows is remembered

    def geometry(self, megapixels: float, gaussians: float) -> float:
        """Return the milliseconds of a geometry step."""
        return self.step + self.pixels * megapixels + self.gaussians * gaussians / 1e6


# room_25 (80 views of 256x256; 6,905 to 39,978 Gaussians) on two idle cores with AVX-512; rooms on one H200. Of many
# Gaussians: 2 million on such cores, which had other work; on a GPU not measured yet.
COSTS = {"cpu": Costs(1, 116, 235, 12, 520, 32, 600, 100, 60), "cuda": Costs(0.28, 0.5, 1.05, 0.8, 5, 3, 30, 1, 0.2)}
_STEPS_A_VIEW = 5 / 8  # times 100: 5,000 for the 80 views of room_25, which have then scores like those of longer runs
_FEWEST_STEPS, _FEW_STEPS, _MANY_STEPS = 2_000, 3_000, 7_000  # never less; what time allows lies between the others
_PIXELS_A_GAUSSIAN, _FEWEST, _MOST = 131, 10_000, 60_000  # 40,000 for the photos of room_25
_WARM_STEPS = {"cpu": 3, "cuda": 100}  # of a stage, which are slower: memory is asked for, kernels are loaded
_LOOK_S = 5  # at the steps that a forecast is made from; those of the first second are up to a third slower
OWN_BOUND = {"cpu_gaussians": 0, "megapixel_gaussians": 0}
"""What a user's `max_gaussians` brings with it, so that it goes before what would be chosen, also 0."""


def gives_bound(changes: Mapping[str, Any]) -> bool:
    """Return whether settings that a user gives, by name or in groups, bound the number of Gaussians."""
    density = changes.get("density")
    return "max_gaussians" in changes or (isinstance(density, Mapping) and "max_gaussians" in density)


class Photos(NamedTuple):
    """What a schedule depends on: the training views, and the points that a scene begins with."""

    views: int
    megapixels: float  # of one, in the mean
    points: int
    size: str  # in words

    @classmethod
    def of(cls, cameras: Sequence[Camera], points: int) -> "Photos":
        """Return it for the cameras of the training views."""
        sizes = sorted({(camera.width, camera.height) for camera in cameras})
        pixels = sum(camera.width * camera.height for camera in cameras) / max(1, len(cameras))
        width, height = sizes[-1] if sizes else (0, 0)
        return cls(len(cameras), pixels / 1e6, points, f"{'up to ' if len(sizes) > 1 else ''}{width}x{height}")


def cpu_schedule(photos: Photos, *, minutes: float, most: int = -1, own: int = 0) -> tuple[int, int]:
    """Return iterations and the largest number of Gaussians of a training on a CPU; the same on every machine.

    Args:
        minutes: That geometry may take on two idle cores, if that is no less than 2,000 iterations.
        most: Gaussians, if that is given; -1 = one for each 131 pixels of the photos, 10,000 to 60,000 or as many as
            there are points; 0 = no bound.
        own: Bound of the density strategy, which goes before a larger one; 0 = none.
    """
    if most < 0:
        whole = 1_000 * round(1e6 * photos.views * photos.megapixels / _PIXELS_A_GAUSSIAN / 1_000)
        most = max(photos.points, min(max(_FEWEST, whole), _MOST))
    most = min(most or own, own or most)
    wanted = min(max(_FEW_STEPS, 100 * int(_STEPS_A_VIEW * photos.views)), _MANY_STEPS)
    cost = COSTS["cpu"].geometry(photos.megapixels, most or full_grown(photos))
    return max(_FEWEST_STEPS, min(wanted, 100 * int(600 * minutes / cost))), most


def gpu_steps(photos: Photos, geometry: GeometrySettings) -> int:
    """Return the iterations of a training on a GPU: visits of each view, or all that the settings allow."""
    wanted = max(_FEW_STEPS, geometry.gpu_visits * photos.views)
    return min(wanted, geometry.gpu_iterations) if geometry.gpu_visits else geometry.gpu_iterations


def bound_of(photos: Photos, megapixel_gaussians: int, *, own: int = 0) -> int:
    """Return the largest number of Gaussians, 0 = no bound: so many for a megapixel of all photos, with its root.

    Never fewer than there are first points, nor more than `own`, the bound of the density strategy, 0 = none.
    """
    most = 1_000 * round(megapixel_gaussians * (photos.views * photos.megapixels) ** 0.5 / 1_000)
    most = max(photos.points, most) if most else 0
    return min(most or own, own or most)


def full_grown(photos: Photos) -> float:
    """Return about how many Gaussians there are in the end where nothing bounds them; rooms had 345k and 628k."""
    return max(photos.points, 150_000 * (photos.views * photos.megapixels) ** 0.5)


def chosen(
    settings: TrainSettings, photos: Photos, device: str, *, earlier: Mapping[str, Any] | None = None
) -> tuple[TrainSettings, str]:
    """Return the settings with a number of iterations, and a line that says what was chosen; "" if nothing was.

    Args:
        device: Type of the device that trains.
        earlier: Settings of the checkpoint that it goes on from: its numbers stay.
    """
    geometry, density = settings.geometry, settings.density
    own, iterations = getattr(density, "max_gaussians", 0), geometry.iterations
    bounded, is_given = "max_gaussians" in leaves(density), iterations >= 0
    if iterations == 0 or (is_given and not (bounded and geometry.megapixel_gaussians)):
        return settings, ""
    most, longest = bound_of(photos, geometry.megapixel_gaussians, own=own), GeometrySettings().gpu_iterations
    what = f"{photos.views} photos of {photos.size}"
    if is_given:
        why = f"bound chosen for {what}; --max_gaussians N for another, 0 for none"
    elif earlier is not None:
        iterations, most = earlier["geometry"]["iterations"], earlier["density"].get("max_gaussians", 0)
        why = "as before; --iterations N for more"
    else:
        if device == "cpu":
            minutes, asked = geometry.cpu_minutes, geometry.cpu_gaussians
            iterations, most = cpu_schedule(photos, minutes=minutes, most=asked, own=own)
        else:
            iterations = gpu_steps(photos, geometry)
        another = "N for another number" if iterations == longest else f"{longest} for the full length"
        why = f"chosen for a {'CPU' if device == 'cpu' else 'GPU'} and {what}; --iterations {another}"
    if bounded and most:
        settings = replace(settings, density=replace(density, max_gaussians=most))
    bound = f", at most {most:,} Gaussians" if bounded and most else ""
    chosen_ones = replace(settings, geometry=replace(geometry, iterations=iterations))
    return chosen_ones, f"length: {iterations:,} geometry iterations{bound}: {why}"


class Part(NamedTuple):
    """A part of a run that is still to come."""

    name: str  # in words
    steps: int
    cost: Callable[[int, int], float]  # milliseconds of the steps from one to before another


class Forecast(Hook):
    """Says once, after a few seconds of steps, how long the run will take: these steps tell how fast the machine is.

    That Gaussians become more is reckoned with: up to `max_gaussians` within a fifth of the steps; without a bound, as
    many as rooms came to have, by half of the steps.
    """

    def __init__(self, settings: TrainSettings, scene: Scene, spent: Callable[[], Mapping[str, float]]) -> None:
        """Prepare for a run; `spent` returns the seconds of its parts so far."""
        self._settings, self._scene, self._spent, self._is_done = settings, scene, spent, False
        self._photos = Photos.of([view.camera for view in scene.train], len(scene.points.positions))

    def before_stage(self, stage: Stage) -> None:
        steps = stage.num_steps - stage.first
        warm = _WARM_STEPS["cuda" if stage.gaussians.device.type == "cuda" else "cpu"]
        self._begin = stage.first + min(warm, steps // 8)
        self._end = self._begin + max(1, steps // 8)
        self._since, self._count, self._has_begun = (
            time.perf_counter(),
            stage.num_gaussians,
            self._begin == stage.first,
        )

    def after_step(self, stage: Stage, step: int, terms: Mapping[str, Tensor]) -> None:
        done, waits = step + 1, step + 1 < self._end and time.perf_counter() - self._since < _LOOK_S
        begins = done >= self._begin and not self._has_begun
        if self._is_done or done < self._begin or (waits and not begins):
            return
        if stage.gaussians.device.type == "cuda":
            torch.cuda.synchronize()  # twice in a run
        if begins:
            self._since, self._count = time.perf_counter(), stage.num_gaussians
            self._begin, self._has_begun = done, True
            return
        self._is_done = True
        parts = self.parts(stage)
        factor = (time.perf_counter() - self._since) / parts[0].cost(self._begin, done)  # seconds for a millisecond
        left = [(part, factor * part.cost(done if n == 0 else 0, part.steps)) for n, part in enumerate(parts)]
        spent = sum(self._spent().values())
        told = [f"{part.name} {_time(seconds)}" for part, seconds in left if seconds >= 1]
        still = f"; still {', '.join(told)}" if told else ""
        tqdm.write(f"forecast: about {_time(spent + sum(s for _, s in left))} in all{still}")

    def parts(self, stage: Stage) -> list[Part]:
        """Return the parts of the run from the stage on."""
        settings, scene, photos = self._settings, self._scene, self._photos
        costs = COSTS["cuda" if stage.gaussians.device.type == "cuda" else "cpu"]
        labelled, steps = [view.camera for view in scene.labelled], stage.num_steps
        parts = {"geometry": Part(f"geometry ({steps:,} iterations)", steps, self._of_geometry(costs, steps))}
        lift, refine, joint = settings.lift, settings.refine, settings.schedule == "joint"
        steps = 0 if joint else lift_steps_of(lift, labelled)
        if labelled and (steps or joint or stage.name == "refine"):
            each, views = costs.lift * lift.lift_pixels / 8_192, len(labelled)
            many = stage.num_gaussians / 1e6 if stage.num_gaussians >= MANY else 0.0
            once, later = costs.weights * photos.megapixels + costs.look * many, costs.again * many

            def of_lift(first: int, last: int) -> float:
                begins = (0,) if many else (0, steps // 2)  # of rounds in which weights are computed
                new = sum(max(0, min(last, begin + views) - max(first, begin)) for begin in begins)
                return (each + later) * (last - first) + once * min(new, last - first)

            again = costs.refine * refine.refine_pixels / 16_384 + later
            label = views * (costs.label * photos.megapixels + later)

            def of_labels(first: int, last: int) -> float:
                return again * (last - first) + (0 if first else label)

            parts["lift"] = Part(f"lift ({steps:,} steps)", steps, of_lift)
            steps_after = refine_steps_of(getattr(settings.method, "sharpen_steps", 0), refine, scene)
            parts["refine"] = Part("labels and refinement", steps_after, of_labels)
        names = list(parts)
        return [parts[name] for name in names[names.index(stage.name) :]]

    def _of_geometry(self, costs: Costs, steps: int) -> Callable[[int, int], float]:
        """Return the cost of geometry steps while Gaussians become more."""
        most = getattr(self._settings.density, "max_gaussians", self._count)
        until = max(1, steps // 5 if most else steps // 2)
        grown = max(self._count, most or full_grown(self._photos))
        begin = self._begin

        def cost(first: int, last: int) -> float:
            total, pieces = 0.0, 64
            for n in range(pieces):
                at = first + (last - first) * (n + 0.5) / pieces
                share = min(1.0, max(0.0, at - begin) / max(1, until - begin))
                total += costs.geometry(self._photos.megapixels, self._count + share * (grown - self._count))
            return total * (last - first) / pieces

        return cost


def _time(seconds: float) -> str:
    """Return seconds in words, two digits."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 10 else f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
