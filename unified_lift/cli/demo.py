"""unified-lift demo: a synthetic scene through the whole program, on a CPU, in about two minutes."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from unified_lift.cli.evaluate import eval_main
from unified_lift.cli.render import render_main
from unified_lift.cli.train import train_main
from unified_lift.data.synthetic import SyntheticSettings, write_synthetic


def demo_main(argv: list[str]) -> int:
    """Write `<out>_scene`, train it into `<out>`, render, score; return the exit code."""
    parser = argparse.ArgumentParser(prog="unified-lift demo", description=demo_main.__doc__.split(";")[0])
    parser.add_argument("--out", type=Path, default=Path("output/demo"), help="model folder; replaced if it is a demo")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    began = time.perf_counter()
    scene = args.out.with_name(args.out.name + "_scene")
    shutil.rmtree(scene, ignore_errors=True)
    write_synthetic(scene, SyntheticSettings(seed=args.seed))
    print(f"{scene}: synthetic room written")
    steps = (
        (train_main, ["-s", str(scene), "-m", str(args.out), "--preset", "demo", "--eval", "--overwrite"]),
        (render_main, ["-m", str(args.out), "--skip-train"]),
        (eval_main, ["-m", str(args.out)]),
    )
    for door, arguments in steps:
        code = door([*arguments, *(["--seed", str(args.seed)] if door is train_main else [])])
        if code:
            return code
    print(f"done in {time.perf_counter() - began:.0f} s; open {args.out / 'report.html'}")
    return 0
