"""The fuzzer finds what is planted, is the same for a seed, and finds nothing in a short run of every group."""

import random
import re
import sys
import time

import fuzz
import pytest


@pytest.mark.parametrize("group", fuzz.GROUPS)
def test_a_short_run_of_every_group_finds_no_fault(group, tmp_path):
    assert not fuzz.fuzz([group], 12, 3, tmp_path / "work", tmp_path / "kept")


def test_a_seed_names_the_same_damage(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, 2, {"b": 3}], "c": "d"}')
    first, again = ([fuzz.damaged(tmp_path / "a.json", random.Random(4)) for _ in range(9)] for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("does", "fault"),
    [
        (lambda argv: 1 / 0, "ZeroDivisionError"),
        (lambda argv: len(bytearray(3 << 30)) and 0, "over 2 GiB"),
        (lambda argv: 7, "exit code 7"),
        (lambda argv: sys.stderr.write("RuntimeWarning: overflow") * 0, "RuntimeWarning: overflow"),
        (lambda argv: sys.stderr.write("error: no such file") * 0 + 2, "^$"),
    ],
    ids=["traceback", "memory", "exit code", "warning", "told in a line"],
)
def test_faults_are_seen(does, fault, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "command", does)
    assert re.search(fault, fuzz.run("query", tmp_path)[1])


def test_a_command_that_waits_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "command", lambda argv: time.sleep(60))
    monkeypatch.setattr(fuzz, "MOST_SECONDS", 0.2)
    assert fuzz.run("query", tmp_path)[1].startswith("over")
