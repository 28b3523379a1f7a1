"""unified-lift bench: a table of the paper as a resumable grid of scene x method x seed."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path

from unified_lift.bench.collect import collect
from unified_lift.bench.grid import Plan, expand, without_masks, write_commands
from unified_lift.bench.launchers import make_launcher
from unified_lift.bench.page import write_page
from unified_lift.bench.schedule import locked, run_grid, states_of
from unified_lift.bench.sheets import all_sheets, csv_text, latex, markdown, summary
from unified_lift.bench.tables import TABLES, chosen_rows, chosen_scenes
from unified_lift.cli.flags import canonical
from unified_lift.errors import UserError
from unified_lift.modelfolder.outputs import write_text
from unified_lift.modelfolder.settings import GeometrySettings

_GRID_SETS = (  # flags of train.py that place a cell in the grid
    "--iterations", "--seed", "--init-ply", "--source-path", "--model-path", "--object-path", "--schedule", "--preset",
    "--method", "--method-name", "--resume", "--overwrite", "--eval", "--no-eval", "--device",
)  # fmt: skip


def bench_main(argv: list[str]) -> int:
    """Run what is not done yet, write the tables; return 0, or 1 if there are results missing."""
    plan, args = parse(argv)
    cells = expand(plan)
    for scene, folder in without_masks(plan):
        print(f"note: {scene} has no masks {folder}/, its cells are left out")
    if not cells:
        raise UserError("--scenes: none of them has the masks this table trains on; make them first")
    with locked(plan.out):
        write_commands(cells, plan.out / "commands.txt")
        if not args.report:
            launcher = make_launcher(args.launcher, out=plan.out, jobs=args.jobs, parameters=args.slurm)
            # SIGINT too: a shell starts what it runs in the background with that signal ignored.
            stops = (signal.SIGINT, signal.SIGTERM)
            previous = {number: signal.signal(number, signal.default_int_handler) for number in stops}
            try:
                run_grid(cells, plan, launcher, lambda line: print(line, flush=True))
            except KeyboardInterrupt:
                print("interrupted; the same command goes on where this one stopped")
                return 130
            finally:
                for number, handler in previous.items():
                    signal.signal(number, handler)
        results = collect(plan, cells)
        sheets = all_sheets(results)
        write_text(plan.out / "results.csv", csv_text(results))
        write_text(plan.out / "table.md", markdown(sheets))
        write_text(plan.out / "table.tex", latex(sheets))
        write_text(plan.out / "summary.json", json.dumps(summary(results), indent=1))
        write_page(plan.out / "report.html", results, sheets)
    print(f"\n{markdown(sheets)}\n{plan.out / 'report.html'}: tables, plots and pictures")
    return int(any(state.status != "done" for state in states_of(cells, plan).values()))


def parse(argv: list[str]) -> tuple[Plan, argparse.Namespace]:
    """Return what the command line asks for.

    Raises:
        UserError: A scene or method is not there, or a flag for train.py would undo the grid.
    """
    cut = argv.index("--") if "--" in argv else len(argv)
    args = _parser().parse_args(argv[:cut])
    extra = canonical(argv[cut + 1 :])
    for word in extra:
        flag = word if word.startswith("-") else word.partition(":")[2]
        if flag and canonical([flag])[0].partition("=")[0] in _GRID_SETS:
            raise UserError(f"-- {word}: the benchmark sets this flag itself; see bench --help for its own")
    if args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, received {args.jobs}")
    if args.iterations < 1:
        raise UserError(f"--iterations must be at least 1, received {args.iterations}")
    table = TABLES[args.table]
    plan = Plan(
        table=table,
        out=args.out.resolve(),
        scenes=tuple(chosen_scenes(table, args.data.resolve(), args.scenes)),
        rows=tuple(chosen_rows(table, args.methods)),
        seeds=tuple(dict.fromkeys(args.seeds)),
        iterations=args.iterations,
        device=args.device,
        extra=tuple(extra),
        grounding=args.grounding,
    )
    args.slurm = _parameters(args.slurm)
    return plan, args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unified-lift bench",
        description="Train and score a table of the paper, scene by scene, method by method, seed by seed. "
        "A second call goes on where the first was stopped, and does again what failed. "
        "Example: unified-lift bench --table 3 --data data/messy_rooms --out output/table_3",
        epilog="Everything after -- goes to train.py; ROW:--flag=value to the cells of one row (or geometry) only.",
    )
    parser.add_argument("--table", choices=list(TABLES), required=True, help="rooms: every scene found in --data")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the scene folders")
    parser.add_argument("--out", type=Path, required=True, help="folder for models, logs and tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="rows of the table, other methods, or .yaml files"
    )
    parser.add_argument("--scenes", nargs="+", metavar="SCENE", help="these only; they need not be the table's own")
    parser.add_argument("--iterations", type=int, default=GeometrySettings().iterations, help="of the geometry")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--grounding", default="", help="of eval.py, for table 1; {scene} stands for the scene's name")
    parser.add_argument("--launcher", choices=["local", "submitit"], default="local")
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="such as timeout_min=60 gpus_per_node=1",
    )
    parser.add_argument("--report", action="store_true", help="run nothing, write the tables of what is there")
    return parser


def _parameters(words: list[str]) -> dict[str, str]:
    wrong = [word for word in words if not word.partition("=")[1]]
    if wrong:
        raise UserError(f"--slurm {wrong[0]}: write KEY=VALUE, such as timeout_min=60")
    return {key: value for key, _, value in (word.partition("=") for word in words)}
