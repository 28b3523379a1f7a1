"""`.ply` as 3DGS writes it, without any column of our own: opens in every viewer."""

from __future__ import annotations

from pathlib import Path

from unified_lift.editing.formats.base import Format, Part
from unified_lift.model.ply import write_gaussians


def write_ply(folder: Path, part: Part) -> None:
    """Write `<stem>.ply`."""
    write_gaussians(folder / f"{part.stem}.ply", part.scene.gaussians)


FORMAT = Format(name="ply", about="3D Gaussians as 3DGS writes them, exact", write=write_ply)
