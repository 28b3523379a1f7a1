"""Measure the rasterizer beside other programs, on a CPU or a GPU; whole calls only.

    python scripts/bench_rasterizer.py                             # the cases of this machine: GPU or CPU
    python scripts/bench_rasterizer.py --cases 1M_rgb16 1M_6M_pairs_rgb16 --json bench.json
    python scripts/bench_rasterizer.py --ply point_cloud.ply --cameras cameras.json        # a trained scene
    OMP_WAIT_POLICY=passive python scripts/bench_rasterizer.py --device cpu --peers reference mitsuba

All backends see the same tensors in one process and take turns, view after view, so that a busy or throttled machine
slows all of them alike. Before anything is timed a backend's maps and gradients are compared with ours; one that
renders something else gets no ratio. On a GPU "ms" is the time between two events around one call on an idle device,
host included; "wall" is the time per call of an unbroken run over all views. "both" is forward and backward to every
input and to the pixel positions; "ratio" is a backend's ms over ours.

Baselines: `reference`, our definition in torch; `gsplat` 1.5.3 (all channels in one call, packed or not, and colour and
features in two passes over one tile list); `mitsuba` (colour only; alike, not equal, so only their correlation counts).
`antialiased` and `absolute` are ours with the low-pass compensated, and with sums of absolute gradients.

On a CPU set OMP_WAIT_POLICY=passive: torch's idle OpenMP threads otherwise keep spinning for milliseconds after every
torch operation, on the cores that the kernels need.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import diff_gaussian_rasterization as dgr
import torch
from bench_baselines import Outcome, Step, gsplat_lists_step, gsplat_step, mitsuba_step, our_step
from bench_scenes import CASES, CPU_CASES, GEOMETRY, GPU_CASES, QUICK_CASES, Scene, random_scene, trained_scene

OWN = ("reference", "antialiased", "absolute")
BASELINES = (*OWN, "gsplat", "mitsuba")
IMAGE_ERROR = 1e-3  # a pixel that is off by more is a cut pixel: one of its alphas lies on the other side of a cut
CUT_SHARE, CUT_ERROR = 2e-3, 2e-2  # so many of them are allowed, and so far off
COSINE = 0.9999  # least of any gradient
ALIKE = 0.8  # least correlation of a picture that cannot be equal


class Backend(NamedTuple):
    """One way to render a scene.

    Attributes:
        make: From "also backward?" to the step.
        threads: Of torch, on a CPU.
        most: Rounds it is given at most, because it is slow.
        moves: Whether features move geometry in it.
        equal: Whether its maps and gradients should equal ours; else only the picture should be alike.
        forward: Whether it can leave backward out.
    """

    make: Callable[[bool], Step]
    threads: int
    most: int = 1 << 30
    moves: bool = False
    equal: bool = True
    forward: bool = True


def backends(scene: Scene, baselines: list[str], threads: int) -> dict[str, Backend]:
    """Return who can render the scene; the first one, "ours", is what the others are compared with."""
    on_cpu = scene.means.device.type == "cpu"
    found = {"ours": Backend(functools.partial(our_step, scene), threads)}
    if on_cpu and threads > 1:
        found["ours, 1 thread"] = Backend(functools.partial(our_step, scene), 1)
    if "gsplat" in baselines:
        for packed in (False, True):
            make = functools.partial(gsplat_step, scene, packed=packed)
            found["gsplat packed" if packed else "gsplat"] = Backend(make, threads, moves=True)
        if scene.dim:
            found["gsplat 3+16"] = Backend(functools.partial(gsplat_lists_step, scene), threads)
    if "reference" in baselines:
        make = functools.partial(our_step, scene, implementation="reference")
        found["reference"] = Backend(make, threads, most=3)
    if "antialiased" in baselines:
        found["antialiased"] = Backend(functools.partial(our_step, scene, antialiased=True), threads, equal=False)
    if "absolute" in baselines:
        found["absolute"] = Backend(functools.partial(our_step, scene, absolute=True), threads)
    if "mitsuba" in baselines and scene.degree is None:
        make = lambda backward: mitsuba_step(scene)  # noqa: E731
        found["mitsuba"] = Backend(make, threads, most=5, equal=False, forward=False)
    return found


# ---- comparison ---------------------------------------------------------------------------------------------------


def compare(ours: Outcome, theirs: Outcome) -> dict[str, object]:
    """Return how far a backend's maps and gradients are from ours, and whether that is rounding and cuts only."""
    values = [torch.cat([m.detach() for m in o.maps], -1)[0] for o in (ours, theirs)]  # [H, W, channels]
    unit = torch.ones_like(values[0][0, 0])
    unit[3:] = values[0][..., 3:].abs().amax() if unit.numel() > 3 else 1  # features have no natural range
    error = ((values[0] - values[1]).abs() / unit).amax(-1)
    cut = error > IMAGE_ERROR
    cosines = {
        name: float(torch.nn.functional.cosine_similarity(mine.flatten(), theirs.gradients[name].flatten(), dim=0))
        for name, mine in ours.gradients.items()
        if name in theirs.gradients and theirs.gradients[name].shape == mine.shape  # packed rows have no twin
    }
    worst = min(cosines, key=cosines.get)
    facts = {
        "image_error": float(torch.where(cut, torch.zeros_like(error), error).max()),
        "cut_pixels": int(cut.sum()), "cut_error": float(error.max()),
        "least_cosine": cosines[worst], "least_cosine_of": worst,
    }  # fmt: skip
    few = facts["cut_pixels"] <= CUT_SHARE * error.numel() and facts["cut_error"] <= CUT_ERROR
    return facts | {"agrees": bool(few and facts["least_cosine"] >= COSINE and float(values[0].abs().max()) > 0)}


def correlate(ours: Outcome, theirs: Outcome) -> dict[str, object]:
    """Return Pearson's correlation of two pictures that can only be alike."""
    pictures = torch.stack([o.maps[0].detach().flatten() for o in (ours, theirs)])
    correlation = float(torch.corrcoef(pictures)[0, 1])
    return {"correlation": correlation, "agrees": correlation >= ALIKE}


def agreement(scene: Scene, backend: Backend) -> dict[str, object]:
    """Compare a backend with ours on the first and the last view; the worse one counts."""
    torch.set_num_threads(backend.threads)
    mine, theirs = our_step(scene, True, moves=backend.moves), backend.make(True)
    judge = compare if backend.equal else correlate
    found = [judge(mine(view), theirs(view)) for view in sorted({0, scene.num_views - 1})]
    return next((facts for facts in found if not facts["agrees"]), found[-1])


# ---- timing -------------------------------------------------------------------------------------------------------


def milliseconds(step: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes: between events on a GPU that had nothing else to do, by the clock on a CPU."""
    if device.type == "cpu":
        begin = time.perf_counter()
        step()
        return 1e3 * (time.perf_counter() - begin)
    torch.cuda.synchronize()
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    step()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def unbroken(step: Step, views: int) -> float:
    """Return the wall time per call in ms when all views follow each other on a GPU."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for view in range(views):
        step(view)
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin) / views


def warm_up(step: Step, calls: int, device: torch.device) -> dict[str, float]:
    """Run a step without timing it; return its mean pairs and, on a GPU, the memory it took beyond what was there."""
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    pairs = statistics.mean(step(view).pairs for view in range(calls))
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if device.type == "cuda" else None
    return {"pairs": round(pairs), "peak_mib": peak}


def measure(
    field: dict[str, Backend], *, backward: bool, device: torch.device, views: int, rounds: int, warmup: int
) -> dict[str, dict[str, float]]:
    """Let backends take turns and return the figures of each, times in ms."""
    steps, facts, times, walls = {}, {}, {name: [] for name in field}, {name: [] for name in field}
    for name, backend in field.items():
        torch.set_num_threads(backend.threads)
        steps[name] = backend.make(backward)
        facts[name] = warm_up(steps[name], min(warmup, backend.most), device)
    for turn in range(rounds):
        for name, backend in field.items():
            if turn < backend.most:
                torch.set_num_threads(backend.threads)
                times[name].append(milliseconds(functools.partial(steps[name], turn), device))
    for _ in range(rounds // views if device.type == "cuda" else 0):
        for name in field:
            walls[name].append(unbroken(steps[name], views))
    return {name: facts[name] | spread(times[name], walls[name]) for name in field}


def spread(times: list[float], walls: list[float]) -> dict[str, float]:
    """Return median, 10th and 90th percentile and minimum, and the median wall time, None where there is none."""
    ranked = sorted(times)
    return {
        "median_ms": statistics.median(ranked), "p10_ms": ranked[len(ranked) // 10],
        "p90_ms": ranked[-1 - len(ranked) // 10], "min_ms": ranked[0],
        "wall_ms": statistics.median(walls) if walls else None, "rounds": len(ranked),
    }  # fmt: skip


def describe(scene: Scene, *, most_pixels: int = 20_000) -> dict[str, object]:
    """Count what the figures depend on, mean over the views: visible Gaussians and blends per pixel."""
    g = torch.Generator().manual_seed(0)
    chosen = torch.randperm(scene.width * scene.height, generator=g)[:most_pixels]
    pixels = torch.stack([chosen % scene.width, chosen // scene.width], -1).to(scene.means.device)
    geometry = [getattr(scene, name) for name in GEOMETRY]
    visible, blends = [], []
    for view in range(scene.num_views):
        viewmat, K = (t[0] for t in scene.camera(view))
        weights = dgr.pixel_weights(*geometry, viewmat, K, scene.width, scene.height, pixels)
        out = dgr.rasterize(*geometry, scene.means, None, viewmat[None], K[None], scene.width, scene.height)
        visible.append(int((out.meta.radii > 0).sum()))
        blends.append(weights.weights.numel() / weights.num_rows)
    return {
        "gaussians": len(scene.means), "width": scene.width, "height": scene.height, "channels": 3 + scene.dim,
        "sh_degree": scene.degree, "views": scene.num_views, "visible": round(statistics.mean(visible)),
        "blends_per_pixel": round(statistics.mean(blends), 1),
    }  # fmt: skip


COLUMNS = "case what backend N visible pairs blends/px channels ms p10 p90 wall MiB ratio".split()
WIDTHS = (20, 7, 15, 9, 9, 9, 9, 8, 9, 9, 9, 9, 7, 9)


def print_row(row: dict[str, object]) -> None:
    ratio = "differs" if row["ratio"] is None else f"{row['ratio']:.2f}x"
    shown = [
        row["case"], row["what"], row["backend"], row["gaussians"], row["visible"], row["pairs"],
        row["blends_per_pixel"], row["channels"],
        *("-" if row[n] is None else f"{row[n]:.3f}" for n in ("median_ms", "p10_ms", "p90_ms", "wall_ms")),
        "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}", ratio,
    ]  # fmt: skip
    print("  ".join(f"{value!s:{'<' if i < 3 else '>'}{w}}" for i, (value, w) in enumerate(zip(shown, WIDTHS))))


def run_case(
    name: str, scene: Scene, baselines: list[str], *, threads: int, rounds: int, warmup: int
) -> list[dict[str, object]]:
    """Compare, time and print the backends on one scene; return one row for each figure."""
    field, facts = backends(scene, baselines, threads), describe(scene)
    agreed = {label: agreement(scene, backend) for label, backend in field.items()}
    device, rows = scene.means.device, []
    for what in ("forward", "both"):
        able = {label: c for label, c in field.items() if what == "both" or c.forward}
        figures = measure(
            able, backward=what == "both", device=device, views=scene.num_views, rounds=rounds, warmup=warmup
        )
        for label in able:
            ratio = figures[label]["median_ms"] / figures["ours"]["median_ms"] if agreed[label]["agrees"] else None
            identity = {"case": name, "what": what, "backend": label, "ratio": ratio}
            rows.append(identity | facts | figures[label] | {"agreement": agreed[label]})
            print_row(rows[-1])
    for label, found in agreed.items():
        if not found["agrees"]:
            print(f"  {label} renders something else, so it has no ratio: {found}")
    for row in best_of_gsplat(rows):
        print(f"  {row['what']}: ours / best of gsplat ({row['backend']}) = {row['ours_over_it']:.3f}")
    return rows


def best_of_gsplat(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return the fastest agreeing variant of gsplat for each case and direction, and our time over its time."""
    best: dict[tuple, dict] = {}
    for row in rows:
        key = (row["case"], row["what"])
        if row["backend"].startswith("gsplat") and row["ratio"] is not None:
            best[key] = min(best.get(key, row), row, key=lambda r: r["median_ms"])
    return [
        {"case": case, "what": what, "backend": row["backend"], "ours_over_it": 1 / row["ratio"]}
        for (case, what), row in best.items()
    ]


def default_baselines(device: torch.device) -> list[str]:
    """Return gsplat on a GPU if it is installed, and our definition on a CPU."""
    if device.type == "cpu":
        return ["reference"]
    return ["gsplat"] if dgr.backend_info()["gsplat"] == "gsplat" else []


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line, with the cases of the device where none are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--ply", type=Path, help="a trained scene instead of cases; needs --cameras")
    parser.add_argument("--cameras", type=Path, help="the cameras.json beside it")
    parser.add_argument("--peers", nargs="*", choices=BASELINES, help="default: gsplat on a GPU, reference on a CPU")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--rounds", type=int, default=100, help="timed calls of each backend")
    parser.add_argument("--warmup", type=int, default=20, help="calls of each backend before that")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on a CPU")
    parser.add_argument("--quick", action="store_true", help="tiny cases and few rounds, to see that it runs")
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args(argv)
    built = dgr.backend_info()["cuda"] == "cuda" and torch.cuda.is_available()
    args.device = torch.device(("cuda" if built else "cpu") if args.device == "auto" else args.device)
    args.peers = default_baselines(args.device) if args.peers is None else args.peers
    if "gsplat" in args.peers and dgr.backend_info()["gsplat"] != "gsplat":
        parser.error(f"--peers gsplat: {dgr.backend_info()['gsplat']}")
    if "gsplat" in args.peers and args.device.type == "cpu":
        parser.error("--peers gsplat: it runs on a GPU only")
    if "mitsuba" in args.peers and importlib.util.find_spec("mitsuba") is None:
        parser.error("--peers mitsuba: pip install mitsuba")
    if (args.ply is None) != (args.cameras is None) or (args.ply and args.cases):
        parser.error("--ply and --cameras go together, and without --cases")
    if min(args.rounds, args.warmup, args.threads) < 1:
        parser.error("--rounds, --warmup and --threads start at 1")
    if args.quick:
        args.rounds, args.warmup = min(args.rounds, 3), min(args.warmup, 1)
    by_device = CPU_CASES if args.device.type == "cpu" else GPU_CASES
    args.cases = args.cases or list(QUICK_CASES if args.quick else by_device)
    return args


def machine(args: argparse.Namespace) -> dict[str, object]:
    on_gpu = args.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {dgr.backend_info()['isa']}",
        "threads": args.threads, "torch": torch.__version__, "cuda": torch.version.cuda if on_gpu else None,
        "peers": {p: importlib.metadata.version(p) for p in args.peers if p not in OWN},
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"), "warmup": args.warmup,
    }  # fmt: skip


def scenes(args: argparse.Namespace) -> dict[str, Callable[[], Scene]]:
    """Return what makes each scene, by name."""
    if args.ply is None:
        return {name: functools.partial(random_scene, CASES[name], args.device) for name in args.cases}
    make = functools.partial(trained_scene, args.ply, args.cameras, device=args.device)
    return {f"trained_{label}": functools.partial(make, dim=dim) for label, dim in (("sh", 0), ("sh_16", 16))}


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    facts, rows = machine(args), []
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print("  ".join(f"{c:{'<' if i < 3 else '>'}{w}}" for i, (c, w) in enumerate(zip(COLUMNS, WIDTHS))))
    for name, make in scenes(args).items():
        options = {"threads": args.threads, "rounds": args.rounds, "warmup": args.warmup}
        rows += run_case(name, make(), args.peers, **options)
    if args.json:
        args.json.write_text(
            json.dumps({"machine": facts, "results": rows, "best_of_gsplat": best_of_gsplat(rows)}, indent=1)
        )
    return 0 if all(row["agreement"]["agrees"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
