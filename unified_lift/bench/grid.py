"""The jobs of a benchmark: their command lines, what they depend on, and where everything goes."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from unified_lift.bench.tables import CLEAN, PRESETS, ROBUSTNESS, ROWS, VIEWS, MaskSet, Row, SceneFolder, Table
from unified_lift.errors import UserError
from unified_lift.modelfolder.outputs import iteration_dir
from unified_lift.modelfolder.settings import TrainSettings, changed, with_preset
from unified_lift.provenance import Provenance, comparable

GEOMETRY = "geometry"
_CHECKPOINTS = ("chkpnt*.pth",)
_ALL_BUT_SCORES = (*_CHECKPOINTS, "point_cloud", "test", "train", "plots", "input.ply", "*.html")
# Lift steps of the robustness table: some methods take up to 5,000 by default, and a sweep on a CPU has to end.
_OUR_STEPS, _MAX_STEPS = 600, 2000


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A benchmark as the user asked for it; mask sets come with the table."""

    table: Table
    out: Path
    scenes: tuple[SceneFolder, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    iterations: int | None  # of the geometry; None = those of each preset
    device_flags: tuple[str, ...] = ()  # of all commands that compute
    extra: tuple[str, ...] = ()  # more flags of train.py; `ROW:FLAG` goes to the jobs of that row (or `geometry`) only
    grounding: str = ""  # of eval.py, `{scene}` standing for the scene's name
    lift_iterations: int | None = None  # most lift steps of any method in the robustness table
    timeline: tuple[int, ...] = ()  # geometry iterations at which presets are scored, rising; none = only at the end
    provenance: Provenance = "relative"  # how files name places


class Place(NamedTuple):
    """A place of the grid, to which one result belongs."""

    masks: MaskSet
    scene: SceneFolder
    row: Row
    seed: int
    iterations: int | None

    @property
    def has_masks(self) -> bool:
        """Return whether the scene has the masks; those of a room will be made."""
        return bool(self.scene.kind) or (self.scene.path / self.masks.folder).is_dir()


@dataclass(frozen=True, kw_only=True)
class Job:
    """Command lines that are run one after the other, as arguments of `python -m unified_lift`."""

    key: str  # folder below `out`, and its name in messages
    row: str  # key of a row, `geometry` or `room`
    log: Path  # takes everything the job prints
    record: Path  # says what was run, how it ended and what it measured
    model: Path
    commands: list[list[str]]
    recorded: list[list[str]]  # those of its dependencies and its own, without the places of results and scenes
    artefacts: list[Path]  # exist when it is done
    depends_on: tuple[Job, ...] = ()
    discard: tuple[str, ...] = _CHECKPOINTS  # files of the model folder that are deleted when it is done
    out: Path = Path()  # folder of the grid
    provenance: Provenance = "relative"

    def chain(self) -> Iterator[Job]:
        """Yield all that it depends on, and itself last."""
        for job in self.depends_on:
            yield from job.chain()
        yield self

    @property
    def geometry(self) -> Job:
        """Return the job that trained its geometry: one it depends on, or itself."""
        return next((job for job in self.chain() if job.row == GEOMETRY), self)


def places(grid: Grid) -> Iterator[Place]:
    """Yield every place of the grid, also those whose scene lacks the masks."""
    axes = (grid.table.masks, grid.scenes, grid.rows, grid.seeds, grid.timeline or (grid.iterations,))
    yield from itertools.starmap(Place, itertools.product(*axes))


def expand(grid: Grid) -> list[Job]:
    """Return the jobs in the order in which they are to run, each after those it depends on, scene by scene."""
    wanted = [place for place in places(grid) if place.has_masks]
    wanted.sort(key=lambda place: (grid.scenes.index(place.scene), grid.seeds.index(place.seed)))
    return list({job.key: job for place in wanted for job in job_of(grid, place).chain()}.values())


def job_of(grid: Grid, place: Place) -> Job:
    """Return the job that scores a place."""
    if grid.table.key == PRESETS:
        return _preset_job(grid, place)
    if not place.row.model:
        return _lift_job(grid, place)
    trained = _lift_job(grid, place._replace(row=ROWS[place.row.model]))
    if not place.row.is_oracle:
        return trained
    commands, fields = [_eval(grid, place, trained.model)], dict[str, Any](model=trained.model, depends_on=(trained,))
    return _job(grid, f"{trained.key}/oracle", place.row.key, commands, ["oracle.json"], **fields)


def lift_steps(row: Row, most: int | None) -> int:
    """Return the lift steps of a row of the robustness table: 600 for our method, else its preset's up to 2,000."""
    own = _settings(*row.train).lift.lift_iterations
    steps = _OUR_STEPS if row.key == "unified_lift" else min(own if own > 0 else _MAX_STEPS, _MAX_STEPS)
    return min(steps, most or steps)


@cache
def _settings(flag: str, name: str) -> TrainSettings:
    """Return what the flags of a row choose; a method has a preset of its name."""
    method = {"method_name": name} if flag == "--method" else {}
    return with_preset(changed(TrainSettings(), method, origin=name), name)


def shell_line(command: Sequence[str]) -> str:
    """Return a command as one types it."""
    words = ["~/" + shlex.quote(word[2:]) if word[:2] == "~/" else shlex.quote(word) for word in command]
    return " ".join(["python -m unified_lift", *words])


def without_places(commands: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return commands as records hold them, whose words are not to depend on the folders of a machine."""
    return [[comparable(word) for word in command if not word.startswith("--provenance")] for command in commands]


def _job(grid: Grid, key: str, row: str, commands: list[list[str]], artefacts: list[str], **fields: Any) -> Job:
    folder = grid.out / key
    own = json.dumps(commands, ensure_ascii=False).replace(str(grid.out), "<out>")
    for scene in grid.scenes if grid.table.key != ROBUSTNESS else ():
        own = own.replace(f'"{scene.path}"', f'"<{scene.name}>"')
    fields = {"out": grid.out, "provenance": grid.provenance} | fields
    recorded = [command for job in fields.get("depends_on", ()) for command in job.recorded]
    recorded += without_places(json.loads(own))
    fields = dict[str, Any](model=folder, commands=commands, recorded=recorded) | fields
    fields["artefacts"] = [fields["model"] / name for name in artefacts]
    return Job(key=key, row=row, log=folder / "log.txt", record=folder / "cell.json", **fields)


def _room_job(grid: Grid, scene: SceneFolder, seed: int) -> Job:
    key = f"rooms/{scene.name}/seed{seed}"
    room = grid.out / key / "room"
    command = ["bench", "--table", ROBUSTNESS, "--room", scene.kind, f"{scene.amount:g}", "--seeds", str(seed)]
    return _job(grid, key, "room", [[*command, "--out", str(room)]], ["transforms.json"], model=room)


def _geometry_job(grid: Grid, scene: SceneFolder, seed: int) -> Job:
    """Return the geometry of a scene and seed; rooms that differ in their masks alone share it."""
    source, rooms, flags = scene.path, tuple[Job, ...](), tuple[str, ...]()
    if grid.table.key == ROBUSTNESS:
        scene = scene if scene.kind == VIEWS else CLEAN
        rooms, flags = (_room_job(grid, scene, seed),), ("--preset", "demo")
        source = rooms[0].model
    key = f"{GEOMETRY}/{scene.name}/seed{seed}"
    train = _train(grid, source, grid.out / key, seed, own=GEOMETRY, flags=flags)
    train += ["--iterations", str(grid.iterations), "--lift_iterations", "0", "--overwrite"]
    ply = str(iteration_dir(Path(), grid.iterations or 0) / "point_cloud.ply")
    return _job(grid, key, GEOMETRY, [train], [ply, "manifest.json"], depends_on=rooms)


def _lift_job(grid: Grid, place: Place) -> Job:
    """Return the job that lifts a method onto the geometry that all methods share, and scores it."""
    scene, seed, row = place.scene, place.seed, place.row
    geometry = _geometry_job(grid, scene, seed)
    source, flags, fields = scene.path, (*row.train, *_zero_flags(place)), dict[str, Any](depends_on=(geometry,))
    if grid.table.key == ROBUSTNESS:
        room = _room_job(grid, scene, seed)
        source, flags = room.model, (*flags, "--lift_iterations", str(lift_steps(row, grid.lift_iterations)))
        fields = {"depends_on": (geometry, room), "discard": _ALL_BUT_SCORES}  # hundreds of models would fill a disk
    key = f"{place.masks.folder}/{scene.name}/{row.key}/seed{seed}"
    train = _train(grid, source, grid.out / key, seed, own=row.key, flags=flags)
    train += ["--schedule", "staged", "--iterations", "0", "--init_ply", str(geometry.artefacts[0])]
    train += ["--object_path", place.masks.folder, "--random_init", "--num_random_points", "4", "--overwrite"]
    commands = [train, _eval(grid, place, grid.out / key)]
    return _job(grid, key, row.key, commands, ["results.json", "manifest.json"], **fields)


def _zero_flags(place: Place) -> tuple[str, ...]:
    """Return what id 0 of the masks is, as flags; none where dataset or row say it."""
    with suppress(UserError):  # settings that cannot be read: the job itself says so
        if place.masks.zero_id and _settings(*place.row.train).method.zero_id == "auto":
            return "--zero_id", place.masks.zero_id
    return ()


def _preset_job(grid: Grid, place: Place) -> Job:
    """Return the job that trains a preset whole and scores it.

    On a timeline a joint schedule is one run that pauses to be scored; the lift of a staged one comes last, so every
    number of iterations is a run of its own.
    """
    key = f"{place.scene.name}/{place.row.key}/seed{place.seed}"
    key += f"/timeline_{place.iterations}" if grid.timeline else ""
    fields: dict[str, Any] = {"model": grid.out / key}
    if grid.timeline and _settings(*place.row.train).schedule == "joint":
        earlier = grid.timeline[: grid.timeline.index(place.iterations)]
        before = tuple(_preset_job(grid, place._replace(iterations=count)) for count in earlier[-1:])
        fields = {"model": (grid.out / key).with_name("timeline"), "depends_on": before, "discard": ()}
    train = _train(grid, place.scene.path, fields["model"], place.seed, own=place.row.key, flags=place.row.train)
    train += ["--iterations", str(place.iterations)] if place.iterations else []
    train += ["--resume" if fields.get("depends_on") else "--overwrite"]
    commands = [train, _eval(grid, place, fields["model"])]
    return _job(grid, key, place.row.key, commands, ["results.json", "manifest.json"], **fields)


def _train(grid: Grid, source: Path, model: Path, seed: int, *, own: str, flags: Sequence[str]) -> list[str]:
    """Return the flags that all training has, those of the user among them."""
    others = tuple(f"{key}:" for key in (GEOMETRY, *ROWS, *(row.key for row in grid.rows)) if key != own)
    given = [word.removeprefix(f"{own}:") for word in grid.extra if not word.startswith(others)]
    command = ["train", "-s", str(source), "-m", str(model), "--eval", *flags, *given, *_naming(grid)]
    return [*command, "--seed", str(seed), *grid.device_flags, "--logger", "none", "--quiet"]


def _eval(grid: Grid, place: Place, model: Path) -> list[str]:
    grounding = ["--grounding", grid.grounding.replace("{scene}", place.scene.name)] if grid.grounding else []
    command = ["eval", "-m", str(model), "--protocol", place.masks.protocol, *grounding]
    return [*command, *grid.device_flags, "--quiet", *_naming(grid), *place.row.eval]


def _naming(grid: Grid) -> list[str]:
    return [] if grid.provenance == "relative" else [f"--provenance={grid.provenance}"]
