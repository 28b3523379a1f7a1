"""Edits as a YAML list, so that what was done by hand in the viewer can be kept, read, changed and done again.

```yaml
- remove: [3, 4]
- recolour: {objects: [5], color: "#ff0000"}
- duplicate:
    objects: [7]
    rotate: {axis: [0, 0, 1], degrees: 90}
    translate: [0.1, 0, 0]
- rename: {7: mug}
```
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import yaml

from unified_lift.editing import operations, selection
from unified_lift.editing.operations import CENTROID, Rotation, Vector
from unified_lift.errors import UserError
from unified_lift.modelfolder.inference import TrainedScene


@dataclass(frozen=True, kw_only=True)
class Remove:
    """Take objects away."""

    key: ClassVar[str] = "remove"
    objects: tuple[int, ...]

    def apply(self, scene: TrainedScene) -> TrainedScene:
        """Return the scene after it."""
        return operations.remove(scene, self.objects)


@dataclass(frozen=True, kw_only=True)
class Isolate:
    """Take everything else away."""

    key: ClassVar[str] = "isolate"
    objects: tuple[int, ...]

    def apply(self, scene: TrainedScene) -> TrainedScene:
        """Return the scene after it."""
        return operations.isolate(scene, self.objects)


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Make objects one: the first of them."""

    key: ClassVar[str] = "merge"
    objects: tuple[int, ...]

    def apply(self, scene: TrainedScene) -> TrainedScene:
        """Return the scene after it."""
        return operations.merge(scene, self.objects)


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Give Gaussians that hardly belong to objects to what is next to them."""

    key: ClassVar[str] = "clean"
    objects: tuple[int, ...]
    min_confidence: float = 0.0
    outliers: float = 0.0

    def apply(self, scene: TrainedScene) -> TrainedScene:
        """Return the scene after it."""
        return selection.clean(scene, self.objects, min_confidence=self.min_confidence, outliers=self.outliers)


@dataclass(frozen=True, kw_only=True)
class Recolour:
    """Paint objects; `color` is #rrggbb."""

    key: ClassVar[str] = "recolour"
    objects: tuple[int, ...]
    color: str
    strength: float = 1.0

    def apply(self, scene: TrainedScene) -> TrainedScene:
        """Return the scene after it."""
        return operations.recolour(scene, self.objects, color=rgb_of(self.color), strength=self.strength)


@dataclass(frozen=True, kw_only=True)
class Move:
    """Turn, grow and shift objects as one body."""

    key: ClassVar[str] = "move"
    objects: tuple[int, ...]
    rotate: Rotation = Rotation()
    translate: Vector = (0.0, 0.0, 0.0)
    scale: float = 1.0
    about: str | Vector = CENTROID

    def apply(self, scene: TrainedScene) -> TrainedScene:
        """Return the scene after it."""
        return operations.move(
            scene,
            self.objects,
            rotation=self.rotate,
            translation=self.translate,
            scale=self.scale,
            about=self.about,
        )


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """Add moved copies of objects."""

    key: ClassVar[str] = "duplicate"
    objects: tuple[int, ...]
    rotate: Rotation = Rotation()
    translate: Vector = (0.0, 0.0, 0.0)
    scale: float = 1.0
    about: str | Vector = CENTROID
    new_ids: tuple[int, ...] | None = None

    def apply(self, scene: TrainedScene) -> TrainedScene:
        """Return the scene after it."""
        return operations.duplicate(
            scene,
            self.objects,
            rotation=self.rotate,
            translation=self.translate,
            scale=self.scale,
            about=self.about,
            new_ids=self.new_ids,
        )


@dataclass(frozen=True, kw_only=True)
class Rename:
    """Call objects by names."""

    key: ClassVar[str] = "rename"
    names: tuple[tuple[int, str], ...]

    def apply(self, scene: TrainedScene) -> TrainedScene:
        """Return the scene after it."""
        for object_id, name in self.names:
            scene = operations.rename(scene, object_id, name)
        return scene


Operation: TypeAlias = Remove | Isolate | Merge | Clean | Recolour | Move | Duplicate | Rename
OPERATIONS: Mapping[str, type[Operation]] = {
    kind.key: kind for kind in (Remove, Isolate, Merge, Clean, Recolour, Move, Duplicate, Rename)
}


def parse(text: str, *, origin: str = "edits") -> list[Operation]:
    """Return the operations of a script.

    Args:
        text: YAML: a list whose entries have one key, the operation.
        origin: What messages call the script: its path, usually.
    Raises:
        UserError: Not YAML, an unknown operation or setting (with the nearest known one), or a value that makes no
            sense; line and entry are named.
    """
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}, line {mark.line + 1}" if mark is not None else origin
        raise UserError(f"{where}: not YAML ({getattr(error, 'problem', None) or error})") from None
    if content is None:
        return []
    if not isinstance(content, list):
        raise UserError(
            f"{origin}: expected a list, one `- operation: ...` a line, received a {type(content).__name__}"
        )
    found = []
    for index, (node, entry) in enumerate(zip(tree.value, content, strict=True)):
        where = f"{origin}, line {node.start_mark.line + 1}, entry {index + 1}"
        _refuse_repeated_keys(node, origin)
        found.append(read_operation(entry, where))
    return found


def read_operation(entry: Any, where: str) -> Operation:
    """Return the operation of one entry of a script.

    Args:
        entry: As YAML gives it: {"remove": [3, 4]}.
        where: What messages call its place.
    Raises:
        UserError: As `parse`.
    """
    if not isinstance(entry, dict) or len(entry) != 1:
        raise UserError(f"{where}: expected one operation and its objects, as in `- remove: [3, 4]`")
    ((key, value),) = entry.items()
    if key not in OPERATIONS:
        raise UserError(f"{where}: no operation {key!r}{_nearest(key, OPERATIONS)}; there are {', '.join(OPERATIONS)}")
    kind = OPERATIONS[key]
    if kind is Rename:
        return Rename(names=_names(value, where))
    settings = value if isinstance(value, dict) else {"objects": value}
    known = {field.name: field for field in dataclasses.fields(kind)}
    read = {}
    for name, given in settings.items():
        if name not in known:
            raise UserError(
                f"{where}: {key} has no setting {name!r}{_nearest(name, known)}; there are {', '.join(known)}"
            )
        read[name] = _value(name, given, f"{where}: {key}: {name}")
    for name, field in known.items():
        if field.default is dataclasses.MISSING and name not in read:
            raise UserError(f"{where}: {key} needs {name!r}" + (', as "#ff0000"' if name == "color" else ""))
    return kind(**read)


def apply(scene: TrainedScene, edits: Iterable[Operation]) -> TrainedScene:
    """Return the scene after all operations, in their order.

    Raises:
        UserError: One cannot be done; it is named.
    """
    for index, operation in enumerate(edits):
        try:
            scene = operation.apply(scene)
        except UserError as error:
            raise UserError(f"edit {index + 1} ({operation.key}): {error}") from None
    return scene


def dump(edits: Iterable[Operation]) -> str:
    """Return a script that `parse` reads back as the same operations."""
    return yaml.safe_dump(
        [{operation.key: _plain(operation)} for operation in edits],
        sort_keys=False,
        default_flow_style=None,
        allow_unicode=True,
        width=120,
    )


def rgb_of(color: str) -> Vector:
    """Return RGB in [0, 1] of #rrggbb or #rgb.

    Raises:
        ValueError: It is neither.
    """
    if not re.fullmatch(r"#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})", color):
        raise ValueError("#rrggbb")
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    red, green, blue = (int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4))
    return red, green, blue


def _nearest(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


# ---- values: each reader raises a ValueError, TypeError or OverflowError that _value turns into a message ----


class _Reader(NamedTuple):
    read: Callable[[Any], Any]
    expected: str


def _value(name: str, given: Any, where: str) -> Any:
    reader = _READERS[name]
    try:
        return reader.read(given)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{where} must be {reader.expected}, received {given!r}") from None


def _ids(given: Any) -> tuple[int, ...]:
    ids = given if isinstance(given, (list, tuple)) else [given]
    if not ids or len(set(ids)) != len(ids) or any(type(value) is not int or value < 0 for value in ids):
        raise ValueError
    return tuple(ids)


def _number(given: Any) -> float:
    if isinstance(given, str) and re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", given):
        given = float(given)  # YAML 1.1 takes 1e-7 for a word, since it has no point and 1.0e-7 does
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise ValueError
    return float(given)


def _share(given: Any) -> float:
    number = _number(given)
    if not 0 <= number <= 1:
        raise ValueError
    return number


def _not_negative(given: Any) -> float:
    number = _number(given)
    if number < 0:
        raise ValueError
    return number


def _positive(given: Any) -> float:
    number = _number(given)
    if number <= 0:
        raise ValueError
    return number


def _vector(given: Any) -> Vector:
    x, y, z = (_number(value) for value in given)
    return x, y, z


def _pivot(given: Any) -> str | Vector:
    return CENTROID if given == CENTROID else _vector(given)


def _rotation(given: Any) -> Rotation:
    if set(given) - {"axis", "degrees"} or "degrees" not in given:
        raise ValueError
    axis = _vector(given.get("axis", Rotation().axis))
    if not any(axis):
        raise ValueError
    return Rotation(axis, _number(given["degrees"]))


def _hex_color(given: Any) -> str:
    rgb = rgb_of(given)
    return "#" + "".join(f"{round(255 * value):02x}" for value in rgb)


_READERS = {
    "objects": _Reader(_ids, "an object id or a list of different ones, as [3, 4]"),
    "new_ids": _Reader(_ids, "a list of different ids, as [12]"),
    "color": _Reader(_hex_color, 'a colour in quotes, as "#ff0000"'),
    "strength": _Reader(_share, "a number in [0, 1]"),
    "min_confidence": _Reader(_share, "a number in [0, 1]"),
    "outliers": _Reader(_not_negative, "a number that is not negative; 0 = off"),
    "rotate": _Reader(_rotation, "{axis: [x, y, z], degrees: d}, the axis not zero"),
    "translate": _Reader(_vector, "three numbers, as [0.1, 0, 0]"),
    "scale": _Reader(_positive, "a positive number"),
    "about": _Reader(_pivot, f"{CENTROID} or a point, as [0, 0, 0]"),
}


def _names(value: Any, where: str) -> tuple[tuple[int, str], ...]:
    if not isinstance(value, dict) or not value:
        raise UserError(f"{where}: rename needs ids and names, as {{7: mug}}")
    for object_id, name in value.items():
        if type(object_id) is not int or not isinstance(name, str) or not name.strip():
            raise UserError(
                f"{where}: rename: expected an id and a name, as {{7: mug}}, received {object_id!r}: {name!r}"
            )
    return tuple((object_id, name.strip()) for object_id, name in value.items())


def _refuse_repeated_keys(node: yaml.Node, origin: str) -> None:
    """Raise a UserError where a mapping has a key twice, of which YAML would keep the last without a word."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise UserError(f"{origin}, line {key.start_mark.line + 1}: {key.value!r} is there twice; keep one")
            seen.add(key.value)
            _refuse_repeated_keys(value, origin)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_repeated_keys(value, origin)


def _plain(operation: Operation) -> Any:
    """Return the value that stands behind the key: settings that are not the default, or bare ids."""
    if isinstance(operation, Rename):
        return dict(operation.names)
    settings = {}
    for field in dataclasses.fields(operation):
        value = getattr(operation, field.name)
        if value != field.default:
            settings[field.name] = _plain_value(value)
    return settings["objects"] if set(settings) == {"objects"} else settings


def _plain_value(value: Any) -> Any:
    if isinstance(value, Rotation):
        return {"axis": list(value.axis), "degrees": value.degrees}
    return list(value) if isinstance(value, tuple) else value
