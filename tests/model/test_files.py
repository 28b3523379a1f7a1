"""Splats in every format that is read."""

import json

import numpy as np
import pytest
import torch

from tests.model.splat_files import compressed, sog_of, spz_of, write_elements, write_sog
from unified_lift.errors import UserError
from unified_lift.model.files import read_splat
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.model.splat import splat_rows
from unified_lift.model.spz import encode_spz
from unified_lift.ops.quaternions import normalise

COUNT = 300


def angle(first, second):
    """Return the largest angle between rotations, radians."""
    dot = (normalise(first.quats.detach().double()) * normalise(second.quats.detach().double())).sum(dim=1).abs()
    return float(2 * torch.arccos(dot.clamp(max=1)).max())


def close(found, expected, *, place, size, color, opacity, turn, sh=None):
    def gap(name, change=lambda value: value):
        return float((change(getattr(found, name)) - change(getattr(expected, name))).abs().max())

    assert gap("means") <= place
    assert gap("log_scales") <= size
    assert gap("sh0", lambda dc: (dc * SH_C0 + 0.5).clamp(0, 1)) <= color
    assert gap("logit_opacities", torch.sigmoid) <= opacity
    assert angle(found, expected) <= turn
    if sh is not None:
        assert gap("shN", lambda value: value.clamp(-1, 127 / 128)) <= sh


@pytest.mark.parametrize(
    ("version", "place", "turn"), [(1, 2e-3, 0.19), (2, 1e-5, 0.19), (3, 1e-5, 6e-3), (4, 1e-5, 6e-3)]
)
def test_spz_of_every_version_is_read(gaussians, tmp_path, version, place, turn):
    path = tmp_path / "a.bin"  # it is known by its first bytes
    path.write_bytes(encode_spz(gaussians) if version == 3 else spz_of(gaussians, version))
    found, notes = read_splat(path)
    close(
        found, gaussians, place=place, size=1 / 31, color=0.6 / 255 / 0.53, opacity=0.51 / 255, turn=turn, sh=8.6 / 128
    )
    assert notes == []


@pytest.mark.parametrize("antialiased", [False, True])
def test_spz_and_sog_say_whether_they_are_antialiased(gaussians, tmp_path, antialiased):
    flagged = Gaussians(dict(gaussians), antialiased=antialiased)
    for data in (encode_spz(flagged), spz_of(gaussians, 2, flags=int(antialiased))):
        (tmp_path / "a.spz").write_bytes(data)
        found, notes = read_splat(tmp_path / "a.spz")
        assert (found.antialiased, notes) == (antialiased, [])
    files = sog_of(gaussians)
    files["meta.json"] = json.dumps(json.loads(files["meta.json"]) | {"antialias": antialiased}).encode()
    assert read_splat(write_sog(tmp_path / "a.sog", files))[0].antialiased == antialiased


def test_splat_is_read_and_a_size_of_zero_is_a_disc(gaussians, tmp_path):
    splat_rows(gaussians).tofile(tmp_path / "a.splat")
    found, notes = read_splat(tmp_path / "a.splat")
    assert torch.equal(found.means, gaussians.means)
    assert notes == []
    close(found, gaussians, place=0, size=1e-5, color=0.51 / 255, opacity=0.51 / 255, turn=0.03)
    rows = splat_rows(gaussians)
    rows["scale"][:, 0] = 0
    rows.tofile(tmp_path / "b.splat")
    assert "discs" in read_splat(tmp_path / "b.splat")[1][0]


@pytest.mark.parametrize("bounds_of_color", [True, False])
def test_supersplats_compressed_ply_is_read(gaussians, tmp_path, bounds_of_color):
    path = write_elements(tmp_path / "a.compressed.ply", compressed(gaussians, bounds_of_color=bounds_of_color))
    found, notes = read_splat(path)
    assert notes == []
    assert found.shN.shape == (COUNT, 15, 3)
    close(found, gaussians, place=5e-3, size=5e-3, color=1.5 / 255, opacity=0.51 / 255, turn=0.006, sh=0.5 / 32 + 1e-4)
    without = {name: rows for name, rows in compressed(gaussians).items() if name != "sh"}
    assert read_splat(write_elements(tmp_path / "b.ply", without))[0].sh_degree == 0


@pytest.mark.parametrize("fault", ["chunk", "sh", "bounds", "packed"])
def test_a_compressed_ply_whose_parts_do_not_fit_is_refused(gaussians, tmp_path, fault):
    elements = compressed(gaussians)
    if fault in ("chunk", "sh"):
        elements[fault] = elements[fault][:-1]
    elif fault == "bounds":
        elements["chunk"] = np.zeros(2, [("min_x", "<f4")])
    else:
        elements["vertex"] = np.zeros(COUNT, [("packed_position", "<u4"), ("packed_scale", "<u4")])
    with pytest.raises(UserError, match=r"a\.ply: .*export it again"):
        read_splat(write_elements(tmp_path / "a.ply", elements))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bundled", [True, False])
def test_sog_is_read_from_one_file_and_from_a_folder(gaussians, tmp_path, version, bundled):
    files = sog_of(gaussians, version=version)
    if bundled:
        paths = [write_sog(tmp_path / "a.sog", files)]
    else:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        paths = [tmp_path, tmp_path / "meta.json"]
    for path in paths:
        found, notes = read_splat(path)
        assert notes == []
        assert found.shN.shape == (COUNT, 15, 3)
        close(found, gaussians, place=4e-4, size=0.03, color=2 / 255, opacity=2.6 / 255, turn=0.02)
        assert float((found.shN - gaussians.shN).abs().max()) < 5e-3
