from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from unified_lift.errors import UserError
from unified_lift.settings.yaml import differences, merged, read_settings_file, replaced, to_dict


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    steps: tuple[int, ...] = (1, 2)
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = "x"
    flag: bool = False
    count: int = 3
    path: Path | None = None
    inner: Inner = field(default_factory=Inner)


def test_groups_and_unique_leaf_names_both_reach_their_setting():
    assert merged(Outer(), {"inner": {"rate": 1}}, origin="f").inner.rate == 1.0
    assert merged(Outer(), {"rate": "1e-6", "count": 4}, origin="f") == Outer(count=4, inner=Inner(rate=1e-6))


def test_later_changes_win_and_the_original_stays():
    base = Outer()
    assert merged(merged(base, {"rate": 1}, origin="f"), {"inner": {"rate": 2}}, origin="g").inner.rate == 2
    assert base == Outer()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raet": 1}, "unknown setting 'raet'; did you mean 'rate'"),
        ({"inner": {"stepz": 1}}, "group inner: unknown setting 'stepz'; did you mean 'steps'"),
        ({"inner": 3}, "inner is a group"),
        ({"count": "many"}, "count must be int, received 'many'"),
        ({"count": 2.5}, "count must be int"),
        ({"flag": 1}, "flag must be bool"),
        ({"count": True}, "count must be int"),
        ({"kind": "c"}, "kind must be one of a, b"),
        ({"steps": 3}, "steps must be"),
    ],
)
def test_wrong_key_or_value_names_file_key_and_cure(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        merged(Outer(), changes, origin="my.yaml")
    assert str(caught.value).startswith("my.yaml")


def test_yaml_round_trip():
    settings = Outer(path=Path("a/b"), flag=True, inner=Inner(steps=(7,), kind="b"))
    assert merged(Outer(), to_dict(settings), origin="f") == settings


def test_differences_name_the_leaf():
    assert differences(Outer(), replaced(Outer(), "inner.rate", 2.0)) == {"inner.rate": (0.5, 2.0)}


def test_unreadable_settings_files_are_named(tmp_path):
    path = tmp_path / "c.yaml"
    with pytest.raises(UserError, match="no such settings file"):
        read_settings_file(path)
    path.write_text("a: [1")
    with pytest.raises(UserError, match="not a readable settings file"):
        read_settings_file(path)
    path.write_text("- 1")
    with pytest.raises(UserError, match="expected `key: value`"):
        read_settings_file(path)
    path.write_text("")
    assert read_settings_file(path) == {}
