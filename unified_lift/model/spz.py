"""`.spz`: quantised and compressed, about a tenth of the `.ply`; versions 1 to 4 are read, 3 and 4 written."""

import importlib
import math
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from unified_lift.errors import UserError
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.raw import FLIP_AXES, FLIP_SH, RawSplat, from_smallest_three, logits_of
from unified_lift.model.splat import to_bytes
from unified_lift.reading import reading

MAGIC, GZIP = b"NGSP", b"\x1f\x8b"
_COLUMNS = ("means", "opacities", "sh0", "log_scales", "quats", "shN")  # in the order of the file
_COLOR_SCALE = 0.15  # of SH degree 0; leaves room for colours outside 0..1
_MAX_FRACTIONAL_BITS = 16
_POSITION_LIMIT = 2**23 - 1  # 24 bits with sign
# The format's own writer keeps 5 bits of 8 in SH degree 1, 4 in degrees 2 and 3: the rest would not compress.
_SH_STEPS = np.array([8.0] * 3 + [16.0] * 12)
_HEADER, _HEADER_4 = struct.Struct("<4s2I4B"), struct.Struct("<4s2I4BI12x")
_ANTIALIASED = 1  # the flag
_ZSTD_LEVEL = 19
_LEVEL = 9  # of gzip
_MOST, _SMALL = 1032, 2**25  # bytes that one byte of a file can become; what any file may


def encode_spz(gaussians: Gaussians, *, version: int = 3) -> bytes:
    """Return the bytes of a `.spz` file of version 3 (gzip) or 4 (a zstd frame for each column).

    A UserError: a position is too far out for 24 bits, or version 4 without a package that knows zstd.

    Source: the public description of SPZ.
    Differs: Its own writer always takes 12 fractional bits for positions. We take up to 16, as many as let the farthest
        Gaussian fit; readers take the number from the header.
    """
    farthest = float(gaussians.means.detach().abs().max())
    bits = min(_MAX_FRACTIONAL_BITS, math.floor(math.log2(_POSITION_LIMIT / max(farthest, 1e-12))))
    if bits < 0:
        problem = f"a Gaussian is {farthest:.3g} units from the origin; SPZ reaches {_POSITION_LIMIT}"
        raise UserError(f"--format spz: {problem}")
    flags = _ANTIALIASED if gaussians.antialiased else 0
    facts = (MAGIC, version, len(gaussians), gaussians.sh_degree, bits, flags)

    def column(name: str) -> Iterator[bytes]:
        return (_packed(name, part, bits).tobytes() for part in gaussians.parts())

    if version == 3:
        return _gzipped(data for source in ([_HEADER.pack(*facts, 0)], *map(column, _COLUMNS)) for data in source)
    try:
        zstd = importlib.import_module("zstandard")
    except ImportError:
        raise UserError('--format spz4: needs a package: pip install "unified-lift[spz]"; or take spz') from None
    frames, table_of = list[bytes](), list[bytes]()
    for stream in (b"".join(column(name)) for name in _COLUMNS):
        if stream:
            frames.append(zstd.ZstdCompressor(level=_ZSTD_LEVEL).compress(stream))
            table_of.append(struct.pack("<2Q", len(frames[-1]), len(stream)))
    return b"".join((_HEADER_4.pack(*facts, len(frames), _HEADER_4.size), *table_of, *frames))


def _packed(name: str, gaussians: Gaussians, bits: int) -> np.ndarray:
    """Return a column of Gaussians as the file holds it, with so many fractional bits of positions."""
    values = getattr(gaussians, name).detach().cpu().numpy()
    if name == "means":
        fixed = np.rint(values.astype(np.float64) * FLIP_AXES * 2**bits).astype("<i4")
        return fixed.view(np.uint8).reshape(-1, 4)[:, :3]  # the low three bytes
    if name == "opacities":
        return to_bytes(values * 255)
    if name == "sh0":
        return to_bytes((values[:, 0] * _COLOR_SCALE + 0.5) * 255)
    if name == "log_scales":
        return to_bytes((values + 10) * 16)
    if name == "quats":
        return pack_rotations(values)
    # Above degree 0, 128 is zero, in steps of 8 or 16 of 1/128.
    step, flip = (each[: values.shape[1], None] for each in (_SH_STEPS, FLIP_SH))
    levels = np.rint(values * flip * 128) + 128
    return (np.floor((levels + step / 2) / step) * step).clip(0, 255).astype(np.uint8)


def _gzipped(parts: Iterator[bytes]) -> bytes:
    """Return the gzip file of parts that follow one another, each compressed by a thread; without a time, so that equal
    scenes give equal files."""
    workers, done, pending = os.cpu_count() or 1, list[bytes](), deque[Future[bytes]]()
    checksum = size = 0
    with ThreadPoolExecutor(workers) as pool:
        for part in parts:
            checksum, size = zlib.crc32(part, checksum), size + len(part)
            pending.append(pool.submit(_deflated, part))
            if len(pending) > workers:
                done.append(pending.popleft().result())
        done += [one.result() for one in pending]
    head = GZIP + struct.pack("<2BI2B", zlib.DEFLATED, 0, 0, 2, 255)
    return b"".join([head, *done, b"\x03\0", struct.pack("<2I", checksum, size % 2**32)])  # an empty last block


def _deflated(part: bytes) -> bytes:
    """Return raw deflate of a part, to its last byte and open for more to follow."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH)


def pack_rotations(quats: np.ndarray) -> np.ndarray:
    """Return rotations in SPZ axes as uint32 [N]: index of the largest of x, y, z, w, sign and 9 bits of the others.

    `quats` are rotations wxyz in our axes, of any length but zero, [N, 4].
    """
    x, y, z = (quats[:, 1:] * FLIP_AXES).T  # half a turn about x on both sides
    turned = np.stack([x, y, z, quats[:, 0]], axis=1).astype(np.float64)
    turned /= np.linalg.norm(turned, axis=1, keepdims=True).clip(1e-12)
    largest = np.abs(turned).argmax(axis=1)
    turned *= np.where(np.take_along_axis(turned, largest[:, None], axis=1) < 0, -1, 1)  # -q is the same rotation
    packed = largest.astype(np.uint32)
    for index in range(4):
        size = np.floor(511 * np.abs(turned[:, index]) * math.sqrt(2) + 0.5).astype(np.uint32).clip(0, 511)
        longer = (packed << 10) | ((turned[:, index] < 0).astype(np.uint32) << 9) | size
        packed = np.where(largest == index, packed, longer)
    return packed.astype("<u4")


def read_spz(path: Path) -> RawSplat:
    """Return the splat of a `.spz` file of version 1 to 4, in our axes.

    Nothing is allocated before the counts of the header were held against the length of the file.
    A UserError: damaged, of another version, or of version 4 without a package that knows zstd.
    """
    with reading(path, "SPZ", fix="fetch it again, or convert it to .ply"):
        return _decoded(path.read_bytes())


def _decoded(data: bytes) -> RawSplat:
    is_new = data[:4] == MAGIC
    head = data if is_new else zlib.decompressobj(31).decompress(data, _HEADER.size)
    magic, version, count, degree, bits, flags, *further = (_HEADER_4 if is_new else _HEADER).unpack_from(head)
    if magic != MAGIC or version not in ((4,) if is_new else (1, 2, 3)) or degree > 4 or bits > 24:
        raise ValueError("not of version 1 to 4 and degree 0 to 4")
    widths = (6 if version == 1 else 9, 1, 3, 3, 4 if version > 2 else 3, 3 * ((degree + 1) ** 2 - 1))
    sizes = [count * width for width in widths]
    if sum(sizes) > max(_MOST * len(data), _SMALL):
        raise ValueError(f"it says to hold {count} Gaussians, too many for {len(data)} bytes")
    if is_new:
        content = _zstd_streams(data, further[1], [size for size in sizes if size])
    else:
        content = zlib.decompressobj(31).decompress(data, _HEADER.size + sum(sizes))[_HEADER.size :]
    if len(content) != sum(sizes):
        raise ValueError(f"cut short: {len(content)} of {sum(sizes)} bytes")
    parts = np.split(np.frombuffer(content, np.uint8), np.cumsum(sizes)[:-1])
    position, alpha, color, scale, rotation, sh = (part.reshape(count, n) for part, n in zip(parts, widths))
    if version == 1:
        means = position.copy().view("<f2").astype(np.float64)
    else:
        low, middle, high = position.reshape(count, 3, 3).transpose(2, 0, 1).astype(np.int32)
        means = (low | middle << 8 | (high ^ 128) - 128 << 16) / 2.0**bits
    w = np.full(count, 3)  # the entry that versions 1 and 2 leave out
    xyzw = _unpack_rotations(rotation) if version > 2 else from_smallest_three(w, rotation / 127.5 - 1)
    table = {
        "means": means * FLIP_AXES,
        "quats": np.roll(xyzw, 1, axis=1) * [1, *FLIP_AXES],
        "log_scales": scale / 16 - 10,
        "logit_opacities": logits_of(alpha[:, 0] / 255),
        "sh0": ((color / 255 - 0.5) / _COLOR_SCALE)[:, None],
        "shN": (sh.reshape(count, widths[5] // 3, 3) / np.float32(128) - 1) * FLIP_SH[: widths[5] // 3, None],
    }
    return RawSplat(table, [], antialiased=bool(flags & _ANTIALIASED))


def _zstd_streams(data: bytes, start: int, sizes: list[int]) -> bytes:
    """Return the streams of version 4: a table of packed and full sizes at `start`, then one zstd frame each."""
    try:
        zstd = importlib.import_module("zstandard")
    except ImportError:
        raise ValueError('version 4 needs a package: pip install "unified-lift[spz]"') from None
    table = [struct.unpack_from("<2Q", data, start + 16 * index) for index in range(len(sizes))]
    if [size for _, size in table] != sizes:
        raise ValueError("its table of streams does not fit its header")
    content, at = [], start + 16 * len(sizes)
    for packed, size in table:
        try:
            content.append(zstd.ZstdDecompressor().stream_reader(data[at : at + packed]).read(size))
        except zstd.ZstdError as error:
            raise ValueError(error) from None
        at += packed
    return b"".join(content)


def _unpack_rotations(packed: np.ndarray) -> np.ndarray:
    """Return x, y, z, w of what `pack_rotations` writes, uint8 [N, 4]."""
    bits = packed.copy().view("<u4")
    fields = bits >> np.array([20, 10, 0], np.uint32) & 1023  # [N, 3]
    sizes = (fields & 511) / 511 / math.sqrt(2)
    return from_smallest_three(bits[:, 0] >> 30, np.where(fields >> 9, -sizes, sizes))
