"""`.splat`: 32 bytes a Gaussian, no view-dependent colour; the format of early web viewers."""

from pathlib import Path

import numpy as np

from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.outputs import write_frame
from unified_lift.ops.quaternions import normalise

ROW = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])


def splat_rows(gaussians: Gaussians) -> np.ndarray:
    """Return the rows of a `.splat` file, structured [N].

    Positions and scales are world units, colour is red, green, blue, opacity, rotation w, x, y, z as 128 + 128 q.

    Differs: Other writers sort by size and opacity; here row i of every export is the same Gaussian.
    """
    rows = np.zeros(len(gaussians), ROW)
    rows["position"] = gaussians.means.detach().cpu().numpy()
    rows["scale"] = gaussians.scales.detach().cpu().numpy()
    rows["color"][:, :3] = to_bytes((gaussians.sh0.detach().cpu().numpy()[:, 0] * SH_C0 + 0.5) * 255)
    rows["color"][:, 3] = to_bytes(gaussians.opacities.detach().cpu().numpy() * 255)
    rows["rotation"] = to_bytes(normalise(gaussians.quats.detach().cpu()).numpy() * 128 + 128)
    return rows


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Return values rounded and clipped to 0..255, uint8."""
    return np.rint(values).clip(0, 255).astype(np.uint8)


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>.splat`; far from the origin inside of the scene's frame, with a frame.json beside it."""
    rows = splat_rows(scene.gaussians)
    if any(scene.frame.offset):
        write_frame(folder, scene.frame)
    else:
        rows["position"] = scene.frame.outside(rows["position"])
        rows["scale"] /= scene.frame.scale
    rows.tofile(folder / f"{stem}.splat")
