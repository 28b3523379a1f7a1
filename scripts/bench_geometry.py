"""Geometry beside other trainers: the same scene, photos, first points, split and cap; pictures, time, N, memory.

    python scripts/bench_geometry.py SCENE ... --out output/geometry --iterations 7000 30000 --cap 200000
    python scripts/bench_geometry.py SCENE --out output/curves --iterations 7000 --timeline 1000 2000 4000 7000

Contenders: `gsplat_mcmc` and `gsplat_default`, the strategies of gsplat 1.5.3 with the settings of its example trainer
(positions and cameras over the scene extent, which it expects), on a GPU; `NAME:FLAGS` is train.py with these flags,
such as "mcmc:--strategy mcmc". Each training is a process of its own; what is done is not done again. Every trainer
uses the same photometric loss, ours, and its own renderer; scores are means over the held-out views. Seconds are those
of the training loop, without loading, files and the scores of the timeline.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unified_lift.cli.train import parse
from unified_lift.data import load_scene
from unified_lift.device import chosen_device
from unified_lift.fileio import write_json, write_text
from unified_lift.kernels.photometric import photometric_loss
from unified_lift.metrics.psnr import psnr
from unified_lift.metrics.ssim import ssim
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.model.render import render
from unified_lift.train.geometry import log_linear
from unified_lift.train.hooks import Hook
from unified_lift.train.run import run
from unified_lift.train.stage import Stage
from unified_lift.train.views import ViewOrder
from unified_lift.types import Camera, Scene

NEAR = 0.2
Scorer = Callable[[Callable[[Camera], Tensor], int], None]


class Scores:
    """Scores of the held-out views at some iterations, and the time that they took, which does not count."""

    def __init__(self, scene: Scene, at: list[int]) -> None:
        self.scene, self.at, self.rows, self.spent = scene, set(at), [], 0.0  # type: ignore[var-annotated]
        self.began = time.perf_counter()

    def start(self) -> None:
        self.began, self.spent = time.perf_counter(), 0.0

    @torch.no_grad()
    def __call__(self, picture: Callable[[Camera], Tensor], iteration: int, count: int) -> None:
        """Score pictures [H, W, 3] of the held-out views if it is time."""
        if iteration not in self.at:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        paused = time.perf_counter()
        found = []
        for view in self.scene.test:
            shown, photo = picture(view.camera).clamp(0, 1).cpu(), view.image.cpu() / 255
            if view.valid is not None:
                shown, photo = (part * view.valid.cpu()[..., None] for part in (shown, photo))
            found.append((psnr(shown, photo), ssim(shown, photo)))
        means = [statistics.fmean(values) for values in zip(*found, strict=True)]
        seconds = paused - self.began - self.spent
        self.rows.append(dict(iteration=iteration, PSNR=means[0], SSIM=means[1], seconds=seconds, num_gaussians=count))
        self.spent += time.perf_counter() - paused


class ScoreHook(Hook):
    """Scores of our training on its way."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores

    def before_stage(self, stage: Stage) -> None:
        if stage.name == "geometry":
            self.scores.start()

    def after_step(self, stage: Stage, step: int, terms: Mapping[str, Tensor]) -> None:
        if stage.name == "geometry":
            show = lambda camera: render(stage.gaussians, camera, with_features=False).image  # noqa: E731
            self.scores(show, step + 1, len(stage.gaussians))


def train_ours(cell: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """Train the geometry of `train.py` with the flags of the cell."""
    words = ["-s", cell["scene"], "-m", str(out), "--eval", "--iterations", str(cell["iterations"])]
    words += ["--seed", str(cell["seed"]), "--lift_iterations", "0", "--logger", "none", "--quiet", "--overwrite"]
    words += ["--checkpoint_minutes", "0", "--test_iterations", "0"]
    words += shlex.split(cell["data"])
    words += [] if cell["cap"] is None else ["--max_gaussians", str(cell["cap"])]
    settings = parse([*words, *shlex.split(cell["flags"])]).settings
    scene = load_scene(settings.data, white=settings.geometry.white_background)
    scores = Scores(scene, cell["at"])
    run(settings, scene, hooks=[ScoreHook(scores)])
    return scores.rows


def train_gsplat(cell: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """Train with a strategy of gsplat and the settings of its example trainer."""
    gsplat, strategies = importlib.import_module("gsplat"), importlib.import_module("gsplat.strategy")
    device, steps, is_mcmc = torch.device("cuda"), cell["iterations"], cell["name"] == "gsplat_mcmc"
    torch.manual_seed(cell["seed"])
    settings = parse(["-s", cell["scene"], "-m", str(out), "--eval", *shlex.split(cell["data"])]).settings
    scene = load_scene(settings.data)
    first, radius = gaussians_from_points(scene.points, sh_degree=3).to(device), scene.radius
    table = {name: value.detach() for name, value in first}
    scale, opacity = (0.1, 0.5) if is_mcmc else (1.0, 0.1)
    values = {
        "means": table["means"] / radius,
        "scales": (table["log_scales"].exp() * scale / radius).log(),
        "quats": torch.rand_like(table["quats"]),
        "opacities": torch.full_like(table["logit_opacities"], opacity).logit(),
        "sh0": table["sh0"],
        "shN": table["shN"],
    }
    rates = dict(means=1.6e-4, scales=5e-3, quats=1e-3, opacities=5e-2, sh0=2.5e-3, shN=2.5e-3 / 20)
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(value.contiguous()) for name, value in values.items()})
    optimizers = {name: torch.optim.Adam([params[name]], lr=rates[name], eps=1e-15, fused=True) for name in rates}
    if is_mcmc:
        cap = cell["cap"] or 1_000_000
        strategy = strategies.MCMCStrategy(cap_max=cap, refine_stop_iter=steps * 5 // 6)
        state = strategy.initialize_state()
    else:
        strategy = strategies.DefaultStrategy(refine_stop_iter=steps // 2)
        state = strategy.initialize_state(scene_scale=1.0)
    photos = [view.image.to(device) for view in scene.train]

    def tensors(camera: Camera) -> tuple[Tensor, Tensor]:
        viewmat, intrinsics = (part.clone() for part in camera.tensors(device))
        viewmat[:3, 3] /= radius
        return viewmat[None], intrinsics[None]

    def shown(camera: Camera, degree: int = 3) -> tuple[Tensor, dict[str, Any]]:
        image, _, info = gsplat.rasterization(
            params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid(),
            torch.cat([params["sh0"], params["shN"]], 1), *tensors(camera), camera.width, camera.height,
            near_plane=NEAR / radius, sh_degree=degree, packed=False,
        )  # fmt: skip
        return image[0], info

    scores, order = Scores(scene, cell["at"]), ViewOrder(len(photos), seed=cell["seed"])
    scores.start()
    for step in range(steps):
        index = order.next_index()
        image, info = shown(scene.train[index].camera, min(step // 1000, 3))
        if not is_mcmc:
            strategy.step_pre_backward(params, optimizers, state, step, info)
        loss = photometric_loss(image, photos[index], lambda_dssim=0.2, valid=None)
        if is_mcmc:
            loss = loss + 0.01 * params["opacities"].sigmoid().mean() + 0.01 * params["scales"].exp().mean()
        loss.backward()
        rate = log_linear(rates["means"], rates["means"] / 100, step / steps)
        optimizers["means"].param_groups[0]["lr"] = rate
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        more = {"lr": rate} if is_mcmc else {"packed": False}
        strategy.step_post_backward(params, optimizers, state, step, info, **more)
        scores(lambda camera: shown(camera)[0], step + 1, len(params["means"]))
    return scores.rows


def contender(word: str) -> dict[str, str]:
    """Return name and flags of a contender; NAME:FLAGS is ours."""
    name, _, flags = word.partition(":")
    return {"name": name, "flags": flags}


def run_cell(cell: dict[str, Any], out: Path) -> None:
    """Train one cell in this process and write its scores."""
    device = chosen_device("auto")
    if device.type == "cuda":
        torch.zeros(1, device=device)
        torch.cuda.reset_peak_memory_stats()
    train = train_gsplat if cell["name"].startswith("gsplat_") else train_ours
    rows = train(cell, out / "model")
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    write_json(out / "cell.json", cell | {"rows": rows, "peak_bytes": peak, "device": name})


def cells_of(args: argparse.Namespace) -> list[tuple[dict[str, Any], Path]]:
    """Return what is to be trained and where; the contenders of a scene and seed follow each other."""
    found = []
    for scene in args.scenes:
        for iterations in args.iterations:
            for seed in args.seeds:
                for word in args.contenders:
                    at = sorted({*(n for n in args.timeline if n < iterations), iterations})
                    cell = contender(word) | dict(scene=str(scene.resolve()), iterations=iterations, seed=seed)
                    where = args.out / scene.name / f"{iterations}_{args.cap or 0}" / cell["name"] / f"seed{seed}"
                    found.append((cell | dict(cap=args.cap, at=at, data=args.data), where))
    return found


def table(cells: list[tuple[dict[str, Any], Path]]) -> str:
    """Return the Markdown table of what is done: mean and standard deviation over seeds; seconds are medians."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for cell, where in cells:
        if (where / "cell.json").is_file():
            done = json.loads((where / "cell.json").read_text(encoding="utf-8"))
            for row in done["rows"]:
                key = Path(cell["scene"]).name, row["iteration"], f"{cell['name']} (of {cell['iterations']})"
                groups.setdefault(key, []).append(row | {"peak": done["peak_bytes"] / 2**30})
    lines = ["| scene | iteration | trainer | seeds | PSNR | SSIM | seconds | Gaussians | GPU memory, GiB |"]
    lines.append("|" + "---|" * 9)
    for (scene, iteration, name), rows in sorted(groups.items()):
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        spread = {key: f"{statistics.fmean(v):.4g} ± {statistics.pstdev(v):.2g}" for key, v in columns.items()}
        middle = {key: statistics.median(values) for key, values in columns.items()}
        lines.append(
            f"| {scene} | {iteration} | {name} | {len(rows)} | {spread['PSNR']} | {spread['SSIM']} "
            f"| {middle['seconds']:.1f} | {middle['num_gaussians']:.0f} | {middle['peak']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Train what is not done yet, and print the table; 1 if a training failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, nargs="*", metavar="SCENE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--contenders", nargs="+", default=["ours:", "gsplat_mcmc", "gsplat_default"])
    parser.add_argument("--iterations", type=int, nargs="+", default=[7_000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cap", type=int, help="most Gaussians of every contender that has a cap")
    parser.add_argument("--timeline", type=int, nargs="*", default=[], help="score at these iterations too")
    parser.add_argument("--data", default="", help='flags of train.py about the photos, for all, such as "-r 2"')
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time; more than one spoils the seconds")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.cell:
        run_cell(json.loads(args.cell), args.out)
        return 0
    cells, running, failed, started = cells_of(args), [], 0, 0  # type: ignore[var-annotated]
    gpus = torch.cuda.device_count()

    def wait(most: int) -> int:
        bad = 0
        while len(running) > most:
            for item in [item for item in running if item[0].poll() is not None]:
                running.remove(item)
                state = "done" if item[0].returncode == 0 else f"failed ({item[0].returncode}), see {item[1]}/log.txt"
                print(f"{item[1]}: {state}", flush=True)
                bad += item[0].returncode != 0
            time.sleep(0.05)
        return bad

    for cell, where in cells:
        if (where / "cell.json").is_file() and json.loads((where / "cell.json").read_text())["flags"] == cell["flags"]:
            continue
        where.mkdir(parents=True, exist_ok=True)
        failed += wait(args.jobs - 1)
        command = [sys.executable, __file__, "--out", str(where), "--cell", json.dumps(cell)]
        with (where / "log.txt").open("w") as log:
            started += 1
            shown = os.environ | ({"CUDA_VISIBLE_DEVICES": str(started % gpus)} if gpus > 1 else {})
            running.append((subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=shown), where))
    failed += wait(0)
    text = table(cells)
    write_text(args.out / "table.md", text)
    print(text)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
