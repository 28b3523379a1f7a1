"""Export of objects and scenes. A file format is a file of this package with a `write`; it is called like the file."""

import difflib
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unified_lift.editing.placement import Placement, Up, up_of
from unified_lift.errors import UserError
from unified_lift.fileio import replacing_folder
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.progress import Bar
from unified_lift.registry import members

BACKGROUND_ID = 0  # objects are numbered by falling area
_AS_IT_IS = Placement()
_LONGEST_STEM = 80  # characters
_OURS = re.compile(r"(scene|background|object_\d+)?", re.IGNORECASE)  # what files of no name are called
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
    placement: Placement = _AS_IT_IS,
    quiet: bool = True,
) -> dict[str, list[Path]]:
    """Write objects of a scene into a folder: all files or, if anything goes wrong, none. Other files there stay.

    Parts are object ids or names, `all` (every object but the background, one each), `background` or `scene`; formats
    are names in `FORMATS`. Gaussians whose label is less certain than `min_confidence` are left out; each part lies in
    its files as `placement` says.
    Returned is stem (as in `chosen_objects`) -> its files; none where no Gaussian is certain enough.
    A UserError: no such object or format, nothing to write, the folder is a file, or the disk is full.
    """
    chosen, writers = chosen_objects(scene, objects), chosen_formats(formats)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder with --out")
    up = up_of(scene)[0] if placement.needs_up else np.zeros(3)
    certain, num_files = scene.as_one_object().confidence >= min_confidence, len(chosen) * len(writers)
    made: dict[str, list[Path]] = {}
    with (
        replacing_folder(out) as folder,
        Bar(desc="export", unit=" files", total=num_files, disable=quiet) as bar,
    ):
        written: set[Path] = set()
        for stem, object_id in chosen.items():
            rows = None if object_id is None else scene.rows[object_id]
            own, is_whole = folder / ".part", rows is None and bool(certain.all())
            part = scene if is_whole else scene.subset(certain if rows is None else rows[certain[rows]])
            own.mkdir()
            for write in writers if len(part) else ():
                write(own, stem, _suited(placement, write).placed(part, up, turned_over=_turns_over(write)))
                bar.update()
            files = {path.relative_to(own) for path in own.rglob("*") if path.is_file()}
            for name in files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (own / name).replace(folder / name)
            shutil.rmtree(own)
            made[stem] = [out / name for name in sorted(files - written)]
            written |= files
        if not written:
            raise UserError(f"--min_conf {min_confidence:g} leaves nothing to write; give less")
    return made


def chosen_objects(scene: TrainedScene, wanted: Sequence[int | str]) -> dict[str, int | None]:
    """Return stem -> object id of each part that `export` was asked for; the id is None for the whole scene.

    The stem is `scene`, `background`, or the object's name as a file can be called, `object_<id>` without a name. A
    name means every object that has it, in upper or lower case; numbers are ids.
    A UserError: an unknown word, an object that the scene does not have, or nothing asked for.
    """
    words: list[str | int] = []  # ids of objects, or one of the two other words
    for word in map(str, wanted):
        if word in ("scene", "background"):
            if word == "background" and BACKGROUND_ID not in scene.objects:
                raise UserError(f"--objects background: {scene.path} has no object {BACKGROUND_ID}; it was removed")
            words.append(word)
        elif word == "all":
            words += [object_id for object_id in scene.objects if object_id != BACKGROUND_ID]
        elif word.isdecimal():
            if int(word) not in scene.objects:
                scene.mask([int(word)])  # raises
            words.append(int(word))
        else:
            words += _called(scene, word)
    if not words:
        raise UserError(f"--objects {' '.join(map(str, wanted))}: {scene.path} has no object but the background")
    chosen, taken = dict[str, int | None](), set[str]()
    for part in dict.fromkeys(words):
        if isinstance(part, str):
            chosen[part] = None if part == "scene" else BACKGROUND_ID
            taken.add(part)
            continue
        stem = _stem(scene.names.get(part, ""))
        if _OURS.fullmatch(stem):
            stem = f"{stem or 'object'}_{part}"
        while stem.casefold() in taken:
            stem = f"{stem}_{part}"
        chosen[stem] = part
        taken.add(stem.casefold())
    return chosen


def _called(scene: TrainedScene, word: str) -> list[int]:
    """Return the objects of a name; a UserError: none."""
    names = {object_id: scene.name_of(object_id) for object_id in scene.objects} if scene.labels else {}
    found, same = list[int](), (str.casefold, lambda name: _stem(name).casefold())
    for key in same:  # as it is called, else as its file is
        found = found or [object_id for object_id, name in names.items() if key(word) == key(name) and _stem(name)]
    if not found:
        near = difflib.get_close_matches(word, scene.names.values(), n=3, cutoff=0.4) or list(scene.names.values())[:8]
        listed = f" (such as {', '.join(near)})" if near else "; objects get names by unified-lift edit --rename"
        raise UserError(f"--objects {word}: expected object ids, all, background or scene, or names of objects{listed}")
    return found


def _stem(name: str) -> str:
    """Return a name as a file can be called on every system: letters, digits, . and -, other characters as _."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:_LONGEST_STEM]


def _turns_over(write: Writer) -> bool:
    return getattr(sys.modules[write.__module__], "TURNED_OVER", False)


def _suited(placement: Placement, write: Writer) -> Placement:
    """Return the placement with what a format says that `--up auto` is in it, as `AUTO_UP`."""
    auto: Up = getattr(sys.modules[write.__module__], "AUTO_UP", "auto")
    return replace(placement, up=auto) if placement.up == "auto" else placement


def chosen_formats(names: Sequence[str]) -> list[Writer]:
    """Return the writers of names, once each; a name may hold several with commas; unknown ones are a UserError."""
    words = [word for word in ",".join(names).split(",") if word]
    for word in words:
        if word not in FORMATS:
            raise UserError(f"--format {word}: no such format; there are {', '.join(FORMATS)}")
    if not words:
        raise UserError(f"--format: name at least one of {', '.join(FORMATS)}")
    return [FORMATS[word] for word in dict.fromkeys(words)]
