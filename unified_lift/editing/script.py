"""Edits as a YAML list, so that what was done by hand in the viewer can be kept, read, changed and done again.

Such as `- recolour: {objects: [5], color: "#ff0000"}`, `- remove: [3, 4]`, `- rename: {7: mug}`; see docs/edit.md.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from unified_lift.editing.operations import CENTROID, OPERATIONS, Operation, Rename, Rotation, Vector, rgb_of
from unified_lift.errors import UserError
from unified_lift.modelfolder.inference import TrainedScene


def read_script(path: Path, *, flag: str) -> list[Operation]:
    """Return the operations of a file that the user named with `flag`, as `parse` does."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path}: not readable ({error})") from None
    return parse(text, origin=str(path))


def parse(text: str, *, origin: str = "edits") -> list[Operation]:
    """Return the operations of a script; messages call it `origin`, usually its path.

    A UserError names line and entry: not YAML, an unknown operation or setting, or a value that makes no sense.
    """
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        place, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{origin}, line {place.line + 1}" if place else origin
        raise UserError(f"{where}: not YAML ({problem or error})") from None
    if content is None:
        return []
    if not isinstance(content, list):
        kind = type(content).__name__
        raise UserError(f"{origin}: expected a list, one `- operation: ...` a line, received a {kind}")
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
        except (ValueError, TypeError, OverflowError, AttributeError):
            raise UserError(f"{where}: {key}: {name} must be {expected}, received {raw!r}") from None
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
    entries = [{operation.key: _plain(operation)} for operation in edits]
    return yaml.safe_dump(entries, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


def _plain(operation: Operation) -> Any:
    """Return what follows the key: settings that are not the default, or bare ids."""
    if isinstance(operation, Rename):
        return dict(operation.names)
    settings = dataclasses.asdict(operation)
    for field in dataclasses.fields(operation):
        if getattr(operation, field.name) == field.default:
            del settings[field.name]
    return settings["objects"] if set(settings) == {"objects"} else settings


def _nearest(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _refuse_repeated_keys(node: yaml.Node, origin: str) -> None:
    """Raise a UserError where a mapping has a key twice, of which YAML would keep the last without a word."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    for index, (key, _) in enumerate(pairs):
        if any(key.value == other.value for other, _ in pairs[:index]):
            raise UserError(f"{origin}, line {key.start_mark.line + 1}: {key.value!r} is there twice; keep one")
    for child in [value for _, value in pairs] or (node.value if isinstance(node, yaml.SequenceNode) else ()):
        _refuse_repeated_keys(child, origin)


# ---- values: what readers raise, read_operation turns into a message ----


def _ids(given: Any) -> tuple[int, ...]:
    ids = given if isinstance(given, (list, tuple)) else [given]
    if not ids or len(set(ids)) != len(ids) or any(type(value) is not int or value < 0 for value in ids):
        raise ValueError
    return tuple(ids)


def _number(given: Any, *, least: float = -math.inf, most: float = math.inf) -> float:
    if isinstance(given, str) and re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", given):
        given = float(given)  # YAML 1.1 takes 1e-7 for a word, since it has no point and 1.0e-7 does
    if type(given) not in (int, float) or not math.isfinite(given) or not least <= given <= most:
        raise ValueError
    return float(given)


def _vector(given: Any) -> Vector:
    x, y, z = map(_number, given)
    return x, y, z


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
_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {  # setting -> how it is read, and what is expected
    "objects": (_ids, "an object id or a list of different ones, as [3, 4]"),
    "new_ids": (_ids, "a list of different ids, as [12]"),
    "color": (
        lambda given: "#" + bytes(round(255 * value) for value in rgb_of(given)).hex(),
        'a colour in quotes, as "#ff0000"',
    ),
    "strength": _SHARE,
    "min_confidence": _SHARE,
    "outliers": (partial(_number, least=0), "a number that is not negative; 0 = off"),
    "rotate": (_rotation, "{axis: [x, y, z], degrees: d}, the axis not zero"),
    "translate": (_vector, "three numbers, as [0.1, 0, 0]"),
    "scale": (partial(_number, least=math.ulp(0)), "a positive number"),
    "names": (_names, "ids and names, as {7: mug}"),
    "about": (lambda given: given if given == CENTROID else _vector(given), f"{CENTROID} or a point, as [0, 0, 0]"),
}
