"""unified-lift edit: remove, copy, move, paint and rename the objects of a trained scene."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unified_lift.cli.model_flags import ObjectFlags, SourcePath, with_objects
from unified_lift.cli.names import program
from unified_lift.editing import script
from unified_lift.errors import UserError
from unified_lift.modelfolder.labels import INVENTED, RETRAINED

Objects = tuple[int | Literal["scene"], ...]


@dataclass(frozen=True, kw_only=True)
class EditCommand(ObjectFlags):
    """Edit the objects of a trained scene and write the result as a new model folder, with the edits in edits.yaml.

    Edits happen in the order of these flags: first those of --script. In place of object ids `scene` means all.

    Example: unified-lift edit -m output/desk --remove 3 4 --recolour 5 --color "#ff0000" --out output/desk_edited
    """

    out: Path
    """Model folder to be written."""
    source_path: SourcePath = None
    script: Path | None = None
    """YAML list of edits, as docs/edit.md describes and the viewer writes."""
    clean: Objects = ()
    """Objects whose unsure and outlying Gaussians are given to the nearest other objects."""
    min_confidence: float = 0.5
    """With --clean: Gaussians below it are given away."""
    outliers: float = 5.0
    """With --clean: parts farther off than this many spacings are given away; 0 = none."""
    remove: Objects = ()
    """Objects to take away."""
    fill: bool = False
    """With --remove: train what is around again on the photos (a minute), so that no hole is left."""
    isolate: Objects = ()
    """Objects to keep, and nothing else."""
    merge: Objects = ()
    """Objects to make one: the first of them."""
    recolour: Objects = ()
    """Objects to paint; needs --color."""
    color: str | None = None
    """With --recolour: mean colour, as "#ff0000"."""
    strength: float = 1.0
    """With --recolour: 0 = as it was, 1 = none of the old hue."""
    move: Objects = ()
    """Objects to move as one body, by the flags below."""
    duplicate: Objects = ()
    """Objects to copy; the copies are moved by the flags below."""
    translate: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """With --move or --duplicate: shift, world units."""
    rotate_axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """With --move or --duplicate: axis of the rotation, world axes, through the centroid."""
    rotate_degrees: float = 0.0
    """With --move or --duplicate: its angle."""
    scale: float = 1.0
    """With --move or --duplicate: growth."""
    rename: tuple[str, ...] = ()
    """New names, ID=NAME each, such as 7=mug."""
    overwrite: bool = False
    """Replace the model in --out, which may be the one that is edited."""


def edit_main(argv: list[str]) -> int:
    """Parse, load, edit, write. Return the exit code."""
    command = EditCommand.parsed(argv, command="edit")
    edits = [] if command.script is None else script.read_script(command.script, flag="--script")
    edits += [script.read_operation(entry, "flags") for entry in _flag_entries(command)]
    if not edits:
        raise UserError("nothing to do; give --script, --remove, --duplicate or another edit, see --help")
    with script.alone_with(command.model_path, command.out):
        scene = with_objects(command.load(source_path=command.source_path))
        edited = script.apply(scene, edits)
        script.save_model(edited, command.out, edits=edits, overwrite=command.overwrite)
    before, after = (f"{len(each.objects)} objects ({len(each)} Gaussians)" for each in (scene, edited))
    print(f"{command.out}: {before} became {after}; look at it: {program('render')} -m {command.out}")
    if edited.labels is not None and edited.labels.filled is not None:
        seen, unseen = (int((edited.labels.filled == kind).sum()) for kind in (RETRAINED, INVENTED))
        print(f"  filled: {seen} Gaussians trained on photos; {unseen} where no photo shows anything, continued")
    for object_id in sorted(set(edited.objects) - set(scene.objects)):
        print(f"  {object_id}: {edited.name_of(object_id)}")
    return 0


def _flag_entries(command: EditCommand) -> Iterator[dict[str, Any]]:
    """Yield what the flags ask for as entries of a script."""
    if command.move and command.duplicate:
        raise UserError("--move and --duplicate share --translate and the like: give one of them, or write a --script")
    placing = ("translate", "rotate_axis", "rotate_degrees", "scale")
    is_placed = any(getattr(command, name) != getattr(EditCommand, name) for name in placing)
    if is_placed and not command.move and not command.duplicate:
        raise UserError("--translate, --rotate_degrees and --scale need --move or --duplicate and the objects")
    if command.fill and not command.remove:
        raise UserError("--fill needs --remove and the objects")
    if bool(command.recolour) != (command.color is not None):
        raise UserError('--recolour and --color belong together, as in --recolour 5 --color "#ff0000"')
    placed = {
        "rotate": {"axis": command.rotate_axis, "degrees": command.rotate_degrees},
        "translate": command.translate,
        "scale": command.scale,
    }
    settings: dict[str, dict[str, Any]] = {
        "clean": {"min_confidence": command.min_confidence, "outliers": command.outliers},
        "remove": {"fill": True} if command.fill else {},
        "recolour": {"color": command.color, "strength": command.strength},
        "move": placed,
        "duplicate": placed,
    }
    for key in ("clean", "remove", "isolate", "merge", "recolour", "move", "duplicate"):
        if getattr(command, key):
            yield {key: {"objects": list(getattr(command, key)), **settings.get(key, {})}}
    names = {}
    for word in command.rename:
        object_id, equals, name = word.partition("=")
        if not (equals and object_id.isdecimal() and name.strip()):
            raise UserError(f"--rename {word}: write ID=NAME, such as 7=mug")
        names[int(object_id)] = name
    if names:
        yield {"rename": names}
