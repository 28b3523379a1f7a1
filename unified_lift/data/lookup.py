"""Which file a name means: by the name as written, else by what is left of it on another machine.

Names change between the program that found the poses and the folder at hand: letters change case, another suffix is
written, folders are renamed, left out or joined into the name, text is coded in another way. What names are looked up
for together, photos or masks, is matched together: a file that one name means exactly serves no other name.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from unified_lift.data.images import IMAGE_SUFFIXES
from unified_lift.errors import UserError

# What the poses may have been computed with, though the photos at hand are of the kinds above.
_OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".gif", ".ppm", ".tga", ".exr", ".hdr")
_RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".raw")
_CUT = {*IMAGE_SUFFIXES, *_OTHER_SUFFIXES, *_RAW_SUFFIXES}
_CODE_PAGES = ("utf-8", "gb18030", "shift_jis", "euc_kr", "big5", "cp1252")  # of names that are not UTF-8
Keys = Callable[[str], Iterable[str]]


class Match(NamedTuple):
    """The name that is there for a name that was looked for, and in which respect it differs ("" = not at all)."""

    present: str
    how: str


class Matching(NamedTuple):
    """Names looked for -> what is there; of those that are unclear, all that they could mean. Others are missing."""

    found: dict[str, Match]
    unclear: dict[str, list[str]]


def match_names(wanted: Iterable[str], present: Iterable[str]) -> Matching:
    """Return what each name looked for means among those present, both relative paths, with or without a suffix.

    The first of these that fits one name present, and no other name looked for: the name as written; with other
    separators or accents; in another case; with another suffix of pictures, or none; in another text encoding. Where
    none of a folder's names is in its place: with folders joined into the name, or with the longest common end of the
    path, down to the file name alone.
    """
    names, free = list(dict.fromkeys(wanted)), dict.fromkeys(present)
    found: dict[str, Match] = {}
    unclear: dict[str, list[str]] = {}

    def apply(how: str, keys: Keys, names: Sequence[str]) -> None:
        names = [name for name in names if name not in found and name not in unclear]
        if not names or not free:
            return
        index: dict[str, list[str]] = defaultdict(list)
        for there in free:
            for key in dict.fromkeys(keys(there)):
                index[key].append(there)
        meant = {name: list(dict.fromkeys(there for key in keys(name) for there in index[key])) for name in names}
        claims = {(there, _folded(name)) for name, options in meant.items() for there in options}
        claimed = Counter(there for there, _ in claims)
        for name, options in meant.items():
            if len(options) == 1 and claimed[options[0]] == 1:
                found[name] = Match(options[0], how)
            elif options:
                unclear[name] = options
        for name in names:
            if name in found:
                free.pop(found[name].present, None)

    for how, keys in _IN_PLACE:
        apply(how, keys, names)
    in_place = {_folder(name) for name in (*found, *unclear)}
    moved = [name for name in names if _folder(name) not in in_place]
    deepest = max((len(plain(there).split("/")) for there in free), default=0) if moved else 0
    apply("folders joined into the name", _joined, moved)
    for depth in range(deepest, 0, -1):
        for cut in (_folded, _bare):
            apply("another folder", _tail(cut, depth), moved)
    spellings = {_folded(name): match for name, match in found.items()}  # of one file under two names
    again = {name: spellings[_folded(name)] for name in names if name not in found and _folded(name) in spellings}
    return Matching({**found, **again}, unclear)


class FoundPhotos(NamedTuple):
    """The file of each name, which may be none where nothing fits, and what was found under another name."""

    paths: dict[str, Path]
    notes: list[str]


def find_photos(names: Iterable[str], folder: Path, files: Callable[[], Iterable[Path]], source: Path) -> FoundPhotos:
    """Return the photos that names in `source` mean: those at the path as written below `folder`, else among `files`.

    `files` is asked only where a photo is not in its place; they lie below `folder`. A UserError lists the candidates
    of names that could mean several files, or share one.
    """
    paths = {name: folder / name for name in names}
    for name, path in paths.items():
        if without_suffix(name) == name and not path.is_file():  # as is usual in Blender's files
            usual = (folder / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES)
            paths[name] = next((photo for photo in usual if photo.is_file()), path)
    there = [name for name, path in paths.items() if path.is_file()]
    if len(there) == len(paths):
        return FoundPhotos(paths, [])
    matching = match_names(paths, [*there, *(os.path.relpath(path, folder).replace(os.sep, "/") for path in files())])
    if matching.unclear:
        name, options = next(iter(matching.unclear.items()))
        what = f"{len(matching.unclear)} photos are not found under their names and could be several files or share one"
        listed = f"{name} may be {', '.join(options[:5])}{' ...' if len(options) > 5 else ''}"
        raise UserError(f"{source}: {what}: {listed}; put the photos into the folders of their names below {folder}")
    grouped: dict[str, list[str]] = defaultdict(list)
    for name, match in matching.found.items():
        paths[name] = folder / match.present if match.how else paths[name]
        grouped[match.how].append(f"{name} is {match.present}")
    notes = [
        f"{len(group)} of {len(paths)} photos are found under another name ({how}): {group[0]}"
        for how, group in grouped.items()
        if how
    ]
    return FoundPhotos(paths, notes)


def names_in_list(
    wanted: Sequence[str], present: Iterable[str], source: Path, *, strict: bool
) -> tuple[list[str], list[str]]:
    """Return the names present that a list in `source` means, and a note on those that it has and that are not there.

    A UserError names one of these if `strict`, or if the list means nothing that is there.
    """
    found = match_names(wanted, present).found
    lost = [name for name in wanted if name not in found]
    if not lost:
        return [found[name].present for name in wanted], []
    if strict or not found:
        raise UserError(f"{source}: the split lists {lost[0]}, which is no photo with a pose; correct the list")
    text = f"the split lists {len(lost)} names that are no photo with a pose, such as {lost[0]}"
    return [match.present for match in found.values()], [f"{source}: {text}; correct the list"]


@lru_cache(1 << 16)
def plain(name: str) -> str:
    """Return a relative path with `/` between its parts, without `.` parts, its accents as single letters (NFC)."""
    path = PurePosixPath(unicodedata.normalize("NFC", name).replace("\\", "/"))
    return str(PurePosixPath(*(part for part in path.parts if part != "/")))


def without_suffix(name: str) -> str:
    """Return a path without the suffix of a picture, whatever its case; other ends of names are no suffixes."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in _CUT else name


def _folder(name: str) -> str:
    return str(PurePosixPath(plain(name)).parent)


def _folded(name: str) -> str:
    return plain(name).casefold()


def _bare(name: str) -> str:
    return without_suffix(_folded(name))


def _recoded(name: str) -> list[str]:
    """Return what a name may read in the code page it was written in; some names in others happen to be UTF-8."""
    texts = [_bare(name)]
    for page in () if name.isascii() else _CODE_PAGES:
        try:
            texts.append(_bare(os.fsencode(name).decode(page)))
        except UnicodeDecodeError:
            continue
    return texts


def _joined(name: str) -> list[str]:
    return [re.sub(r"[/_\-. ]+", "_", _bare(name))]


def _tail(cut: Callable[[str], str], depth: int) -> Keys:
    def keys(name: str) -> list[str]:
        parts = cut(name).split("/")
        return ["/".join(parts[-depth:])] if len(parts) >= depth else []

    return keys


_IN_PLACE: tuple[tuple[str, Keys], ...] = (
    ("", lambda name: [name]),
    ("other separators or accents", lambda name: [plain(name)]),
    ("upper and lower case", lambda name: [_folded(name)]),
    ("another suffix", lambda name: [_bare(name)]),
    ("another text encoding", _recoded),
)
