"""Splats of other programs, in every format that is read; PLY dialects, broken rows, and files that lie."""

import gzip
import io
import json
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData, PlyElement

from tests.editing.small_scene import gaussians_of, random_gaussians
from unified_lift.errors import UserError
from unified_lift.model.files import read_splat
from unified_lift.model.gaussians import SH_C0
from unified_lift.model.ply import write_gaussians
from unified_lift.model.splat import splat_rows
from unified_lift.model.spz import encode_spz
from unified_lift.ops.quaternions import normalise

COUNT = 300


@pytest.fixture(scope="module")
def gaussians():
    return random_gaussians(COUNT)


@pytest.fixture
def rows(gaussians, tmp_path):
    """Return a copy of the plain PLY as a structured array, to be changed and written."""
    write_gaussians(tmp_path / "plain.ply", gaussians)
    return np.array(PlyData.read(str(tmp_path / "plain.ply"))["vertex"].data)


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


# ---- PLY as other programs write it ----


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
    zero["scale_1"] = -np.inf
    for axis, path in ((2, write(tmp_path / "a.ply", rows, names=flat)), (1, write(tmp_path / "b.ply", zero))):
        found, (note,) = read_splat(path)
        assert "discs, as those of 2DGS" in note
        others = [other for other in range(3) if other != axis]
        assert torch.equal(found.log_scales[:, others], gaussians.log_scales[:, others])
        thin = found.scales[:, axis] / gaussians.scales[:, others].min(dim=1).values
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
        rows[f"rot_{index}"][::50] = 0
    rows["obj_dc_1"][3] = np.nan
    found, (note,) = read_splat(write(tmp_path / "a.ply", rows))
    same(found, gaussians, but=("quats",))
    assert found.quats[::50].tolist() == [[1, 0, 0, 0]] * 6
    assert torch.equal(found.quats[1:50], gaussians.quats[1:50])
    assert found.features[3].tolist() == [1, 0]
    assert "6 of 300 Gaussians have rotation 0 0 0 0" in note


# ---- other formats ----


def spz_of(gaussians, version, *, flags=0):
    """Return version 1, 2 or 4 of what `encode_spz` writes as version 3."""
    data = gzip.decompress(encode_spz(gaussians))
    header, count = struct.unpack("<4s2I4B", data[:16]), len(gaussians)
    sizes = [9, 1, 3, 3, 4, 45]
    parts = np.split(np.frombuffer(data[16:], np.uint8), np.cumsum(np.array(sizes[:-1]) * count))
    if version == 4:
        zstd = pytest.importorskip("zstandard")
        packed = [zstd.ZstdCompressor().compress(part.tobytes()) for part in parts]
        table = b"".join(struct.pack("<2Q", len(one), len(part)) for one, part in zip(packed, parts, strict=True))
        head = struct.pack("<4s2I4BI12x", b"NGSP", 4, count, 3, header[4], flags, 6, 40)
        return head + b"8 bytes." + table + b"".join(packed)
    axes = np.array([1, -1, -1])
    xyzw = np.roll(normalise(gaussians.quats.detach()).numpy(), -1, axis=1) * [*axes, 1]
    xyz = (xyzw * np.where(xyzw[:, 3:] < 0, -1, 1))[:, :3]
    parts[4] = np.rint((xyz + 1) * 127.5).astype(np.uint8)
    if version == 1:
        parts[0] = (gaussians.means.detach().numpy() * axes).astype("<f2").view(np.uint8)
    body = b"".join(part.tobytes() for part in parts)
    return gzip.compress(struct.pack("<4s2I4B", b"NGSP", version, count, 3, header[4], flags, 0) + body)


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


def test_an_antialiased_spz_says_so(gaussians, tmp_path):
    (tmp_path / "a.spz").write_bytes(spz_of(gaussians, 2, flags=1))
    assert "antialiasing" in read_splat(tmp_path / "a.spz")[1][0]


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


NAMES = ("x", "y", "z", "scale_x", "scale_y", "scale_z", "r", "g", "b")


def compressed(gaussians, *, bounds_of_color=True):
    """Return the elements of SuperSplat's compressed PLY, by its public description."""
    table = {name: value.detach().double().numpy() for name, value in gaussians}
    count, num_chunks = len(gaussians), -(-len(gaussians) // 256)
    bounded = NAMES[: 9 if bounds_of_color else 6]
    chunk = np.zeros(num_chunks, [(f"{end}_{name}", "<f4") for name in bounded for end in ("min", "max")])
    vertex = np.zeros(count, [(f"packed_{name}", "<u4") for name in ("position", "rotation", "scale", "color")])
    rgb = table["sh0"][:, 0] * SH_C0 + 0.5
    values = np.concatenate([table["means"], table["log_scales"], rgb], axis=1)
    share = np.zeros_like(values)
    for index, name in enumerate(NAMES):
        for first in range(num_chunks):
            part = slice(256 * first, 256 * first + 256)
            low, high = values[part, index].min(), values[part, index].max()
            if f"min_{name}" in chunk.dtype.names:
                chunk[f"min_{name}"][first], chunk[f"max_{name}"][first] = low, high
                share[part, index] = (values[part, index] - low) / (high - low)
            else:
                share[part, index] = values[part, index].clip(0, 1)

    def bits(share, width):
        return np.rint(share * (2**width - 1)).astype(np.uint32)

    def packed(first):
        x, y, z = (bits(share[:, first + axis], width) for axis, width in enumerate((11, 10, 11)))
        return x << 21 | y << 11 | z

    vertex["packed_position"], vertex["packed_scale"] = packed(0), packed(3)
    alpha = 1 / (1 + np.exp(-table["logit_opacities"]))
    for shift, value in zip((24, 16, 8, 0), (*share[:, 6:].T, alpha), strict=True):
        vertex["packed_color"] |= bits(value, 8) << shift
    quats = table["quats"] / np.linalg.norm(table["quats"], axis=1, keepdims=True)
    for row, quat in enumerate(quats):
        largest = int(np.abs(quat).argmax())
        code = largest
        for value in np.delete(quat * np.sign(quat[largest]), largest):
            code = code << 10 | int(np.rint((value / np.sqrt(2) + 0.5) * 1023))
        vertex["packed_rotation"][row] = code
    sh = np.zeros(count, [(f"f_rest_{index}", "u1") for index in range(45)])
    for index in range(45):
        value = table["shN"][:, index % 15, index // 15]
        sh[f"f_rest_{index}"] = np.trunc((value / 8 + 0.5) * 256).clip(0, 255)
    return {"chunk": chunk, "vertex": vertex, "sh": sh}


def write_elements(path, elements):
    PlyData([PlyElement.describe(rows, name) for name, rows in elements.items()], byte_order="<").write(str(path))
    return path


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


def sog_of(gaussians, *, version=2):
    """Return the files of a SOG by name, as its public description lays them out; one palette entry a Gaussian."""
    table = {name: value.detach().double().numpy() for name, value in gaussians}
    count, side = len(gaussians), 20  # pixels: more than Gaussians

    def picture(*columns, alpha=255, width=side):
        pixels = np.zeros((width * side, 4), np.uint8)
        pixels[:count, :3], pixels[:count, 3] = np.stack(columns, axis=1), alpha
        return webp(pixels.reshape(side, width, 4))

    def webp(pixels):
        Image.fromarray(pixels).save(file := io.BytesIO(), "WEBP", lossless=True, exact=True)
        return file.getvalue()

    def levels(values, low, high):
        return np.rint((values - low) / (high - low) * 255).astype(np.uint8)

    place = np.sign(table["means"]) * np.log1p(np.abs(table["means"]))
    low, high = place.min(axis=0), place.max(axis=0)
    fixed = np.rint((place - low) / (high - low) * 65_535).astype(int)
    quats = table["quats"] / np.linalg.norm(table["quats"], axis=1, keepdims=True)
    largest = np.abs(quats).argmax(axis=1)
    quats *= np.sign(np.take_along_axis(quats, largest[:, None], axis=1))
    others = np.array([np.delete(quat, index) for quat, index in zip(quats, largest, strict=True)])
    logit, alpha = table["logit_opacities"], 1 / (1 + np.exp(-table["logit_opacities"]))
    ranges = {
        key: (value.min(), value.max()) for key, value in (("log_scales", table["log_scales"]), ("sh0", table["sh0"]))
    }
    sh_low, sh_high = table["shN"].min(), table["shN"].max()
    palette = np.zeros((-(-count // 64), 64 * 15, 4), np.uint8)
    palette.reshape(-1, 15, 4)[:count, :, :3] = levels(table["shN"], sh_low, sh_high)
    opacity = np.rint(alpha * 255) if version == 2 else levels(logit, logit.min(), logit.max())
    index = np.arange(count)
    files = {
        "means_l.webp": picture(*(fixed & 255).T),
        "means_u.webp": picture(*(fixed >> 8).T),
        "quats.webp": picture(*np.rint((others * np.sqrt(2) + 1) * 127.5).T, alpha=252 + largest),
        "scales.webp": picture(*levels(table["log_scales"], *ranges["log_scales"]).T),
        "sh0.webp": picture(*levels(table["sh0"][:, 0], *ranges["sh0"]).T, alpha=opacity),
        "shN_centroids.webp": webp(palette),
        "shN_labels.webp": picture(index & 255, index >> 8, 0 * index),
    }

    def numbers(key, names, *bounds):
        if version == 2:
            return {"codebook": np.linspace(*bounds, 256).tolist(), "files": names}
        ends = [list(pair) for pair in zip(*[bounds] * 3, strict=True)] if key != "shN" else list(bounds)
        if key == "sh0":
            ends = [[*ends[0], logit.min()], [*ends[1], logit.max()]]
        return {"mins": ends[0], "maxs": ends[1], "files": names}

    meta = {
        "means": {
            "shape": [count, 3],
            "mins": low.tolist(),
            "maxs": high.tolist(),
            "files": ["means_l.webp", "means_u.webp"],
        },
        "scales": numbers("scales", ["scales.webp"], *ranges["log_scales"]),
        "quats": {"files": ["quats.webp"]},
        "sh0": numbers("sh0", ["sh0.webp"], *ranges["sh0"]),
        "shN": numbers("shN", ["shN_centroids.webp", "shN_labels.webp"], sh_low, sh_high),
    }
    meta["means"]["files"] = ["means_l.webp", "means_u.webp"]
    if version == 2:
        meta |= {"version": 2, "count": count}
        meta["scales"]["codebook"][0] = None  # older encoders leave it out
    files["meta.json"] = json.dumps(meta).encode()
    return files


def write_sog(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


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


# ---- files that lie, or are something else ----


def refused(path, message):
    """Check that a file is refused in one line that names it, and that its sizes were not believed."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as caught:
            read_splat(path)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def named(value):
    """Return the name of a parameter: the same in every process, as gzipped bytes with their time would not be."""
    return value if isinstance(value, str) else f"{len(value)} bytes"


def spz_head(version, count, degree, length=0):
    """Return a gzipped header and so many bytes."""
    return gzip.compress(struct.pack("<4s2I4B", b"NGSP", version, count, degree, 12, 0, 0) + bytes(length))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            spz_head(3, 2**32 - 1, 3, 99),
            "4294967295 Gaussians, too many",
        ),
        (
            spz_head(3, 100, 3, 99),
            "cut short: 99 of 6500 bytes",
        ),
        (
            spz_head(9, 1, 0),
            "not of version 1 to 4.*convert it to .ply",
        ),
        (spz_head(3, 1, 200), "not of version 1 to 4 and degree 0 to 4"),
        (gzip.compress(b"a gzipped text that is long enough"), "not of version 1 to 4 and degree 0 to 4"),
        (gzip.compress(b"short"), "not a readable SPZ"),
        (b"\x1f\x8b\x08nothing gzipped at all", "not a readable SPZ"),
        (spz_head(3, 5, 0, 100)[:-30], "SPZ|cut short"),
        (struct.pack("<4s2I4BI12x", b"NGSP", 4, 2**32 - 1, 3, 12, 0, 6, 32), "4294967295 Gaussians, too many"),
        (b"NGSP\x04\0\0\0", "not a readable SPZ"),
        (spz_head(3, 0, 0), "holds no Gaussian"),
    ],
    ids=named,
)
def test_an_spz_that_lies_ends_in_one_line(tmp_path, data, message):
    (tmp_path / "a.spz").write_bytes(data)
    refused(tmp_path / "a.spz", message)


@pytest.mark.parametrize("fault", ["table", "content", "cut", "no package"])
def test_an_spz_of_version_4_that_lies_or_cannot_be_unpacked_ends_in_one_line(gaussians, tmp_path, monkeypatch, fault):
    path = tmp_path / "a.spz"
    if fault == "no package":
        monkeypatch.setitem(sys.modules, "zstandard", None)
        path.write_bytes(struct.pack("<4s2I4BI12x", b"NGSP", 4, 1, 0, 12, 0, 5, 32) + bytes(200))
        return refused(path, r'pip install "unified-lift\[spz\]".*convert it to .ply')
    data = bytearray(spz_of(gaussians, 4))
    if fault == "table":
        data[48:56] = struct.pack("<Q", 2**60)
    elif fault == "content":
        data[140:200] = bytes(60)
    path.write_bytes(data[: 150 if fault == "cut" else None])
    return refused(path, "does not fit its header|not a readable SPZ|cut short")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files, meta: meta.update(count=2**40), "Gaussians in .* bytes"),
        (lambda files, meta: meta.update(count=500), "means of 20x20 pixels"),
        (lambda files, meta: meta.update(count=float("inf")), "not a readable SOG"),
        (lambda files, meta: meta.update(version=7), "version 7"),
        (lambda files, meta: meta["scales"].update(codebook=[1.0]), "not a readable SOG"),
        (lambda files, meta: meta["means"].update(files=["../../etc/passwd", "x"]), "not a readable SOG"),
        (lambda files, meta: meta.pop("quats"), "quats"),
        (lambda files, meta: files.pop("sh0.webp"), "sh0.webp"),
        (lambda files, meta: files.update({"sh0.webp": b"RIFF"}), "not a readable SOG"),
        (lambda files, meta: files.update({"sh0.webp": blank(16_000, 16_000)}), "sh0 of 16000x16000 pixels|bomb"),
        (lambda files, meta: files.update({"shN_centroids.webp": blank(64, 8)}), "not a readable SOG"),
    ],
)
def test_a_sog_that_lies_ends_in_one_line(gaussians, tmp_path, change, message):
    files = sog_of(gaussians)
    meta = json.loads(files["meta.json"])
    change(files, meta)
    files["meta.json"] = json.dumps(meta).encode()
    refused(write_sog(tmp_path / "a.sog", files), message)


def blank(width, height):
    """Return the head of a WebP picture of that size: it says so, and holds nothing."""
    bits = (width - 1) | (height - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes(16)
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.splat", bytes(33), "cut short: 1 bytes after rows of 32"),
        ("a.splat", b"", "holds no Gaussian"),
        ("a.splat", bytes(64), "2 of 2 Gaussians hold NaN"),
        ("a.sog", b"PK\x03\x04 and no more", "not a readable SOG"),
        ("a.ksplat", bytes(4096), "no splat that is read; those are .ply .* convert it"),
        ("a.glb", b"glTF" + bytes(64), "no splat that is read"),
        ("a.ply", b"glTF" + bytes(64), "not a readable PLY"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 999999999999999\nproperty float x\nend_header\n1\n", "PLY"),
        (
            "a.ply",
            b"ply\nformat binary_little_endian 1.0\nelement vertex 99999999\nproperty float x\nend_header\n",
            "PLY",
        ),
    ],
    ids=named,
)
def test_other_files_and_cut_ones_end_in_one_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, message)


def test_a_folder_is_answered_with_the_splat_in_it(tmp_path):
    saved = tmp_path / "point_cloud/iteration_7/point_cloud.ply"
    saved.parent.mkdir(parents=True)
    saved.write_text("")
    refused(tmp_path, f"is a folder; name the splat in it, such as {saved}")
