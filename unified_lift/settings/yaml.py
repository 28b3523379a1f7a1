"""Settings as trees of frozen dataclasses: from YAML, to YAML, with errors that name the file and the nearest key."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from unified_lift.errors import UserError
from unified_lift.settings.limits import faults

T = TypeVar("T")


def read_settings_file(path: Path) -> dict[str, Any]:
    """Return the content of a YAML or JSON settings file.

    Raises:
        UserError: No such file, not YAML, or not a mapping.
    """
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file") from None
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable settings file ({str(error).splitlines()[0]})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, received a {type(content).__name__}")
    return content


def merged(settings: T, changes: Mapping[str, Any], *, origin: str) -> T:
    """Return `settings` with `changes` applied.

    A key is the name of a group (its value a mapping), or of a setting: at its place in the tree, or anywhere below if
    the name is unique there.

    Raises:
        UserError: Unknown key (with the nearest known one), value of another type or out of range; `origin` is named.
    """
    paths = _leaf_paths(settings)
    for key, value in changes.items():
        settings = _apply(settings, key, value, paths, origin)
    return settings


def to_dict(settings: Any) -> dict[str, Any]:
    """Return the tree as plain YAML-able values."""
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def differences(left: Any, right: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return `dotted.name -> (left, right)` of every leaf in which two trees of the same type differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(left):
        a, b, name = getattr(left, field.name), getattr(right, field.name), prefix + field.name
        if dataclasses.is_dataclass(a):
            found |= differences(a, b, f"{name}.")
        elif a != b:
            found[name] = (a, b)
    return found


def replaced(settings: T, name: str, value: Any) -> T:
    """Return `settings` with the leaf at dotted `name` replaced."""
    head, _, rest = name.partition(".")
    return dataclasses.replace(settings, **{head: replaced(getattr(settings, head), rest, value) if rest else value})


def _apply(settings: T, key: str, value: Any, paths: dict[str, list[str]], origin: str) -> T:
    own = {field.name for field in dataclasses.fields(settings)}
    if key in own and dataclasses.is_dataclass(getattr(settings, key)):
        if not isinstance(value, Mapping):
            raise UserError(f"{origin}: {key} is a group; write its settings below it, indented")
        group = merged(getattr(settings, key), value, origin=f"{origin}, group {key}")
        return dataclasses.replace(settings, **{key: group})
    if len(paths.get(key, [])) != 1:
        near = difflib.get_close_matches(key, [*paths, *own], n=1)
        raise UserError(f"{origin}: unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    path = paths[key][0]
    return replaced(settings, path, _coerced(settings, path, value, origin))


def _leaf_paths(settings: Any, prefix: str = "") -> dict[str, list[str]]:
    paths: dict[str, list[str]] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            for name, below in _leaf_paths(value, f"{prefix}{field.name}.").items():
                paths.setdefault(name, []).extend(below)
        else:
            paths.setdefault(field.name, []).append(prefix + field.name)
    return paths


def _coerced(settings: Any, path: str, value: Any, origin: str) -> Any:
    *groups, name = path.split(".")
    owner = settings
    for group in groups:
        owner = getattr(owner, group)
    hint = typing.get_type_hints(type(owner), include_extras=True)[name]
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    try:
        value = _as_type(kind, value)
    except (TypeError, ValueError):
        raise UserError(f"{origin}: {name} must be {_type_name(kind)}, received {value!r}") from None
    for fault in faults(value, hint):
        raise UserError(f"{origin}: {name} {fault}")
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
        return tuple(_as_type(arguments[0], item) for item in value)
    if hint is bool or isinstance(value, bool):
        if hint is not bool or not isinstance(value, bool):
            raise TypeError
        return value
    if hint is int and isinstance(value, float) and value != int(value):
        raise ValueError
    return hint(value)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
