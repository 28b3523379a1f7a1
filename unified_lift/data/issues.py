"""What a check of files on disk found, and the checks of photos and masks that check-data and downloads share."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from unified_lift.data.base import Frame, listed, posed_size
from unified_lift.data.images import Progress, parallel_map, read_image
from unified_lift.data.masks import MaskFile, read_stored_mask, same_aspect
from unified_lift.errors import UserError

Severity = Literal["ok", "note", "error"]
"""`ok`: present and sound; `note`: unusual but usable; `error`: absent, damaged or useless."""
File = TypeVar("File")
Fact = TypeVar("Fact")
_MANY_SEGMENTS = 300  # per view; what a colour picture read as ids gives, and hardly any segmenter


class Issue(NamedTuple):
    """One line of a check: what was looked at and found, and what to do where something is to be done."""

    severity: Severity
    text: str
    fix: str = ""


class Issues(list[Issue]):
    """The lines of a check in the order they were found; `fix` says what to do about every error."""

    def __init__(self, fix: str = "") -> None:
        super().__init__()
        self.fix = fix

    def add(self, severity: Severity, text: str, fix: str = "", *, when: object = True) -> None:
        """Add an issue, where `when` holds."""
        if when:
            self.append(Issue(severity, text, fix))

    def note(self, text: str, fix: str, *, when: object = True) -> None:
        """Add that something is unusual but usable, where `when` holds."""
        self.add("note", text, fix, when=when)

    def error(self, text: str, fix: str = "", *, when: object = True) -> None:
        """Add that something is absent, damaged or useless, where `when` holds."""
        self.add("error", text, "; ".join(filter(None, (fix, self.fix))), when=when)

    def refused(self, message: object, prefix: str = "", *, fatal: bool = True) -> None:
        """Add a reader's message, which is `<file>: what; the fix`, as an error, or as a note if it is not `fatal`."""
        text, _, fix = str(message).rpartition("; ")
        add = self.error if fatal else self.note
        add(prefix + (text or fix), fix if text else "")

    @property
    def errors(self) -> list[Issue]:
        """Return the errors alone."""
        return [issue for issue in self if issue.severity == "error"]


def issue_lines(issues: Iterable[Issue], labels: Mapping[str, str]) -> list[str]:
    """Return issues as text, fixes indented below them; `labels` are the words for the severities."""
    pairs = ((f"{labels[severity]:<8} {text}", f"{'':<8}   -> {fix}" if fix else "") for severity, text, fix in issues)
    return [line for pair in pairs for line in pair if line]


class StoredMask(NamedTuple):
    """Numbers of one mask file: size as (width, height), how it is stored, and what ids it holds."""

    size: tuple[int, int]
    kind: str
    num_segments: int
    largest: int
    zero_share: float  # of the pixels that have id 0, or a negative one where there are such


def photo_size(path: Path) -> tuple[int, int]:
    """Return (width, height) after decoding all of the picture: headers of cut files look sound."""
    height, width = read_image(path).shape[:2]
    return width, height


def _stored(mask: MaskFile, frame: Frame) -> StoredMask:
    ids, kind, lowest, _ = read_stored_mask(mask, size=frame.lens.size)
    values, counts = np.unique(ids, return_counts=True)
    free = values < (0 if lowest < 0 else 1)
    share, segments = float(counts[free].sum() / ids.size), int((~free).sum())
    return StoredMask((ids.shape[1], ids.shape[0]), kind, segments, int(values[-1]), share)


def probe(
    issues: Issues,
    files: Iterable[File],
    look: Callable[[File], Fact],
    progress: Progress | None = None,
    *,
    fatal: bool = True,
) -> dict[File, Fact]:
    """Return file -> look(file) of the readable ones; the others become errors, or notes if that is not `fatal`."""

    def attempt(file: File) -> tuple[File, Fact | UserError]:
        try:
            return file, look(file)
        except UserError as error:
            return file, error

    facts = dict(parallel_map(attempt, list(files), progress))
    for fact in facts.values():
        if isinstance(fact, UserError):
            issues.refused(fact, fatal=fatal)
    return {file: fact for file, fact in facts.items() if not isinstance(fact, UserError)}


def check_shape(
    issues: Issues, path: Path, size: tuple[int, int], frame: Frame, fix: str = "", *, fatal: bool = True
) -> None:
    """Add an error, or a note if it is not `fatal`, if (width, height) is not that of the frame's camera, scaled."""
    lens, size = frame.lens, posed_size(size, frame)
    what = f"{path}: {size[0]}x{size[1]} is another shape than the camera's {lens.width}x{lens.height}"
    if not same_aspect(size, lens.size):
        issues.refused(f"{what}; {fix}" if fix else what, fatal=fatal)


def check_photos(
    issues: Issues,
    frames: Sequence[Frame],
    *,
    folder: str = "",
    progress: Progress | None = None,
    fatal: bool = True,
) -> dict[Path, tuple[int, int]]:
    """Return the (width, height) of the readable photos; what is wrong with one is a note where it is not `fatal`.

    One line lists those absent of a named `folder`, and those that training leaves out.
    """
    of_path = {frame.image_path: frame for frame in frames if frame.image_path.is_file()}
    absent = [frame.image_path for frame in frames if frame.image_path not in of_path]
    where = f"{folder}: " if folder else ""
    in_one_line = [f"{where}{listed([path.name for path in absent])}"] if absent else []
    for name in in_one_line if folder or not fatal else absent:
        what = f"{frames[0].source.name} has a pose for this photo but the file is missing"
        issues.refused(f"{name}: {what}; restore it or remove its entry", fatal=fatal)
    sizes = probe(issues, of_path, photo_size, progress, fatal=fatal)
    for path, size in sizes.items():
        fix = "use the photos the poses were computed with"
        check_shape(issues, path, size, of_path[path], fix, fatal=fatal)
    twice = [name for name, count in Counter(frame.name for frame in frames).items() if count > 1]
    issues.error(f"{listed(twice)}: occurs twice (suffixes do not count)", "rename one of them", when=twice and fatal)
    return sizes


def check_masks(
    issues: Issues, frames: Sequence[Frame], *, make: str, folder: str = "", needed: bool = False
) -> dict[Path, StoredMask]:
    """Return the numbers of the readable masks; `make` says how to make them, `folder` names theirs in messages."""
    where, without = f"{folder}: " if folder else "", [frame.name for frame in frames if frame.mask is None]
    text = f"{where}{len(without)} of {len(frames)} views have no mask: {listed(without)}"
    issues.add("error" if needed else "note", text, make, when=without)
    of_mask = {frame.mask: frame for frame in frames if frame.mask is not None}
    masks = probe(issues, of_mask, lambda mask: _stored(mask, of_mask[mask]))
    for mask, numbers in masks.items():
        check_shape(issues, mask.path, numbers.size, of_mask[mask], "make the mask from this photo, or remove it")

    def named(is_odd: Callable[[StoredMask], bool]) -> list[str]:
        return [mask.path.name for mask, numbers in masks.items() if is_odd(numbers)]

    black = named(lambda mask: mask.num_segments == 0)
    all_black = bool(masks) and len(black) == len(masks)
    issues.add("error", f"{where}all masks are black: nothing is labelled", make, when=all_black)
    for what, fix, names in (
        ("all black, trains colour only", "make them again if that is not meant", [] if all_black else black),
        (
            "ids reach 255",
            "8 bits end there: if there were more segments, save masks as 16-bit PNG",
            named(lambda mask: "8-bit" in mask.kind and mask.largest == 255),
        ),
        (
            f"more than {_MANY_SEGMENTS} segments",
            "are these colours or smoothed borders instead of ids? Save ids, resampled to the nearest pixel only",
            named(lambda mask: mask.num_segments > _MANY_SEGMENTS),
        ),
        (
            "one segment fills the picture",
            "is this a mask of objects?",
            named(lambda mask: mask.num_segments == 1 and mask.zero_share == 0),
        ),
    ):
        issues.note(f"{where}{listed(names)}: {what}", fix, when=names)
    return {mask.path / mask.part: numbers for mask, numbers in masks.items()}
