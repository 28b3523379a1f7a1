"""Splat files that lie about their sizes, are damaged, or are something else: one line, and no memory."""

import gzip
import json
import struct
import sys
import tracemalloc

import pytest

from tests.model.splat_files import blank, sog_of, spz_head, spz_of, write_sog
from unified_lift.errors import UserError
from unified_lift.model.files import read_splat


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


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.splat", bytes(33), "cut short: 1 bytes after rows of 32"),
        ("a.splat", b"", "holds no Gaussian"),
        ("a.splat", bytes(64), "2 of 2 Gaussians hold NaN"),
        ("a.sog", b"PK\x03\x04 and no more", "not a readable SOG"),
        ("a.ksplat", bytes(4096), "no splat that is read; those are .ply .* convert it"),
        ("a.glb", b"glTF" + bytes(64), "not a readable glTF with Gaussians"),
        ("a.usda", b"#usda 1.0\n", "0 prims of ParticleField3DGaussianSplat"),
        (
            "a.usda",
            b'#usda 1.0\ndef ParticleField3DGaussianSplat "a" {\n point3f[] positions = [(1, 2, x)]\n}',
            "not a read",
        ),
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
