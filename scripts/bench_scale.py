"""How time and memory grow with the size of a scene: sweeps over made-up scenes, resumable, with a table of each.

    python scripts/bench_scale.py --objects 10 100 1000 10000 --json output/scale.jsonl
    python scripts/bench_scale.py --gaussians 1e5 1e6 1e7 2e7 --device cuda --json output/scale.jsonl --plot scale.png
    python scripts/bench_scale.py --photos 100 1000 5000 --sizes 320 640 1280 --ranks 1 2 --json output/scale.jsonl

A sweep (scripts/scale_sweeps.py) is a function of a size that returns its figures; each size runs in a process of its
own, so that peaks of memory are its own. What --json already holds is not run again; a size that fails is told, and the
others go on. --plot draws time and memory of all that --json holds, one curve a part.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench_ranks import finished, write_lines
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scale_sweeps import SWEEPS, Setup, measured

from unified_lift.evaluation.plots import styled, subplots

_SECONDS = {"s": 1.0, "ms/step": 1e-3, "ms/view": 1e-3}  # what a unit is, which a column's name ends with
_MARKERS, _PANEL_INCHES = "osDv^<>PX*hpd", (4.4, 2.9)
Line = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Run the sizes that are missing, and print a table for each sweep; 1 where some failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, sweep in SWEEPS.items():
        sizes: dict[str, Any] = {"type": _count, "nargs": "+", "default": [], "metavar": "N"}
        parser.add_argument(f"--{name}", help=sweep.help, **sizes)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(cpu)")
    width = "of the photos of --gaussians and --ranks, pixels (640 and 160; with --device cuda 1296 and 640)"
    parser.add_argument("--width", type=_count, help=width)
    parser.add_argument("--json", type=Path, help="file of finished sizes, a line each")
    parser.add_argument("--plot", type=Path, help="picture of time and memory against size, .png or .svg")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # sweep, size and width, in a process of its own
    args = parser.parse_args(argv)
    if args.one is not None:
        name, size, width = args.one
        print(json.dumps(measured(name, Setup(int(size), args.device, int(width)))))
        return 0
    if args.plot is not None and args.plot.suffix not in (".png", ".svg"):
        parser.error(f"--plot {args.plot}: name a .png or .svg")
    done, failed = finished(args.json) if args.json else [], 0
    for name, sweep in SWEEPS.items():
        for size in getattr(args, name):
            width = args.width or sweep.widths[args.device] if sweep.widths else 0
            key = {"sweep": name, "size": size, "device": args.device} | ({"width": width} if width else {})
            if any(key.items() <= line.items() for line in done):
                continue
            command = [sys.executable, __file__, "--one", name, str(size), str(width), "--device", args.device]
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode:
                why = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
                print(f"--{name} {size}: failed ({ran.returncode}): {why}", file=sys.stderr)
                failed += 1
                continue
            done.append(key | json.loads(ran.stdout.splitlines()[-1]))
            if args.json is not None:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                write_lines(args.json, done)
        print_table(name, [line for line in done if line["sweep"] == name])
    if args.plot is not None and done:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        scale_figure(done).savefig(args.plot, dpi=130)
    return 1 if failed else 0


def _count(text: str) -> int:
    """Return a count such as 20000000 or 2e7."""
    value = float(text)
    if not (value >= 1 and value.is_integer()):
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(value)


def print_table(name: str, lines: list[Line]) -> None:
    """Print the figures of a sweep, whose columns are those of any line."""
    if lines:
        names = list(dict.fromkeys(key for line in lines for key in line if key != "sweep"))
        print(f"{name}: {SWEEPS[name].clock}")
        print(f"| {name} | " + " | ".join(names[1:]) + " |\n" + "|---" * len(names) + "|")
        for line in sorted(lines, key=lambda one: [str(one.get("device")), one.get("width", 0), one["size"]]):
            print("| " + " | ".join(str(line.get(key, "")) for key in names) + " |")


# ---- the picture ----


@styled
def scale_figure(lines: list[Line]) -> Figure:
    """Return time and memory against size on logarithmic axes: a row for each sweep and device, a curve for each part.

    Memory is that of the GPU where there is one.
    """
    rows: dict[tuple[str, str, int], list[Line]] = {}
    for line in sorted(lines, key=lambda one: one["size"]):
        rows.setdefault((line["sweep"], line["device"], line.get("width", 0)), []).append(line)
    order = {name: place for place, name in enumerate(SWEEPS)}
    ordered = sorted(rows, key=lambda row: (order[row[0]], *row[1:]))
    figure, axes = subplots(len(rows), 2, width=2 * _PANEL_INCHES[0], height=_PANEL_INCHES[1])
    for row, left, right in zip(ordered, axes[::2], axes[1::2], strict=True):
        name, device, width = row
        title = f"{name}, {device}" + (f", photos {width} wide" if width else "")
        _draw(left, rows[row], _SECONDS, f"{title}: seconds")
        _draw(right, rows[row], {"MiB": 1.0}, f"{title}: MiB")
        for axis in (left, right):
            axis.set_xlabel(SWEEPS[name].what)
    return figure


def _draw(axis: Axes, lines: list[Line], units: dict[str, float], title: str) -> None:
    """Draw a curve for each column whose name ends with a unit."""
    named = dict.fromkeys(key for line in lines for key in line)  # making the scene up is no part of the program
    columns = [key for key in named if key.split()[-1] in units and key != "scene s"]
    for marker, column in zip(_MARKERS * len(columns), columns):
        unit = column.split()[-1]
        points = [(line["size"], line[column] * units[unit]) for line in lines if line.get(column)]
        if points:
            label = column.removesuffix(unit).strip(" ,") + (f", a {unit.removeprefix('ms/')}" if "/" in unit else "")
            style = "--" if "/" in unit else "-"
            axis.plot(*zip(*points), style, marker=marker, markersize=3, linewidth=1.2, label=label)
    axis.set_title(title, loc="left")
    axis.set_xscale("log")
    axis.set_yscale("log")
    sizes = sorted({line["size"] for line in lines})
    axis.set_xticks(sizes, [f"{size / 1e6:g}M" if size >= 1e6 else f"{size:,}" for size in sizes])
    low, high = axis.get_ylim()
    axis.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
    axis.yaxis.set_major_formatter("{x:g}")
    for each in (axis.xaxis, axis.yaxis):
        each.set_minor_formatter("")
    if columns:
        axis.legend(fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


if __name__ == "__main__":
    raise SystemExit(main())
