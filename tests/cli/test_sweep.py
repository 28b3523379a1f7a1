"""A part of the sweep of tests/sweep.py over all commands: the old or the new is whole; the command can be repeated."""

import pytest

from tests.sweep import MODES, NAMES, Sweep


@pytest.mark.parametrize("name", NAMES)
def test_wherever_a_command_fails_or_is_killed_the_old_or_the_new_is_whole(name, tmp_path):
    number = NAMES.index(name)
    mode = MODES[number % len(MODES)]
    trials = list(Sweep(tmp_path / "sweep", name).trials(mode, first=1 + 7 * number, step=60))
    assert trials
    assert [(trial.limit, wrong) for trial, wrong in trials if wrong] == []
    assert {trial.status for trial, _ in trials} <= ({-9} if mode == "kill" else {0, 1, 2})
