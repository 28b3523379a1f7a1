"""What the tables consist of: rows, scenes, masks, metrics and the paper's numbers, read from tables.yaml."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unified_lift.data import DATASETS, detect_reader
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.methods import METHODS
from unified_lift.settings.presets import preset_chain
from unified_lift.settings.yaml import read_settings_file

ROBUSTNESS, PRESETS = "robustness", "presets"
"""Tables with a grid of their own: the scenes are made, or every preset trains its own geometry."""
VIEWS = "views"
"""The kind of robustness that leaves the masks alone."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table: a way to train and to score."""

    key: str
    """What `--methods` calls it."""
    name: str
    train: Sequence[str] = ()
    """Flags of train.py."""
    eval: Sequence[str] = ()
    """Flags of eval.py."""
    citation: str = ""
    """Row of the paper's table whose number is printed beside ours; "" = none."""
    model: str = ""
    """Row whose trained model this one scores with `eval`, or whose scores it shares; "" = it trains its own."""

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
    scenes: Sequence[str] = ()
    dataset: str = ""
    """Which `scripts/prepare_<dataset>.py` checks a download of it."""
    paper: Mapping[str, Published] = field(default_factory=dict)

    def published(self, row: Row) -> Published:
        """Return the paper's numbers for a row; without any where it is not cited."""
        return self.paper.get(row.citation, Published(name=""))


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


_CONTENT = read_settings_file(Path(__file__).with_name("tables.yaml"))
ROWS = {key: Row(**{"key": key, "citation": key} | entry) for key, entry in _CONTENT["rows"].items()}
"""All rows; `--methods` also takes other methods and settings files."""
TABLES = {key: _table(key, entry) for key, entry in _CONTENT["tables"].items()}
KINDS: dict[str, tuple[str, Sequence[float]]] = _CONTENT["noise"]
"""Kind of noise -> what its amounts are, and these, from the easiest to the hardest."""


def chosen_rows(table: Table, words: Sequence[str] | None) -> list[Row]:
    """Return the table's rows, or those that `--methods` names: rows, other methods, or YAML files of settings.

    Asking for `omniseg3d_gs` brings its oracle row along; the rows of `presets` are presets.

    Raises:
        UserError: No such method or preset.
    """
    rows: dict[str, Row] = {}
    for word in table.rows if words is None else words:
        row = _row(word, is_preset=table.key == PRESETS)
        rows[row.key] = row
        if table.key not in (ROBUSTNESS, PRESETS):
            rows |= {other.key: other for other in ROWS.values() if other.is_oracle and other.model == row.key}
    return list(rows.values())


def _row(word: str, *, is_preset: bool) -> Row:
    if word.endswith((".yaml", ".yml")):
        path = Path(word)
        if not path.is_file():
            raise UserError(f"--methods {word}: no such settings file")
        return Row(key=path.stem, name=path.stem, train=("--preset", str(path.resolve())))
    if is_preset:
        list(preset_chain(word))
        return Row(key=word, name=word, train=("--preset", word))
    if word not in ROWS and word not in METHODS:
        known = ", ".join(dict.fromkeys((*ROWS, *METHODS)))
        raise UserError(f"--methods {word}: no such method; there are {known}, or give a .yaml file of settings")
    return ROWS.get(word) or Row(key=word, name=word, train=("--method", word))


def chosen_scenes(table: Table, data: Path, names: Sequence[str] | None) -> list[SceneFolder]:
    """Return the table's scenes below `data`, or those that `--scenes` names.

    Raises:
        UserError: A scene is missing, or its folder fits no layout.
    """
    if not data.is_dir():
        raise UserError(f"{data}: no such folder; give the folder that holds the scenes with --data")
    if names is None:
        folders = [path for path in sorted(data.iterdir()) if path.is_dir()]
        names = table.scenes or [p.name for p in folders if any(reader.detect(p) for reader in DATASETS.values())]
    if not names:
        readers = ", ".join(DATASETS)
        raise UserError(f"{data}: no sub-folder there is a scene of a known layout ({readers}); correct --data")
    # Replica's are spelled room0 or room_0.
    spellings = {name: (data / name, data / re.sub(r"(\d*)$", r"_\1", name, count=1)) for name in names}
    scenes = [SceneFolder(name=name, path=p) for name, paths in spellings.items() for p in paths if p.is_dir()]
    if missing := spellings.keys() - {scene.name for scene in scenes}:
        check = f"; scripts/prepare_{table.dataset}.py checks a download" if table.dataset else ""
        listed = ", ".join(name for name in spellings if name in missing)
        raise UserError(f"{data}: no scene {listed} there{check}, and --scenes restricts the table to what you have")
    for scene in scenes:
        detect_reader(DataSettings(source_path=scene.path))
    return scenes
