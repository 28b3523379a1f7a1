"""`.splat`, read and written: 32 bytes a Gaussian, no view-dependent colour; the format of early web viewers."""

from pathlib import Path

import numpy as np

from unified_lift.errors import UserError
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.model.raw import RawSplat, base_coefficients, logits_of
from unified_lift.ops.quaternions import normalise

ROW = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])


def splat_rows(gaussians: Gaussians) -> np.ndarray:
    """Return the rows of a `.splat` file, structured [N].

    Positions and scales are world units, colour is red, green, blue, opacity, rotation w, x, y, z as 128 + 128 q.

    Differs: Other writers sort by size and opacity; here row i of every export is the same Gaussian.
    """
    whole, first = np.zeros(len(gaussians), ROW), 0
    for part in gaussians.parts():
        rows = whole[first : first + len(part)]
        rows["position"] = part.means.detach().cpu().numpy()
        rows["scale"] = part.scales.detach().cpu().numpy()
        rows["color"][:, :3] = to_bytes((part.sh0.detach().cpu().numpy()[:, 0] * SH_C0 + 0.5) * 255)
        rows["color"][:, 3] = to_bytes(part.opacities.detach().cpu().numpy() * 255)
        rows["rotation"] = to_bytes(normalise(part.quats.detach().cpu()).numpy() * 128 + 128)
        first += len(part)
    return whole


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Return values rounded and clipped to 0..255, uint8."""
    return np.rint(values).clip(0, 255).astype(np.uint8)


def read_splat_rows(path: Path) -> RawSplat:
    """Return the splat of a `.splat` file; a UserError: its length is not that of whole rows."""
    if excess := path.stat().st_size % ROW.itemsize:
        raise UserError(f"{path}: no .splat, or cut short: {excess} bytes after rows of {ROW.itemsize}; fetch it again")
    rows = np.fromfile(path, ROW)
    color = rows["color"] / 255
    with np.errstate(divide="ignore", invalid="ignore"):
        log_scales = np.log(rows["scale"])
    table = {"means": rows["position"], "quats": rows["rotation"] / 128 - 1, "log_scales": log_scales}
    table |= {"logit_opacities": logits_of(color[:, 3]), "sh0": base_coefficients(color[:, None, :3])}
    return RawSplat(table, [])
