"""What the tables consist of: rows, scenes, mask sets and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unified_lift.bench.paper import MESSY_SCENES
from unified_lift.data import DATASETS, detect_reader
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.methods import METHODS


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table: a way to train and to score.

    Attributes:
        key: What `--methods` calls it.
        name: What tables show.
        train: Flags of train.py.
        eval: Flags of eval.py.
        citation: Row of the paper's table whose number stands beside ours; "" = none.
        model: Row whose trained model this one scores with `eval`, or whose scores it shares; "" = it trains its own.
    """

    key: str
    name: str
    train: tuple[str, ...] = ()
    eval: tuple[str, ...] = ()
    citation: str = ""
    model: str = ""

    @property
    def is_hindsight(self) -> bool:
        """Return whether its scores rest on a choice that read the annotations."""
        return bool(self.model and self.eval)


@dataclass(frozen=True, kw_only=True)
class MaskSet:
    """Masks to train on, and the scores that fit them.

    Attributes:
        folder: Inside the scene.
        metrics: Names in results.json, the first is the main one.
        protocol: What scores them; `auto`: the dataset's own.
    """

    folder: str
    metrics: tuple[str, ...]
    protocol: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table to reproduce.

    Attributes:
        key: What `--table` calls it.
        title: Heading.
        scenes: The paper's scenes; empty = every scene found.
        dataset: Which `scripts/prepare_<dataset>.py` checks a download of it.
        rows: Keys of its rows, in the order of the table.
        masks: Mask sets, each of which gives a table.
    """

    key: str
    title: str
    scenes: tuple[str, ...]
    dataset: str
    rows: tuple[str, ...]
    masks: tuple[MaskSet, ...]


@dataclass(frozen=True, kw_only=True)
class SceneEntry:
    """A scene folder of a benchmark.

    Attributes:
        name: As the table calls it.
        path: Its folder.
    """

    name: str
    path: Path


WHOLE_IMAGE, THINGS = "object_mask", "detic_instance"


def _method(key: str, name: str) -> Row:
    return Row(key=key, name=name, train=("--method", key), citation=key)


def _ablation(key: str, name: str, *, same_as: str = "") -> Row:
    return Row(key=key, name=name, train=("--preset", f"ablation/{key}"), citation=key, model=same_as)


_METHOD_ROWS = (
    _method("gaussian_grouping", "Gaussian Grouping"),
    _method("gaga", "Gaga"),
    _method("contrastive_lift_gs", "Contrastive-Lift-GS"),
    # The paper's "best found" reads the evaluation itself; both choices are shown, and only the first is a method.
    Row(
        key="omniseg3d_gs",
        name="OmniSeg3D-GS + HDBSCAN (pseudo-labels)",
        train=("--method", "omniseg3d_gs"),
    ),
    Row(
        key="omniseg3d_gs_oracle",
        name="OmniSeg3D-GS + HDBSCAN (oracle)",
        eval=("--oracle_codebooks",),
        citation="omniseg3d_gs",
        model="omniseg3d_gs",
    ),
    _method("panoptic_lifting_gs", "Panoptic-Lifting-GS"),
    _method("unified_lift", "Unified-Lift (ours)"),
)
_RELEASED = Row(key="released", name="Unified-Lift, released settings", train=("--preset", "released_staged"))
_ABLATION_ROWS = (
    _ablation("1_end_to_end", "end-to-end baseline", same_as="panoptic_lifting_gs"),
    _ablation("2_codebook", "codebook baseline"),
    _ablation("3_concentration", "+ concentration"),
    _ablation("4_area_aware", "+ area-aware mapping"),
    _ablation("5_filter", "+ noisy-label filter", same_as="released"),
)
ROWS: dict[str, Row] = {row.key: row for row in (*_METHOD_ROWS, _RELEASED, *_ABLATION_ROWS)}
"""All rows; `--methods` also takes other methods and settings files."""
_METHOD_KEYS, _ABLATION_KEYS = tuple(row.key for row in _METHOD_ROWS), tuple(row.key for row in _ABLATION_ROWS)
_MATCHED = MaskSet(folder=WHOLE_IMAGE, metrics=("mIoU", "F1"), protocol="replica")
_PROMPTS = MaskSet(folder=WHOLE_IMAGE, metrics=("mIoU", "mBIoU", "mIoU_oracle", "mBIoU_oracle"), protocol="lerf_mask")
_REPLICA_SCENES = ("room0", "room1", "room2", "office0", "office1", "office2", "office3", "office4")

TABLES: dict[str, Table] = {
    table.key: table
    for table in (
        Table(
            key="1",
            title="Table 1: LERF-Mask",
            scenes=("figurines", "ramen", "teatime"),
            dataset="lerf_mask",
            rows=_METHOD_KEYS,
            masks=(_PROMPTS,),
        ),
        Table(
            key="2",
            title="Table 2: Replica",
            scenes=_REPLICA_SCENES,
            dataset="replica",
            rows=_METHOD_KEYS,
            masks=(_MATCHED,),
        ),
        Table(
            key="3",
            title="Table 3: Messy Rooms",
            scenes=MESSY_SCENES,
            dataset="messy_rooms",
            rows=_METHOD_KEYS,
            masks=(MaskSet(folder=THINGS, metrics=("PQ_scene",)),),
        ),
        Table(
            key="4",
            title="Table 4: ablation",
            scenes=_REPLICA_SCENES,
            dataset="replica",
            rows=_ABLATION_KEYS,
            masks=(_MATCHED,),
        ),
        # PQ_scene asks which pixels are objects at all. Whole-image segments do not say, so they get matched scores.
        Table(
            key="rooms",
            title="Scenes of our own",
            scenes=(),
            dataset="",
            rows=(*_METHOD_KEYS, "released", *_ABLATION_KEYS),
            masks=(MaskSet(folder=THINGS, metrics=("PQ_scene", "PQ_things")), _MATCHED),
        ),
    )
}


def chosen_rows(table: Table, words: Sequence[str] | None) -> list[Row]:
    """Return the table's rows, or those that `--methods` names: rows, other methods, or YAML files of settings.

    Asking for `omniseg3d_gs` brings its oracle reading along.

    Raises:
        UserError: No such method.
    """
    rows: dict[str, Row] = {}
    for word in table.rows if words is None else words:
        row = _row(word)
        rows[row.key] = row
        rows |= {other.key: other for other in ROWS.values() if other.is_hindsight and other.model == row.key}
    return list(rows.values())


def _row(word: str) -> Row:
    if word in ROWS:
        return ROWS[word]
    if word.endswith((".yaml", ".yml")):
        path = Path(word)
        if not path.is_file():
            raise UserError(f"--methods {word}: no such settings file")
        return Row(key=path.stem, name=path.stem, train=("--preset", str(path.resolve())))
    if word in METHODS:
        return Row(key=word, name=word, train=("--method", word))
    known = ", ".join(dict.fromkeys((*ROWS, *METHODS)))
    raise UserError(f"--methods {word}: no such method; there are {known}, or give a .yaml file of settings")


def chosen_scenes(table: Table, data: Path, names: Sequence[str] | None) -> list[SceneEntry]:
    """Return the table's scenes below `data`, or those that `--scenes` names.

    Raises:
        UserError: A scene is missing, or its folder fits no layout.
    """
    if not data.is_dir():
        raise UserError(f"{data}: no such folder; give the folder that holds the scenes with --data")
    if names is None and not table.scenes:
        found = [SceneEntry(name=path.name, path=path) for path in sorted(data.iterdir()) if _is_scene(path)]
        if not found:
            readers = ", ".join(DATASETS)
            raise UserError(f"{data}: no sub-folder there is a scene of a known layout ({readers}); correct --data")
        return found
    wanted = table.scenes if names is None else tuple(dict.fromkeys(names))
    missing = [name for name in wanted if _scene_folder(data, name) is None]
    if missing:
        check = f"; scripts/prepare_{table.dataset}.py checks a download" if table.dataset else ""
        raise UserError(
            f"{data}: no scene {', '.join(missing)} there{check}, and --scenes restricts the table to what you have"
        )
    entries = []
    for name in wanted:
        folder = _scene_folder(data, name)
        assert folder is not None
        detect_reader(DataSettings(source_path=folder))
        entries.append(SceneEntry(name=name, path=folder))
    return entries


def has_masks(scene: SceneEntry, masks: MaskSet) -> bool:
    """Return whether the scene has that folder of masks."""
    return (scene.path / masks.folder).is_dir()


def _scene_folder(data: Path, name: str) -> Path | None:
    """Return the folder of a scene; Replica's are spelled room0 or room_0."""
    spellings = (name, name.rstrip("0123456789") + "_" + name[len(name.rstrip("0123456789")) :])
    return next((data / spelling for spelling in spellings if (data / spelling).is_dir()), None)


def _is_scene(path: Path) -> bool:
    return path.is_dir() and any(reader.detect(path) for reader in DATASETS.values())
