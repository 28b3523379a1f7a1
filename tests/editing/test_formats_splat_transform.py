"""Exports read by an independent program, the npm package @playcanvas/splat-transform, where it is installed."""

import os
import shutil
import subprocess

import numpy as np
import pytest
from plyfile import PlyData

from tests.editing.small_scene import random_gaussians, scene_of
from unified_lift.editing.formats import export
from unified_lift.model.gaussians import SH_C0


@pytest.fixture(scope="module")
def tool():
    found = os.environ.get("SPLAT_TRANSFORM") or shutil.which("splat-transform")
    if found is None:
        pytest.skip("no splat-transform on PATH, nor in SPLAT_TRANSFORM: npm install @playcanvas/splat-transform")
    return found


def columns(path, names):
    rows = PlyData.read(str(path))["vertex"].data
    return np.stack([rows[name].astype(float) for name in names], axis=1)


# Largest differences: of positions and coefficients in units, log scales, colour and opacity in 1/255, rotations in
# radians. Those of a .splat are off by two halves of a step: this reader takes 127.5 for zero where others take 128.
@pytest.mark.parametrize(
    ("name", "position", "log_scale", "color", "opacity", "angle", "sh"),
    [
        ("ply", 0, 0, 0, 0, 1e-6, 0),
        ("splat", 0, 1e-6, 0.51, 0.51, 0.03, None),
        ("spz", 2**-17, 1 / 32 + 1e-5, 0.95, 0.51, 0.006, 8.51 / 128),
    ],
)
def test_positions_sizes_colours_and_rotations_come_back(
    tmp_path, tool, name, position, log_scale, color, opacity, angle, sh
):
    scene = scene_of(random_gaussians(500))
    export(scene, tmp_path / "out", formats=["ply", name])
    back = tmp_path / "back.ply"
    subprocess.run(
        [tool, "-q", "-w", tmp_path / f"out/scene.{name}", back], check=True, capture_output=True, timeout=120
    )
    ours = tmp_path / "out/scene.ply"
    assert len(columns(back, "x")) == 500

    def gap(names, change=lambda values: values):
        return np.abs(change(columns(ours, names)) - change(columns(back, names))).max()

    assert gap("xyz") <= position
    assert gap([f"scale_{i}" for i in range(3)]) <= log_scale
    assert gap([f"f_dc_{i}" for i in range(3)], lambda dc: 255 * np.clip(SH_C0 * dc + 0.5, 0, 1)) <= color
    assert gap(["opacity"], lambda logit: 255 / (1 + np.exp(-logit))) <= opacity
    quats = [columns(path, [f"rot_{i}" for i in range(4)]) for path in (ours, back)]
    first, second = (value / np.linalg.norm(value, axis=1, keepdims=True) for value in quats)
    halves = np.minimum(np.linalg.norm(first - second, axis=1), np.linalg.norm(first + second, axis=1))
    assert 2 * halves.max() <= angle
    if sh is not None:
        rest = [f"f_rest_{i}" for i in range(45)]
        assert gap(rest, lambda values: values.clip(-1, 127 / 128)) <= sh


def test_an_object_can_be_cut_out_of_the_ply_with_labels_by_its_id(tmp_path, tool):
    scene = scene_of(random_gaussians(30), [0, 4, 7] * 10)
    export(scene, tmp_path / "out", formats=["labels"])
    source, back = tmp_path / "out/scene_labels/point_cloud_objects.ply", tmp_path / "back.ply"
    subprocess.run(
        [tool, "-q", "-w", source, "-V", "object_id,eq,7", back], check=True, capture_output=True, timeout=120
    )
    np.testing.assert_array_equal(columns(back, "xyz"), scene.gaussians.means.detach()[scene.object_ids == 7])
