"""Export of objects and scenes. A file format is a file of this package with a `write`; it is called like the file."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from unified_lift.errors import UserError
from unified_lift.fileio import replacing_folder
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.registry import members

BACKGROUND_ID = 0  # objects are numbered by falling area
Writer = Callable[[Path, str, TrainedScene], None]
"""Writes Gaussians, in their order, into a folder under names that begin with a stem: (folder, stem, scene)."""
FORMATS: dict[str, Writer] = {write.__module__.rpartition(".")[2]: write for write in members(__name__, "write")}


def export(
    scene: TrainedScene,
    out: Path,
    *,
    objects: Sequence[int | str] = ("scene",),
    formats: Sequence[str] = ("ply",),
    min_confidence: float = 0.0,
    quiet: bool = True,
) -> dict[str, list[Path]]:
    """Write objects of a scene into a folder: all files or, if anything goes wrong, none. Other files there stay.

    Parts are object ids, `all` (every object but the background, one each), `background` or `scene`; formats are names
    in `FORMATS`. Gaussians whose label is less certain than `min_confidence` are left out.
    Returned is stem (`scene`, `background` or `object_<id>`) -> its files; none where no Gaussian is certain enough.
    A UserError: no such object or format, nothing to write, the folder is a file, or the disk is full.
    """
    chosen, writers = chosen_objects(scene, objects), chosen_formats(formats)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder with --out")
    certain, num_files = scene.as_one_object().confidence >= min_confidence, len(chosen) * len(writers)
    made: dict[str, list[Path]] = {}
    with (
        replacing_folder(out) as folder,
        tqdm(desc="export", unit=" files", total=num_files, disable=quiet, dynamic_ncols=True) as bar,
    ):
        written: set[Path] = set()
        for stem, object_id in chosen.items():
            kept = certain if object_id is None else certain & scene.mask([object_id])
            part = scene.subset(kept)
            for write in writers if len(part) else ():
                write(folder, stem, part)
                bar.update()
            files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} - written
            made[stem] = [out / name for name in sorted(files)]
            written |= files
        if not written:
            raise UserError(f"--min_conf {min_confidence:g} leaves nothing to write; give less")
    return made


def chosen_objects(scene: TrainedScene, wanted: Sequence[int | str]) -> dict[str, int | None]:
    """Return stem -> object id of each part that `export` was asked for; the id is None for the whole scene.

    A UserError: an unknown word, an object that the scene does not have, or nothing asked for.
    """
    chosen: dict[str, int | None] = {}
    for word in map(str, wanted):
        if word == "scene":
            chosen["scene"] = None
        elif word == "background":
            if BACKGROUND_ID not in scene.objects:
                raise UserError(f"--objects background: {scene.path} has no object {BACKGROUND_ID}; it was removed")
            chosen["background"] = BACKGROUND_ID
        elif word == "all":
            chosen |= {f"object_{object_id}": object_id for object_id in scene.objects if object_id != BACKGROUND_ID}
        elif word.isdecimal():
            scene.mask([int(word)])  # raises where it is not there
            chosen[f"object_{int(word)}"] = int(word)
        else:
            raise UserError(f"--objects {word}: expected object ids, all, background or scene")
    if not chosen:
        raise UserError(f"--objects {' '.join(map(str, wanted))}: {scene.path} has no object but the background")
    return chosen


def chosen_formats(names: Sequence[str]) -> list[Writer]:
    """Return the writers of names, once each; a name may hold several with commas; unknown ones are a UserError."""
    words = [word for word in ",".join(names).split(",") if word]
    for word in words:
        if word not in FORMATS:
            raise UserError(f"--format {word}: no such format; there are {', '.join(FORMATS)}")
    if not words:
        raise UserError(f"--format: name at least one of {', '.join(FORMATS)}")
    return [FORMATS[word] for word in dict.fromkeys(words)]
