"""Twenty steps of every stage give the losses and parameters that tests/golden/*.json hold: numbers never move unseen.

The code before `train/` took its present shape wrote them, but for refine: there pixels vote by pieces of objects
and their places since.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diff_gaussian_rasterization import native

from tests.scenes import CENTRES, COLORS, RADII, tiny_scene
from unified_lift.modelfolder.checkpoint import checkpoint_path, load_checkpoint
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.settings import TrainSettings, changed, with_preset
from unified_lift.settings.yaml import merged
from unified_lift.train.logs import read_log
from unified_lift.train.run import run

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS = 20
# Rates, thresholds and factors are the defaults, so that a default that moves is seen.
SHORT = {
    "geometry": {"iterations": STEPS, "sh_interval": 4},
    "density": {
        "densify_from_iter": 3,
        "densify_until_iter": 20,
        "densification_interval": 5,
        "opacity_reset_interval": 12,
    },
    "lift": {"lift_iterations": STEPS, "lift_pixels": 200},
    "method": {
        "codebook_min_members": 2,
        "codebook_min_cosine": 0.5,
        "codebook_min_pixels": 5,
        "codebook_min_consistency": 0.2,
        "codebook_min_support": 0,
        "codebook_start": 0.5,
        "sharpen_steps": STEPS,
    },
    "run": {"logger": "none", "quiet": True, "log_interval": 1, "device": "cpu"},
}


def golden_scene():
    """Three balls with points of three densities: Gaussians are split and cloned at either threshold of their size."""
    scene, rng = tiny_scene(), np.random.default_rng(7)
    positions = []
    for centre, radius in zip(CENTRES, RADII, strict=True):
        for count, spread in ((40, 2.0), (60, 0.3), (40, 0.15)):
            directions = np.array([0.0, 0.0, -1.0]) + spread * rng.normal(size=(count, 3))
            positions.append(centre + radius * directions / np.linalg.norm(directions, axis=1, keepdims=True))
    positions.append(rng.uniform(-2, 2, size=(10, 3)))  # far apart, so large: pruned after the reset
    colors = np.concatenate([COLORS.repeat(140, axis=0), np.full((10, 3), 128)]).astype(np.uint8)
    points = replace(scene.points, positions=np.concatenate(positions).astype(np.float32), colors=colors)
    return replace(scene, points=points)


def checksums(tensors):
    """Return mean, root mean square and a weighted mean of each floating-point tensor."""
    found = {}
    for name, value in sorted(tensors.items()):
        x = value.detach().double().flatten()
        weights = torch.linspace(0.5, 1.5, len(x), dtype=torch.float64)
        found[name] = [float(x.mean()), float(x.square().mean().sqrt()), float((x * weights).mean())]
    return found


def train(model):
    """Return the curves and parameters of each stage."""
    settings = merged(with_preset(TrainSettings(), "unified_lift"), SHORT | {"model_path": str(model)}, origin="test")
    run(settings, golden_scene())
    log = read_log(model)
    geometry, lift = (load_checkpoint(checkpoint_path(model, total)) for total in (STEPS, 2 * STEPS))
    features = {"features": load_model(model).gaussians.features}
    parameters = {
        "geometry": checksums({k: v for k, v in geometry["gaussians"].items() if v.numel()}),
        "lift": checksums({"features": lift["gaussians"]["features"], "codebook": lift["method"]["codebook"]}),
        "refine": checksums(features),
    }
    return {stage: {"steps": curve(log, stage), "parameters": parameters[stage]} for stage in parameters}


def curve(log, stage):
    """Return each logged value over the steps of a stage."""
    lines = [line for line in log if line["stage"] == stage]
    names = sorted({name for line in lines for name in line} - {"stage", "step", "seconds_per_step"})
    return {name: [line.get(name) for line in lines] for name in names}


def values(tree):
    """Return the numbers of nested dictionaries and lists, in order; None where a step has no such term."""
    if isinstance(tree, dict):
        return [number for _, below in sorted(tree.items()) for number in values(below)]
    return [number for below in tree for number in values(below)] if isinstance(tree, list) else [tree]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    before = native.isa()
    native.use_isa("baseline")  # the others add in another order, which Adam turns into up to two percent
    try:
        return train(tmp_path_factory.mktemp("golden") / "model")
    finally:
        native.use_isa(before)


# Stage, and the tolerances of losses and parameters: ten times what torch's own instruction sets change.
@pytest.mark.parametrize(
    ("stage", "of_steps", "of_parameters"), [("geometry", 2e-6, 1e-5), ("lift", 1e-4, 1e-3), ("refine", 1e-5, 3e-4)]
)
def test_twenty_steps_are_those_of_before(found, stage, of_steps, of_parameters):
    golden = json.loads((GOLDEN / f"{stage}.json").read_text())
    for part, tolerance in (("steps", of_steps), ("parameters", of_parameters)):
        assert found[stage][part].keys() >= golden[part].keys()
        for name, wanted in golden[part].items():
            assert values(found[stage][part][name]) == [
                None if value is None else pytest.approx(value, rel=tolerance, abs=1e-3 * tolerance)
                for value in values(wanted)
            ], f"{stage}: {name}"


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
