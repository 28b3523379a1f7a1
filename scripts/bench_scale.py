"""How time and memory grow with the size of a scene: sweeps over made-up scenes, resumable, with a table of each.

    python scripts/bench_scale.py --objects 10 100 1000 10000 --json output/scale.jsonl
    python scripts/bench_scale.py --objects 1200 --device cuda --json output/scale.jsonl

A sweep is a function of a size and a device that returns its figures; each size runs in a process of its own, so that
peaks of memory are its own. What --json already holds is not run again. `--objects`: a building of rooms of twelve
balls, 110 Gaussians each, four views a room that see it alone, whose features are as a lift would leave them; then
codebook, label voting, refinement, read-out and scoring as a training and `eval.py` do them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from unified_lift.methods.base import ViewPixels
from unified_lift.methods.unified_lift import UnifiedLift, UnifiedLiftSettings
from unified_lift.metrics.matched import matched_scores
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.near import remember_views
from unified_lift.model.render import points_seen, render
from unified_lift.modelfolder.labels import by_falling_area, describe_objects, label_gaussians, segment_by_labels
from unified_lift.modelfolder.settings import RefineSettings
from unified_lift.ops.cameras import look_at
from unified_lift.ops.segments import dense_slots
from unified_lift.train.refine import RefineStage
from unified_lift.types import Camera, PointCloud, Scene, View

_EACH, _ROOM, _VIEWS, _SIZE, _REFINE_STEPS = 110, 12, 4, (96, 72), 40
Figures = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Run the sizes that are missing, and print a table for each sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in SWEEPS:
        parser.add_argument(
            f"--{name}", type=int, nargs="+", default=[], metavar="N", help=f"sizes of the sweep {name}"
        )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(cpu)")
    parser.add_argument("--json", type=Path, help="file of finished sizes, a line each")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # sweep and size, in a process of its own
    args = parser.parse_args(argv)
    if args.one is not None:
        print(json.dumps(_measured(args.one[0], int(args.one[1]), args.device)))
        return 0
    done = [json.loads(line) for line in args.json.read_text().splitlines()] if args.json and args.json.exists() else []
    for name in SWEEPS:
        for size in getattr(args, name):
            key = {"sweep": name, "size": size, "device": args.device}
            if not any(key.items() <= line.items() for line in done):
                command = [sys.executable, __file__, "--one", name, str(size), "--device", args.device]
                done.append(key | json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
                if args.json is not None:
                    args.json.parent.mkdir(parents=True, exist_ok=True)
                    with args.json.open("a") as file:
                        file.write(json.dumps(done[-1]) + "\n")
        _print_table(name, [line for line in done if line["sweep"] == name])
    return 0


def _measured(sweep: str, size: int, device: str) -> Figures:
    """Return the figures of one size, with the peaks of memory."""
    found = SWEEPS[sweep](size, torch.device(device))
    found["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if device == "cuda":
        found["GPU MiB"] = torch.cuda.max_memory_allocated() // 2**20
    return found


def _print_table(name: str, lines: list[Figures]) -> None:
    if lines:
        names = [key for key in lines[0] if key != "sweep"]
        print(f"| {name} | " + " | ".join(names[1:]) + " |\n" + "|---" * len(names) + "|")
        for line in sorted(lines, key=lambda one: (one["device"], one["size"])):
            print("| " + " | ".join(str(line.get(key, "")) for key in names) + " |")


# ---- objects ----


def objects(count: int, device: torch.device) -> Figures:
    """Return seconds of processor time (on a GPU, of the clock) of what follows the lift of so many objects."""
    seconds: Figures = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        start = clock()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name] = round(clock() - start, 2)

    with timed("scene s"):
        gaussians, truth, scene, ids = building(count, device)
    method = UnifiedLift(UnifiedLiftSettings(sharpen_steps=_REFINE_STEPS), zero_id="segment", seed=0).to(device)
    with timed("codebook s"):
        method.before_step(1.0, lambda: _pixels(gaussians, scene))
    with timed("labels s"):
        labels = by_falling_area(method, label_gaussians(gaussians, method, [view.camera for view in scene.train]))
    refine = RefineStage(scene, gaussians, method, RefineSettings(), labels, seed=0)
    with timed("refine"):
        for step in range(refine.num_steps):
            refine.step(step)
    seconds["refine ms/step"] = round(1000 * seconds.pop("refine") / max(refine.num_steps, 1), 1)
    gaussians.set("features", refine.features)
    method.load_object_state(labels.codes)
    views = scene.train[:: max(1, len(scene.train) // 50)]
    with timed("read-out"), torch.no_grad():
        for view in views:
            method.segment(render(gaussians, view.camera).features)
    seconds["read-out ms/view"] = round(1000 * seconds.pop("read-out") / len(views), 1)
    with timed("objects.json s"):
        describe_objects(gaussians, labels)
    found = labels.object_ids.cpu()[truth]
    pairs = list(zip([_shown(found, each) for each in ids], ids, strict=True))
    with timed("scores s"):
        scores = matched_scores(*zip(*pairs, strict=True))
    facts = {"Gaussians": len(gaussians), "views": len(scene.train), "found": method.num_objects}
    return facts | seconds | {"mIoU": round(scores.miou, 3)}


def building(count: int, device: torch.device) -> tuple[Gaussians, torch.Tensor, Scene, list[np.ndarray]]:
    """Return Gaussians, the first Gaussian of each object, views with masks, and the object ids [H, W] of each view."""
    generator = torch.Generator().manual_seed(0)
    rooms, side = -(-count // _ROOM), int(np.ceil(np.sqrt(-(-count // _ROOM))))
    origin = torch.tensor([[10.0 * (room % side), 10.0 * (room // side), 0.0] for room in range(rooms)])
    of_room = torch.arange(count) // _ROOM
    angle = 2 * torch.pi * (torch.arange(count) % _ROOM) / _ROOM
    centres = origin[of_room] + 2 * torch.stack([angle.cos(), angle.sin(), torch.zeros(count)], dim=1)
    owner = torch.arange(count).repeat_interleave(_EACH)
    number = len(owner)
    codes = normalize(torch.randn(count, 16, generator=generator), dim=1)
    table = {
        "means": centres[owner] + 0.4 * normalize(torch.randn(number, 3, generator=generator), dim=1),
        "quats": torch.tensor([1.0, 0, 0, 0]).repeat(number, 1),
        "log_scales": torch.full((number, 3), -2.3),
        "logit_opacities": torch.full((number,), 4.0),
        "sh0": torch.zeros(number, 1, 3),
        "shN": torch.zeros(number, 0, 3),
        "features": codes[owner] + 0.05 * torch.randn(number, 16, generator=generator),
    }
    gaussians = Gaussians(table).to(device)
    width, height = _SIZE
    cameras = []
    for room in range(rooms):
        for turn in 2 * np.pi * (np.arange(_VIEWS) + 0.5) / _VIEWS:
            place = origin[room].numpy() + [1.5 * np.cos(turn), 1.5 * np.sin(turn), 8.0]  # sees its room alone
            pose = look_at(place, origin[room].numpy(), np.array([0.0, 0.0, 1.0]))
            lens = {"fx": 110.0, "fy": 110.0, "cx": width / 2, "cy": height / 2, "width": width, "height": height}
            cameras.append(Camera(cam_from_world=pose, **lens))
    remember_views(gaussians, cameras)
    image, owner = torch.zeros(height, width, 3, dtype=torch.uint8), owner.to(device)
    ids = [segment_by_labels(gaussians, owner + 1, camera).object_ids.cpu().int() for camera in cameras]
    views = [
        View(name=f"{index}", camera=camera, image=image, segments=own)
        for index, (camera, own) in enumerate(zip(cameras, ids, strict=True))
    ]
    points = PointCloud(positions=centres.numpy(), colors=np.zeros((count, 3), np.uint8))
    kept_on = "cuda" if device.type == "cuda" else "cpu"
    moved = tuple(View(**{**vars(view), "segments": view.segments.to(device)}) for view in views)
    scene = Scene(
        name="building", dataset="made up", train=moved, test=(), points=points, zero_id="segment", kept_on=kept_on
    )
    return gaussians, torch.arange(0, number, _EACH), scene, [own.numpy() for own in ids]


@torch.no_grad()
def _pixels(gaussians: Gaussians, scene: Scene) -> Iterator[ViewPixels]:
    for view in scene.train:
        assert view.segments is not None
        out = render(gaussians, view.camera)
        slot, ids = dense_slots(view.segments.flatten(), ignore_zero=False)
        yield ViewPixels(out.features.flatten(0, 1), slot, len(ids), points_seen(out, view.camera), ids)


def _shown(found: torch.Tensor, ids: np.ndarray) -> np.ndarray:
    """Return the found object of each pixel, where its true one is known by the label of its first Gaussian."""
    return np.where(ids > 0, found.numpy()[np.maximum(ids - 1, 0)] + 1, 0)


SWEEPS: dict[str, Callable[[int, torch.device], Figures]] = {"objects": objects}

if __name__ == "__main__":
    raise SystemExit(main())
