"""What is exported, and how it reaches the disk: all files or none."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unified_lift.errors import UserError
from unified_lift.modelfolder.inference import TrainedScene

BACKGROUND_ID = 0  # objects are numbered by falling area
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What goes into one set of files.

    Attributes:
        stem: What names of files begin with: `scene`, `background` or `object_<id>`.
        scene: The Gaussians, in the order in which they are written.
        is_whole: Whether this is the scene, not something cut out of it.
    """

    stem: str
    scene: TrainedScene
    is_whole: bool


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format. Adding one is a file of this package with a `FORMAT`.

    Attributes:
        name: What the user calls it.
        about: One line for users.
        write: Writes a part into a folder, under names that begin with its stem.
    """

    name: str
    about: str
    write: Callable[[Path, Part], None]


def check_wanted(scene: TrainedScene, wanted: Sequence[str]) -> list[tuple[str, int | None]]:
    """Return (stem, object id) of each part asked for, once each; the id is None for the whole scene.

    Args:
        scene: Whose objects they are.
        wanted: Object ids, `all` (every object but the background, one each), `background` or `scene`.
    Raises:
        UserError: A word that is none of these, an object that is not there, or nothing asked for.
    """
    chosen: dict[str, int | None] = {}
    for word in wanted:
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
        raise UserError(f"--objects {' '.join(wanted)}: {scene.path} has no object but the background")
    return list(chosen.items())


def make_parts(
    scene: TrainedScene, chosen: Iterable[tuple[str, int | None]], *, min_confidence: float = 0.0
) -> Iterator[Part | str]:
    """Yield the parts, one at a time so that only one is in memory; the stem alone where nothing is left of one.

    Args:
        scene: What they are cut out of.
        chosen: (stem, object id) as `check_wanted` returns them.
        min_confidence: Gaussians whose label is less certain are left out.
    """
    certain = scene.confidence >= min_confidence
    for stem, object_id in chosen:
        kept = certain if object_id is None else certain & scene.mask([object_id])
        yield Part(stem=stem, scene=scene.rows(kept), is_whole=object_id is None) if bool(kept.any()) else stem


def write_part_files(
    parts: Iterable[Part], formats: Sequence[Format], out: Path, *, on_file: Callable[[str], None] = lambda name: None
) -> list[Path]:
    """Write every part in every format into a folder: all files or, if anything goes wrong, none of them.

    Files of the same names are replaced, others stay.

    Args:
        parts: What to write.
        formats: How.
        out: The folder.
        on_file: Called with `<stem> <format>` after each.
    Returns:
        The files, sorted.
    Raises:
        UserError: The folder is a file, or the disk is full.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder with --out")
    place = out.resolve()  # `.` has no name of its own
    staging = place.with_name(place.name + ".partial")  # beside it, so that moving needs no copying
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    try:
        staging.mkdir(parents=True)
        for part in parts:
            for entry in formats:
                entry.write(staging, part)
                on_file(f"{part.stem} {entry.name}")
        return _moved(staging, out)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise UserError(f"{out}: the disk is full, nothing was written; free some space or change --out") from None
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _moved(staging: Path, out: Path) -> list[Path]:
    """Return the files of a folder after moving them into another."""
    made = []
    for source in sorted(path for path in staging.rglob("*") if path.is_file()):
        target = out / source.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        made.append(target)
    return made
