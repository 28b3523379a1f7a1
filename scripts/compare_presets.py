"""Train, render and score one scene with several presets and seeds; print mean and spread as a Markdown table.

    python scripts/compare_presets.py -s SCENE -o OUT [--presets unified_lift released paper] [--seeds 0 1 2] [-- ARGS]

Everything after `--` goes to train.py (for example `--iterations 3000`); `PRESET:ARG` goes to that preset only. A cell
whose results.json exists is not run again, so an interrupted comparison continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("PQ_scene", "PQ_things", "mIoU", "F1", "PSNR", "minutes")


def main() -> int:
    argv = sys.argv[1:]
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-s", "--source_path", required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--presets", nargs="+", default=["unified_lift", "released", "paper"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args(argv[:cut])
    for seed in args.seeds:
        for preset in args.presets:
            model = args.out / f"{preset}_{seed}"
            if not (model / "results.json").exists():
                own = [word for given in argv[cut + 1 :] if (word := for_preset(given, preset)) is not None]
                run(args.source_path, model, preset, seed, own)
    print(table(args.out, args.presets, args.seeds))
    return 0


def for_preset(word: str, preset: str) -> str | None:
    """Return the word if it is meant for this preset, without its prefix."""
    head, colon, rest = word.partition(":")
    if not colon or head.startswith("-"):
        return word
    return rest if head == preset else None


def run(scene: str, model: Path, preset: str, seed: int, extra: list[str]) -> None:
    train = ["train.py", "-s", scene, "-m", str(model), "--preset", preset, "--seed", str(seed), "--eval"]
    resume = ["--resume"] if list(model.glob("chkpnt*.pth")) else ["--overwrite"]
    for command in (
        [*train, *resume, "--quiet", *extra],
        ["render.py", "-m", str(model), "--skip_train", "--no-video"],
        ["eval.py", "-m", str(model)],
    ):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def table(out: Path, presets: list[str], seeds: list[int]) -> str:
    """Return a Markdown table of mean and spread (largest - smallest) / 2 over the seeds that are done."""
    lines = ["| preset | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for preset in presets:
        models = [out / f"{preset}_{seed}" for seed in seeds]
        done = [cell(model) for model in models if (model / "results.json").exists()]
        columns = [entry([scores[name] for scores in done if name in scores]) for name in COLUMNS]
        lines.append(f"| `{preset}` | {len(done)} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def cell(model: Path) -> dict[str, float]:
    results = json.loads((model / "results.json").read_text())
    seconds = json.loads((model / "manifest.json").read_text())["seconds"]
    return next(reversed(results.values())) | {"minutes": (seconds["geometry"] + seconds.get("lift", 0.0)) / 60}


def entry(values: list[float]) -> str:
    if not values:
        return "-"
    digits = 1 if max(values) > 1 else 3
    spread = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
