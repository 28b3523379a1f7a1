"""Scenes in, minutes and quality out: train, score and time scenes with several presets and seeds.

    python scripts/bench_train.py -s SCENE [SCENE ...] -o OUT [--presets unified_lift released] [--seeds 0 1] [-- ARGS]
    python scripts/bench_train.py -s SCENE -o OUT --presets unified_lift released --timeline 1000 3000 10000 30000

Everything after `--` goes to train.py (for example `--iterations=3000`); `PRESET:ARG` goes to that preset only. A cell
whose results.json exists is not run again, so an interrupted benchmark continues where it stopped.

The table has mean and spread, (largest - smallest) / 2, over the seeds that are done. Times are seconds: geometry and
lift are those stages alone; "all" is also loading (initial points among it) and writing the results.

With --timeline every preset is trained to each of these numbers of geometry iterations and scored there (first seed):
a preset with the joint schedule is one run that pauses, a staged one is a run of its own for each number, since its
lift comes last. OUT/timeline.json and OUT/timeline.png show quality against training time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

from unified_lift.cli.evaluate import eval_main
from unified_lift.cli.train import train_main
from unified_lift.evaluation.plots import time_figure
from unified_lift.modelfolder.settings import TrainSettings, with_preset

SCORES = ("PQ_scene", "PQ_things", "mIoU", "F1", "PSNR")
COLUMNS = (*SCORES, "geometry", "lift", "all", "peak GiB", "Gaussians")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-s", "--source_path", type=Path, nargs="+", required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--presets", nargs="+", default=["unified_lift"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--timeline", nargs="+", type=int, metavar="ITERATIONS")
    args = parser.parse_args(argv[:cut])
    given = argv[cut + 1 :]
    if args.timeline:
        return timeline(args, given)
    for seed in args.seeds:
        for scene in args.source_path:
            for preset in args.presets:
                train_and_score(scene, folder(args.out, scene, preset, seed), preset, seed, given)
    cells = {(s, p): done(args.out, s, p, args.seeds) for s in args.source_path for p in args.presets}
    print(table(cells))
    rows = [{"scene": s.name, "preset": p, "cells": found} for (s, p), found in cells.items()]
    (args.out / "bench_train.json").write_text(json.dumps({"machine": machine(), "results": rows}, indent=1))
    return 0


def folder(out: Path, scene: Path, preset: str, seed: int) -> Path:
    return out / scene.name / f"{preset}_{seed}"


def for_preset(word: str, preset: str) -> str | None:
    """Return the word if it is meant for this preset, without its prefix."""
    head, colon, rest = word.partition(":")
    if not colon or head.startswith("-"):
        return word
    return rest if head == preset else None


def train_and_score(scene: Path, model: Path, preset: str, seed: int, given: list[str], *, again: bool = False) -> None:
    """Train, or go on, and score one model folder, unless it is done; `again`: score it although it was."""
    if (model / "results.json").exists() and not again:
        return
    own = [word for each in given if (word := for_preset(each, preset)) is not None]
    resume = ["--resume"] if list(model.glob("chkpnt*.pth")) else ["--overwrite"]
    train = ["-s", str(scene), "-m", str(model), "--preset", preset, "--seed", str(seed), "--eval", *resume, "--quiet"]
    for door, arguments in ((train_main, [*train, *own]), (eval_main, ["-m", str(model), "--quiet"])):
        if door(arguments):
            sys.exit(f"{model}: stopped")


def done(out: Path, scene: Path, preset: str, seeds: list[int]) -> list[dict[str, float]]:
    """Return the figures of the seeds that have been scored."""
    models = [folder(out, scene, preset, seed) for seed in seeds]
    return [cell(model) for model in models if (model / "results.json").exists()]


def cell(model: Path) -> dict[str, float]:
    """Return scores of the last iteration, seconds, and on a GPU the peak memory of a model folder."""
    results = json.loads((model / "results.json").read_text())
    manifest = json.loads((model / "manifest.json").read_text())
    scores, seconds = next(reversed(results.values())), manifest["seconds"]
    figures = {name: scores[name] for name in SCORES if name in scores}
    figures |= {"geometry": seconds["geometry"], "lift": seconds.get("lift", 0.0), "all": sum(seconds.values())}
    if "peak_gpu_bytes" in manifest:
        peak = max(part["reserved"] for part in manifest["peak_gpu_bytes"].values())
        figures["peak GiB"] = peak / 2**30
    return figures | {"Gaussians": manifest["num_gaussians"]}


def table(cells: dict[tuple[Path, str], list[dict[str, float]]]) -> str:
    """Return a Markdown table of mean and spread."""
    lines = ["| scene | preset | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 3) + "|"]
    for (scene, preset), found in cells.items():
        columns = [entry([figures[name] for figures in found if name in figures]) for name in COLUMNS]
        lines.append(f"| {scene.name} | `{preset}` | {len(found)} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def entry(values: list[float]) -> str:
    if not values:
        return "-"
    digits = 3 if max(values) <= 1 else 1 if max(values) < 1e4 else 0
    spread = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def timeline(args: argparse.Namespace, given: list[str]) -> int:
    """Score every preset at each number of iterations; write the points and a plot."""
    seed, scene = args.seeds[0], args.source_path[0]
    curves: dict[str, list[dict[str, float]]] = {}
    for preset in args.presets:
        joint = with_preset(TrainSettings(), preset).schedule == "joint"
        for count in sorted(args.timeline):
            name = f"timeline_{preset}" if joint else f"timeline_{preset}_{count}"
            model = args.out / scene.name / name
            point = model / f"timeline_{count}.json"
            if not point.exists():
                train_and_score(scene, model, preset, seed, [*given, f"--iterations={count}"], again=True)
                figures = cell(model)
                seconds = figures["geometry"] + figures["lift"]
                point.write_text(json.dumps({"iterations": count, "seconds": seconds, **figures}))
            curves.setdefault(preset, []).append(json.loads(point.read_text()))
    content = {"machine": machine(), "scene": scene.name, "curves": curves}
    (args.out / "timeline.json").write_text(json.dumps(content, indent=1))
    figure = time_figure(curves)
    if figure is not None:
        figure.savefig(args.out / "timeline.png", dpi=150)
    for preset, points in curves.items():
        for p in points:
            shown = "  ".join(f"{name} {p[name]:.3f}" for name in SCORES if name in p)
            print(f"{preset:14s} {p['iterations']:6d} iterations  {p['seconds']:8.1f} s  {shown}")
    return 0


def machine() -> dict[str, str]:
    on_gpu = torch.cuda.is_available()
    return {"device": torch.cuda.get_device_name() if on_gpu else "CPU", "torch": torch.__version__}


if __name__ == "__main__":
    sys.exit(main())
