"""`.glb` with KHR_gaussian_splatting, read and written: exact, float32, as an attribute of a mesh for each column.

The extension as splat-transform 2.7 writes it and the PlayCanvas engine 2.x reads it, a release candidate of Khronos:
`KHR_gaussian_splatting:ROTATION` x y z w, `:SCALE` in units, `:OPACITY` in 0..1, `:SH_DEGREE_l_COEF_n`.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from unified_lift.errors import UserError
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.model.raw import RawSplat, logits_of, turned_over
from unified_lift.model.splat import to_bytes
from unified_lift.ops.quaternions import normalise
from unified_lift.reading import reading

MAGIC = b"glTF"
_EXTENSION = "KHR_gaussian_splatting"
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_KINDS = {width: kind for kind, width in _WIDTHS.items()}
_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_FLOAT, _BYTE, _POINTS, _VERTICES = 5126, 5121, 0, 34962  # numbers that glTF gives to what they are called
_DEGREES = 4
_MOST_BYTES = 2**32 - 2**20  # of numbers: lengths have 32 bits, and what describes them comes with them


def encode_glb(gaussians: Gaussians) -> bytes:
    """Return the bytes of a `.glb` file, right-up-back as glTF wants; COLOR_0 is for programs that draw points only."""
    num_bytes = 12 * len(gaussians) * (5 + gaussians.shN.shape[1])
    if num_bytes > _MOST_BYTES:
        raise UserError(f"--format glb: {num_bytes / 2**30:.2f} GiB, a .glb holds 4; take ply, or parts with --objects")
    unit = gaussians.state_dict() | {"quats": normalise(gaussians.quats.detach())}
    table = turned_over({name: value.cpu().numpy() for name, value in unit.items()})
    opacity = gaussians.opacities.detach().cpu().numpy()
    sh = np.concatenate([table["sh0"], table["shN"]], axis=1)
    columns = {
        "POSITION": table["means"],
        "COLOR_0": to_bytes(np.column_stack([sh[:, 0] * SH_C0 + 0.5, opacity]) * 255),
        f"{_EXTENSION}:ROTATION": np.roll(table["quats"], -1, axis=1),
        f"{_EXTENSION}:SCALE": gaussians.scales.detach().cpu().numpy(),
        f"{_EXTENSION}:OPACITY": opacity[:, None],
    }
    columns |= {name: sh[:, index] for index, name in enumerate(_coefficients(gaussians.sh_degree))}
    accessors, views, parts, at = list[dict[str, Any]](), list[dict[str, Any]](), list[bytes](), 0
    for name, values in columns.items():
        data = np.ascontiguousarray(values, "u1" if name == "COLOR_0" else "<f4").tobytes()
        views.append({"buffer": 0, "byteOffset": at, "byteLength": len(data), "target": _VERTICES})
        accessor: dict[str, Any] = {"bufferView": len(accessors), "count": len(values), "type": _KINDS[values.shape[1]]}
        accessor |= {"componentType": _BYTE, "normalized": True} if name == "COLOR_0" else {"componentType": _FLOAT}
        if name == "POSITION":
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        accessors.append(accessor)
        parts.append(data)
        at += len(data)
    how = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    how |= {"sortingMethod": "cameraDistance", "projection": "perspective"}
    primitive = {"attributes": {name: index for index, name in enumerate(columns)}, "mode": _POINTS}
    content = {
        "asset": {"version": "2.0", "generator": "unified-lift"},
        "extensionsUsed": [_EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive | {"extensions": {_EXTENSION: how}}]}],
        "buffers": [{"byteLength": at}],
        "bufferViews": views,
        "accessors": accessors,
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4s3I4s", MAGIC, 2, 28 + len(text) + at, len(text), b"JSON")
    return b"".join([head, text, struct.pack("<I4s", at, b"BIN\0"), *parts])


def read_glb(path: Path) -> RawSplat:
    """Return the splats of all meshes of a `.glb` file with KHR_gaussian_splatting, in our axes.

    A UserError: damaged, without splats, or with what is not read (their compression, buffers in other files).
    """
    with reading(path, "glTF with Gaussians", fix="export it again, or convert it to .ply"):
        return _decoded(path.read_bytes())


def _decoded(data: bytes) -> RawSplat:
    (length,) = struct.unpack_from("<I", data, 12)
    content, body = json.loads(data[20 : 20 + length]), data[28 + length :]
    found = [
        primitive
        for mesh in content.get("meshes", ())
        for primitive in mesh["primitives"]
        if _EXTENSION in primitive.get("extensions", {})
    ]
    if not found:
        raise ValueError(f"no mesh in it has {_EXTENSION}")
    if any(primitive["extensions"][_EXTENSION].get("extensions") for primitive in found):
        raise ValueError(f"its {_EXTENSION} is compressed, which is not read")

    def values(attributes: dict[str, int], name: str) -> np.ndarray:
        accessor = content["accessors"][attributes[name]]
        view = content["bufferViews"][accessor["bufferView"]]
        kind, width = np.dtype(_TYPES[accessor["componentType"]]), _WIDTHS[accessor["type"]]
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        step = view.get("byteStride", kind.itemsize * width)
        if view.get("buffer") or "uri" in content["buffers"][0] or "sparse" in accessor:
            raise ValueError("its numbers are in another file, or sparse")
        if step < 1 or not 0 <= start <= start + step * (accessor["count"] - 1) + kind.itemsize * width <= len(body):
            raise ValueError(f"cut short: {len(body)} bytes")
        rows = np.ndarray((accessor["count"], width), kind, body, start, (step, kind.itemsize))
        if not accessor.get("normalized"):
            return rows.astype(np.float32)
        return np.maximum(rows / np.float32(np.iinfo(kind).max), -1)

    tables = []
    for primitive in found:
        attributes = primitive["attributes"]
        column = {_short(name): values(attributes, name) for name in attributes if name != "COLOR_0"}
        sh = [column[name] for name in map(_short, _coefficients(_DEGREES)) if name in column]
        degree = round(len(sh) ** 0.5) - 1
        if not sh or len(sh) != (degree + 1) ** 2:
            raise ValueError(f"{len(sh)} coefficients of a colour")
        with np.errstate(divide="ignore", invalid="ignore"):
            log_scales = np.log(column["SCALE"])
        tables.append(
            {
                "means": column["POSITION"],
                "quats": np.roll(column["ROTATION"], 1, axis=1),
                "log_scales": log_scales,
                "logit_opacities": logits_of(column["OPACITY"][:, 0]),
                "sh0": sh[0][:, None],
                "shN": np.stack(sh[1:], axis=1) if degree else np.zeros((len(sh[0]), 0, 3), np.float32),
            }
        )
    table = {name: np.concatenate([one[name] for one in tables]) for name in tables[0]}
    is_moved = any({"matrix", "translation", "rotation", "scale"} & node.keys() for node in content.get("nodes", ()))
    return RawSplat(turned_over(table), ["the places of its nodes are left out"] if is_moved else [])


def _short(name: str) -> str:
    return name.removeprefix(f"{_EXTENSION}:")


def _coefficients(degree: int) -> list[str]:
    return [f"{_EXTENSION}:SH_DEGREE_{band}_COEF_{n}" for band in range(degree + 1) for n in range(2 * band + 1)]
