"""What a check of files on disk found: lines for the user, and the checks of photos and masks that datasets share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unified_lift.data.base import Frame
from unified_lift.data.images import open_image, parallel_map, read_image
from unified_lift.data.masks import read_mask, same_aspect
from unified_lift.errors import UserError

Status = Literal["found", "missing", "note"]
_NAMES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of a check.

    Attributes:
        status: `found`: present; `missing`: something is absent or damaged; `note`: unusual but usable.
        what: What was looked at and found.
        cure: What to do, where something is to be done.
    """

    status: Status
    what: str
    cure: str = ""


def present(what: str) -> Finding:
    """Return that something is there."""
    return Finding(status="found", what=what)


def missing(what: str, cure: str) -> Finding:
    """Return that something is absent or damaged."""
    return Finding(status="missing", what=what, cure=cure)


def note(what: str, cure: str) -> Finding:
    """Return that something is unusual but usable."""
    return Finding(status="note", what=what, cure=cure)


def is_complete(findings: Iterable[Finding]) -> bool:
    """Return whether nothing is missing."""
    return all(finding.status != "missing" for finding in findings)


def report_lines(findings: Sequence[Finding]) -> list[str]:
    """Return the findings as text, cures indented below them, and a last line with the count of what is missing."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<8} {finding.what}")
        if finding.cure:
            lines.append(f"{'':<8}   -> {finding.cure}")
    count = sum(finding.status == "missing" for finding in findings)
    return [*lines, f"{count} things are missing" if count else "complete"]


def check_photos(
    what: str, frames: Sequence[Frame], source: str, *, usual: tuple[int, int] | None = None
) -> list[Finding]:
    """Return whether every posed photo is there, readable, and of one size that fits its camera."""
    found, there = [], {frame.image_path: frame for frame in frames if frame.image_path.is_file()}
    absent = [frame.image_path.name for frame in frames if frame.image_path not in there]
    if absent:
        found.append(missing(f"{what}: {listed(absent)} not there", source))
    sizes, broken = probe(there, photo_size)
    found += [missing(message, source) for message in broken]
    found += wrong_shapes(sizes, there, source)
    counts = Counter(sizes.values())
    if len(counts) > 1:
        odd = [path.name for path, size in sizes.items() if size != counts.most_common(1)[0][0]]
        found.append(missing(f"{what}: {listed(odd)} has another size", source))
    sizes_found = " and ".join(f"{width}x{height}" for width, height in sorted(counts))
    if usual is not None and counts and set(counts) != {usual}:
        found.append(
            note(f"{what}: {sizes_found} where {usual[0]}x{usual[1]} is usual", "scores of other sizes do not compare")
        )
    return [*found, present(f"{what}: {len(sizes)} of {len(frames)} photos, {sizes_found or 'no size'}")]


def check_masks(what: str, train: Sequence[Frame], *, kinds: Collection[str] | None, cure: str) -> list[Finding]:
    """Return whether every training view has an input mask of its photo's shape, in one of the image modes `kinds`."""
    of_frame = {frame.mask_path: frame for frame in train if frame.mask_path is not None}
    absent = [frame.name for frame in train if frame.mask_path is None]
    found = []
    if absent:
        found.append(missing(f"{what}: no mask of {listed(absent)}", cure))
    masks, broken = probe(of_frame, mask_facts)
    found += [missing(message, cure) for message in broken]
    found += wrong_shapes({path: size for path, (size, _, _) in masks.items()}, of_frame, cure)
    black = [path.name for path, (_, _, largest) in masks.items() if largest == 0]
    if black:
        found.append(
            note(
                f"{what}: {listed(black)} is all black",
                "these views train colour only; make their masks again if that is not meant",
            )
        )
    other = [path.name for path, (_, mode, _) in masks.items() if kinds is not None and mode not in kinds]
    if other:
        found.append(
            note(
                f"{what}: {listed(other)} is not 8-bit",
                "they are read; as released the masks are 8-bit: record where these come from",
            )
        )
    return [*found, present(f"{what}: {len(masks)} of {len(train)} training views have a mask")]


def wrong_shapes(sizes: Mapping[Path, tuple[int, int]], of_frame: Mapping[Path, Frame], cure: str) -> list[Finding]:
    """Return a finding for each file whose (width, height) is not that of the frame's camera, scaled."""
    return [
        missing(f"{path}: {width}x{height} is another shape than the camera's {lens.width}x{lens.height}", cure)
        for path, (width, height) in sizes.items()
        for lens in (of_frame[path].lens,)
        if not same_aspect((width, height), (lens.width, lens.height))
    ]


def probe(paths: Iterable[Path], look: Callable[[Path], Any]) -> tuple[dict[Path, Any], list[str]]:
    """Return path -> look(path) of the readable files, and the messages about the others."""

    def attempt(path: Path) -> tuple[Path, Any, str | None]:
        try:
            return path, look(path), None
        except UserError as error:
            return path, None, str(error)

    results = parallel_map(attempt, list(paths))
    good = {path: value for path, value, message in results if message is None}
    return good, [message for *_, message in results if message is not None]


def photo_size(path: Path) -> tuple[int, int]:
    """Return (width, height) after decoding all of the picture: headers of cut files look sound."""
    height, width = read_image(path).shape[:2]
    return width, height


def mask_facts(path: Path) -> tuple[tuple[int, int], str, int]:
    """Return (width, height), image mode ("" of arrays) and largest id of a mask."""
    ids = read_mask(path)
    mode = "" if path.suffix in (".npy", ".npz") else open_image(path).mode
    return (ids.shape[1], ids.shape[0]), mode, int(ids.max())


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
