"""Where the time of a training step goes, and how far each part is from the least time its work could take.

    python scripts/bench_step.py --json step.json                 # random Gaussians, geometry and lift
    python scripts/bench_step.py --model output/MODEL             # a trained scene, its own photos and masks
    python scripts/bench_step.py --quick --device cpu             # small, anywhere

The floor of a part is the larger of the bytes it must move over the measured copy bandwidth and the operations it must
do over the arithmetic rate (--tflops). Bytes are counted as in docs/performance.md: every input once, every output
once. Wall time is that of an unbroken run of steps; device times are those of the kernels, by torch's profiler. On a
CPU only wall times are given, since there are no kernels to tell apart.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from bench_scenes import CASES, Case, random_scene
from diff_gaussian_rasterization import pixel_weights, rasterize
from scipy.spatial import cKDTree

from unified_lift.data.cache import DataCache
from unified_lift.density.default import DefaultStrategy, DefaultStrategySettings
from unified_lift.methods.unified_lift import UnifiedLift, UnifiedLiftSettings
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import render
from unified_lift.modelfolder.inference import load_model, views_of
from unified_lift.modelfolder.settings import GeometrySettings, LiftSettings
from unified_lift.train.geometry import GeometryStage
from unified_lift.train.lift import LiftStage
from unified_lift.types import Camera, PointCloud, Scene, View

LATE = 20_000  # a geometry step with all harmonics, after densification


class Part(NamedTuple):
    """Kernels that belong together, and what they cannot do without."""

    name: str
    kernels: str  # regular expression
    megabytes: float
    gigaflops: float = 0.0


class Counts(NamedTuple):
    """What the figures depend on, means over the views: Gaussians, visible ones, pairs, pixels, blends per pixel."""

    gaussians: int
    visible: float
    pairs: float
    pixels: float
    blends: float


def random_model(case: Case, device: torch.device) -> tuple[Scene, Gaussians]:
    """Return the Gaussians and cameras of a case with harmonics of degree 3, without photos."""
    drawn = random_scene(replace(case, degree=3, dim=0), device)
    table = {
        "means": drawn.means,
        "quats": drawn.quats,
        "log_scales": drawn.scales.log(),
        "logit_opacities": drawn.opacities.logit(),
        "sh0": drawn.colors[:, :1].contiguous(),
        "shN": drawn.colors[:, 1:].contiguous(),
        "features": drawn.means.new_zeros(case.num, 0),
    }
    views = []
    for viewmat, K in zip(drawn.viewmats.cpu().double().numpy(), drawn.Ks.cpu().tolist()):
        size = {"width": case.width, "height": case.height}
        camera = Camera(cam_from_world=viewmat, fx=K[0][0], fy=K[1][1], cx=K[0][2], cy=K[1][2], **size)
        photo = torch.zeros(case.height, case.width, 3, dtype=torch.uint8, device=device)
        views.append(View(name=f"view{len(views)}", camera=camera, image=photo))
    points = PointCloud(positions=np.zeros((1, 3), np.float32), colors=np.zeros((1, 3), np.uint8))
    scene = Scene(name="random", dataset="random", train=tuple(views), test=(), points=points, kept_on=device.type)
    return scene, Gaussians(table)


def with_photos(scene: Scene, gaussians: Gaussians, *, segments: int) -> Scene:
    """Return the scene with photos like the rendering, and with masks: cells about random points, ids shuffled."""
    views, rng = [], np.random.default_rng(0)
    for view in scene.train:
        with torch.no_grad():
            image = render(gaussians, view.camera, with_features=False).image
        noise = 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(len(views))).to(image)
        photo = ((image + noise).clamp(0, 1) * 255).to(torch.uint8)
        height, width = photo.shape[:2]
        tree = cKDTree(rng.random((segments, 2)) * (width, height))
        places = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
        nearest = tree.query(places.reshape(-1, 2))[1].reshape(height, width)
        ids = torch.from_numpy((rng.permutation(segments) + 1)[nearest].astype(np.int32)).to(photo.device)
        views.append(replace(view, image=photo, segments=ids))
    return replace(scene, train=tuple(views))


def count(gaussians: Gaussians, views: tuple[View, ...]) -> Counts:
    """Count what the figures depend on, over at most four views."""
    visible, pairs, pixels, blends = [], [], [], []
    with torch.no_grad():
        for view in views[:: max(1, len(views) // 4)][:4]:
            camera, device = view.camera, gaussians.device
            shape = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)
            viewmat, K = camera.tensors(device)
            size = (camera.width, camera.height)
            out = rasterize(*shape, gaussians.sh, None, viewmat[None], K[None], *size, sh_degree=0)
            some = torch.stack([torch.randint(n, (4096,)) for n in size], -1).to(device)
            weights = pixel_weights(*shape, viewmat, K, *size, some)
            visible.append(int((out.meta.radii > 0).sum()))
            pairs.append(out.meta.num_pairs)
            pixels.append(camera.width * camera.height)
            blends.append(weights.weights.numel() / 4096)
    return Counts(len(gaussians), *(statistics.mean(values) for values in (visible, pairs, pixels, blends)))


def geometry_parts(c: Counts) -> list[Part]:
    """Return the parts of a geometry step of degree 3 without features."""
    blends = c.pixels * c.blends
    adam = c.gaussians * 59 * 24 + c.visible * 64  # parameters and moments read and written; moments of the blending
    blend_bytes = c.pairs * 4 + c.visible * 48
    parts = {
        "projection, harmonics": ("project_kernel", c.gaussians * 44 + c.visible * 240, 290e-9 * c.visible),
        "sort, lists": ("Radix|Scan|count_kernel|emit_kernel|ranges|chunks", c.visible * 68 + c.pairs * 20, 0.0),
        "forward blend": ("forward_kernel|partial_|join_|finish_kernel", blend_bytes + c.pixels * 16, 23e-9 * blends),
        "L1 + SSIM": ("photometric|sum_kernel", c.pixels * 114, 1.2e-6 * c.pixels),
        "backward blend": ("backward_kernel", blend_bytes + c.visible * 80 + c.pixels * 28, 53e-9 * blends),
        "gradient + Adam": ("update_kernel", adam, 1.5e-6 * c.gaussians),
    }
    return [Part(name, kernels, 1e-6 * size, work) for name, (kernels, size, work) in parts.items()]


def lift_parts(c: Counts, pixels: int, dim: int, codes: int, segments: int) -> list[Part]:
    """Return the parts of a lift step with stored weights."""
    mega, entries = 1e-6, pixels * c.blends
    row = 4 * dim
    return [
        Part("blend", "blend_kernel", mega * (entries * (8 + row) + pixels * row), 2e-9 * entries * dim),
        Part("Eq. 1, 7", "contrast|uncertain|centre|segment", mega * pixels * 3 * row, 12e-9 * pixels * segments * dim),
        Part("Eq. 2, 4-6", "associat|codebook", mega * pixels * 3 * row, 12e-9 * pixels * codes * dim),
        Part("assignment", "assign", mega * 4 * segments * codes),
        Part(
            "gradient of blend", "splat_kernel|Memset",
            mega * (entries * (8 + row) + c.gaussians * row), 2e-9 * entries * dim,
        ),
        Part("Adam", "adam_kernel", mega * c.gaussians * dim * 28),
    ]  # fmt: skip


def copy_bandwidth(device: torch.device) -> float:
    """Return bytes per second of a large copy, read and written counted."""
    size = 2**30 if device.type == "cuda" else 2**27
    source = torch.rand(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / (1e-3 * wall_ms(lambda _: target.copy_(source), 10, device))


def wall_ms(step: Callable[[int], object], rounds: int, device: torch.device) -> float:
    """Return ms per call of an unbroken run, after a few calls to warm up."""
    for i in range(min(rounds, 20)):
        step(i)
    wait(device)
    begin = time.perf_counter()
    for i in range(rounds):
        step(i)
    wait(device)
    return 1e3 * (time.perf_counter() - begin) / rounds


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def kernel_times(step: Callable[[int], object], rounds: int) -> list[tuple[str, float, float]]:
    """Return (kernel, device time in us per call of step, launches per call), longest first."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for i in range(rounds):
            step(i)
        torch.cuda.synchronize()
    rows = [
        (event.key, event.self_device_time_total / rounds, event.count / rounds)
        for event in profile.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return sorted(rows, key=lambda row: -row[1])


def against_floor(
    parts: list[Part], kernels: list[tuple[str, float, float]], bandwidth: float, tflops: float
) -> list[dict[str, float | str]]:
    """Return a row for each part: launches, device us, floor us and their ratio; kernels of no part come last."""
    rows, left = [], list(kernels)
    for part in parts:
        own = [k for k in left if re.search(part.kernels, k[0])]
        left = [k for k in left if k not in own]
        floor = max(1e12 * part.megabytes / bandwidth, 1e3 * part.gigaflops / tflops)
        rows.append(_row(part.name, own, floor))
    rows.append(_row("rest", left, 0.0))
    return [*rows, _row("sum", kernels, sum(float(row["floor_us"]) for row in rows))]


def _row(name: str, kernels: list[tuple[str, float, float]], floor: float) -> dict[str, float | str]:
    us, launches = sum(k[1] for k in kernels), sum(k[2] for k in kernels)
    share = floor / us if us else 0.0
    return {"part": name, "launches": launches, "us": us, "floor_us": floor, "share_of_floor": share}


def print_rows(rows: list[dict[str, float | str]]) -> None:
    print(f"  {'part':24s}{'launches':>9s}{'us':>9s}{'floor us':>10s}{'floor/ours':>12s}")
    for row in rows:
        share = f"{100 * float(row['share_of_floor']):10.0f} %" if row.get("share_of_floor") else ""
        print(f"  {row['part']:24s}{row['launches']:9.1f}{row['us']:9.0f}{row['floor_us']:10.0f}{share}")


class Bench:
    """One device, its ceilings, and the results so far."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device, self.results = args, device, []
        self.bandwidth = copy_bandwidth(device)

    def run(self, title: str, step: Callable[[int], object], parts: list[Part], facts: dict) -> None:
        """Measure a step, print and keep the result."""
        wall = wall_ms(step, self.args.rounds, self.device)
        print(f"\n{title}: {wall:.3f} ms wall a step  ({', '.join(f'{k} {v:g}' for k, v in facts.items())})")
        result = {"step": title, "wall_ms": wall, **facts}
        if self.device.type == "cuda":
            kernels = kernel_times(step, 20)
            result["parts"] = against_floor(parts, kernels, self.bandwidth, self.args.tflops)
            result["kernels"] = kernels
            print_rows(result["parts"])
            floor = float(result["parts"][-1]["floor_us"])
            print(f"  floor / wall: {0.1 * floor / wall:.0f} %")
            if self.args.kernels:
                for name, us, launches in kernels[: self.args.kernels]:
                    print(f"    {us:9.1f} us  x{launches:<5.1f} {name[:100]}")
        self.results.append(result)

    def geometry(self, scene: Scene, gaussians: Gaussians) -> None:
        quiet = DefaultStrategy(DefaultStrategySettings(densify_until_iter=1))
        stage = GeometryStage(scene, gaussians, GeometrySettings(iterations=30_000), quiet, seed=0)
        c = count(gaussians, scene.train)
        self.run("geometry", lambda _: stage.step(LATE), geometry_parts(c), c._asdict())

    def lift(self, scene: Scene, gaussians: Gaussians, codes: int, *, keep: bool) -> None:
        """Measure a lift step with an active codebook, with weights kept in memory or computed each time."""
        method = UnifiedLift(UnifiedLiftSettings(codebook_start=0.0), zero_id="segment", seed=0)
        rows = torch.randn(codes, 16, generator=torch.Generator().manual_seed(1))
        method.load_state_dict(method.state_dict() | {"codebook": torch.nn.functional.normalize(rows, dim=1)})
        method.to(self.device)
        budget = 2**20 if keep else 0
        settings = LiftSettings(lift_pixels=self.args.pixels, lift_pool=4 * self.args.pixels, lift_cache_mb=budget)
        stage = LiftStage(scene, gaussians, method, settings, seed=0)
        c = count(gaussians, scene.train)
        segments = int(np.mean([len(torch.unique(view.segments)) for view in stage.views.all()]))
        facts = {**c._asdict(), "pixels": self.args.pixels, "codes": codes, "segments": segments}
        parts = lift_parts(c, self.args.pixels, 16, codes, segments)
        if not keep:
            parts = [p for p in geometry_parts(c) if p.name.startswith(("projection", "sort"))] + parts
        title = f"lift, {codes} codes, weights {'kept' if keep else 'computed each step'}"
        self.run(title, lambda _: stage.step(1500), parts, facts)
        if keep:
            sampler, num_views = stage.sampler, len(stage.cameras)
            visits = sampler.visits_before_renewal
            renewal = wall_ms(lambda i: sampler.of(i % num_views, (1 + i) * visits), 40, self.device)
            self.results[-1] |= {"renewal_ms": renewal, "visits_of_a_pool": visits, "pool": sampler.size}
            print(f"  a new pool of {sampler.size} pixels: {renewal:.3f} ms, once in {visits} visits of a view")


def trained(path: Path, device: torch.device) -> tuple[Scene, Gaussians]:
    model = load_model(path, device=device)
    scene = views_of(model)
    table = {name: value.detach() for name, value in model.gaussians}
    table["features"] = table["features"][:, :0]
    return DataCache(device.type, device=device).cached(scene), Gaussians(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--case", choices=CASES, default="1M_sh3", help="random Gaussians of bench_scenes.py")
    parser.add_argument("--segments", type=int, default=100, help="segments of a view")
    parser.add_argument("--pixels", type=int, default=32_768, help="sampled pixels of a lift step")
    parser.add_argument("--codes", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--model", type=Path, help="a trained model folder instead of random Gaussians")
    parser.add_argument("--tflops", type=float, default=67.0, help="float32 rate of the device, for the floors [H100]")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--kernels", type=int, default=0, help="also list so many kernels")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.case, args.rounds = "500_48x32_rgb", 5
        args.pixels, args.codes, args.segments = 1_024, [32], 12
    device = torch.device(args.device)
    bench = Bench(args, device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, copy {bench.bandwidth / 1e9:.0f} GB/s")
    if args.model:
        scene, gaussians = trained(args.model, device)
    else:
        scene, gaussians = random_model(CASES[args.case], device)
        scene = with_photos(scene, gaussians, segments=args.segments)
    camera = scene.train[0].camera
    print(f"{args.model or args.case}, {len(scene.train)} views of {camera.width}x{camera.height}")
    bench.geometry(scene, gaussians)
    for codes in args.codes:
        for keep in (True, False):
            bench.lift(scene, gaussians, codes, keep=keep)
    if args.json:
        facts = {"device": name, "torch": torch.__version__, "copy_GB_s": bench.bandwidth / 1e9}
        facts["scene"] = str(args.model or args.case)
        args.json.write_text(json.dumps(facts | {"results": bench.results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
