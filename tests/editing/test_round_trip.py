"""Formats that round: written, then read back by our readers and, where it is installed, by splat-transform."""

import os
import shutil
import subprocess
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from tests.editing.small_scene import random_gaussians, scene_of
from unified_lift.editing.formats import export
from unified_lift.model.files import read_splat
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.types import Similarity


class Precision(NamedTuple):
    """Largest differences: units, log scales, 1/255 of colour and opacity, radians, coefficients."""

    place: float
    size: float
    color: float
    opacity: float
    turn: float
    sh: float
    foreign: bool = True  # splat-transform reads it


# The 500 places are normal, so a chunk of 256 is about 8 wide in 2047 steps, sizes likewise, coefficients 8 in 256.
FORMATS = {
    "compressed": (".compressed.ply", Precision(5e-3, 4e-3, 1.0, 0.51, 0.005, 1 / 64 + 1e-6)),
    # 500 places: logarithms within 2 x ln 4.5 in 65,535 steps, times 4.5. Levels: at most 1/254 of a range.
    "sog": (".sog", Precision(4e-4, 8 / 254, 1.8, 0.51, 0.02, 2 / 254)),
    # Sizes in steps of 1/16, coefficients in steps of 8 and 16 of 128.
    "spz4": ("_v4.spz", Precision(2e-5, 1 / 32 + 1e-5, 0.95, 0.51, 0.006, 8.6 / 128)),
    "usda": (".usda", Precision(0, 2e-6, 0, 1e-4, 1e-6, 0, foreign=False)),
    "glb": (".glb", Precision(0, 2e-6, 0, 1e-4, 1e-6, 0, foreign=False)),  # it only writes them
}

SIZES = ("means", "log_scales")


def differences(found: Gaussians, expected: Gaussians) -> Precision:
    """Return the largest differences of Gaussians in any order, matched by their places."""
    gap, row = cKDTree(found.means.detach()).query(expected.means.detach())
    assert len(set(row)) == len(found) == len(expected)
    one, other = ({name: value.detach().double() for name, value in table} for table in (found, expected))
    one = {name: value[row] for name, value in one.items() if name != "features"}

    def largest(name, change=lambda value: value):
        return float((change(one[name]) - change(other[name])).abs().max())

    quats = [torch.nn.functional.normalize(table["quats"], dim=1) for table in (one, other)]
    angle = 2 * torch.arccos((quats[0] * quats[1]).sum(dim=1).abs().clamp(max=1)).max()
    return Precision(
        float(gap.max()),
        largest("log_scales"),
        largest("sh0", lambda dc: 255 * (SH_C0 * dc + 0.5)),
        largest("logit_opacities", lambda logit: 255 * logit.sigmoid()),
        float(angle),
        largest("shN") if one["shN"].numel() else 0,
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("count", "degree"), [(500, 3), (300, 1), (1, 0), (1, 2)])
def test_what_is_written_is_read_back_within_the_precision_of_the_format(tmp_path, name, count, degree):
    scene, (suffix, allowed) = scene_of(random_gaussians(count, degree=degree)), FORMATS[name]
    made = export(scene, tmp_path, formats=[name])["scene"]
    assert made == [tmp_path / f"scene{suffix}"]
    found, notes = read_splat(made[0])
    assert notes == []
    assert found.sh_degree == degree
    got = differences(found, scene.gaussians)
    assert all(one <= most for one, most in zip(got[:6], allowed[:6], strict=True)), f"{got} of {allowed}"
    tool = os.environ.get("SPLAT_TRANSFORM") or shutil.which("splat-transform")
    if tool and allowed.foreign:
        back = tmp_path / "back.ply"
        subprocess.run([tool, "-q", "-w", made[0], back], check=True, capture_output=True, timeout=120)
        got = differences(read_splat(back)[0], scene.gaussians)
        assert all(one <= most for one, most in zip(got[:6], allowed[:6], strict=True)), f"{got} of {allowed}"


@pytest.mark.parametrize("name", FORMATS)
def test_equal_scenes_give_equal_files_and_a_far_scene_is_written_inside(tmp_path, name):
    frame = Similarity(offset=(4e5, -5e6, 100.0), scale=4.0)
    scene, suffix = replace(scene_of(random_gaussians(50)), frame=frame), FORMATS[name][0]
    for folder in ("one", "two"):
        export(scene, tmp_path / folder, formats=[name])
    data = [(tmp_path / folder / f"scene{suffix}").read_bytes() for folder in ("one", "two")]
    assert data[0] == data[1]
    assert (tmp_path / "one/frame.json").exists()
    found = read_splat(tmp_path / f"one/scene{suffix}")[0].means.detach()
    np.testing.assert_allclose(found.mean(dim=0), scene.gaussians.means.detach().mean(dim=0), atol=3e-3)
    huge = replace(scene, frame=Similarity(scale=0.25))
    export(huge, tmp_path / "huge", formats=[name])
    read = read_splat(tmp_path / f"huge/scene{suffix}")[0]
    factor = 1 if (tmp_path / "huge/frame.json").exists() else 4
    np.testing.assert_allclose(
        read.means.detach().std(dim=0), factor * huge.gaussians.means.detach().std(dim=0), rtol=2e-3
    )
    np.testing.assert_allclose(
        read.log_scales.detach().mean(), huge.gaussians.log_scales.detach().mean() + np.log(factor), atol=5e-3
    )
