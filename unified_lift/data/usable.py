"""Which of a scene's photos can be used: what is missing, broken or there twice is left out, counted and named."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unified_lift.data.base import Frame, SceneDescription, fit_lens, listed, posed_size
from unified_lift.data.images import exif_orientation, image_size, parallel_map
from unified_lift.errors import UserError

FEWEST, FEWEST_SHARE = 2, 0.1  # photos that must remain, and their share of all, once one has to be left out
LEFT_OUT = "cannot be used"
"""Words in every note on what is left out."""
_SAME_POSE = 1e-6  # largest difference of equal poses, over their largest number
_SHOWN = 3


def usable(described: SceneDescription, *, strict: bool) -> SceneDescription:
    """Return the description with the photos that can be used, each once, and notes on the others.

    A UserError names the first of the others if `strict` or if too few remain; and always two photos of one name that
    are not the same.
    """
    missing = [frame for frame in described.frames if not frame.image_path.is_file()]
    there = [frame for frame in described.frames if frame.image_path.is_file()]
    looked = parallel_map(_looked_into, there)
    frames = [frame for frame in looked if isinstance(frame, Frame)]
    broken = [*described.broken, *(problem for problem in looked if isinstance(problem, str))]
    problems = [*described.broken, *map(_missing, missing), *broken[len(described.broken) :]]
    require_enough(problems, left=len(frames), strict=strict)
    notes = left_out_notes(broken, total=len(problems) + len(frames))
    if missing:
        names, source = [frame.image_path.name for frame in missing], missing[0].source.name
        what = f"{len(missing)} of {len(problems) + len(frames)} photos {LEFT_OUT}"
        text = f"{what}, {source} has a pose for them but the files are missing: {listed(names)}"
        notes.append(f"{text}; restore them, or refuse such scenes with --strict")
    if turned := [frame.name for frame in frames if frame.turn != 1]:
        what = f"{len(turned)} of {len(frames)} photos are turned as their EXIF data say, which is how their poses are"
        notes.append(f"{what}: {listed(turned)}")
    frames, twice = _once(frames, strict=strict)
    if twice:
        what = "photo is" if len(twice) == 1 else "photos are"
        notes.append(f"{len(twice)} {what} listed twice in {frames[0].source.name}, with one pose: {listed(twice)}")
    kept = {frame.name for frame in frames}
    only = None if described.train_only is None else [name for name in described.train_only if name in kept]
    return replace(described, frames=frames, broken=(), train_only=only, notes=(*described.notes, *notes))


def require_enough(problems: Sequence[str], *, left: int, strict: bool) -> None:
    """Raise the first of the problems, one a photo, if there may be none or too few photos are `left`."""
    if not problems or (not strict and left >= max(FEWEST, FEWEST_SHARE * (left + len(problems)))):
        return
    if strict or len(problems) == 1 and not left:
        raise UserError(problems[0])
    text, _, fix = problems[0].rpartition("; ")
    raise UserError(f"{text} ({left or 'none'} of {left + len(problems)} photos can be used); {fix}")


def left_out_notes(problems: Sequence[str], *, total: int) -> list[str]:
    """Return notes on photos left out, each problem `<file>: what; the fix`."""
    more = f", and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    shown = "; ".join(problem.rpartition("; ")[0] or problem for problem in problems[:_SHOWN])
    fix = "repair them, or refuse such scenes with --strict"
    return [f"{len(problems)} of {total} photos {LEFT_OUT}: {shown}{more}; {fix}"] if problems else []


def _looked_into(frame: Frame) -> Frame | str:
    """Return the frame with what the header of its photo says, or what is wrong with that."""
    try:
        stored = frame.stored or image_size(frame.image_path)
        width, height = posed_size(stored, frame)
        fit_lens(frame, width=width, height=height)
        turn = exif_orientation(frame.image_path) if (width, height) != stored else 1
    except UserError as error:
        return str(error)
    return replace(frame, stored=stored, turn=turn)


def _missing(frame: Frame) -> str:
    what = f"{frame.source.name} has a pose for this image but the file is missing"
    return f"{frame.image_path}: {what}; restore it or remove its entry"


def _once(frames: Sequence[Frame], *, strict: bool) -> tuple[list[Frame], list[str]]:
    """Return the frames without those that repeat another, and the names of these."""
    by_name: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        by_name[frame.name].append(frame)
    twice = []
    for name, (first, *others) in by_name.items():
        if others and (strict or not all(_same(first, other) for other in others)):
            what = f"image {name} occurs twice (suffixes do not count)"
            if first.image_path == others[0].image_path:
                raise UserError(f"{first.source}: {what}, with two poses, lenses or masks; remove one of the entries")
            raise UserError(f"{first.source}: {what}; rename one of them")
        twice += [name] if others else []
    return [group[0] for group in by_name.values()], twice


def _same(first: Frame, second: Frame) -> bool:
    """Return whether two frames are one photo with one pose, lens and mask."""
    pose, other = first.cam_from_world, second.cam_from_world
    near = np.abs(pose - other).max() <= _SAME_POSE * np.abs(pose).max()
    return near and all(getattr(first, key) == getattr(second, key) for key in ("image_path", "lens", "mask", "alpha"))
