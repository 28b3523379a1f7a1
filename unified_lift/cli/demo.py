"""unified-lift demo: a synthetic scene through the whole program, on a CPU, in about two minutes."""

import argparse
import time
from pathlib import Path

from unified_lift.cli.evaluate import eval_main
from unified_lift.cli.render import render_main
from unified_lift.cli.train import train_main
from unified_lift.errors import UserError
from unified_lift.fileio import replacing_folder
from unified_lift.modelfolder.outputs import holds_run, read_run_settings
from unified_lift.synthetic.scene import SyntheticSettings, write_synthetic


def demo_main(argv: list[str]) -> int:
    """Make, train, render and score the synthetic scene. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="unified-lift demo",
        description="Write `<out>_scene`, train it into `<out>`, render, score.",
        epilog="Example: unified-lift demo --out output/demo",
    )
    parser.add_argument("--out", type=Path, default=Path("output/demo"), help="model folder; replaced if it is a demo")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    began = time.perf_counter()
    scene = args.out.with_name(args.out.name + "_scene")
    if scene.exists() and any(scene.iterdir()) and not (scene / "scene.json").is_file():
        raise UserError(f"{scene}: is there and no demo scene; choose another --out")
    is_demo = (args.out / "config.yaml").is_file() and read_run_settings(args.out).preset == "demo"
    if holds_run(args.out) and not is_demo:
        raise UserError(f"{args.out}: holds a run that is no demo; choose another --out")
    with replacing_folder(scene, outdated=("*",)) as made:
        write_synthetic(made, SyntheticSettings(seed=args.seed))
    print(f"{scene}: synthetic room written")
    model = ["-m", str(args.out)]
    train = ["-s", str(scene), *model, "--preset", "demo", "--eval", "--overwrite", "--seed", str(args.seed)]
    code = train_main(train) or render_main([*model, "--skip-train"]) or eval_main(model)
    if not code:
        print(f"done in {time.perf_counter() - began:.0f} s; open {args.out / 'report.html'}")
    return code
