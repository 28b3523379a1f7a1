"""A part of the sweep of tests/sweep.py over commands that write: the old or the new is whole; it can be repeated."""

import pytest

from tests.sweep import MODES, NAMES, Sweep


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_wherever_a_command_fails_or_is_killed_the_old_or_the_new_is_whole(name, mode, tmp_path):
    trials = list(Sweep(tmp_path, name).trials(mode, step=9))
    assert len(trials) > 3
    assert [(trial.limit, wrong) for trial, wrong in trials if wrong] == []
    assert any(trial.status for trial, _ in trials)
