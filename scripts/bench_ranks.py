"""One scene in one process and in several: images a second, pixels a second, scores, memory of a process.

    python scripts/bench_ranks.py SCENE --out output/ranks --ranks 1 2 -- --iterations 7000
    python scripts/bench_ranks.py SCENE --out output/lift --ranks 1 2 -- --init_ply splat.ply --iterations 0

What follows `--` are flags of train.py; `--seeds 0 1 2` repeats it all. Each training is a command of its own, by
torchrun for more than one process, in `out/<ranks>_<seed>`, and a line of `out/ranks.jsonl`; it is not measured again
while its flags stay. Rates are medians of the log's lines behind the first quarter of a stage, so that loading, first
steps and checkpoints do not count; `seconds` are whole stages. Scores are those of `eval` on held-out views. Memory is
the peak of the first process on its GPU, or of the largest process in main memory on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from unified_lift.fileio import write_text
from unified_lift.modelfolder.outputs import read_run_settings
from unified_lift.train.logs import read_log

ROOT = Path(__file__).parents[1]
FIXED = ["--eval", "--logger", "none", "--quiet", "--overwrite"]
COLUMNS = ("ranks", "seed", "images_per_s", "pixels_per_s", "PSNR", "PQ", "num_gaussians", "peak_GiB", "seconds")


def trained(scene: Path, model: Path, ranks: int, seed: int, flags: list[str]) -> dict[str, Any]:
    """Train and score; return what is measured."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "unified_lift", "train", "-s", str(scene), "-m", str(model)]
    peak_kib = done_with([*command, "--seed", str(seed), *FIXED, *flags], model.with_suffix(".log"))
    manifest, log = json.loads((model / "manifest.json").read_text()), read_log(model)
    peaks = {stage: peak["allocated"] for stage, peak in manifest.get("peak_gpu_bytes", {}).items()}
    found: dict[str, Any] = {"ranks": ranks, "seed": seed, "flags": flags, "device": manifest["device"]}
    found |= {"num_gaussians": manifest["num_gaussians"], "stages_s": manifest["seconds"], "peak_bytes": peaks}
    found["seconds"] = sum(manifest["seconds"].values())
    found["peak_GiB"] = max(peaks.values(), default=1024 * peak_kib) / 2**30
    if steps := step_seconds(log, "geometry"):
        found["images_per_s"] = 1 / steps
    if steps := step_seconds(log, "lift"):
        found["pixels_per_s"] = read_run_settings(model).lift.lift_pixels / steps
    scored = [line["psnr"] for line in log if line["stage"] == "test"]
    found |= {"PSNR": scored[-1]} if scored else {}
    if manifest["test_views"]:
        done_with([sys.executable, "-m", "unified_lift", "eval", "-m", str(model)], model.with_suffix(".eval.log"))
        (results,) = json.loads((model / "results.json").read_text()).values()
        found["scores"] = {name: value for name, value in results.items() if isinstance(value, int | float)}
        found |= {"PQ": found["scores"]["PQ_scene"]} if "PQ_scene" in found["scores"] else {}
    return found


def step_seconds(log: list[dict[str, Any]], stage: str) -> float | None:
    """Return the median seconds of a view's part of a step behind the first quarter of a stage, None without any."""
    lines = [line for line in log if line["stage"] == stage]
    late = [line["seconds_per_step"] for line in lines if line["step"] > lines[-1]["step"] / 4]
    return statistics.median(late) if late else None


def done_with(command: list[str], log: Path) -> int:
    """Run a command, which must succeed, its output in a file; return the KiB of its largest process."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with log.open("w") as file:
        started = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(started.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)}: failed ({code}), see {log}")
    return usage.ru_maxrss


def finished(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results; a last one that was torn when the machine went down is done again."""
    lines, rows = file.read_text().splitlines() if file.exists() else [], []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                sys.exit(f"{file}: line {number} is no JSON ({error}); remove it")
    return rows


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write a file of results whole or not at all."""
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown, and after them each number of ranks against the fewest, as the mean over seeds."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        lines.append("| " + " | ".join(f"{row[c]:.5g}" if c in row else "-" for c in COLUMNS) + " |")
    fewest = min(row["ranks"] for row in rows)
    for ranks in sorted({row["ranks"] for row in rows} - {fewest}):
        means = {
            name: [statistics.fmean([r[name] for r in rows if r["ranks"] == n and name in r]) for n in (fewest, ranks)]
            for name in COLUMNS[2:]
            if all(name in row for row in rows)
        }
        parts = [
            f"{name} {b - a:+.3g}" if name.startswith("P") else f"{name} x {b / a:.3g}"
            for name, (a, b) in means.items()
        ]
        lines.append(f"\n{ranks} against {fewest}: {', '.join(parts)}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure what is not measured yet, and print the table."""
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args, flags = parser.parse_args(argv[:cut]), argv[cut + 1 :]
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "ranks.jsonl"
    rows = finished(file)
    for seed in args.seeds:
        for ranks in args.ranks:
            if any((row["ranks"], row["seed"], row["flags"]) == (ranks, seed, flags) for row in rows):
                continue
            rows.append(trained(args.scene.resolve(), args.out / f"{ranks}_{seed}", ranks, seed, flags))
            write_lines(file, rows)
    print(table([row for row in rows if row["flags"] == flags]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
