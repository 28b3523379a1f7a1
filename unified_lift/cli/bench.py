"""unified-lift bench: a table of the paper, or one of our own, as a resumable grid of scene x method x seed."""

import importlib.util
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unified_lift.bench.grid import Grid, Job, expand, places, shell_line
from unified_lift.bench.run import LocalPool, SubmititPool, read_records, run_grid
from unified_lift.bench.tables import KINDS, PRESETS, ROBUSTNESS, TABLES, chosen_rows, chosen_scenes, write_room
from unified_lift.cli.flags import canonical, parsed
from unified_lift.cli.names import near_path
from unified_lift.errors import UserError
from unified_lift.fileio import locked, write_text
from unified_lift.modelfolder.settings import GeometrySettings, TrainSettings, with_preset
from unified_lift.provenance import Provenance, near, told_command

_GRID_SETS = (  # flags of train.py that place a job in the grid
    "--iterations --seed --init-ply --source-path --model-path --object-path --schedule --preset --method "
    "--method-name --resume --overwrite --eval --no-eval --device --provenance"
).split()


@dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """Train and score a table, scene by scene, method by method, seed by seed.

    A second call goes on where the first was stopped, and does again what failed. Everything after -- goes to train.py;
    ROW:--flag=value to the jobs of one row (or geometry) only.

    Example: unified-lift bench --table 3 --data data/messy_rooms --out output/table_3
    """

    table: Literal[tuple(TABLES)]  # type: ignore[valid-type]
    """1 to 4: the paper's; rooms: every scene found in --data; robustness: synthetic rooms with wrong masks or fewer
    views; presets: presets trained whole, with times."""
    data: Path | None = None
    """Folder that holds the scene folders (robustness makes its own)."""
    out: Path
    """Folder for models, logs and tables."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trainings."""
    methods: tuple[str, ...] = ()
    """Rows of the table, other methods, presets, or .yaml files; none = all rows."""
    scenes: tuple[str, ...] = ()
    """These only; they need not be the table's own."""
    masks: tuple[str, ...] = ()
    """rooms: mask sets by name, such as simulated net edges."""
    iterations: int | None = None
    """Of the geometry; default: 30000, robustness: 1600, presets: each its own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    jobs: int = 1
    """Jobs at a time."""
    grounding: str = ""
    """Of eval.py, for table 1; {scene} stands for the scene's name."""
    kinds: tuple[Literal[tuple(KINDS)], ...] = tuple(KINDS)  # type: ignore[valid-type]
    """robustness: these kinds of noise only."""
    lift_iterations: int | None = None
    """robustness: most lift steps of any method, for short runs."""
    timeline: tuple[int, ...] = ()
    """presets: score at each of these numbers of iterations."""
    room: tuple[str, str] | None = None
    """KIND AMOUNT: only write a room of robustness, or a house: rooms 9."""
    launcher: Literal["local", "submitit"] = "local"
    """Where jobs run."""
    slurm: tuple[str, ...] = ()
    """KEY=VALUE each, such as timeout_min=60 gpus_per_node=1."""
    provenance: Provenance = "relative"
    """How files name places, as of train.py."""
    report: bool = False
    """Run nothing, write the tables of the results so far."""


def bench_main(argv: list[str], pool: LocalPool | None = None) -> int:
    """Run what is not done yet in `pool`, write the tables; return 0, or 1 if there are results missing."""
    grid, args = parse(argv)
    if args.room:
        write_room(grid.out, *args.room, seed=grid.seeds[0])
        return 0
    if importlib.util.find_spec("pandas") is None:
        raise UserError("bench needs pandas, which is not installed; pip install 'unified-lift[bench]'")
    jobs = expand(grid)
    missing = {(place.scene.name, place.masks.label): None for place in places(grid) if not place.has_masks}
    for scene, masks in missing:
        print(f"note: {scene} has no masks {masks}, its jobs are left out")
    if not jobs:
        raise UserError("--scenes: none of them has the masks this table trains on; make them first")
    with locked(grid.out, "a bench"):
        if not args.report:
            _write_commands(grid, jobs)
            for number in (signal.SIGTERM, signal.SIGINT):  # which a shell ignores for what runs in the background
                signal.signal(number, signal.default_int_handler)
            if pool is None and args.launcher == "submitit":
                parameters = dict(word.split("=", 1) for word in args.slurm)
                pool = SubmititPool(args.jobs, folder=grid.out / "submitit", parameters=parameters)
            pool = pool or LocalPool(args.jobs, threads=1 if grid.table.key == ROBUSTNESS else None)
            try:
                run_grid(jobs, pool, lambda line: print(line, flush=True))
            except KeyboardInterrupt:
                print("interrupted; the same command goes on where this one stopped")
                return 130
        from unified_lift.bench.report import write_report  # its libraries are slow to import

        records = read_records(jobs, of_any=args.report)
        if others := sum(record.is_of_other_commands(job) for job, record in zip(jobs, records.values(), strict=True)):
            print(f"note: {others} of {len(jobs)} jobs were run with other flags than these, see commands.txt")
        if grid.provenance == "relative" and all(record.status == "done" for record in records.values()):
            shutil.rmtree(grid.out / "submitit", ignore_errors=True)  # its files name places, users and machines
        print(f"\n{write_report(grid, records)}\n{near_path(grid.out) / 'report.html'}: tables, plots and pictures")
    return int(any(record.status != "done" for record in records.values()))


def _write_commands(grid: Grid, jobs: Sequence[Job]) -> None:
    """Write what the jobs run, as lines for a shell."""
    place, how = near(grid.out), grid.provenance
    title = f"# in the folder {'of this file' if place == grid.out else 'where the benchmark was started'}\n"
    commands = {job.key: [told_command(command, place, how) for command in job.commands] for job in jobs}
    texts = ["\n".join([f"# {key}", *map(shell_line, lines), ""]) for key, lines in commands.items()]
    write_text(grid.out / "commands.txt", "\n".join([title, *texts]))


def parse(argv: list[str]) -> tuple[Grid, BenchCommand]:
    """Return what the command line asks for; a UserError: no such scene or row, or a flag that would undo the grid."""
    cut = argv.index("--") if "--" in argv else len(argv)
    args = parsed(BenchCommand, argv[:cut], command="bench")
    extra = canonical(argv[cut + 1 :])
    for word in extra:
        flag = word if word.startswith("-") else word.partition(":")[2]
        if flag and canonical([flag])[0].partition("=")[0] in _GRID_SETS:
            raise UserError(f"-- {word}: the benchmark sets this flag itself; see bench --help for its own")
    for name in ("jobs", "iterations", "lift_iterations"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, received {value}")
    if wrong := [word for word in args.slurm if not word.partition("=")[1]]:
        raise UserError(f"--slurm {wrong[0]}: write KEY=VALUE, such as timeout_min=60")
    table = TABLES[args.table].on(args.masks)
    if args.timeline and (table.key != PRESETS or min(args.timeline) < 1):
        raise UserError("--timeline: give numbers of iterations from 1 on, with --table presets")
    seeds = tuple(dict.fromkeys(args.seeds or BenchCommand.seeds))
    scenes = chosen_scenes(table, args.data and args.data.resolve(), args.scenes or None, *(args.kinds or KINDS))
    full = GeometrySettings().gpu_iterations  # on every device, so that tables can be compared
    full = with_preset(TrainSettings(), "demo").geometry.iterations if table.key == ROBUSTNESS else full
    grid = Grid(
        table=table,
        out=args.out.resolve(),
        scenes=tuple(scenes[:1] if args.timeline else scenes),
        rows=tuple(chosen_rows(table, args.methods or None)),
        seeds=seeds[:1] if args.timeline else seeds,
        iterations=args.iterations or (None if table.key == PRESETS else full),
        device_flags=() if args.device == "auto" else ("--device", args.device),
        extra=tuple(extra),
        grounding=args.grounding,
        lift_iterations=args.lift_iterations,
        timeline=tuple(sorted(set(args.timeline))),
        provenance=args.provenance,
    )
    return grid, args
