"""Settings as trees of frozen dataclasses, from and to YAML: errors name the file and the nearest key; presets."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from unified_lift.errors import UserError
from unified_lift.reading import parsed_yaml, shown
from unified_lift.settings.limits import faults, leaves

T = TypeVar("T", bound=Any)

PRESET_DIR = Path(__file__).with_name("presets")
"""YAML files of differences that the package ships; `configs/` in the repository is the same folder."""


def read_settings_file(path: Path) -> dict[str, Any]:
    """Return the content of a YAML or JSON settings file; a UserError says that it cannot be read or is no mapping."""
    content = parsed_yaml(path, kind="settings file", missing="no such settings file")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, received a {type(content).__name__}")
    return content


def preset_chain(preset: str) -> Iterator[tuple[Path, dict]]:
    """Yield file and content of a preset (a shipped name or a YAML file), then of what it extends, and so on."""
    seen: list[Path] = []
    name: Any = preset
    while name is not None:
        if not isinstance(name, str):
            raise UserError(f"{seen[-1]}: extends {shown(name)}: give the name of a preset or a .yaml file")
        path = Path(name) if name.endswith((".yaml", ".yml")) else PRESET_DIR / f"{name}.yaml"
        if not path.exists():
            names = sorted(str(p.relative_to(PRESET_DIR).with_suffix("")) for p in PRESET_DIR.rglob("*.yaml"))
            origin = f"{seen[-1]}: extends" if seen else "--preset"
            raise UserError(f"{origin} {name}: no such preset; there are {', '.join(names)}, or give a .yaml file")
        if path in seen:
            raise UserError(f"{path}: extends itself, through {' -> '.join(map(str, seen))}")
        seen.append(path)
        content = read_settings_file(path)
        name = content.pop("extends", None)
        yield path, content


def merged(settings: T, changes: Mapping[str, Any], *, origin: str) -> T:
    """Return `settings` with `changes` applied.

    A key is the name of a group (its value a mapping), or of a setting: at its place in the tree, or anywhere below if
    the name is unique there.

    Raises:
        UserError: Unknown key (with the nearest known one), value of another type or out of range; `origin` is named.
    """
    known = leaves(settings)
    groups = {field.name for field in fields(settings)} - set(known)
    for key, value in changes.items():
        if key in groups:
            if not isinstance(value, Mapping):
                raise UserError(f"{origin}: {key} is a group; write its settings below it, indented")
            group = merged(getattr(settings, key), value, origin=f"{origin}, group {key}")
            settings = dataclasses.replace(settings, **{key: group})
            continue
        paths = [path for path in known if path.rpartition(".")[2] == key]
        if len(paths) != 1:
            names = [path.rpartition(".")[2] for path in known]
            near = difflib.get_close_matches(str(key), [*names, *groups], n=1)
            raise UserError(f"{origin}: unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        settings = replaced(settings, paths[0], _coerced(known[paths[0]][1], value, f"{origin}: {key}"))
    return settings


def to_dict(settings: Any) -> dict[str, Any]:
    """Return the tree as plain YAML-able values."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value

    return dataclasses.asdict(settings, dict_factory=lambda items: {name: plain(value) for name, value in items})


def differences(left: Any, right: Any) -> dict[str, tuple[Any, Any]]:
    """Return `dotted.name -> (left, right)` of every setting that two trees have both, with different values."""
    theirs = leaves(right)
    pairs = {name: (value, theirs[name][0]) for name, (value, _) in leaves(left).items() if name in theirs}
    return {name: (before, after) for name, (before, after) in pairs.items() if before != after}


def replaced(settings: T, name: str, value: Any) -> T:
    """Return `settings` with the leaf at dotted `name` replaced."""
    head, _, rest = name.partition(".")
    return dataclasses.replace(settings, **{head: replaced(getattr(settings, head), rest, value) if rest else value})


def _coerced(hint: Any, value: Any, name: str) -> Any:
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    try:
        value = _as_type(kind, value)
    except (TypeError, ValueError, OverflowError):
        wanted = getattr(kind, "__name__", str(kind))
        if typing.get_origin(kind) is typing.Literal:
            wanted = "one of " + ", ".join(map(str, typing.get_args(kind)))
        if typing.get_origin(kind) is tuple and Ellipsis not in typing.get_args(kind):
            wanted = f"a list of {len(typing.get_args(kind))} values"
        raise UserError(f"{name} must be {wanted}, received {shown(value)}") from None
    for fault in faults(value, hint):
        raise UserError(f"{name} {fault}")
    return value


def _as_type(hint: Any, value: Any) -> Any:
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:
        if value not in arguments:
            raise ValueError
        return value
    if kind in (typing.Union, types.UnionType):
        return None if value is None else _as_type(next(a for a in arguments if a is not type(None)), value)
    if kind is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ValueError
        return tuple(_as_type(arguments[0], item) for item in value)
    if (hint is bool) != isinstance(value, bool):
        raise TypeError
    if hint is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    return hint(value)
