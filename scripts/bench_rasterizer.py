"""Measure the rasterizer's CPU kernels beside their torch definition and, if asked, beside Mitsuba's volprim.

Contenders see the same tensors in one process and take turns, so that a busy machine slows all of them alike; ratios
are the figures to trust. Each timing is forward + backward to every input unless the name says otherwise.

    OMP_WAIT_POLICY=passive python scripts/bench_rasterizer.py                # our kernels and their definition
    OMP_WAIT_POLICY=passive python scripts/bench_rasterizer.py --peers reference mitsuba --json bench.json

Without OMP_WAIT_POLICY=passive torch's idle OpenMP threads keep spinning for some milliseconds after every torch
operation, on the cores that the kernels need.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import diff_gaussian_rasterization as dgr
import torch
from torch import Tensor

# name: Gaussians, width, height, feature width, harmonics degree (None = plain colours)
CASES = {
    "10k_160x120_rgb": (10_000, 160, 120, 0, None),
    "10k_160x120_rgb16": (10_000, 160, 120, 16, None),
    "10k_400x300_rgb": (10_000, 400, 300, 0, None),
    "10k_400x300_rgb16": (10_000, 400, 300, 16, None),
    "50k_160x120_rgb": (50_000, 160, 120, 0, None),
    "50k_160x120_rgb16": (50_000, 160, 120, 16, None),
    "50k_400x300_rgb": (50_000, 400, 300, 0, None),
    "50k_400x300_rgb16": (50_000, 400, 300, 16, None),
    "60k_256x256_sh3": (60_000, 256, 256, 0, 3),
}


def make_scene(num: int, width: int, height: int, dim: int, degree: int | None, *, seed: int = 0) -> dict[str, Tensor]:
    """Random Gaussians in a frustum whose footprint gives about 27 blends per pixel at 10k and 160x120."""
    g = torch.Generator().manual_seed(seed)
    depth = 2 + 4 * torch.rand(num, generator=g)
    focal = 0.8 * width
    x = (torch.rand(num, generator=g) - 0.5) * 1.1 * width / focal * depth
    y = (torch.rand(num, generator=g) - 0.5) * 1.1 * height / focal * depth
    size = 0.0118 * (10_000 / num) ** 0.5 * torch.exp(0.5 * torch.randn(num, 3, generator=g)) * depth[:, None] / 1.3
    colors = (num, 3) if degree is None else (num, 16, 3)
    return {
        "means": torch.stack([x, y, depth], -1),
        "quats": torch.randn(num, 4, generator=g),
        "scales": size,
        "opacities": 0.1 + 0.8 * torch.rand(num, generator=g),
        "colors": torch.rand(colors, generator=g) * (1.0 if degree is None else 0.3),
        "features": torch.randn(num, dim, generator=g) if dim else None,
        "viewmat": torch.eye(4),
        "K": torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]]),
        "grad_image": torch.randn(1, height, width, 3, generator=g),
        "grad_features": torch.randn(1, height, width, dim, generator=g),
    }


def render(scene: dict[str, Tensor], case: tuple) -> dgr.RasterOutput:
    """Render a scene once without gradients."""
    tensors = [scene[n] for n in ("means", "quats", "scales", "opacities", "colors", "features")]
    return dgr.rasterize(
        *tensors, scene["viewmat"][None], scene["K"][None], case[1], case[2], sh_degree=case[4]
    )  # fmt: skip


def our_step(scene: dict[str, Tensor], case: tuple, implementation: str, backward: bool) -> Callable[[], None]:
    """Return a function that renders once and, if asked, differentiates by every input."""
    _, width, height, dim, degree = case
    names = ("means", "quats", "scales", "opacities", "colors", "features")
    leaves = [None if scene[n] is None else scene[n].clone().requires_grad_(backward) for n in names]

    def step() -> None:
        means2d = torch.zeros(1, leaves[0].shape[0], 2, requires_grad=backward)
        out = dgr.rasterize(
            *leaves, scene["viewmat"][None], scene["K"][None], width, height,
            sh_degree=degree, means2d=means2d, implementation=implementation,
        )  # fmt: skip
        if backward:
            outputs, incoming = [out.image], [scene["grad_image"]]
            if dim:
                outputs, incoming = [out.image, out.features], [scene["grad_image"], scene["grad_features"]]
            torch.autograd.grad(outputs, [t for t in (*leaves, means2d) if t is not None], incoming)

    return step


def mitsuba_step(scene: dict[str, Tensor], case: tuple) -> tuple[Callable[[], None], Tensor]:
    """Return a step of Mitsuba's ray-traced volprim_rf_basic, colour only, on all threads, and its picture.

    It evaluates the same Gaussians along rays instead of projecting them, so the picture is alike but not equal.
    """
    import drjit
    import mitsuba
    import numpy

    mitsuba.set_variant("llvm_ad_rgb")
    _, width, height, _, _ = case
    wxyz = torch.nn.functional.normalize(scene["quats"], dim=-1)
    opacities = scene["opacities"][:, None]
    coefficients = (scene["colors"] - 0.5) / 0.28209479  # harmonics of degree 0

    def tensor(value: Tensor) -> object:
        return mitsuba.TensorXf(numpy.ascontiguousarray(value.numpy()))

    k = scene["K"]
    shape = {
        "type": "ellipsoidsmesh",
        "centers": tensor(scene["means"]),
        "scales": tensor(scene["scales"]),
        "quaternions": tensor(wxyz[:, [1, 2, 3, 0]]),
        "opacities": tensor(opacities),
        "sh_coeffs": tensor(coefficients),
        "extent": 3.0,  # half axes of the ellipsoid in standard deviations
    }
    loaded = mitsuba.load_dict(
        {
            "type": "scene",
            "integrator": {"type": "volprim_rf_basic", "max_depth": 128},
            "sensor": {
                "type": "perspective",
                "fov": float(2 * torch.rad2deg(torch.atan(0.5 * width / k[0, 0]))),
                "to_world": mitsuba.ScalarTransform4f().look_at(origin=[0, 0, 0], target=[0, 0, 1], up=[0, -1, 0]),
                "film": {"type": "hdrfilm", "width": width, "height": height, "rfilter": {"type": "box"}},
                "sampler": {"type": "independent", "sample_count": 1},
            },
            "primitives": shape,
        }
    )
    params = mitsuba.traverse(loaded)
    keys = ("primitives.data", "primitives.opacities", "primitives.sh_coeffs")
    incoming = tensor(scene["grad_image"][0])
    picture = torch.from_numpy(numpy.array(mitsuba.render(loaded, spp=16)))

    def step() -> None:
        for key in keys:
            drjit.enable_grad(params[key])
            drjit.set_grad(params[key], 0)
        params.update()
        image = mitsuba.render(loaded, params, spp=1)
        drjit.backward(drjit.sum(image * incoming, axis=None))
        drjit.eval([drjit.grad(params[key]) for key in keys])
        drjit.sync_thread()

    return step, picture


def correlation(a: Tensor, b: Tensor) -> float:
    """Return Pearson's correlation of two pictures."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def measure(steps: dict[str, tuple[Callable[[], None], int, int]], rounds: int) -> dict[str, list[float]]:
    """Run contenders in turn; each entry is (step, threads, at most so many repeats). Times in ms."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step, threads, _ in steps.values():
        torch.set_num_threads(threads)
        step()
        step()
    for turn in range(rounds):
        for name, (step, threads, most) in steps.items():
            if turn >= most:
                continue
            torch.set_num_threads(threads)
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def describe(scene: dict[str, Tensor], case: tuple) -> dict[str, object]:
    """Count what the figures depend on: visible Gaussians, pairs, blends per pixel."""
    num, width, height, dim, degree = case
    out = render(scene, case)
    geometry = [scene[n] for n in ("means", "quats", "scales", "opacities")]
    weights = dgr.pixel_weights(*geometry, scene["viewmat"], scene["K"], width, height)
    return {
        "gaussians": num, "width": width, "height": height, "features": dim, "sh_degree": degree,
        "visible": int((out.meta.radii > 0).sum()), "pairs": out.meta.num_pairs,
        "blends_per_pixel": round(weights.weights.numel() / weights.num_rows, 1),
    }  # fmt: skip


def contenders(scene: dict[str, Tensor], case: tuple, peers: list[str], threads: int) -> dict:
    """Return the steps to time for one case."""
    steps = {}
    for count in sorted({1, threads}):
        steps[f"cpu_{count}t_forward"] = (our_step(scene, case, "cpu", False), count, 1 << 30)
        steps[f"cpu_{count}t"] = (our_step(scene, case, "cpu", True), count, 1 << 30)
    if "reference" in peers:
        steps[f"reference_{threads}t"] = (our_step(scene, case, "reference", True), threads, 3)
    if "mitsuba" in peers and case[4] is None:
        step, picture = mitsuba_step(scene, case)
        steps[f"mitsuba_{threads}t"] = (step, threads, 5)
        alike = correlation(picture, render(scene, case).image[0])
        print(f"  correlation of Mitsuba's picture with ours: {alike:.4f}")
    return steps


def main() -> int:
    """Run the chosen cases, print a table, optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--peers", nargs="*", choices=("reference", "mitsuba"), default=["reference"])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    info = dgr.backend_info()
    policy = os.environ.get("OMP_WAIT_POLICY", "default")
    print(f"isa {info['isa']}, {args.threads} threads, torch {torch.__version__}, OMP_WAIT_POLICY {policy}")
    results = []
    for name in args.cases:
        case = CASES[name]
        scene = make_scene(*case)
        facts = describe(scene, case)
        print(f"\n{name}: " + ", ".join(f"{k} {v}" for k, v in facts.items()))
        times = measure(contenders(scene, case, args.peers, args.threads), args.rounds)
        ours = statistics.median(times[f"cpu_{args.threads}t"])
        for contender, values in times.items():
            ranked = sorted(values)
            low, high = ranked[len(ranked) // 10], ranked[-1 - len(ranked) // 10]
            median = statistics.median(values)
            row = {"median_ms": median, "p10_ms": low, "p90_ms": high, "min_ms": min(values), "repeats": len(values)}
            results.append({"case": name, "contender": contender, "isa": info["isa"], **facts, **row})
            print(
                f"  {contender:20s} median {median:9.2f} ms  [{low:.2f} .. {high:.2f}]  min {min(values):9.2f}  "
                f"x{median / ours:.1f} of cpu_{args.threads}t"
            )
    if args.json:
        args.json.write_text(json.dumps({"backend": info, "omp_wait_policy": policy, "results": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
