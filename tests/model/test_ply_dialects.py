"""PLY files of other trainers, and broken rows in them."""

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from tests.editing.small_scene import gaussians_of
from unified_lift.errors import UserError
from unified_lift.model.files import read_splat
from unified_lift.model.gaussians import SH_C0
from unified_lift.model.ply import write_gaussians

COUNT = 300


def write(path, rows, *, names=None, kind=None, **layout):
    names = list(rows.dtype.names if names is None else names)
    table = np.empty(len(rows), [(name, kind or rows.dtype[name]) for name in names])
    for name in names:
        table[name] = rows[name]
    PlyData([PlyElement.describe(table, "vertex")], **layout).write(str(path))
    return path


def added(rows, **columns):
    """Return the rows with further float columns."""
    table = np.empty(len(rows), [*((name, "<f4") for name in rows.dtype.names), *((name, "<f4") for name in columns)])
    for name in rows.dtype.names:
        table[name] = rows[name]
    for name, value in columns.items():
        table[name] = value
    return table


def same(found, expected, *, but=()):
    for name in ("means", "quats", "log_scales", "logit_opacities", "sh0", "shN"):
        if name not in but:
            assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("layout", [{"byte_order": ">"}, {"text": True}, {"comments": ["Vertical Axis: y"]}])
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_a_ply_reads_alike_in_any_order_of_columns_and_bytes_without_normals_and_with_comments(
    rows, gaussians, tmp_path, layout, kind
):
    names = [name for name in rows.dtype.names if name[0] != "n"][::-1]
    found, notes = read_splat(write(tmp_path / "a.ply", rows, names=names, kind=kind, **layout))
    same(found, gaussians)
    assert notes == []


@pytest.mark.parametrize(("kind", "largest"), [("u1", 255), ("<f4", 1.0), ("<f4", 255.0)])
def test_colours_may_be_red_green_blue(rows, gaussians, tmp_path, kind, largest):
    plain = [name for name in rows.dtype.names if name[0] != "f"]
    table = np.empty(COUNT, [*((name, "<f4") for name in plain), *((c, kind) for c in ("red", "green", "blue"))])
    for name in plain:
        table[name] = rows[name]
    for index, name in enumerate(("red", "green", "blue")):
        table[name] = np.clip(SH_C0 * rows[f"f_dc_{index}"] + 0.5, 0, 1) * largest
    found, _ = read_splat(write(tmp_path / "a.ply", table))
    same(found, gaussians, but=("sh0", "shN"))
    assert ((found.sh0 - gaussians.sh0).abs() * SH_C0)[(gaussians.sh0 * SH_C0).abs() < 0.5].max() < 1.01 / 255


def test_discs_become_thin_along_the_axis_that_is_missing_or_zero(rows, gaussians, tmp_path):
    flat = [name for name in rows.dtype.names if name != "scale_2"]
    zero = rows.copy()
    zero["scale_1"][100:] = -np.inf
    for axis, path in ((2, write(tmp_path / "a.ply", rows, names=flat)), (1, write(tmp_path / "b.ply", zero))):
        found, (note,) = read_splat(path)
        assert "discs, as those of 2DGS" in note
        others = [other for other in range(3) if other != axis]
        assert torch.equal(found.log_scales[:, others], gaussians.log_scales[:, others])
        thin = (found.scales[:, axis] / gaussians.scales[:, others].min(dim=1).values)[100:]
        assert torch.allclose(thin, torch.tensor(1e-3), rtol=1e-4)


def test_the_filter_of_mip_splatting_is_fused(tmp_path):
    write_gaussians(
        tmp_path / "a.ply", gaussians_of(log_scales=np.log([[3.0, 1, 2]] * 2), logit_opacities=[np.log(3.0)] * 2)
    )
    rows = added(np.array(PlyData.read(str(tmp_path / "a.ply"))["vertex"].data), filter_3D=[4.0, 0.0])
    found, (note,) = read_splat(write(tmp_path / "b.ply", rows))
    assert "filter_3D of Mip-Splatting is fused" in note
    np.testing.assert_allclose(found.scales[0].detach(), np.sqrt([25, 17, 20]), rtol=1e-5)
    share = 6 / np.sqrt(25 * 17 * 20)  # of the volumes; the opacity was 0.75
    assert found.opacities[0].item() == pytest.approx(0.75 * share, rel=1e-5)
    np.testing.assert_allclose(found.scales[1].detach(), [3, 1, 2], rtol=1e-5)
    assert found.opacities[1].item() == pytest.approx(0.75, rel=1e-5)


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        (dict(shape=1.0, beta=2.0), "columns that are not read: shape, beta; if its program draws with them"),
        (dict(trbf_center=0.5), "columns that are not read: trbf_center; it holds a moving scene"),
        (dict(semantic_id=2, obj_dc_7=1.0), None),
        (dict(object_id=3, red=7, id=1, semantic_id=2, confidence=0.5, obj_dc_0=1.0), None),
    ],
)
def test_columns_that_may_change_the_picture_are_named(rows, gaussians, tmp_path, columns, word):
    found, notes = read_splat(write(tmp_path / "a.ply", added(rows, **columns)))
    same(found, gaussians)
    assert [word in note for note in notes] == ([True] if word else [])


def test_degree_4_is_cut_to_degree_3(rows, gaussians, tmp_path):
    rest = {
        f"f_rest_{24 * c + k}": (rows[f"f_rest_{15 * c + k}"] if k < 15 else 9) for c in range(3) for k in range(24)
    }
    plain = rows[[name for name in rows.dtype.names if not name.startswith("f_rest")]]
    found, (note,) = read_splat(write(tmp_path / "a.ply", added(plain, **rest)))
    same(found, gaussians)
    assert "degree 4 is left out" in note


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2"], "it is a point cloud: put it into the scene folder"),
        (["x", "y", "z", "opacity", "scale_0", "scale_1", "scale_2"], "no column 'rot_0'; a 3D Gaussian PLY has"),
        (["x", "f_anchor_feat_0"], "holds anchors of Scaffold-GS"),
        (None, "no column 'f_rest_0'"),
    ],
)
def test_what_is_no_splat_is_said(rows, tmp_path, names, message):
    table = added(rows, f_anchor_feat_0=1.0, f_rest_99=0.0)
    names = (
        [name for name in table.dtype.names if name not in ("f_rest_0", "f_anchor_feat_0")] if names is None else names
    )
    with pytest.raises(UserError, match=message):
        read_splat(write(tmp_path / "a.ply", table, names=names))


# ---- broken rows ----


def test_broken_rows_are_left_out_counted_and_named(rows, gaussians, tmp_path):
    breaks = {"x": np.nan, "f_dc_1": np.inf, "scale_0": -np.inf, "f_rest_7": np.nan, "opacity": np.nan, "rot_2": np.nan}
    breaks |= {"y": 1e30, "scale_1": 90.0}
    for row, (name, value) in enumerate(breaks.items()):
        rows[name][10 * row] = value
    found, (note,) = read_splat(write(tmp_path / "a.ply", rows))
    kept = np.setdiff1d(np.arange(COUNT), 10 * np.arange(8))
    assert torch.equal(found.means, gaussians.means[kept])
    assert torch.equal(found.shN, gaussians.shN[kept])
    assert f"8 of {COUNT} Gaussians are left out" in note
    for kind in ("position of 2", "rotation of 1", "size of 2", "opacity of 1", "colour of 1"):
        assert kind in note
    assert "rows 0, 10, 20, 30, 40, ..." in note
    with pytest.raises(UserError, match=r"a\.ply: 8 of 300 Gaussians hold NaN"):
        read_splat(tmp_path / "a.ply", strict=True)


@pytest.mark.parametrize(("num_broken", "refused"), [(150, False), (151, True), (300, True)])
def test_a_file_of_which_most_is_broken_is_refused_with_how_much(rows, tmp_path, num_broken, refused):
    rows["z"][:num_broken] = np.nan
    path = write(tmp_path / "a.ply", rows)
    if refused:
        with pytest.raises(UserError, match=f"{num_broken} of 300 Gaussians hold NaN"):
            read_splat(path)
    else:
        assert len(read_splat(path)[0]) == 150


def test_a_rotation_of_zeros_is_none_and_features_that_are_nan_are_zero(rows, gaussians, tmp_path):
    rows = added(rows, obj_dc_0=1.0, obj_dc_1=2.0)
    for index in range(4):
        rows[f"rot_{index}"][::50] = 1e-30 if index == 2 else 0
    rows["obj_dc_1"][3] = np.nan
    found, (note,) = read_splat(write(tmp_path / "a.ply", rows))
    same(found, gaussians, but=("quats",))
    assert found.quats[::50].tolist() == [[1, 0, 0, 0]] * 6
    assert torch.equal(found.quats[1:50], gaussians.quats[1:50])
    assert found.features[3].tolist() == [1, 0]
    assert "6 of 300 Gaussians have rotation 0 0 0 0" in note
