"""`.spz`, version 3: quantised and gzipped, about a tenth of the `.ply`."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np

from unified_lift.editing.formats.splat import to_bytes
from unified_lift.errors import UserError
from unified_lift.model.gaussians import Gaussians
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.outputs import write_frame

_COLOR_SCALE = 0.15  # of SH degree 0; leaves room for colours outside 0..1
_MAX_FRACTIONAL_BITS = 16
_POSITION_LIMIT = 2**23 - 1  # 24 bits with sign
# The format's own writer keeps 5 bits of 8 in SH degree 1, 4 in degrees 2 and 3: the rest would not compress.
_SH_STEPS = np.array([8.0] * 3 + [16.0] * 12)
# Ours is right-down-front, SPZ is right-up-back: half a turn about x. Coefficients of y and z change sign, those of
# y z and of even powers do not.
_FLIP_AXES = np.array([1, -1, -1], np.float32)
_FLIP_SH = np.array([-1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1], np.float32)


def encode_spz(gaussians: Gaussians) -> bytes:
    """Return the bytes of a `.spz` file; a UserError: a position is too far out for 24 bits.

    Source: the public description of SPZ.
    Differs: Its own writer always takes 12 fractional bits for positions. We take up to 16, as many as let the farthest
        Gaussian fit; readers take the number from the header.
    """
    table = {name: value.detach().cpu().numpy() for name, value in gaussians}
    farthest = float(np.abs(table["means"]).max())
    bits = min(_MAX_FRACTIONAL_BITS, math.floor(math.log2(_POSITION_LIMIT / max(farthest, 1e-12))))
    if bits < 0:
        problem = f"a Gaussian is {farthest:.3g} units from the origin; SPZ reaches {_POSITION_LIMIT}"
        raise UserError(f"--format spz: {problem}")
    fixed = np.rint(table["means"].astype(np.float64) * _FLIP_AXES * 2**bits).astype("<i4")
    # Above degree 0, 128 is zero, in steps of 8 or 16 of 1/128.
    step, flip = (each[: table["shN"].shape[1], None] for each in (_SH_STEPS, _FLIP_SH))
    levels = np.rint(table["shN"] * flip * 128) + 128
    columns = (
        struct.pack("<4s2I4B", b"NGSP", 3, len(gaussians), gaussians.sh_degree, bits, 0, 0),  # 0: no flags, reserved
        fixed.view(np.uint8).reshape(-1, 4)[:, :3].tobytes(),  # the low three bytes
        to_bytes(gaussians.opacities.detach().cpu().numpy() * 255).tobytes(),
        to_bytes((table["sh0"][:, 0] * _COLOR_SCALE + 0.5) * 255).tobytes(),
        to_bytes((table["log_scales"] + 10) * 16).tobytes(),
        pack_rotations(table["quats"]).tobytes(),
        ((np.floor((levels + step / 2) / step) * step).clip(0, 255)).astype(np.uint8).tobytes(),
    )
    return gzip.compress(b"".join(columns), mtime=0)  # no time, so that equal scenes give equal files


def pack_rotations(quats: np.ndarray) -> np.ndarray:
    """Return rotations in SPZ axes as uint32 [N]: index of the largest of x, y, z, w, sign and 9 bits of the others.

    `quats` are rotations wxyz in our axes, of any length but zero, [N, 4].
    """
    x, y, z = (quats[:, 1:] * _FLIP_AXES).T  # half a turn about x on both sides
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


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>.spz`, inside of the scene's frame, with a frame.json beside it: sizes of 8 bits fit no other."""
    write_frame(folder, scene.frame)
    (folder / f"{stem}.spz").write_bytes(encode_spz(scene.gaussians))
