"""Measure the rasterizer's CUDA kernels: device time by events, wall time of the calls, and the share of each kernel.

Eight views are rotated, so that no run finds the last one's data in the cache. Every line says what the figures
depend on.

    python scripts/bench_cuda.py --json bench.json --profile
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import diff_gaussian_rasterization as dgr
import torch
from diff_gaussian_rasterization import cuda
from torch import Tensor

WIDTH, HEIGHT, VIEWS = 1296, 840, 8
# name: Gaussians, feature width, harmonics degree (None = plain colours)
CASES = {
    "140k_rgb": (140_000, 0, None),
    "140k_rgb16": (140_000, 16, None),
    "1M_rgb": (1_000_000, 0, None),
    "1M_rgb16": (1_000_000, 16, None),
    "1M_sh3_16": (1_000_000, 16, 3),
    "3M_rgb": (3_000_000, 0, None),
    "3M_rgb16": (3_000_000, 16, None),
}


def make_scene(num: int, dim: int, degree: int | None, *, seed: int = 0) -> dict[str, Tensor]:
    """Random Gaussians of which about 55 % are in view, sized for about 30 blends per pixel."""
    g = torch.Generator().manual_seed(seed)
    depth = 2 + 6 * torch.rand(num, generator=g)
    focal = 0.8 * WIDTH
    x = (torch.rand(num, generator=g) - 0.5) * 1.35 * WIDTH / focal * depth
    y = (torch.rand(num, generator=g) - 0.5) * 1.35 * HEIGHT / focal * depth
    spread = torch.exp(0.5 * torch.randn(num, 3, generator=g))
    size = 0.001 * (1_000_000 / num) ** 0.5 * spread * depth[:, None]
    colors = (num, 3) if degree is None else (num, 16, 3)
    scene = {
        "means": torch.stack([x, y, depth], -1),
        "quats": torch.randn(num, 4, generator=g),
        "scales": size,
        "opacities": 0.1 + 0.8 * torch.rand(num, generator=g),
        "colors": torch.rand(colors, generator=g) * (1.0 if degree is None else 0.3),
        "features": torch.randn(num, dim, generator=g) if dim else None,
        "grad_image": torch.randn(1, HEIGHT, WIDTH, 3, generator=g),
        "grad_features": torch.randn(1, HEIGHT, WIDTH, dim, generator=g),
    }
    viewmats = torch.eye(4).repeat(VIEWS, 1, 1)
    angles = 0.02 * torch.arange(VIEWS)
    viewmats[:, 0, 0], viewmats[:, 2, 2] = torch.cos(angles), torch.cos(angles)
    viewmats[:, 0, 2], viewmats[:, 2, 0] = torch.sin(angles), -torch.sin(angles)
    scene["viewmats"] = viewmats
    scene["K"] = torch.tensor([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1.0]])
    return {name: None if value is None else value.cuda() for name, value in scene.items()}


def make_step(scene: dict[str, Tensor], degree: int | None, *, backward: bool) -> Callable[[int], object]:
    """Return a function of the view number that renders and, if asked, differentiates by every input."""
    names = ("means", "quats", "scales", "opacities", "colors", "features")
    leaves = [None if scene[n] is None else scene[n].clone().requires_grad_(backward) for n in names]
    Ks = scene["K"][None]

    def step(view: int) -> object:
        means2d = torch.zeros(1, leaves[0].shape[0], 2, device="cuda", requires_grad=True) if backward else None
        out = dgr.rasterize(
            *leaves, scene["viewmats"][view % VIEWS][None], Ks, WIDTH, HEIGHT, sh_degree=degree, means2d=means2d
        )
        if backward:
            outputs, incoming = [out.image], [scene["grad_image"]]
            if leaves[5] is not None:
                outputs, incoming = [out.image, out.features], [scene["grad_image"], scene["grad_features"]]
            torch.autograd.grad(outputs, [t for t in (*leaves, means2d) if t is not None], incoming)
        return out

    return step


def measure(step: Callable[[int], object], rounds: int) -> dict[str, float]:
    """Median, 10th and 90th percentile of device time in ms, and wall time per call of an unbroken run."""
    for view in range(20):
        step(view)
    torch.cuda.synchronize()
    times = []
    for view in range(rounds):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step(view)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    begin = time.perf_counter()
    for view in range(rounds):
        step(view)
    torch.cuda.synchronize()
    wall = 1e3 * (time.perf_counter() - begin) / rounds
    ranked = sorted(times)
    return {
        "median_ms": statistics.median(ranked), "p10_ms": ranked[len(ranked) // 10],
        "p90_ms": ranked[-1 - len(ranked) // 10], "wall_ms": wall,
    }  # fmt: skip


def describe(scene: dict[str, Tensor], out: dgr.RasterOutput) -> dict[str, float]:
    """Count what the figures depend on: visible Gaussians, pairs, blends per pixel."""
    pixels = torch.stack([torch.randint(WIDTH, (20_000,)), torch.randint(HEIGHT, (20_000,))], -1).cuda()
    geometry = [scene[n] for n in ("means", "quats", "scales", "opacities")]
    weights = dgr.pixel_weights(*geometry, scene["viewmats"][0], scene["K"], WIDTH, HEIGHT, pixels)
    return {
        "visible": int((out.meta.radii > 0).sum()), "pairs": out.meta.num_pairs,
        "blends_per_pixel": round(weights.weights.numel() / weights.num_rows, 1),
        "mean_alpha": round(float(out.alpha.mean()), 3),
    }  # fmt: skip


def kernel_shares(step: Callable[[int], object], rounds: int = 20) -> list[tuple[str, float, int]]:
    """Return (kernel, device time in us per call of step, launches per call), longest first."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for view in range(rounds):
            step(view)
        torch.cuda.synchronize()
    rows = [
        (event.key[:90], event.self_device_time_total / rounds, event.count // rounds)
        for event in profile.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return sorted(rows, key=lambda row: -row[1])


def neighbours(rounds: int, *, profile: bool) -> list[dict[str, object]]:
    """Time SSIM, Adam, blend and splat; with `profile` also print their kernels."""
    image, target = torch.rand(HEIGHT, WIDTH, 3, device="cuda"), torch.rand(HEIGHT, WIDTH, 3, device="cuda")
    leaf = image.requires_grad_()
    tensors = [torch.randn(1_000_000, 75, device="cuda") for _ in range(4)]
    tensors[3].abs_()
    scene = make_scene(1_000_000, 16, None)
    geometry = [scene[n] for n in ("means", "quats", "scales", "opacities")]
    pixels = torch.stack([torch.randint(WIDTH, (32_768,)), torch.randint(HEIGHT, (32_768,))], -1).cuda()
    weights = dgr.pixel_weights(*geometry, scene["viewmats"][0], scene["K"], WIDTH, HEIGHT, pixels)
    features = scene["features"].requires_grad_()
    incoming = torch.randn(32_768, 16, device="cuda")
    adam = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-15, "step": 10}
    steps = {
        "ssim fwd+bwd": lambda _: torch.autograd.grad(dgr.fused_ssim(leaf, target), leaf),
        "adam 1M x 75": lambda _: dgr.fused_adam_step(*tensors, **adam),
        "pixel_weights 32k": lambda view: dgr.pixel_weights(
            *geometry, scene["viewmats"][view % VIEWS], scene["K"], WIDTH, HEIGHT, pixels
        ),
        "blend 32k x 16": lambda _: dgr.blend(weights, features),
        "blend+splat 32k x 16": lambda _: torch.autograd.grad(dgr.blend(weights, features), features, incoming),
    }
    for name, step in steps.items() if profile else ():
        shares = ", ".join(f"{kernel[:60]} {micros:.1f} us" for kernel, micros, _ in kernel_shares(step)[:5])
        print(f"{name}: {shares}")
    return [{"case": name, **measure(step, rounds)} for name, step in steps.items()]


def main() -> int:
    """Run the chosen cases, print a table, optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--profile", action="store_true", help="print the kernels of one case")
    parser.add_argument("--only-cases", action="store_true", help="leave out SSIM, Adam, blend and splat")
    parser.add_argument("--shuffles", action="store_true", help="sum in backward without matrix units")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cuda.allow_matrix_units(not args.shuffles)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {WIDTH}x{HEIGHT}")
    results = []
    for name in args.cases:
        num, dim, degree = CASES[name]
        scene = make_scene(num, dim, degree)
        forward, both = make_step(scene, degree, backward=False), make_step(scene, degree, backward=True)
        facts = {"gaussians": num, "features": dim, "sh_degree": degree, **describe(scene, forward(0))}
        print(f"\n{name}: " + ", ".join(f"{k} {v}" for k, v in facts.items()))
        for label, step in (("forward", forward), ("forward+backward", both)):
            torch.cuda.reset_peak_memory_stats()
            figures = measure(step, args.rounds)
            figures["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
            results.append({"case": name, "what": label, **facts, **figures})
            print(f"  {label:18s}" + "  ".join(f"{k} {v:8.3f}" for k, v in figures.items()))
        if args.profile and num == 1_000_000:
            for kernel, micros, count in kernel_shares(both)[:22]:
                print(f"    {micros:9.1f} us  x{count}  {kernel}")
        del scene, forward, both
    print()
    for row in [] if args.shuffles or args.only_cases else neighbours(args.rounds, profile=args.profile):
        results.append(row)
        print(f"{row['case']:22s} median {row['median_ms']:.3f} ms  wall {row['wall_ms']:.3f} ms")
    if args.json:
        args.json.write_text(json.dumps({"device": torch.cuda.get_device_name(), "results": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
