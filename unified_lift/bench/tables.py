"""What the tables consist of: rows, scenes, masks, metrics and the paper's numbers, read from tables.yaml."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unified_lift.data import DATASETS, detect_reader
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.fileio import replacing_folder
from unified_lift.methods import METHODS
from unified_lift.settings.yaml import preset_chain, read_settings_file
from unified_lift.synthetic.scene import SyntheticSettings, write_synthetic

ROBUSTNESS, PRESETS = "robustness", "presets"
"""Tables with a grid of their own: the scenes are made, or every preset trains its own geometry."""
VIEWS = "views"
"""The kind of robustness that leaves the masks alone."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table: a way to train and to score."""

    key: str  # what `--methods` calls it
    name: str
    train: Sequence[str] = ()  # flags of train.py
    eval: Sequence[str] = ()  # flags of eval.py
    citation: str = ""  # row of the paper's table whose number is printed beside ours; "" = none
    model: str = ""  # row whose trained model this one scores with `eval`, or whose scores it shares; "" = its own

    @property
    def is_oracle(self) -> bool:
        """Return whether its scores come from a choice that read the annotations."""
        return bool(self.model and self.eval)


@dataclass(frozen=True, kw_only=True)
class MaskSet:
    """Masks to train on: their folder in the scene, and the scores that fit them, the main one first."""

    folder: str
    metrics: Sequence[str]
    protocol: str = "auto"
    zero_id: str = ""  # what id 0 is to methods that leave it to the data; "" = what the dataset says
    name: str = ""  # what `--masks` calls it; "" = nobody asked by name

    @property
    def label(self) -> str:
        """Return what tables call it."""
        return f"{self.name} ({self.folder})" if self.name else self.folder


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a table of the paper: metric -> mean, and metric -> value of each of the table's scenes; fractions."""

    name: str
    mean: Mapping[str, float] = field(default_factory=dict)
    scenes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    hours: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table to reproduce; no scenes = every scene found."""

    key: str
    title: str
    rows: Sequence[str]
    masks: Sequence[MaskSet]
    mask_sets: Mapping[str, Sequence[dict[str, Any]]] = field(default_factory=dict)  # by names of `--masks`; * = others
    scenes: Sequence[str] = ()
    dataset: str = ""  # whose download `scripts/prepare_<dataset>.py` checks
    paper: Mapping[str, Published] = field(default_factory=dict)

    def published(self, row: Row) -> Published:
        """Return the paper's numbers for a row; without any where it is not cited."""
        return self.paper.get(row.citation, Published(name=""))

    def on(self, names: Sequence[str]) -> "Table":
        """Return the table on the mask sets that `--masks` names, none = its own; a UserError: its masks are fixed."""
        if names and not self.mask_sets:
            raise UserError(f"--masks: the masks of table {self.key} are fixed; --table rooms takes mask sets by name")
        sets = [(name, each) for name in dict.fromkeys(names) for each in self.mask_sets.get(name, self.mask_sets["*"])]
        named = [MaskSet(**e | {"name": name, "folder": e["folder"].replace("*", name)}) for name, e in sets]
        return replace(self, masks=named or self.masks)


@dataclass(frozen=True, kw_only=True)
class SceneFolder:
    """A scene of a benchmark; of robustness also which kind of noise the masks have, and how much of it."""

    name: str
    path: Path
    kind: str = ""
    amount: float = 0.0


def _table(key: str, entry: dict[str, Any]) -> Table:
    masks = [MaskSet(**masks) for masks in entry["masks"]]
    paper = {name: Published(**row) for name, row in entry.get("paper", {}).items()}
    return Table(**entry | {"key": key, "masks": masks, "paper": paper})


def noisy_scene(kind: str, amount: float) -> SceneFolder:
    """Return the scene with one kind of noise; jobs make its rooms, one for each seed."""
    return SceneFolder(name=f"{kind}_{amount:g}", path=Path(), kind=kind, amount=amount)


_CONTENT = read_settings_file(Path(__file__).with_name("tables.yaml"))
ROWS = {key: Row(**{"key": key, "citation": key} | entry) for key, entry in _CONTENT["rows"].items()}
"""All rows; `--methods` also takes other methods and settings files."""
TABLES = {key: _table(key, entry) for key, entry in _CONTENT["tables"].items()}
KINDS: dict[str, tuple[str, Sequence[float]]] = _CONTENT["noise"]
"""Kind of noise -> what its amounts are, and these, from the easiest to the hardest."""
BASE = SyntheticSettings(num_objects=12, width=160, height=120)
"""Rooms of robustness, whose photos and cameras do not depend on the noise of their masks."""
CLEAN = noisy_scene(VIEWS, BASE.num_train)


def chosen_rows(table: Table, words: Sequence[str] | None) -> list[Row]:
    """Return the table's rows, or those that `--methods` names: rows, other methods, or YAML files of settings.

    Asking for `omniseg3d_gs` brings its oracle row along; the rows of `presets` are presets. A UserError: no such row.
    """
    rows: dict[str, Row] = {}
    for word in table.rows if words is None else words:
        if word.endswith((".yaml", ".yml")):
            if not (path := Path(word)).is_file():
                raise UserError(f"--methods {word}: no such settings file")
            row = Row(key=path.stem, name=path.stem, train=("--preset", str(path.resolve())))
        elif table.key == PRESETS:
            list(preset_chain(word))
            row = Row(key=word, name=word, train=("--preset", word))
        elif word not in METHODS and word not in ROWS:
            known = ", ".join(dict.fromkeys((*ROWS, *METHODS)))
            raise UserError(f"--methods {word}: no such method; there are {known}, or give a .yaml file of settings")
        else:
            row = ROWS.get(word) or Row(key=word, name=word, train=("--method", word))
        rows[row.key] = row
        if table.key not in (ROBUSTNESS, PRESETS):
            rows |= {other.key: other for other in ROWS.values() if other.is_oracle and other.model == row.key}
    return list(rows.values())


def chosen_scenes(table: Table, data: Path | None, names: Sequence[str] | None, *kinds: str) -> list[SceneFolder]:
    """Return the table's scenes below `data`, or those that `--scenes` names; of robustness those of some kinds.

    A UserError: a scene is missing, or its folder fits no layout.
    """
    if table.key == ROBUSTNESS:
        return [noisy_scene(kind, amount) for kind in dict.fromkeys(kinds) for amount in KINDS[kind][1]]
    if data is None or not data.is_dir():
        what = f" {data}: no such folder;" if data else ":"
        raise UserError(f"--data{what} give the folder that holds the scene folders")
    if names is None:
        folders = [path for path in sorted(data.iterdir()) if path.is_dir()]
        names = table.scenes or [p.name for p in folders if any(reader.detect(p) for reader in DATASETS.values())]
    if not names:
        readers = ", ".join(DATASETS)
        raise UserError(f"{data}: no sub-folder there is a scene of a known layout ({readers}); correct --data")
    # Replica's are spelled room0 or room_0.
    spellings = {name: (data / name, data / re.sub(r"(\d*)$", r"_\1", name, count=1)) for name in names}
    scenes = [SceneFolder(name=name, path=p) for name, paths in spellings.items() for p in paths if p.is_dir()]
    found = {scene.name for scene in scenes}
    if missing := ", ".join(name for name in spellings if name not in found):
        check = f"; scripts/prepare_{table.dataset}.py checks a download" if table.dataset else ""
        raise UserError(f"{data}: no scene {missing} there{check}, and --scenes restricts the table to what you have")
    for scene in scenes:
        detect_reader(DataSettings(source_path=scene.path))
    return scenes


def write_room(root: Path, kind: str, amount: str, *, seed: int) -> None:
    """Write the room of a seed with one kind of noise, so many training views, or so many rooms; whole or not at all.

    A UserError: there is no such kind, or it cannot have this amount.
    """
    if kind not in (*KINDS, "rooms"):
        raise UserError(f"--room {kind}: no such kind of noise; there are {', '.join(KINDS)}, and rooms for a house")
    try:
        value = int(amount) if kind in (VIEWS, "rooms") else float(amount)
        views, changes = (int(value), {}) if kind == VIEWS else (None, {kind: value})
        with replacing_folder(root) as room:
            write_synthetic(room, replace(BASE, seed=seed, **dict[str, Any](changes)), train_views=views)
    except ValueError as error:
        raise UserError(f"--room {kind} {amount}: {error}") from None
