"""unified-lift demo: a synthetic scene through the whole program, on a CPU, in about two minutes."""

import time
from dataclasses import dataclass
from pathlib import Path

from unified_lift.cli.evaluate import eval_main
from unified_lift.cli.flags import parsed
from unified_lift.cli.render import render_main
from unified_lift.cli.train import train_main
from unified_lift.errors import UserError
from unified_lift.fileio import holds_files, replacing_folder
from unified_lift.modelfolder.outputs import holds_run, read_run_settings
from unified_lift.synthetic.scene import SyntheticSettings, write_synthetic


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Write a synthetic scene to `<out>_scene`, train it into `<out>`, render, score.

    Example: unified-lift demo --out output/demo
    """

    out: Path = Path("output/demo")
    """Model folder; replaced if it is a demo."""
    seed: int = 0
    """Seed of the scene and of the training."""


def demo_main(argv: list[str]) -> int:
    """Make, train, render and score the synthetic scene. Return the exit code."""
    args = parsed(DemoCommand, argv, command="demo")
    began = time.perf_counter()
    scene = args.out.with_name(args.out.name + "_scene")
    if holds_files(scene) and not (scene / "scene.json").is_file():
        raise UserError(f"{scene}: is there and no demo scene; choose another --out")
    is_demo = (args.out / "config.yaml").is_file() and read_run_settings(args.out).preset == "demo"
    if holds_run(args.out) and not is_demo:
        raise UserError(f"{args.out}: holds a run that is no demo; choose another --out")
    with replacing_folder(scene, outdated=("*",)) as made:
        write_synthetic(made, SyntheticSettings(seed=args.seed))
    print(f"{scene}: synthetic room written")
    model = ["-m", str(args.out)]
    train = ["-s", str(scene), *model, "--preset", "demo", "--eval", "--overwrite", "--seed", str(args.seed)]
    code = train_main(train, says_next=False) or render_main([*model, "--skip-train"]) or eval_main(model)
    if not code:
        print(f"done in {time.perf_counter() - began:.0f} s; open {args.out / 'report.html'}")
    return code
