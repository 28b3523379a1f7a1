"""Quality against each kind of noise in the masks, and against fewer views, for every method on synthetic rooms.

    python scripts/bench_robustness.py --out output/robustness --jobs 2
    python scripts/bench_robustness.py --out output/robustness --kinds drop merge --methods unified_lift gaga --seeds 0
    python scripts/bench_robustness.py --out output/robustness --report

One kind is varied at a time; the others stay at the defaults of SyntheticSettings. Photos and cameras of a seed do not
depend on its masks, so geometry is trained once for a seed (and once for each number of views), with the settings of
the preset `demo`, and all methods lift onto it. Fewer views: the first of the same training views; those held out stay.

OUT/results.jsonl has a line for each kind, level, method and seed. The same command goes on where it was stopped: what
is done with the same numbers of steps is not run again, what failed is tried again. OUT/robustness.png and
OUT/robustness.md show all that is there, with mean and spread over the seeds; a dotted line marks the default.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from unified_lift.bench.launchers import Worker
from unified_lift.cli.train import parse
from unified_lift.evaluation.plots import styled
from unified_lift.methods import METHODS
from unified_lift.model.ply import write_points
from unified_lift.modelfolder.outputs import iteration_dir, write_text
from unified_lift.modelfolder.settings import TrainSettings, with_preset
from unified_lift.synthetic.scene import (
    SyntheticSettings,
    build_cameras,
    surface_points,
    synthetic_room,
    write_synthetic,
)

BASE = SyntheticSettings(num_objects=12, width=160, height=120)
VIEWS = "views"
KINDS: dict[str, tuple[float, ...]] = {
    "drop": (0, 0.1, 0.2, 0.35, 0.5),
    "merge": (0, 0.05, 0.1, 0.2, 0.35),
    "split": (0, 0.1, 0.2, 0.35, 0.5),
    "jitter": (0, 0.5, 1, 1.5, 2.5),
    "false_positives": (0, 0.5, 1, 2, 4),
    VIEWS: (48, 32, 24, 16, 10),
}
AXES = {
    "drop": "probability that an object has no mask",
    "merge": "probability that touching objects share a mask",
    "split": "probability that a mask is cut in two",
    "jitter": "displacement of mask borders [pixels]",
    "false_positives": "masks on nothing, per view",
    VIEWS: "training views",
}
DEFAULT_METHOD = TrainSettings().method_name
RELEASED = "released"
ROWS: dict[str, tuple[str, ...]] = {
    DEFAULT_METHOD: ("--method", DEFAULT_METHOD),
    **{name: ("--method", name) for name in sorted(METHODS) if name != DEFAULT_METHOD},
    RELEASED: ("--preset", "released_staged"),
}
# What the preset `demo` gives the same room.
DEFAULT_METHOD_STEPS = 600
# Some methods take up to 5,000 steps by default; a sweep on a CPU has to end.
MAX_STEPS = 2000
# Not PQ_scene: where nearly all is predicted as background it leaves the class of the objects out and comes near 1.
METRIC = "mIoU"
SCORES = ("PQ_scene", "PQ_things", METRIC, "F1", "num_objects_pred")
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
Result = dict[str, Any]


class Cell(NamedTuple):
    """One thing to score: a method on a room whose masks have one kind of noise at one level."""

    kind: str
    level: float
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}_{self.level:g}_{self.method}_seed{self.seed}"


class CellError(Exception):
    """A cell could not be scored; the others can."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--methods", nargs="+", choices=ROWS, default=list(ROWS), metavar="METHOD", help=", ".join(ROWS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, help="geometry iterations; default: those of the preset demo")
    parser.add_argument(
        "--lift_iterations",
        type=int,
        help=f"most lift steps of any method, for short runs; by default {DEFAULT_METHOD} takes {DEFAULT_METHOD_STEPS} "
        f"and every other method as many as its preset says, but {MAX_STEPS} at most",
    )
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, each in one thread (%(default)s)")
    parser.add_argument("--report", action="store_true", help="run nothing, only draw what is there")
    args = parser.parse_args(argv)
    if args.jobs < 1 or any(value is not None and value < 1 for value in (args.iterations, args.lift_iterations)):
        parser.error("--jobs, --iterations and --lift_iterations must be at least 1")
    results = args.out / "results.jsonl"
    try:
        code = 0 if args.report else sweep(args, results)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        code = 130
    found = read_results(results)
    if found:
        write_text(args.out / "robustness.md", tables(found))
        figure(found).savefig(args.out / "robustness.png", dpi=150)
        print(f"{args.out / 'robustness.png'}, robustness.md: {len(found)} results")
    else:
        print(f"{results}: no results yet", file=sys.stderr)
    return code or int(not found)


def sweep(args: argparse.Namespace, results: Path) -> int:
    """Run the cells that are not done, appending to `results`; return 1 if one failed, else 0."""
    iterations = args.iterations or with_preset(TrainSettings(), "demo").geometry.iterations
    steps = {method: lift_steps(method, args.lift_iterations) for method in args.methods}
    cells = [
        Cell(kind, level, method, seed)
        for seed in dict.fromkeys(args.seeds)
        for kind in dict.fromkeys(args.kinds)
        for level in KINDS[kind]
        for method in steps
    ]
    known = read_results(results)
    todo = [cell for cell in cells if not is_done(known.get(cell), iterations, steps[cell.method])]
    failed = 0
    with (
        closing(Runner(args.out, jobs=args.jobs, iterations=iterations, steps=steps)) as runner,
        ThreadPoolExecutor(args.jobs) as pool,
        tqdm(total=len(cells), initial=len(cells) - len(todo), unit="cell", dynamic_ncols=True) as bar,
    ):
        futures = {pool.submit(runner.run, cell): cell for cell in todo}
        try:
            for future in as_completed(futures):
                cell = futures[future]
                try:
                    result = future.result()
                    append_result(results, result)
                    bar.set_postfix_str(f"{cell} {result[METRIC]:.3f}")
                except (CellError, OSError, ValueError, KeyError) as error:
                    failed += 1
                    bar.write(f"{cell}: failed: {error}")
                bar.update()
        except BaseException:  # Ctrl-C above all: what runs would hold us up for long
            runner.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return int(failed > 0)


def lift_steps(method: str, most: int | None) -> int:
    """Return the number of lift steps of a row: `DEFAULT_METHOD_STEPS`, or its preset's up to `MAX_STEPS`."""
    own = parse(["-s", "scene", "-m", "model", *ROWS[method]]).settings.lift.lift_iterations
    steps = DEFAULT_METHOD_STEPS if method == DEFAULT_METHOD else min(own if own > 0 else MAX_STEPS, MAX_STEPS)
    return steps if most is None else min(steps, most)


class Runner:
    """Makes rooms and geometry when a cell first needs them, trains and scores cells, `jobs` at a time."""

    def __init__(self, out: Path, *, jobs: int, iterations: int, steps: dict[str, int]) -> None:
        self.out, self.iterations, self.steps = out, iterations, steps
        self._workers = [Worker({**os.environ, **SINGLE_THREADED}) for _ in range(jobs)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._lock = threading.Lock()
        self._locks: dict[Path, threading.Lock] = {}
        self._broken: dict[Path, CellError] = {}
        self._stopping = False

    def run(self, cell: Cell) -> Result:
        """Return the scores of a cell.

        Raises:
            CellError: Training or scoring ended with an error.
        """
        worker = self._free.get()
        try:
            room = self._room(cell.kind, cell.level, cell.seed)
            geometry = self._geometry(worker, cell)
            began = time.perf_counter()
            model = self.out / "models" / str(cell)
            shutil.rmtree(model, ignore_errors=True)
            flags = ("--schedule", "staged", "--iterations", "0", "--init_ply", str(geometry / "point_cloud.ply"))
            flags += ("--random_init", "--num_random_points", "4", "--lift_iterations", str(self.steps[cell.method]))
            log = self._log(str(cell))
            self._execute(worker, log, self._train(room, model, cell.seed, *ROWS[cell.method], *flags))
            self._execute(worker, log, ["eval", "-m", str(model), "--quiet"])
            (scores,) = json.loads((model / "results.json").read_text()).values()
            if METRIC not in scores:
                raise CellError(f"eval left no {METRIC} ({log})")
            manifest = json.loads((model / "manifest.json").read_text())
            shutil.rmtree(model)  # hundreds of cells would fill a disk
            log.unlink()
            return {
                **cell._asdict(),
                **{name: scores[name] for name in SCORES if name in scores},
                "lift_seconds": manifest["seconds"]["lift"],
                "seconds": round(time.perf_counter() - began, 2),
                "iterations": self.iterations,
                "lift_iterations": self.steps[cell.method],
            }
        finally:
            self._free.put(worker)

    def stop(self) -> None:
        """End what runs; it is lost, and nothing more begins."""
        self._stopping = True
        for worker in self._workers:
            worker.signal(signal.SIGKILL)

    def close(self) -> None:
        """End the processes, which must be idle."""
        for worker in self._workers:
            worker.close()

    def _room(self, kind: str, level: float, seed: int) -> Path:
        path = self.out / "rooms" / f"{kind}_{level:g}_seed{seed}"
        return self._made_once(path, lambda partial: write_room(partial, kind, level, seed))

    def _geometry(self, worker: Worker, cell: Cell) -> Path:
        """Return the folder with the point cloud that all methods lift onto: that of the seed and number of views."""
        views = int(cell.level) if cell.kind == VIEWS else BASE.num_train
        name = f"seed{cell.seed}_{views}views_{self.iterations}"

        def train(partial: Path) -> None:
            room, log = self._room(VIEWS, views, cell.seed), self._log(f"geometry_{name}")
            flags = ("--preset", "demo", "--iterations", str(self.iterations), "--lift_iterations", "0")
            self._execute(worker, log, self._train(room, partial / "model", cell.seed, *flags))
            (iteration_dir(partial / "model", self.iterations) / "point_cloud.ply").rename(partial / "point_cloud.ply")
            shutil.rmtree(partial / "model")
            log.unlink()

        return self._made_once(self.out / "geometry" / name, train)

    def _made_once(self, path: Path, make: Callable[[Path], None]) -> Path:
        """Return a folder that is there whole, or is made now, by one thread while others wait for it."""
        with self._lock:
            lock = self._locks.setdefault(path, threading.Lock())
        with lock:
            if path in self._broken:
                raise self._broken[path]
            if not path.exists():
                partial = path.with_name(path.name + ".partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                try:
                    make(partial)
                except CellError as error:
                    self._broken[path] = error
                    raise
                partial.rename(path)
        return path

    def _train(self, room: Path, model: Path, seed: int, *flags: str) -> list[str]:
        command = ["train", "-s", str(room), "-m", str(model), "--eval", "--seed", str(seed), *flags]
        return [*command, "--checkpoint_minutes", "0", "--logger", "none", "--quiet"]

    def _execute(self, worker: Worker, log: Path, command: list[str]) -> None:
        code = 0 if self._stopping else worker.execute(command, log)
        if self._stopping:
            raise CellError("interrupted")
        if code:
            lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
            raise CellError(f"{command[0]} ended with {code}: {lines[-1] if lines else 'no message'} ({log})")

    def _log(self, name: str) -> Path:
        """Return an empty log; only those of failed cells stay."""
        path = self.out / "logs" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        return path


def write_room(root: Path, kind: str, level: float, seed: int) -> None:
    """Write the room of a seed with one kind of noise at a level, or with only so many training views."""
    if kind != VIEWS:
        write_synthetic(root, replace(BASE, seed=seed, **{kind: level}))
        return
    settings = replace(BASE, seed=seed)
    write_synthetic(root, settings)
    if level < settings.num_train:
        keep_training_views(root, settings, int(level))


def keep_training_views(root: Path, settings: SyntheticSettings, count: int) -> None:
    """Leave a room only its first `count` training views, and initial points only on what these see.

    A smaller `num_views` would also hold out fewer views, and others, whose scores could not be compared.
    """
    path = root / "transforms.json"
    content = json.loads(path.read_text())
    content["train_filenames"] = content["train_filenames"][:count]
    kept = {*content["train_filenames"], *content["test_filenames"]}
    content["frames"] = [frame for frame in content["frames"] if frame["file_path"] in kept]
    path.write_text(json.dumps(content, indent=1))
    room = synthetic_room(settings)
    cameras = list(build_cameras(room, settings)[:count])
    images, _, depths = zip(*map(room.render, cameras), strict=True)
    rng = np.random.default_rng([settings.seed, 3])
    points = surface_points(cameras, list(images), list(depths), count=settings.num_points, rng=rng)
    write_points(root / "points3D.ply", points)


def is_done(result: Result | None, iterations: int, steps: int) -> bool:
    """Return whether there is a result of these numbers of geometry iterations and lift steps."""
    return result is not None and (result["iterations"], result["lift_iterations"]) == (iterations, steps)


def read_results(path: Path) -> dict[Cell, Result]:
    """Return the results by cell; a later line replaces an earlier one, and a line that was broken off is none."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[Cell(*(result[name] for name in Cell._fields))] = result
    return found


def append_result(path: Path, result: Result) -> None:
    """Append a line, on a line of its own even after one that was broken off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    broken_off = path.exists() and not path.read_text().endswith("\n") and path.stat().st_size > 0
    with open(path, "a") as file:
        file.write("\n" * broken_off + json.dumps(result) + "\n")


def by_level(found: dict[Cell, Result], kind: str, method: str) -> dict[float, list[float]]:
    """Return the scores of all seeds at each level, from little noise to much."""
    values: dict[float, list[float]] = {}
    for cell, result in found.items():
        if (cell.kind, cell.method) == (kind, method):
            values.setdefault(cell.level, []).append(result[METRIC])
    return {level: values[level] for level in sorted(values, reverse=kind == VIEWS)}


def present(known: Iterable[str], used: Iterable[str]) -> list[str]:
    """Return the names that are used, in the order in which we know them."""
    used = set(used)
    return [name for name in known if name in used]


def tables(found: dict[Cell, Result]) -> str:
    """Return a Markdown table of mean and half range for each kind of noise."""
    kinds, methods = present(KINDS, (c.kind for c in found)), present(ROWS, (c.method for c in found))
    seeds = sorted({cell.seed for cell in found})
    steps = {
        method: sorted({r["lift_iterations"] for c, r in found.items() if c.method == method}) for method in methods
    }
    listed = ", ".join(f"`{method}` {' or '.join(map(str, counts))}" for method, counts in steps.items())
    lines = [
        "# Robustness",
        "",
        f"{METRIC} of synthetic rooms with {BASE.num_objects} objects, {BASE.width}x{BASE.height}: mean ± half the "
        f"range over the seeds {', '.join(map(str, seeds))}; in brackets: how many seeds, where some are missing. "
        f"Lift steps: {listed}.",
    ]
    for kind in kinds:
        columns = {method: by_level(found, kind, method) for method in methods}
        levels = sorted({level for values in columns.values() for level in values}, reverse=kind == VIEWS)
        lines += ["", f"## {kind}: {AXES[kind]}", ""]
        lines += ["| method | " + " | ".join(f"{level:g}" for level in levels) + " |", "|---" * (len(levels) + 1) + "|"]
        for method in methods:
            entries = [entry(columns[method].get(level, []), len(seeds)) for level in levels]
            lines.append(f"| `{method}` | " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def entry(values: list[float], num_seeds: int) -> str:
    """Return mean and half range as text, and the number of values where it is not `num_seeds`."""
    if not values:
        return "-"
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}" + (f" ({len(values)})" if len(values) < num_seeds else "")


@styled
def figure(found: dict[Cell, Result]) -> Figure:
    """Return a panel for each kind of noise: mean over the seeds against the level, a band from worst to best."""
    kinds, methods = present(KINDS, (c.kind for c in found)), present(ROWS, (c.method for c in found))
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    drawn = Figure(figsize=(3.6 * columns, 2.6 * rows + 0.7), layout="constrained")
    panels = drawn.subplots(rows, columns, sharey=True, squeeze=False).reshape(-1)
    colors = dict(zip(ROWS, ["black", *matplotlib.colormaps["tab10"].colors]))
    for panel, kind in zip(panels, kinds):
        for method in methods:
            values = by_level(found, kind, method)
            if not values:
                continue
            is_default = method == DEFAULT_METHOD
            style = {"linewidth": 2.6, "zorder": 4} if is_default else {"linewidth": 1.3, "zorder": 3}
            levels, means = list(values), [statistics.mean(scores) for scores in values.values()]
            panel.plot(levels, means, marker="o", markersize=3.5, color=colors[method], label=method, **style)
            ends = [[pick(scores) for scores in values.values()] for pick in (min, max)]
            panel.fill_between(levels, *ends, color=colors[method], alpha=0.15, linewidth=0, zorder=2)
        panel.set_xlabel(AXES[kind])
        if kind == VIEWS:
            panel.invert_xaxis()  # harder to the right, as in the other panels
        else:
            panel.axvline(getattr(BASE, kind), color="grey", linestyle=":", linewidth=1, zorder=1)
    for panel in panels[len(kinds) :]:
        panel.remove()
    for row in range(rows):
        panels[row * columns].set_ylabel(METRIC)
    handles = {label: line for panel in drawn.axes for line, label in zip(*panel.get_legend_handles_labels())}
    shown = present(ROWS, handles)
    drawn.legend([handles[name] for name in shown], shown, loc="outside lower center", ncols=columns + 1, frameon=False)
    return drawn


if __name__ == "__main__":
    sys.exit(main())
