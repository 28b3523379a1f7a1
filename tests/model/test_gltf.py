"""`.glb` with KHR_gaussian_splatting, as other writers may lay it out."""

import json
import math
import struct

import numpy as np
import pytest

from tests.editing.small_scene import gaussians_of
from unified_lift.errors import UserError
from unified_lift.model.files import read_splat
from unified_lift.model.gltf import encode_glb

NAME = "KHR_gaussian_splatting"


def glb_of(content, body):
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4s3I4s", b"glTF", 2, 28 + len(text) + len(body), len(text), b"JSON")
    return head + text + struct.pack("<I4s", len(body), b"BIN\0") + body


def interleaved():
    """Return content and body of two Gaussians, 32 bytes each: place, size, rotation int8, opacity uint16."""
    rows = [
        struct.pack("<6f4bHxx", 1, 2, 3, 1, 2, 4, 0, 0, 0, 127, 65_535 // 2),
        struct.pack("<6f4bHxx", 4, 5, 6, 1, 1, 1, 0, 127, 0, 0, 65_535),
    ]
    views = [{"buffer": 0, "byteLength": 64, "byteStride": 32}, {"buffer": 0, "byteOffset": 64, "byteLength": 24}]
    layout = {
        "POSITION": (0, 0, 5126, "VEC3"),
        f"{NAME}:SCALE": (0, 12, 5126, "VEC3"),
        f"{NAME}:ROTATION": (0, 24, 5120, "VEC4"),
        f"{NAME}:OPACITY": (0, 28, 5123, "SCALAR"),
        f"{NAME}:SH_DEGREE_0_COEF_0": (1, 0, 5126, "VEC3"),
    }
    accessors = [
        {"bufferView": view, "byteOffset": at, "componentType": kind, "type": width, "count": 2}
        | {"normalized": kind != 5126}
        for view, at, kind, width in layout.values()
    ]
    primitive = {"attributes": dict(zip(layout, range(5))), "mode": 0, "extensions": {NAME: {"kernel": "ellipse"}}}
    content = {
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}, primitive]}],
        "nodes": [{"mesh": 0}],
        "bufferViews": views,
        "accessors": accessors,
        "buffers": [{"byteLength": 88}],
    }
    return content, b"".join(rows) + struct.pack("<6f", 0, 1, 2, 3, 4, 5)


def splats(content):
    return content["meshes"][0]["primitives"][1]


def test_strides_and_normalised_integers_are_read(tmp_path):
    (tmp_path / "a.bin").write_bytes(glb_of(*interleaved()))
    found, notes = read_splat(tmp_path / "a.bin")
    assert notes == []
    assert found.means.tolist() == [[1, -2, -3], [4, -5, -6]]
    np.testing.assert_allclose(found.scales.detach(), [[1, 2, 4], [1, 1, 1]], rtol=1e-6)
    assert found.quats.tolist() == [[1, 0, 0, 0], [0, 0, -1, 0]]  # half a turn about y is one about -y here
    np.testing.assert_allclose(found.opacities.detach(), [0.5, 1], atol=1e-5)
    assert found.sh0[:, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_one_gaussian_is_written_as_the_extension_says(tmp_path):
    half = math.sqrt(0.5)
    gaussians = gaussians_of(
        means=[[1, 2, 3]], quats=[[2 * half, 2 * half, 0, 0]], log_scales=[[0, math.log(2), 1]],
        logit_opacities=[math.log(3)], sh0=[[[0.5, 0, -9]]], shN=[[[1, 0, 0], [0, 2, 0], [0, 0, 3]]],
    )  # fmt: skip
    data = encode_glb(gaussians)
    assert struct.unpack_from("<4sIII4s", data) == (b"glTF", 2, len(data), data.find(b"BIN\0") - 24, b"JSON")
    content = json.loads(data[20 : data.find(b"BIN\0") - 4])
    (primitive,) = content["meshes"][0]["primitives"]
    assert primitive["extensions"][NAME]["kernel"] == "ellipse"
    body, found = data[data.find(b"BIN\0") + 4 :], {}
    for name, index in primitive["attributes"].items():
        accessor = content["accessors"][index]
        view = content["bufferViews"][accessor["bufferView"]]
        kind = {5126: "<f4", 5121: "u1"}[accessor["componentType"]]
        count = view["byteLength"] // int(kind[-1])
        found[name.removeprefix(f"{NAME}:")] = np.frombuffer(body, kind, offset=view["byteOffset"], count=count)
    expected = {
        "POSITION": [1, -2, -3], "COLOR_0": [163, 128, 0, 191], "ROTATION": [half, 0, 0, half], "SCALE": [1, 2, math.e],
        "OPACITY": [0.75], "SH_DEGREE_0_COEF_0": [0.5, 0, -9], "SH_DEGREE_1_COEF_0": [-1, 0, 0],
        "SH_DEGREE_1_COEF_1": [0, -2, 0], "SH_DEGREE_1_COEF_2": [0, 0, 3],
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(meshes=[]), "no mesh in it has KHR"),
        (lambda content: content["accessors"][0].update(count=10**12), "cut short"),
        (lambda content: content["bufferViews"][0].update(byteStride=-32), "cut short"),
        (lambda content: content["accessors"][0].update(sparse={}), "in another file, or sparse"),
        (lambda content: content["buffers"][0].update(uri="other.bin"), "in another file, or sparse"),
        (lambda content: content["accessors"].pop(), "not a readable glTF"),
        (lambda content: splats(content)["extensions"][NAME].update(extensions={"x": {}}), "compressed"),
        (lambda content: splats(content)["attributes"].pop(f"{NAME}:SH_DEGREE_0_COEF_0"), "0 coefficients of a colour"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, change, message):
    content, body = interleaved()
    change(content)
    (tmp_path / "a.glb").write_bytes(glb_of(content, body))
    with pytest.raises(UserError, match=message):
        read_splat(tmp_path / "a.glb")


def test_nodes_that_move_what_they_show_are_told_of(tmp_path):
    content, body = interleaved()
    content["nodes"][0]["translation"] = [1, 0, 0]
    (tmp_path / "a.glb").write_bytes(glb_of(content, body))
    assert read_splat(tmp_path / "a.glb")[1] == ["the places of its nodes are left out"]
