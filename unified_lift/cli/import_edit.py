"""unified-lift import-edit: a .ply that was edited in another program becomes a labelled model again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from unified_lift.cli.model_flags import ObjectFlags
from unified_lift.editing.reattach import MAX_DISTANCE, reattach
from unified_lift.editing.script import save_model
from unified_lift.fileio import write_json
from unified_lift.model.ply import read_gaussians
from unified_lift.modelfolder.outputs import provenance
from unified_lift.settings.limits import Range


@dataclass(frozen=True, kw_only=True)
class ImportEditCommand(ObjectFlags):
    """Give the Gaussians of an edited .ply the objects, features and confidence they had, and write a model folder.

    Example: unified-lift import-edit -m output/desk --ply edited.ply --out output/desk_edited
    """

    ply: Path
    """The edited 3D Gaussian .ply."""
    out: Path
    """Model folder to write."""
    max_distance: Annotated[float, Range(0)] = MAX_DISTANCE
    """How far a changed Gaussian may be from the one it was, in standard deviations of that one."""
    overwrite: bool = False
    """Replace the model in --out."""


def import_edit_main(argv: list[str]) -> int:
    """Parse, match, write, tell what was found. Return the exit code."""
    command = ImportEditCommand.parsed(argv, prog="unified-lift import-edit")
    scene = command.load()
    edited, counts = reattach(read_gaussians(command.ply), scene, max_distance=command.max_distance)
    save_model(edited, command.out, edits=(), overwrite=command.overwrite)
    manifest = provenance(scene.settings, {"imported": str(command.ply), **counts})
    write_json(command.out / "manifest.json", manifest)
    print(f"{command.ply}: {len(edited)} Gaussians, {len(scene)} before")
    print(f"  {counts['num_same']} where they were")
    print(f"  {counts['num_moved']} moved or copied: another place, the same colour and opacity")
    print(f"  {counts['num_near']} changed, within {command.max_distance:g} standard deviations of an old one")
    if counts["num_unknown"]:
        print(f"  {counts['num_unknown']} not known: they got the object of the nearest, with confidence 0")
    print(f"  {counts['num_removed']} old ones are gone")
    gone = [scene.name_of(object_id) for object_id in scene.objects if object_id not in edited.objects]
    if gone:
        print(f"  objects that are gone: {', '.join(gone)}")
    print(f"{command.out}: {len(edited.objects)} objects; look at it: render.py -m {command.out}")
    return 0
