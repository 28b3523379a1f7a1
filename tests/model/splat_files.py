"""Splat files as other programs write them, by the public descriptions of their formats."""

import gzip
import io
import json
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData, PlyElement

from unified_lift.model.gaussians import SH_C0
from unified_lift.model.spz import encode_spz
from unified_lift.ops.quaternions import normalise

NAMES = ("x", "y", "z", "scale_x", "scale_y", "scale_z", "r", "g", "b")


def write_elements(path, elements):
    PlyData([PlyElement.describe(rows, name) for name, rows in elements.items()], byte_order="<").write(str(path))
    return path


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


def spz_head(version, count, degree, length=0):
    """Return a gzipped header and so many bytes."""
    return gzip.compress(struct.pack("<4s2I4B", b"NGSP", version, count, degree, 12, 0, 0) + bytes(length))


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


def blank(width, height):
    """Return the head of a WebP picture of that size: it says so, and holds nothing."""
    bits = (width - 1) | (height - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes(16)
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
