"""Checkpoints that hold something else than a run left: refused in one line before a step is taken."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.scenes import tiny_scene
from unified_lift.errors import UserError
from unified_lift.modelfolder.settings import TrainSettings, changed
from unified_lift.train.logs import read_log
from unified_lift.train.run import run

GOLDEN = Path(__file__).parents[1] / "golden"


def short(table):
    return {name: value[:7] for name, value in table.items()}


def moments_of(state, count):
    adam = {name: tuple(moment[:count] for moment in pair) for name, pair in state["adam"]["moments"].items()}
    return state | {"adam": state["adam"] | {"moments": adam}}


CHANGES = {
    "step beyond all": lambda s: {"step": 10**9},
    "step below 0": lambda s: {"step": -5},
    "step in words": lambda s: {"step": "a"},
    "another stage": lambda s: {"stage": "x"},
    "no settings": lambda s: {"settings": {}},
    "settings are a number": lambda s: {"settings": 3},
    "frame of NaN": lambda s: {"frame": {"offset": (float("nan"), 0.0, 0.0)}},
    "frame is a number": lambda s: {"frame": 3},
    "no Gaussians": lambda s: {"gaussians": {}},
    "columns of other lengths": lambda s: {"gaussians": s["gaussians"] | {"means": s["gaussians"]["means"][:9]}},
    "two coordinates": lambda s: {"gaussians": s["gaussians"] | {"means": s["gaussians"]["means"][:, :2]}},
    "fewer Gaussians than moments": lambda s: {"gaussians": short(s["gaussians"])},
    "no state": lambda s: {"stage_state": None},
    "empty state": lambda s: {"stage_state": {}},
    "fewer moments than Gaussians": lambda s: {"stage_state": moments_of(s["stage_state"], 5)},
    "a view that is not there": lambda s: {
        "stage_state": s["stage_state"] | {"order": s["stage_state"]["order"] | {"stack": [99]}}
    },
    "seconds in words": lambda s: {"seconds": {"lift": "a"}},
}


@pytest.mark.parametrize("stage", ["geometry", "lift"])
@pytest.mark.parametrize("what", CHANGES)
def test_a_checkpoint_that_makes_no_sense_is_refused(tmp_path, stage, what):
    state, path = torch.load(GOLDEN / f"checkpoint_{stage}.pth", weights_only=True), tmp_path / "chkpnt9.pth"
    torch.save(state | CHANGES[what](state), path)
    scene = tiny_scene()
    points = replace(scene.points, positions=scene.points.positions[::4], colors=scene.points.colors[::4])
    settings = changed(TrainSettings(), state["settings"] | {"model_path": str(tmp_path / "m")}, origin="test")
    with pytest.raises(
        UserError, match=r"^[^\n]*chkpnt9.pth: not a readable checkpoint[^\n]*another chkpnt<N>.pth[^\n]*$"
    ):
        run(settings, replace(scene, points=points), resume_from=path)


@pytest.mark.parametrize(
    "line", ["{", "3", '{"stage": "x", "step": 1}', '{"step": 1}', '{"stage": "lift", "step": []}', "\xff"]
)
def test_a_log_of_other_lines_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(f"{line}\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"metrics.jsonl: not a readable log"):
        read_log(tmp_path)
