"""What a training needs of memory and disk, forecast before its first step; what cannot fit is refused there."""

import math
import shutil
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from unified_lift import ranks
from unified_lift.data.cache import CacheChoice
from unified_lift.errors import UserError
from unified_lift.memory import OutOfMemory, available_memory, resident_memory
from unified_lift.model.gaussians import MANY, Gaussians
from unified_lift.model.near import most_remembered
from unified_lift.modelfolder.settings import TrainSettings
from unified_lift.ops.cameras import project
from unified_lift.train.lift import steps_of as lift_steps_of
from unified_lift.train.refine import steps_of as refine_steps_of
from unified_lift.train.schedule import Photos, full_grown
from unified_lift.types import Scene

_GIB = 2**30
_LOOKED_AT, _VIEWS = 2**14, 32  # Gaussians and views that tell what a view shows
_REACH, _LOW_PASS, _TILE = 3.33, 0.3, 16  # standard deviations, square pixels, pixels: as the renderer has them
_BYTES_OF_A_PIXEL = 320  # of the blending weights that are kept: 20 to 60 Gaussians make up most of a pixel


class Sizes(NamedTuple):
    """Bytes that the renderer takes beside parameters, for each ... of a view."""

    gaussian: float  # projected and sorted by depth
    trained: float  # Gaussian besides, where geometry trains
    pair: float  # entry of the lists of tiles
    trained_pair: float  # the same where geometry trains
    pixel: float  # of maps, losses, and blending weights of all pixels


# By the structs of csrc and the tensors of a step.
SIZES = {"cpu": Sizes(127, 24, 44, 124, 700), "cuda": Sizes(104, 64, 18, 65, 700)}


class Seen(NamedTuple):
    """What the views of a scene show of its Gaussians, at most or in the mean."""

    most: float  # share of the Gaussians in one view
    mean: float
    pairs: float  # tiles of each Gaussian in a view

    @classmethod
    def by(cls, gaussians: Gaussians, scene: Scene) -> "Seen":
        """Return it by some Gaussians and some training views."""
        rows = slice(None, None, max(1, len(gaussians) // _LOOKED_AT))
        means, sizes = (
            value.detach()[rows].cpu().double().numpy() for value in (gaussians.means, gaussians.log_scales)
        )
        sizes, views = np.exp(sizes.clip(-30, 30)).mean(axis=1), scene.train[:: -(-len(scene.train) // _VIEWS)]
        shares, pairs = [], []
        for camera in (view.camera for view in views):
            pixels, depth = project(means, camera)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                reach = _REACH * np.sqrt((sizes * camera.fx / depth) ** 2 + _LOW_PASS)[:, None]
                low, high = ((pixels + side * reach).clip(0, [camera.width, camera.height]) for side in (-1, 1))
                tiles = np.where(depth > 0, ((high - low) / _TILE + (high > low)).prod(axis=1), 0)
            shares.append(float((tiles > 0).mean()))
            pairs.append(float(tiles.sum() / max(1, (tiles > 0).sum())))
        return cls(max(shares), float(np.mean(shares)), max(pairs)) if shares else cls(0, 0, 0)


class Needs(NamedTuple):
    """Bytes of a run by part of it and by what for; and those that it needs in any case, while all else may be less."""

    parts: dict[str, dict[str, float]]  # where it computes
    host: float  # of main memory, beside a GPU: checkpoints on their way to the disk
    disk: float
    least: float  # where it computes: parameters and moments alone
    least_disk: float

    @property
    def largest(self) -> str:
        """Return the part that needs most."""
        return max(self.parts, key=lambda part: sum(self.parts[part].values()))


def needs_of(
    settings: TrainSettings, scene: Scene, gaussians: Gaussians, cache: CacheChoice, device: str, *, begin: str
) -> Needs:
    """Return what a run on a type of device needs that begins with a stage with these Gaussians."""
    own, now, photos = SIZES[device], len(gaussians), Photos.of([view.camera for view in scene.train], 0)
    trains = begin == "geometry" and settings.geometry.iterations > 0
    bound = getattr(settings.density, "max_gaussians", 0)
    count = max(now, min(bound or math.inf, full_grown(photos._replace(points=now)))) if trains else now
    labelled = [view.camera for view in scene.labelled]
    lifts = bool(labelled) and (settings.schedule == "joint" or bool(lift_steps_of(settings.lift, labelled)))
    terms = gaussians.sh_degree + 1
    each = 4 * (11 + 3 * terms**2)  # bytes of the parameters of a Gaussian
    width = 4 * settings.method.feature_dim if lifts else 0
    seen, together = Seen.by(gaussians, scene), ranks.current()
    pixels = max((view.camera.width * view.camera.height for view in scene.train), default=0)
    photo_bytes = {"disk": cache.max_decoded * (device == "cpu"), "cuda": cache.num_bytes, "cpu": cache.num_bytes}
    kept = min(photo_bytes[cache.kept_on], cache.num_bytes) if cache.kept_on in (device, "disk") else 0
    on_cpu = device == "cpu"  # checkpoints on their way to the disk share the memory

    def rendering(share: float, pair: float) -> float:
        return count * share * (own.gaussian + seen.pairs * pair) + pixels * own.pixel

    parts = dict[str, dict[str, float]]()
    shared = together.count if settings.run.shard_gaussians else 1
    if trains:
        joint = width if settings.schedule == "joint" else 0
        copies = each + 2 * (16 + 12 * terms**2) if on_cpu else each * (together.count > 1)
        parts["geometry"] = {
            "parameters and moments": 3 * (each + joint) * count / shared,
            "the renderer": rendering(seen.most, own.trained_pair) + count * (own.trained * seen.most + copies),
            "a checkpoint": 3 * (each + joint) * count * on_cpu,
        }
    if lifts:
        is_many = count >= MANY and seen.most < 0.75
        picked = 44 + 24 * terms**2 + width if is_many else 16 + 12 * terms**2
        render = rendering(seen.most, own.pair) + count * picked * (seen.most if is_many else 1)
        views = sum(camera.width * camera.height for camera in labelled)
        weights = min(settings.lift.lift_cache_mb * 2**20, views * _BYTES_OF_A_PIXEL)
        is_dense = views * _BYTES_OF_A_PIXEL == weights  # all features have a gradient
        shown = 4 * seen.mean * count * len(scene.train) * (count >= MANY)
        shown = min(shown, most_remembered(torch.device(device))) if shown else 0
        parts["lift"] = {
            "parameters, features and moments": (each + (3 + is_dense) * width + 16) * count,
            "the renderer": render,
            "blending weights": weights + shown,
            "a checkpoint": (each + 3 * width) * count * on_cpu,
        }
        parts["labels"] = {
            "parameters and features": (each + width) * count,
            "votes and features of labels": (4 * width + 160) * count,
            "the renderer": render,
            "blending weights": shown,
            "a checkpoint": (each + 3 * width) * count * on_cpu,
        }
        if refine_steps_of(getattr(settings.method, "sharpen_steps", 0), settings.refine, scene):
            parts["refinement"] = {
                "parameters, features and moments": (each + 5 * width + 32) * count,
                "the renderer": render,
                "blending weights": shown,
                "a checkpoint": (each + 4 * width) * count * on_cpu * bool(settings.run.checkpoint_minutes),
            }
    parts = {
        name: part | {"photos": kept} for name, part in (parts or {"results": {"parameters": each * count}}).items()
    }
    ply, objects = 4 * (14 + 3 * terms**2), (4 * (15 + 3 * terms**2) + 1.5 * width + 6) * bool(width)
    least = max(3 * each / shared if trains else 0, (each + 3 * width) if lifts and not trains else each) * now
    ends = 3 * each * trains + (each + 3 * width) * bool(lifts)  # kept checkpoints of the ends of stages
    rolling = max(3 * each * trains, each + 4 * width) if trains or lifts else 0
    host = max(each, 3 * each * trains, (each + 4 * width) * lifts) * count * (not on_cpu)
    least_disk = 0 if trains else (ply + objects + ends) * now  # training may leave fewer
    return Needs(parts, host, (ply + objects + ends + rolling) * count, least, least_disk)


def forecast(
    settings: TrainSettings,
    scene: Scene,
    gaussians: Gaussians,
    cache: CacheChoice,
    device: torch.device,
    stage: str | None = None,
) -> str:
    """Return a line on what a run is going to need, in the part that needs most, of what is free; as `needs_of`.

    It goes on from a checkpoint of `stage`, or begins.

    The Gaussians are in main memory, the photos where they are kept. An OutOfMemory: what is needed in any case is
    more than there is; a UserError: of the disk. They say what to change.
    """
    begin, folder = stage or "geometry", settings.model_path.absolute()
    folder = next(path for path in (folder, *folder.parents) if path.exists())
    needs = needs_of(settings, scene, gaussians, cache, device.type, begin=begin)
    there = sum(value.nbytes for _, value in gaussians)
    main, own = available_memory(), resident_memory()
    part, on_gpu = needs.parts[needs.largest], device.type == "cuda"
    if on_gpu:
        free, there, place = torch.cuda.mem_get_info(device)[0], 0, "on the GPU"
        total = free + torch.cuda.memory_reserved(device)
    else:
        part |= {"the program": max(0, own - there - part["photos"])}
        free, total, place = main, main + own, "of main memory"
    kind = f"{len(gaussians):,} Gaussians of SH degree {gaussians.sh_degree}"
    if needs.least - there > free:
        what = f"parameters and moments alone need {needs.least / _GIB:.2f} GiB {place}"
        certain = {name: size for name, size in part.items() if name not in ("the renderer", "blending weights")}
        lower = _what_to_change(settings, certain, begin)
        raise OutOfMemory(f"{kind}: {what}, {(free + there) / _GIB:.2f} can be taken; {lower}")
    disk = shutil.disk_usage(folder).free
    if needs.least_disk > disk:
        what = f"results and checkpoints need {needs.least_disk / _GIB:.1f} GiB of disk"
        raise UserError(
            f"{settings.model_path}: {kind}: {what}, {disk / _GIB:.1f} are free; free some, or give another -m"
        )
    wanted = sum(part.values())
    listed = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in part.items() if size > 0.02 * wanted)
    line = f"memory: about {wanted / _GIB:.2f} of {total / _GIB:.1f} GiB {place}, most in the {needs.largest}: {listed}"
    line += f"; {needs.host / _GIB:.1f} of {main / _GIB:.1f} GiB of main memory" if on_gpu else ""
    line += f"; {needs.disk / _GIB:.2f} of {disk / _GIB:.1f} GiB of disk"
    if wanted > total or needs.host > main:
        line += f"; it may not fit: {_what_to_change(settings, part, begin)}"
    return line


def _what_to_change(settings: TrainSettings, needs: Mapping[str, float], begin: str) -> str:
    """Return the flags that lower some of what is needed, by what for."""
    trains = begin == "geometry" and settings.geometry.iterations > 0
    flags = ["a splat of fewer Gaussians" if settings.init_ply else "--sh_degree"] if begin == "geometry" else []
    flags += ["--max_gaussians"] if trains and hasattr(settings.density, "max_gaussians") else []
    flags += ["--feature_dim"] if "features" in " ".join(needs) else []
    flags += ["-r 2", "--data_device disk"] if needs.get("photos") or "the renderer" in needs else []
    flags += ["--lift_cache_mb"] if needs.get("blending weights") else []
    flags += ["--shard_gaussians with torchrun on several GPUs"] if trains and settings.schedule == "staged" else []
    return f"lower it with {', '.join(flags)}" if flags else "end other programs"
