"""unified-lift export and import-edit: out to the files of other programs, and back from one that edited them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from unified_lift.cli.model_flags import ObjectFlags, with_objects
from unified_lift.cli.names import program
from unified_lift.editing.formats import export
from unified_lift.editing.placement import Placement, Up, up_of
from unified_lift.editing.reattach import MAX_DISTANCE, reattach
from unified_lift.editing.script import alone_with, save_model
from unified_lift.errors import UserError
from unified_lift.model.files import read_splat
from unified_lift.modelfolder.outputs import FRAME_FILE, provenance, write_frame
from unified_lift.ops.similarity import float32_step
from unified_lift.provenance import told
from unified_lift.settings.limits import Range
from unified_lift.types import IDENTITY

# Formats that cannot tell of anti-aliasing.
_SILENT = {"ply": ".ply", "compressed": ".compressed.ply", "splat": ".splat", "glb": ".glb", "usda": ".usda"}
_UP = {
    "y": "+y (SuperSplat turns .ply over: --up auto suits it)",
    "z": "+z, as in Blender",
    "auto": "as programs take it that open them",
}


@dataclass(frozen=True, kw_only=True)
class ExportCommand(ObjectFlags):
    """Write the scene, its objects or its background for other programs.

    Example: unified-lift export -m output/desk --objects 7 12 --format ply,html
    """

    objects: tuple[str, ...] = ("scene",)
    """Object ids or names, `all` (every object, a file each), `background`, `scene`; several may be given."""
    format: tuple[str, ...] = ("ply",)
    """ply, compressed, splat, spz, spz4, sog, glb, usda, html, labels, points, mesh, obj; several may be given."""
    out: Path | None = None
    """Folder to write to; by default `export` in the model folder."""
    min_conf: Annotated[float, Range(0, 1)] = 0.0
    """Leave out Gaussians whose label is less certain than this, 0 to 1."""
    inside: bool = False
    """Of a scene that is far from the origin, tiny or huge: write it as it was trained, near the origin and of ordinary
    size, as viewers like it; frame.json beside it tells the way back."""
    up: Up | None = None
    """Turn every part so that up is +y or +z in its file; `auto`: what programs that open the format take for up (-y in
    .ply, .splat and .sog, +y in .spz, .glb, .usda and meshes). Cameras tell which way is up in the scene."""
    center: bool = False
    """Move the middle of each part (of its box between 5 % and 95 %) to the origin."""
    ground: bool = False
    """Move each part along the direction that is up, so that it stands on height 0."""
    scale: Annotated[float, Range(1e-6, 1e6)] = 1.0
    """Factor of all lengths, such as 1000 for millimetres where a unit is a metre."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True, kw_only=True)
class ImportEditCommand(ObjectFlags):
    """Give the Gaussians of an edited splat the objects, features and confidence they had, and write a model folder.

    Example: unified-lift import-edit -m output/desk --ply edited.ply --out output/desk_edited
    """

    ply: Path
    """The edited splat: .ply, compressed or not, .spz, .splat, .sog, .glb or .usda."""
    out: Path
    """Model folder to write."""
    max_distance: Annotated[float, Range(0)] = MAX_DISTANCE
    """How far a changed Gaussian may be from the one it was, in standard deviations of that one."""
    overwrite: bool = False
    """Replace the model in --out."""


def export_main(argv: list[str]) -> int:
    """Parse, cut out, write. Return the exit code."""
    command = ExportCommand.parsed(argv, command="export")
    scene, least = command.load(), command.min_conf
    beside = scene.path if scene.path.is_dir() else scene.path.parent
    out, parts = command.out or beside / "export", command.objects
    own = replace(scene, frame=IDENTITY) if command.inside else scene
    placement = Placement(up=command.up, center=command.center, ground=command.ground, scale=command.scale)
    if command.inside and not placement.is_none:
        lost = "--up, --center, --ground and --scale leave your coordinates"
        raise UserError(f"--inside: keeps the way back to your coordinates, but {lost}; give one or the other")
    facts: dict[str, Any] = {"min_confidence": least, "placement": placement, "quiet": command.quiet}
    made = export(own, out, objects=parts, formats=command.format, **facts)
    if command.up or command.ground:
        print(f"up in the scene: {up_of(scene)[1]}" + (f"; in the files: {_UP[command.up]}" if command.up else ""))
    empty = [stem for stem, files in made.items() if not files]
    if empty:
        print(f"note: no Gaussian of {', '.join(empty)} is as certain as --min_conf {least:g}: not written")
    if command.inside:
        write_frame(out, scene.frame)
    paths = sorted({path for files in made.values() for path in files if path.name != FRAME_FILE})
    for path in paths:
        print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")
    if scene.gaussians.antialiased and (silent := _SILENT.keys() & set(",".join(command.format).split(","))):
        names = " and ".join(_SILENT[name] for name in _SILENT if name in silent)
        can_not = f"which {names} cannot say: turn anti-aliasing on in their viewer"
        print(f"note: trained with --antialiased, {can_not}")
    if (told := out / FRAME_FILE).exists():
        which = "what --inside writes is" if command.inside else "what cannot hold your coordinates (.spz, .splat) is"
        print(f"note: {which} in those of training; {told} tells the way back")
    return 0


def import_edit_main(argv: list[str]) -> int:
    """Parse, match, write, tell what was found. Return the exit code."""
    command = ImportEditCommand.parsed(argv, command="import-edit")
    with alone_with(command.model_path, command.out):
        return _import_edit(command)


def _import_edit(command: ImportEditCommand) -> int:
    scene = with_objects(command.load())
    read = [read_splat(command.ply, frame) for frame in dict.fromkeys((scene.frame, IDENTITY))]
    for note in read[0][1]:
        print(f"note: {command.ply}: {note}")
    given = [gaussians for gaussians, _ in read]
    middle, *middles = (each.means.detach().median(dim=0).values for each in (scene.gaussians, *given))
    # What was exported inside of the frame is by far nearer there.
    nearest = min(range(len(given)), key=lambda index: float((middles[index] - middle).norm()))
    step = float32_step(scene.frame.outside(given[0].means.detach().numpy()))
    if nearest == 0 and any(scene.frame.offset) and step:
        print(f"warning: {command.ply}: float32 has rounded places to {step:g} units; edit what export --inside writes")
    edited, counts = reattach(given[nearest], scene, max_distance=command.max_distance)
    imported = told(command.ply, command.out, scene.settings.run.provenance)
    manifest = provenance(scene.settings, {"imported": imported, **counts}, folder=command.out)
    save_model(edited, command.out, edits=(), overwrite=command.overwrite, manifest=manifest)
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
    count = f"{len(edited.objects)} object{'s' * (len(edited.objects) != 1)}"
    print(f"{command.out}: {count}; look at it: {program('render')} -m {command.out}")
    return 0
