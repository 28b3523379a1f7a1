"""Checkpoints of the code before refinement was a stage are gone on with: tests/golden/checkpoint_*.pth are of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.scenes import tiny_scene
from unified_lift.modelfolder.checkpoint import checkpoint_path, load_checkpoint
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.settings import TrainSettings, changed
from unified_lift.train.logs import read_log
from unified_lift.train.run import run

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(("stage", "step"), [("geometry", 7), ("lift", 8)])
def test_a_checkpoint_of_before_is_resumed(tmp_path, stage, step):
    scene, path = tiny_scene(), GOLDEN / f"checkpoint_{stage}.pth"
    points = replace(scene.points, positions=scene.points.positions[::4], colors=scene.points.colors[::4])
    before = load_checkpoint(path)
    assert (before["stage"], before["step"]) == (stage, step)
    settings = changed(TrainSettings(), before["settings"] | {"model_path": str(tmp_path)}, origin="test")
    settings = changed(settings, {"run": {"log_interval": 1}}, origin="test")
    run(settings, replace(scene, points=points), resume_from=path)
    log = [(line["stage"], line["step"]) for line in read_log(tmp_path) if line["stage"] != "test"]
    assert log[0] == (stage, step + 1)
    assert [entry for entry in log if entry[0] == "refine"] == [("refine", number) for number in range(1, 5)]
    after = load_checkpoint(checkpoint_path(tmp_path, 24))
    assert after["stage_state"]["adam"]["steps"] == {"features": 12}
    assert after["seconds"]["geometry"] > before["seconds"]["geometry"] * (stage == "geometry")
    features = load_model(tmp_path).gaussians.features
    assert features.shape == after["gaussians"]["features"].shape
    assert bool(torch.isfinite(features).all())
