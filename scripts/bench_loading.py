"""Where the seconds go between a scene folder and the first step of a training.

    python scripts/bench_loading.py -s SCENE                      # each stage, and how often a file is opened

Points are triangulated even where the scene has its own. The best of --repeats counts; "cpu" is the time of all threads
together, which other work on the machine changes less than wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from unified_lift.data import load_scene
from unified_lift.data import scene as scenes
from unified_lift.data.points import random_in_frusta
from unified_lift.data.settings import DataSettings
from unified_lift.data.triangulation import best_tracks, find_features, matched_tracks, solve_tracks

Out = TypeVar("Out")


def main(argv: list[str] | None = None) -> int:
    """Print the stages of loading a scene, and write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-s", "--source_path", type=Path, required=True, help="scene folder")
    parser.add_argument("-r", "--resolution", type=int, default=-1, help="as of train.py")
    parser.add_argument("--repeats", type=int, default=3, help="(3)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args(argv)
    settings = DataSettings(source_path=args.source_path, resolution=args.resolution, eval=True)
    scenes.initial_points = _no_points  # type: ignore[assignment]  # they are made below, stage by stage
    opened, best = _count_opened(args.source_path), dict[str, tuple[float, float]]()

    def timed(name: str, work: Callable[[], Out]) -> Out:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        spent = time.perf_counter() - wall, time.process_time() - cpu
        best[name] = min(best.get(name, spent), spent)
        return result

    for _ in range(args.repeats):
        opened.clear()
        views = timed("photos and masks", lambda: load_scene(settings)).train
        cameras, features = timed("corners", lambda views=views: find_features(views))
        tracks = timed("matches", lambda cameras=cameras, features=features: matched_tracks(cameras, features))
        points, _ = timed("points", lambda cameras=cameras, tracks=tracks: solve_tracks(best_tracks(tracks), cameras))
    for name, (wall, cpu) in best.items():
        print(f"{name:<18} {wall:6.2f} s   cpu {cpu:6.2f} s")
    print(f"{'all':<18} {sum(wall for wall, _ in best.values()):6.2f} s   {len(points)} points of {len(views)} views")
    print("files opened so many times:", dict(sorted(Counter(opened.values()).items())))
    if args.json is not None:
        args.json.write_text(json.dumps({"seconds": best, "points": len(points), "views": len(views)}))
    return 0


def _no_points(views, settings, *, own):  # noqa: ANN001, ANN202, ARG001 (as initial_points)
    return random_in_frusta([view.camera for view in views], count=4, seed=0), ""


def _count_opened(root: Path) -> Counter[str]:
    """Return how often each file below a folder is opened from now on."""
    counts, below = Counter[str](), os.path.realpath(root)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            path = os.path.realpath(arguments[0])
            if path.startswith(below):
                counts[path] += 1

    sys.addaudithook(watch)
    return counts


if __name__ == "__main__":
    sys.exit(main())
