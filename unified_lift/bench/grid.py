"""The cells of a benchmark: what is run for them, where it goes, and what of it is done."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unified_lift.bench.tables import ROWS, MaskSet, Row, SceneEntry, Table, has_masks
from unified_lift.modelfolder.outputs import iteration_dir, write_text

Status = Literal["done", "failed", "interrupted", "running", "blocked", "no masks", "new"]
Kind = Literal["geometry", "method", "oracle"]
GEOMETRY_FOLDER = "geometry"
_RECORD, _LOG = "cell.json", "log.txt"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A benchmark as the user asked for it.

    Attributes:
        table: Which table.
        out: Folder of everything that is written.
        scenes, rows, seeds: The axes of the grid; mask sets come with the table.
        iterations: Geometry iterations.
        device: Where cells compute.
        extra: More flags of train.py; `ROW:FLAG` goes to the cells of that row (or `geometry`) only.
        grounding: Value of eval.py's --grounding, `{scene}` standing for the scene's name; "" = none.
    """

    table: Table
    out: Path
    scenes: tuple[SceneEntry, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    iterations: int
    device: str = "auto"
    extra: tuple[str, ...] = ()
    grounding: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to run.

    Attributes:
        key: Folder below `out`, and its name in messages.
        kind: What it makes.
        scene, seed: Place in the grid.
        row, masks: Place in the grid; "" for geometry, which all rows share.
        folder: Holds the cell's record and log.
        steps: Command lines of `python -m unified_lift`, run one after the other.
        basis: Command lines of what it rests on: if they change, it is no longer what it was.
        products: Files that are there when it is done.
        needs: Key of the cell that must be done before; "" = none.
        model: Model folder it trains or reads.
    """

    key: str
    kind: Kind
    scene: str
    seed: int
    folder: Path
    model: Path
    steps: tuple[tuple[str, ...], ...]
    products: tuple[Path, ...]
    basis: tuple[tuple[str, ...], ...] = ()
    needs: str = ""
    row: str = ""
    masks: str = ""

    @property
    def log(self) -> Path:
        """Return the file that takes everything the cell prints."""
        return self.folder / _LOG

    @property
    def record(self) -> Path:
        """Return the file that says what was run and how it ended."""
        return self.folder / _RECORD


@dataclass(frozen=True, kw_only=True)
class Record:
    """What cell.json says.

    Attributes:
        commands: Command lines it was run with and those it rests on, the places of results and scenes left open.
        status: How it ended.
        finished_steps: How many of the command lines are through.
        seconds: Time spent, over all attempts.
        exit_code: Of the step that ended it.
        message: Why it failed: the last line of its log.
    """

    commands: list[list[str]] = field(default_factory=list)
    status: Status = "new"
    finished_steps: int = 0
    seconds: float = 0.0
    exit_code: int | None = None
    message: str = ""


def expand(plan: Plan) -> list[Cell]:
    """Return the cells in the order in which they are to run: a scene's geometry, then everything that rests on it.

    Cells whose scene lacks the masks are absent; `without_masks` lists them.
    """
    cells = []
    for scene in plan.scenes:
        for seed in plan.seeds:
            needed = [
                cell
                for masks in plan.table.masks
                if has_masks(scene, masks)
                for row in plan.rows
                for cell in _row_cells(plan, scene, masks, row, seed)
            ]
            if needed:
                cells += [_geometry_cell(plan, scene, seed), *{cell.key: cell for cell in needed}.values()]
    return cells


def without_masks(plan: Plan) -> list[tuple[str, str]]:
    """Return the (scene, mask folder) pairs that cannot be run."""
    pairs = [(scene, masks) for scene in plan.scenes for masks in plan.table.masks]
    return [(scene.name, masks.folder) for scene, masks in pairs if not has_masks(scene, masks)]


def method_key(scene: str, masks: str, row: Row, seed: int) -> str:
    """Return the key of the cell that scores a row."""
    own = f"{masks}/{scene}/{row.model or row.key}/seed{seed}"
    return f"{own}/oracle" if row.is_hindsight else own


def read_record(cell: Cell) -> Record:
    """Return what is known of a cell; nothing if its record is missing or broken off."""
    try:
        return Record(**json.loads(cell.record.read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return Record()


def write_record(cell: Cell, record: Record) -> None:
    """Write cell.json whole or not at all."""
    write_text(cell.record, json.dumps(vars(record), indent=1))


def is_current(cell: Cell, record: Record, plan: Plan) -> bool:
    """Return whether the record is that of the very commands the cell would run now."""
    return record.commands == recorded_commands(cell, plan)


def is_done(cell: Cell, plan: Plan) -> bool:
    """Return whether the cell ended well with the present commands and its products are there."""
    record = read_record(cell)
    is_whole = record.status == "done" and all(path.exists() for path in cell.products)
    return is_whole and is_current(cell, record, plan)


def recorded_commands(cell: Cell, plan: Plan) -> list[list[str]]:
    """Return the command lines and those they rest on, places left open so that results and scenes may be moved."""
    places = {str(plan.out): "<out>"} | {str(scene.path): f"<{scene.name}>" for scene in plan.scenes}

    def opened(word: str) -> str:
        for place, name in places.items():
            if word == place or word.startswith(f"{place}/"):
                return name + word[len(place) :]
        return word

    return [[opened(word) for word in step] for step in (*cell.basis, *cell.steps)]


def steps_to_run(cell: Cell, plan: Plan) -> tuple[list[list[str]], int]:
    """Return the command lines still to run, and how many are through.

    A cell that was interrupted goes on, from its last checkpoint if it has one; any other begins anew.
    """
    record = read_record(cell)
    is_broken_off = record.status in ("running", "interrupted") and is_current(cell, record, plan)
    finished = record.finished_steps if is_broken_off else 0
    steps = [list(step) for step in cell.steps[finished:]]
    if is_broken_off and not finished and list(cell.model.glob("chkpnt*.pth")):
        steps[0] = ["--resume" if word == "--overwrite" else word for word in steps[0]]
    return steps, finished


def shell_line(step: Sequence[str]) -> str:
    """Return a step as one types it."""
    return shlex.join(["python", "-m", "unified_lift", *step])


def write_commands(cells: Sequence[Cell], path: Path) -> None:
    """Write the commands of all cells, in an order in which they can be run by hand."""
    lines = []
    for cell in cells:
        lines += [f"# {cell.key}", *map(shell_line, cell.steps), ""]
    write_text(path, "\n".join(lines))


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file of a cell, empty where it is missing or broken off."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _geometry_cell(plan: Plan, scene: SceneEntry, seed: int) -> Cell:
    key = f"{GEOMETRY_FOLDER}/{scene.name}/seed{seed}"
    model = plan.out / key
    train = _train(plan, scene, model, seed, own=GEOMETRY_FOLDER, flags=())
    train += ["--iterations", str(plan.iterations), "--lift_iterations", "0", "--overwrite"]
    return Cell(
        key=key,
        kind="geometry",
        scene=scene.name,
        seed=seed,
        folder=model,
        model=model,
        steps=(tuple(train),),
        products=(iteration_dir(model, plan.iterations) / "point_cloud.ply", model / "manifest.json"),
    )


def _row_cells(plan: Plan, scene: SceneEntry, masks: MaskSet, row: Row, seed: int) -> list[Cell]:
    """Return the cells a row needs: its training, or the training it reads and its own scoring of that."""
    if not row.model:
        return [_method_cell(plan, scene, masks, row, seed)]
    trained = _method_cell(plan, scene, masks, ROWS[row.model], seed)
    if not row.is_hindsight:
        return [trained]
    key = method_key(scene.name, masks.folder, row, seed)
    oracle = Cell(
        key=key,
        kind="oracle",
        scene=scene.name,
        seed=seed,
        row=row.key,
        masks=masks.folder,
        folder=plan.out / key,
        model=trained.model,
        steps=((*_eval(plan, scene, masks, trained.model), *row.eval),),
        products=(trained.model / "oracle.json",),
        basis=(*trained.basis, *trained.steps),
        needs=trained.key,
    )
    return [trained, oracle]


def _method_cell(plan: Plan, scene: SceneEntry, masks: MaskSet, row: Row, seed: int) -> Cell:
    geometry = _geometry_cell(plan, scene, seed)
    key = method_key(scene.name, masks.folder, row, seed)
    model = plan.out / key
    train = _train(plan, scene, model, seed, own=row.key, flags=row.train)
    train += ["--schedule", "staged", "--iterations", "0", "--init_ply", str(geometry.products[0])]
    train += ["--object_path", masks.folder, "--random_init", "--num_random_points", "4", "--overwrite"]
    return Cell(
        key=key,
        kind="method",
        scene=scene.name,
        seed=seed,
        row=row.key,
        masks=masks.folder,
        folder=model,
        model=model,
        steps=(tuple(train), (*_eval(plan, scene, masks, model), *row.eval)),
        products=(model / "results.json", model / "manifest.json"),
        basis=geometry.steps,
        needs=geometry.key,
    )


def _train(plan: Plan, scene: SceneEntry, model: Path, seed: int, *, own: str, flags: Sequence[str]) -> list[str]:
    """Return the flags that all training has, those of the user among them."""
    given = [word for each in plan.extra if (word := _for_row(each, own, plan)) is not None]
    places = ["train", "-s", str(scene.path), "-m", str(model), "--eval", *flags]
    return [*places, *given, "--seed", str(seed), *_device(plan), "--logger", "none", "--quiet"]


def _eval(plan: Plan, scene: SceneEntry, masks: MaskSet, model: Path) -> tuple[str, ...]:
    grounding = ("--grounding", plan.grounding.replace("{scene}", scene.name)) if plan.grounding else ()
    return ("eval", "-m", str(model), "--protocol", masks.protocol, *grounding, *_device(plan), "--quiet")


def _device(plan: Plan) -> list[str]:
    return [] if plan.device == "auto" else ["--device", plan.device]


def _for_row(word: str, own: str, plan: Plan) -> str | None:
    """Return the word if it is meant for the cells of row `own`, without its prefix."""
    head, colon, rest = word.partition(":")
    if not colon or head not in {GEOMETRY_FOLDER, *ROWS, *(row.key for row in plan.rows)}:
        return word
    return rest if head == own else None
