import struct
import time

import numpy as np
import pytest
import torch

from unified_lift.errors import UserError
from unified_lift.model.files import read_splat
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.ply import read_gaussians, write_gaussians

VANILLA = (
    [f"property float {n}" for n in ("x", "y", "z", "nx", "ny", "nz")]
    + [f"property float f_dc_{i}" for i in range(3)]
    + [f"property float f_rest_{i}" for i in range(45)]
    + ["property float opacity"]
    + [f"property float scale_{i}" for i in range(3)]
    + [f"property float rot_{i}" for i in range(4)]
)


def random_gaussians(count=5, *, rest=15, feature_dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"means": (3,), "quats": (4,), "log_scales": (3,), "logit_opacities": (), "sh0": (1, 3), "shN": (rest, 3)}
    sizes["features"] = (feature_dim,)
    return Gaussians({name: torch.randn(count, *size, generator=generator) for name, size in sizes.items()})


def test_header_is_exactly_what_fixed_struct_viewers_expect(tmp_path):
    write_gaussians(tmp_path / "a.ply", random_gaussians())
    header = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")[0].decode().splitlines()
    assert header == ["ply", "format binary_little_endian 1.0", "element vertex 5", *VANILLA]


@pytest.mark.parametrize("antialiased", [False, True])
def test_a_file_tells_that_its_gaussians_are_antialiased(tmp_path, antialiased):
    gaussians = random_gaussians()
    write_gaussians(tmp_path / "plain.ply", gaussians)
    gaussians.antialiased = antialiased
    write_gaussians(tmp_path / "a.ply", gaussians)
    head, plain = ((tmp_path / name).read_bytes().partition(b"end_header\n") for name in ("a.ply", "plain.ply"))
    assert head[0] == plain[0] + b"comment antialiased\n" * antialiased
    assert head[2] == plain[2]
    assert read_gaussians(tmp_path / "a.ply").antialiased == antialiased
    assert read_splat(tmp_path / "a.ply")[0].antialiased == antialiased


def test_values_stand_where_3dgs_puts_them(tmp_path):
    gaussians = random_gaussians(1)
    write_gaussians(tmp_path / "a.ply", gaussians)
    body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")[1]
    row = np.array(struct.unpack("<62f", body), np.float32)
    np.testing.assert_array_equal(row[:3], gaussians.means[0].detach())
    np.testing.assert_array_equal(row[3:6], 0)
    np.testing.assert_array_equal(row[6:9], gaussians.sh0[0, 0].detach())
    np.testing.assert_array_equal(row[9:24], gaussians.shN[0, :, 0].detach())  # all red first
    np.testing.assert_array_equal(row[24:39], gaussians.shN[0, :, 1].detach())
    assert row[54] == gaussians.logit_opacities[0].detach()
    np.testing.assert_array_equal(row[55:58], gaussians.log_scales[0].detach())
    np.testing.assert_array_equal(row[58:62], gaussians.quats[0].detach())


@pytest.mark.parametrize("rest", [0, 3, 8, 15])
def test_vanilla_file_reads_back_identically_without_features(tmp_path, rest):
    gaussians = random_gaussians(7, rest=rest)
    write_gaussians(tmp_path / "a.ply", gaussians)
    back = read_gaussians(tmp_path / "a.ply")
    assert back.feature_dim == 0
    for name in Gaussians.GEOMETRY_NAMES:
        assert torch.equal(getattr(back, name), getattr(gaussians, name)), name


def test_objects_file_keeps_features_and_ids_as_floats(tmp_path):
    gaussians = random_gaussians(4, feature_dim=5)
    write_gaussians(tmp_path / "a.ply", gaussians, object_ids=np.array([0, 300, 7, 1]))
    assert torch.equal(read_gaussians(tmp_path / "a.ply").features, gaussians.features)
    text = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")[0].decode()
    assert "property float obj_dc_4\nproperty float object_id\n" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a ply", "not a readable PLY"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n", "no column 'y'"),
        (
            b"ply\nformat binary_little_endian 1.0\nelement vertex 9\nproperty float x\nend_header\n1",
            "not a readable PLY",
        ),
    ],
)
def test_bad_file_is_named_with_its_fault(tmp_path, content, message):
    path = tmp_path / "bad.ply"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_gaussians(path)
    assert str(path) in str(caught.value)


def test_missing_and_poisoned_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_gaussians(tmp_path / "absent.ply")
    gaussians = random_gaussians(3)
    gaussians.set("means", torch.full((3, 3), float("nan")))
    write_gaussians(tmp_path / "nan.ply", gaussians)
    with pytest.raises(UserError, match="means holds NaN"):
        read_gaussians(tmp_path / "nan.ply")


def test_a_file_without_gaussians_is_refused(tmp_path):
    write_gaussians(tmp_path / "none.ply", random_gaussians(0))
    with pytest.raises(UserError, match="holds no Gaussian"):
        read_gaussians(tmp_path / "none.ply")


def test_infinite_opacity_logits_of_converters_are_read_as_all_but_opaque_or_clear(tmp_path):
    gaussians = random_gaussians(3)
    gaussians.set("logit_opacities", torch.tensor([torch.inf, -torch.inf, 2.0]))
    write_gaussians(tmp_path / "quantised.ply", gaussians)
    assert read_gaussians(tmp_path / "quantised.ply").logit_opacities.tolist() == [15, -15, 2]
    gaussians.set("logit_opacities", torch.tensor([torch.inf, torch.nan, 2.0]))
    write_gaussians(tmp_path / "nan.ply", gaussians)
    with pytest.raises(UserError, match="logit_opacities holds NaN"):
        read_gaussians(tmp_path / "nan.ply")


def test_a_hundred_thousand_gaussians_are_read_in_seconds(tmp_path):
    # reading row by row through plyfile's text path would take minutes
    write_gaussians(tmp_path / "a.ply", random_gaussians(100_000, rest=15))
    began = time.process_time()
    gaussians = read_gaussians(tmp_path / "a.ply")
    assert time.process_time() - began < 5
    assert len(gaussians) == 100_000
