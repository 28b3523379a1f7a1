"""Limits of all settings of a training."""

import dataclasses

import pytest

from unified_lift.capture.masks import FilterSettings
from unified_lift.density import STRATEGIES
from unified_lift.errors import UserError
from unified_lift.methods import METHODS
from unified_lift.modelfolder.settings import TrainSettings, changed
from unified_lift.settings.limits import faults, leaves

TREES = [TrainSettings(), FilterSettings(), *(entry.settings() for entry in (*METHODS.values(), *STRATEGIES.values()))]
ENTRIES = [(type(tree).__name__, name, *leaf) for tree in TREES for name, leaf in leaves(tree).items()]


@pytest.mark.parametrize(("owner", "name", "value", "hint"), ENTRIES, ids=str)
def test_every_number_has_a_finite_range_that_holds_its_default(owner, name, value, hint):
    assert not list(faults(value, hint))
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers):
        for bad in (float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 10**30, -(10**30)):
            assert list(faults(bad, hint)), bad


@pytest.mark.parametrize(
    "changes",
    [
        {"codebook_min_members": -1},
        {"feature_lr_decay": 0},
        {"feature_dim": 100_000},
        {"position_lr_init": 0},
        {"iterations": float("inf")},
        {"seed": 10**20},
        {"seed": 1e308},
        {"num_codes": 2**60},
        {"method_name": []},
        {"strategy": {"a": 1}},
        {"resolution": 2**31},
        {"num_random_points": 2**40},
        {"temperature": "9" * 400},
        {1: 2},
        {"method": 3},
    ],
    ids=str,
)
def test_settings_nobody_can_mean_are_refused_and_named(changes):
    with pytest.raises(UserError, match=rf"^my.yaml.*{next(iter(changes))}"):
        changed(TrainSettings(), changes, origin="my.yaml")


def test_a_command_line_holds_to_the_same_ranges():
    settings = TrainSettings()
    method = dataclasses.replace(settings.method, codebook_min_members=-1)
    with pytest.raises(UserError, match="--codebook_min_members must be at least 1"):
        dataclasses.replace(settings, method=method).check()
