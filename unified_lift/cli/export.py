"""unified-lift export: scene, objects or background as files that other programs open."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from unified_lift.cli.model_flags import ObjectFlags
from unified_lift.editing.formats import export
from unified_lift.settings.limits import Range


@dataclass(frozen=True, kw_only=True)
class ExportCommand(ObjectFlags):
    """Write the scene, its objects or its background for other programs.

    Example: unified-lift export -m output/desk --objects 7 12 --format ply,html
    """

    objects: tuple[str, ...] = ("scene",)
    """Object ids, `all` (every object, a file each), `background`, `scene`; several may be given."""
    format: tuple[str, ...] = ("ply",)
    """ply, splat, spz, html, labels, points; several, separated by commas or spaces."""
    out: Path | None = None
    """Folder to write to; by default `export` in the model folder."""
    min_conf: Annotated[float, Range(0, 1)] = 0.0
    """Leave out Gaussians whose label is less certain than this, 0 to 1."""
    quiet: bool = False
    """No progress bar."""


def export_main(argv: list[str]) -> int:
    """Parse, cut out, write. Return the exit code."""
    command = ExportCommand.parsed(argv, prog="unified-lift export")
    scene = command.load()
    made = export(
        scene,
        command.out or scene.path / "export",
        objects=command.objects,
        formats=command.format,
        min_confidence=command.min_conf,
        quiet=command.quiet,
    )
    empty = [stem for stem, files in made.items() if not files]
    if empty:
        print(f"note: no Gaussian of {', '.join(empty)} is as certain as --min_conf {command.min_conf:g}: not written")
    for path in sorted(path for files in made.values() for path in files):
        print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")
    return 0
