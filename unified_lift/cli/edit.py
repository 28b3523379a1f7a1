"""unified-lift edit: every edit of objects that a script can hold, as flags."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unified_lift.cli.model_flags import ObjectFlags, SourcePath, with_objects
from unified_lift.cli.names import program
from unified_lift.editing import script
from unified_lift.errors import UserError
from unified_lift.modelfolder.labels import INVENTED, RELIT, RETRAINED

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
    keep_shadow: bool = False
    """With --fill: leave the shadow of what is removed where it fell."""
    isolate: Objects = ()
    """Objects to keep, and nothing else."""
    merge: Objects = ()
    """Objects to make one: the first of them."""
    split: Objects = ()
    """Objects whose pieces that lie apart, or what is inside of --box, become objects of their own."""
    gap: float = 3.0
    """With --split: pieces are apart that lie so many spacings from each other."""
    box: tuple[float, ...] = ()
    """With --split: two opposite corners of a box, six numbers, world units."""
    grow: Objects = ()
    """Objects that take over what is within --distance of them."""
    shrink: Objects = ()
    """Objects that give away what is within --distance of others."""
    distance: float | None = None
    """With --grow or --shrink: how far, world units."""
    relabel: int | None = None
    """Object, old or new, that is given Gaussians: those in a ball, or some by their numbers."""
    centre: tuple[float, ...] = ()
    """With --relabel: middle of the ball, three numbers, world units."""
    radius: float | None = None
    """With --relabel: radius of the ball, world units."""
    gaussians: tuple[int, ...] = ()
    """With --relabel: numbers of Gaussians, rows of point_cloud.ply."""
    givers: Objects = ()
    """With --relabel: only these objects give some away."""
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
    before, after = (
        f"{len(each.objects)} object{'s' * (len(each.objects) != 1)} ({len(each)} Gaussians)"
        for each in (scene, edited)
    )
    print(f"{command.out}: {before} became {after}; look at it: {program('render')} -m {command.out}")
    if edited.labels is not None and edited.labels.filled is not None:
        kinds = (RETRAINED, RELIT, INVENTED)
        seen, relit, unseen = (int((edited.labels.filled == kind).sum()) for kind in kinds)
        print(
            f"  filled: {seen} Gaussians trained on photos; {relit} lit again; {unseen} that no photo shows, continued"
        )
    for object_id in sorted(set(edited.objects) - set(scene.objects)):
        print(f"  {object_id}: {edited.name_of(object_id)}")
    return 0


_PLACING = ("translate", "rotate_axis", "rotate_degrees", "scale")
_SETTINGS: dict[str, tuple[str, ...]] = {  # edit -> flags that belong to it; in this order edits are done
    "clean": ("min_confidence", "outliers"),
    "remove": ("fill", "keep_shadow"),
    "isolate": (),
    "merge": (),
    "split": ("gap", "box"),
    "grow": ("distance",),
    "shrink": ("distance",),
    "relabel": ("centre", "radius", "gaussians", "givers"),
    "recolour": ("color", "strength"),
    "move": _PLACING,
    "duplicate": _PLACING,
}


def _flag_entries(command: EditCommand) -> Iterator[dict[str, Any]]:
    """Yield what the flags ask for as entries of a script."""
    given = {name: value for name, value in vars(command).items() if value != getattr(EditCommand, name, None)}
    for flag in given:
        edits = [key for key, flags in _SETTINGS.items() if flag in flags]
        if edits and not given.keys() & set(edits):
            raise UserError(f"--{flag}: needs --{' or --'.join(edits)} and the objects")
    for key, needed in (("recolour", "color"), ("grow", "distance"), ("shrink", "distance")):
        if key in given and needed not in given:
            raise UserError(f"--{key}: needs --{needed}" + (', as "#ff0000"' if needed == "color" else ""))
    if command.keep_shadow and not command.fill:
        raise UserError("--keep_shadow: needs --fill")
    if command.move and command.duplicate:
        raise UserError("--move and --duplicate share --translate and the like: give one of them, or write a --script")
    for key, flags in _SETTINGS.items():
        if key in given:
            settings = {name: getattr(command, name) for name in flags if getattr(command, name) not in (None, ())}
            if flags == _PLACING:
                settings["rotate"] = {"axis": settings.pop("rotate_axis"), "degrees": settings.pop("rotate_degrees")}
            if key == "remove":
                settings["shadow"] = not settings.pop("keep_shadow")
            if "box" in settings:
                settings["box"] = settings["box"][:3], settings["box"][3:]
            if key == "relabel":
                yield {key: {"object": command.relabel, "objects": list(settings.pop("givers", ["scene"])), **settings}}
            else:
                yield {key: {"objects": list(given[key]), **settings}}
    names = {}
    for word in command.rename:
        object_id, equals, name = word.partition("=")
        if not (equals and object_id.isdecimal() and name.strip()):
            raise UserError(f"--rename {word}: write ID=NAME, such as 7=mug")
        names[int(object_id)] = name
    if names:
        yield {"rename": names}
