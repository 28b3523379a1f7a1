"""Edits as a YAML list, so that what was done by hand can be kept, changed and done again; and the scene they make.

Such as `- recolour: {objects: [5], color: "#ff0000"}`, `- remove: [3, 4]`, `- rename: {7: mug}`; see docs/edit.md.
"""

import dataclasses
import difflib
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from unified_lift.editing.operations import (
    WHOLE,
    Clean,
    Duplicate,
    Isolate,
    Merge,
    Move,
    Operation,
    Recolour,
    Remove,
    Rename,
    Rotation,
    Vector,
)
from unified_lift.editing.regions import Grow, Relabel, Shrink, Split
from unified_lift.errors import UserError
from unified_lift.fileio import holds_files, locked, replacing_folder, write_json, write_text
from unified_lift.model.ply import write_gaussians
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.provenance import told_text
from unified_lift.reading import reading, shown

_EDITS = (Remove, Isolate, Merge, Split, Grow, Shrink, Relabel, Clean, Recolour, Move, Duplicate, Rename)
OPERATIONS: dict[str, type[Operation]] = {kind.__name__.lower(): kind for kind in _EDITS}
_HEADER = ("cameras.json", "input.ply", outputs.FRAME_FILE)
_OF_THE_UNEDITED = ("results.json", "per_view.json", "evaluation.json", "oracle.json", "report.html", "manifest.json")


def read_script(path: Path, *, flag: str) -> list[Operation]:
    """Return the operations of a file that the user named with `flag`, as `parse` does."""
    try:
        with reading(path, "script", fix="correct it", missing="not readable, no such file"):
            text = path.read_text()
    except UserError as error:
        raise UserError(f"{flag} {error}") from None
    return parse(text, origin=str(path))


def parse(text: str, *, origin: str = "edits") -> list[Operation]:
    """Return the operations of a script, in messages `origin`; a UserError names line and entry of what is wrong."""
    try:
        tree, content = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # too deep, or a number of thousands of digits
        place, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{origin}, line {place.line + 1}" if place else origin
        raise UserError(f"{where}: not YAML ({problem or error})") from None
    if content is None:
        return []
    if not isinstance(content, list):
        received = type(content).__name__
        raise UserError(f"{origin}: expected a list, one `- operation: ...` a line, received a {received}")
    _refuse_repeated_keys(tree, origin)
    places = [f"{origin}, line {node.start_mark.line + 1}, entry" for node in tree.value]
    return [read_operation(entry, f"{places[index]} {index + 1}") for index, entry in enumerate(content)]


def read_operation(entry: Any, where: str) -> Operation:
    """Return the operation of one entry of a script, as {"remove": [3, 4]}; messages call its place `where`."""
    if not isinstance(entry, dict) or len(entry) != 1:
        raise UserError(f"{where}: expected one operation and its objects, as in `- remove: [3, 4]`")
    ((key, value),) = entry.items()
    if key not in OPERATIONS:
        raise UserError(f"{where}: no operation {key!r}{_nearest(key, OPERATIONS)}; there are {', '.join(OPERATIONS)}")
    kind, settings = OPERATIONS[key], {}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    given = {"names": value} if kind is Rename else value if isinstance(value, dict) else {"objects": value}
    for name, raw in given.items():
        if name not in fields:
            near = _nearest(name, fields)
            raise UserError(f"{where}: {key} has no setting {name!r}{near}; there are {', '.join(fields)}")
        read, expected = _READERS[name]
        try:
            settings[name] = read(raw)
        except (ValueError, TypeError, LookupError, OverflowError, AttributeError):
            raise UserError(f"{where}: {key}: {name} must be {expected}, received {shown(raw)}") from None
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in settings:
            raise UserError(f"{where}: {key} needs {name!r}" + (', as "#ff0000"' if name == "color" else ""))
    return kind(**settings)


def apply(scene: TrainedScene, edits: Iterable[Operation]) -> TrainedScene:
    """Return the scene after all operations, in their order; a UserError names one that cannot be done."""
    for index, operation in enumerate(edits):
        try:
            scene = operation.apply(scene)
        except UserError as error:
            raise UserError(f"edit {index + 1} ({operation.key}): {error}") from None
    return scene


def dump(edits: Iterable[Operation]) -> str:
    """Return a script that `parse` reads back as the same operations."""
    entries = []
    for operation in edits:
        defaults = {field.name: field.default for field in dataclasses.fields(operation)}
        given = [name for name, default in defaults.items() if getattr(operation, name) != default]
        settings = {name: value for name, value in dataclasses.asdict(operation).items() if name in given}
        if settings.get("objects") == WHOLE:
            settings["objects"] = "scene"
        value = dict(settings["names"]) if "names" in given else settings
        value = settings["objects"] if given == ["objects"] else value
        entries.append({operation.key: value})
    return yaml.safe_dump(entries, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


def alone_with(model: Path, out: Path) -> AbstractContextManager[None]:
    """Return a context in which nobody else writes into a model that is to take its own place: what is loaded stays."""
    return locked(out, "an edit") if out.resolve() == model.resolve() else nullcontext()


def save_model(
    scene: TrainedScene,
    out: Path,
    *,
    edits: Iterable[Operation],
    overwrite: bool = False,
    manifest: Mapping[str, Any] | None = None,
) -> None:
    """Write an edited scene as a model folder, which render, query, view and export read: whole, or nothing of it.

    Settings, cameras and iteration number are those of the model in `scene.path`, which may be `out`. `edits` were done
    since it was loaded; `edits.yaml` holds these and those made before. A manifest.json may be given.
    A UserError: `out` holds a model and no `overwrite`, or something else; or the scene cannot read ids off features;
    or a number of the Gaussians is not finite, so that nothing could read them.
    """
    _require_free(out, overwrite=overwrite)
    if scene.method is None and scene.gaussians.feature_dim:
        raise UserError(f"{scene.path}: labels without a trained model; export it instead: unified-lift export")
    if not all(bool(value.isfinite().all()) for _, value in scene.gaussians):
        raise UserError(f"--out {out}: the edits make NaN or infinite numbers; move and scale by less")
    before, iteration = scene.path / outputs.EDITS_FILE, scene.iteration
    edits = [*(parse(before.read_text(), origin=str(before)) if before.exists() else ()), *edits]
    title = f"# All edits since training, in order; iteration {iteration}. Done again by: unified-lift edit --script"
    outdated = (*outputs.FILES_OF_RUN, *_OF_THE_UNEDITED)
    with locked(out, "an edit"), replacing_folder(out, outdated=outdated) as folder:
        _require_free(out, overwrite=overwrite)  # still
        saved, gaussians = outputs.iteration_dir(folder, iteration), scene.gaussians
        write_gaussians(saved / "point_cloud.ply", gaussians, frame=scene.frame)
        if scene.method is not None:  # else it knows no objects, and is one only while it is edited
            facts: dict[str, Any] = {"names": scene.names, "num_views": scene.num_views, "frame": scene.frame}
            outputs.write_objects(saved, gaussians, scene.require_labels(), method=scene.method, **facts)
        for path in (scene.path / name for name in _HEADER):
            if path.exists():
                shutil.copyfile(path, folder / path.name)
        outputs.write_settings(folder, scene.settings, place=out)
        if not (scene.path / "config.yaml").exists():  # a splat of another program
            outputs.write_frame(folder, scene.frame)
            if (theirs := scene.path / "cfg_args").exists():
                text = theirs.read_text("utf-8", errors="replace")
                write_text(folder / "cfg_args", told_text(text, out, scene.settings.run.provenance))
        write_text(folder / outputs.EDITS_FILE, f"{title}\n{dump(edits)}")
        if manifest is not None:
            write_json(folder / "manifest.json", manifest)


def _require_free(out: Path, *, overwrite: bool) -> None:
    """Raise a UserError where a model must not be written: over something else, or over one without `overwrite`."""
    if out.is_file() or holds_files(out):
        if not outputs.holds_run(out):
            raise UserError(f"--out {out}: is there and no model; name a new folder")
        if not overwrite:
            raise UserError(f"--out {out}: holds a model; name another folder, or add --overwrite to replace it")


def _nearest(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _refuse_repeated_keys(tree: yaml.Node, origin: str) -> None:
    """Raise a UserError where a mapping has a key twice, of which YAML would keep the last without a word."""
    waiting, found = [tree], {id(tree)}  # each node once: aliases of aliases name a few nodes billions of times
    for node in waiting:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        for index, (key, _) in enumerate(pairs):
            if any(key.value == other.value for other, _ in pairs[:index]):
                raise UserError(f"{origin}, line {key.start_mark.line + 1}: {key.value!r} is there twice; keep one")
        children = [value for _, value in pairs] or (node.value if isinstance(node, yaml.SequenceNode) else ())
        fresh = {id(child): child for child in children if id(child) not in found}
        waiting += fresh.values()
        found |= fresh.keys()


# ---- values: what readers raise, read_operation turns into a message ----


def _ids(given: Any) -> tuple[int, ...]:
    return WHOLE if given in ("scene", ["scene"]) else _numbers(given)


def _numbers(given: Any) -> tuple[int, ...]:
    ids = given if isinstance(given, (list, tuple)) else [given]
    known = all(type(value) is int and 0 <= value <= _MAX_ID for value in ids)
    if not known or not ids or len(set(ids)) != len(ids):
        raise ValueError
    return tuple(ids)


_MAX_ID = 2**31 - 1
_FAR = 1e15  # no length, factor or angle is meant that is beyond


def _number(given: Any, *, least: float = -_FAR, most: float = _FAR) -> float:
    if isinstance(given, str) and re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", given):
        given = float(given)  # YAML 1.1 takes 1e-7 for a word, since it has no point and 1.0e-7 does
    if type(given) not in (int, float) or not math.isfinite(given) or not least <= given <= most:
        raise ValueError
    return float(given)


def _vector(given: Any) -> Vector:
    x, y, z = map(_number, given)
    return x, y, z


def _points(given: Any) -> Vector | tuple[Vector, ...]:
    return tuple(map(_vector, given)) if isinstance(given[0], (list, tuple)) else _vector(given)


def _box(given: Any) -> tuple[Vector, Vector]:
    low, high = map(_vector, given)
    return low, high


def _color(given: Any) -> str:
    if not re.fullmatch(r"#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})", given):
        raise ValueError
    return given.lower() if len(given) == 7 else "#" + "".join(2 * digit for digit in given[1:].lower())


def _rotation(given: Any) -> Rotation:
    if set(given) - {"axis", "degrees"} or "degrees" not in given:
        raise ValueError
    axis = _vector(given.get("axis", Rotation().axis))
    if not any(axis):
        raise ValueError
    return Rotation(axis, _number(given["degrees"]))


def _names(given: Any) -> tuple[tuple[int, str], ...]:
    if not given or any(type(key) is not int or not name.strip() for key, name in given.items()):
        raise ValueError
    return tuple((key, name.strip()) for key, name in given.items())


_SHARE = (partial(_number, least=0, most=1), "a number in [0, 1]")


def _flag(given: Any) -> bool:
    if not isinstance(given, bool):
        raise ValueError
    return given


_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {  # setting -> how it is read, and what is expected
    "objects": (_ids, "an object id or a list of different ones, as [3, 4]; or scene, for all"),
    "new_ids": (_ids, "a list of different ids, as [12]"),
    "color": (_color, 'a colour in quotes, as "#ff0000"'),
    "fill": (_flag, "true or false"),
    "shadow": (_flag, "true or false"),
    "strength": _SHARE,
    "gap": (partial(_number, least=1 / _FAR), "a positive number of spacings"),
    "box": (_box, "two corners, as [[0, 0, 0], [1, 1, 1]]"),
    "distance": (partial(_number, least=1 / _FAR), "a positive length"),
    "object": (lambda given: _numbers([given])[0], "an object id, old or new"),
    "gaussians": (_numbers, "a list of different numbers of Gaussians, from 0"),
    "centre": (_points, "a point, as [0, 0, 0], or a list of points"),
    "radius": (partial(_number, least=1 / _FAR), "a positive length"),
    "min_confidence": _SHARE,
    "outliers": (partial(_number, least=0), "a number that is not negative; 0 = off"),
    "rotate": (_rotation, "{axis: [x, y, z], degrees: d}, the axis not zero"),
    "translate": (_vector, f"three numbers up to {_FAR:g}, as [0.1, 0, 0]"),
    "scale": (partial(_number, least=1 / _FAR), f"a positive number from {1 / _FAR:g} to {_FAR:g}"),
    "names": (_names, "ids and names, as {7: mug}"),
    "about": (lambda given: None if given == "centroid" else _vector(given), "centroid or a point, as [0, 0, 0]"),
}
