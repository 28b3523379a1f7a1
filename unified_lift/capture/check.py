"""What a scene folder contains and what is wrong with it: all of it, not only the first thing.

Truth (annotations, masks of prompts) is counted, never opened.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unified_lift.data import detect_reader, load_scene
from unified_lift.data.base import OBJECT_PATH, Frame, mask_folder
from unified_lift.data.findings import Finding, is_complete, listed, missing, note, photo_size, probe, wrong_shapes
from unified_lift.data.images import IMAGE_SUFFIXES, Progress, open_image
from unified_lift.data.masks import MASK_SUFFIXES, read_mask
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.ops.cameras import fov_from_focal, project
from unified_lift.types import Scene

TRUTH_FOLDERS = (
    "annotations/gt_instance",
    "test_mask",
    "instance",
    "semantic_instance",
    "Sequence_1/semantic_instance",
    "imap/00/semantic_instance",
)
"""Where the layouts keep what only evaluation reads."""
_LOAD_WIDTH = 256  # px: enough for split, points and poses, and quick to keep in memory
_FEW_VIEWS = 8
_MANY_SEGMENTS = 300  # per view; what a colour picture read as ids gives, and hardly any segmenter
_LARGEST_8_BIT = 255
_FEW_VISIBLE = 0.02  # share of the initial points in a view, on average
_POINTS_TRIED = 2000
_MAKE_MASKS = "make masks with unified-lift masks -s SCENE, or put one PNG of ids per photo into object_mask/"
_SAID_ELSEWHERE = ("resized from", "initial points", "have no mask", "no mask folder")


@dataclass(frozen=True, kw_only=True)
class SceneCheck:
    """What was found: `facts` for people and programs, `findings` for what deserves attention.

    Attributes:
        facts: JSON values by topic (layout, views, cameras, masks, split, points, truth).
        findings: `missing` = a problem to repair, `note` = unusual but usable.
    """

    facts: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_fine(self) -> bool:
        """Return whether there is no problem."""
        return is_complete(self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return facts and findings as JSON values."""
        labels = {"missing": "problem", "note": "note", "found": "found"}
        listing = [{"status": labels[f.status], "what": f.what, "cure": f.cure} for f in self.findings]
        return {**self.facts, "fine": self.is_fine, "findings": listing}


class _MaskNumbers(NamedTuple):
    size: tuple[int, int]  # width, height
    kind: str
    num_segments: int
    largest: int
    zero_share: float


def check_scene(settings: DataSettings, *, progress: Progress | None = None) -> SceneCheck:
    """Return what the scene folder contains and what is wrong with it.

    Args:
        settings: Folder, image folder, mask folder and split, as training would be told.
        progress: Called with (done, total) views.
    Raises:
        UserError: It is no scene folder, or a flag names a folder that is not there.
    """
    root = settings.source_path
    reader = _reader(settings)
    if settings.object_path != "auto":
        mask_folder(root, settings)
    facts: dict[str, Any] = {"scene": root.resolve().name, "layout": reader.name}
    problems: list[str] = []
    try:
        frames = reader.frames(root, settings, problems=problems) if reader.frames is not None else []
    except UserError as error:
        frames, problems = [], [str(error)]
    findings = [_problem(message) for message in problems]
    if frames:
        facts["views"], more = _check_photos(frames, progress)
        findings += more + _check_poses(frames)
        facts["cameras"] = _cameras(frames)
        facts["masks"], more = _check_masks(frames, root, settings)
        findings += more
        if not problems:  # else masks of the frames left out would seem to belong to nobody
            findings += _strays([frame.mask_path for frame in frames if frame.mask_path is not None])
    facts["truth"] = _truth(root)
    if is_complete(findings):
        more_facts, more = _check_loading(settings)
        facts |= more_facts
        findings += more
    return SceneCheck(facts=facts, findings=findings)


def _reader(settings: DataSettings) -> Any:
    """Return the reader; of a folder that holds only photos the message says how to get poses."""
    try:
        return detect_reader(settings)
    except UserError as error:
        root = settings.source_path
        folders = [folder for folder in (root, root / settings.images) if folder.is_dir()]
        if any(path.suffix in IMAGE_SUFFIXES for folder in folders for path in folder.iterdir()):
            cure = f"there are photos but no poses: unified-lift sfm {folders[-1]} -s SCENE makes a scene of them"
            raise UserError(f"{error}; {cure}") from None
        raise


def _problem(message: str) -> Finding:
    """Return a finding of a reader's message, which is `<file>: what; the cure`."""
    what, _, cure = message.rpartition("; ")
    return missing(what, cure) if what else missing(message, "")


def _check_photos(frames: Sequence[Frame], progress: Progress | None) -> tuple[dict[str, Any], list[Finding]]:
    of_frame = {frame.image_path: frame for frame in frames if frame.image_path.is_file()}
    found = [
        missing(
            f"{frame.image_path}: {frame.source.name} has a pose for this photo but the file is missing",
            "restore it or remove its entry",
        )
        for frame in frames
        if frame.image_path not in of_frame
    ]
    sizes, broken = probe(of_frame, _counted(photo_size, len(frames), progress))
    found += [_problem(message) for message in broken]
    found += wrong_shapes(sizes, of_frame, "use the photos the poses were computed with")
    counts = Counter(f"{width}x{height}" for width, height in sizes.values())
    facts = {"posed": len(frames), "readable_photos": len(sizes), "sizes": dict(counts.most_common())}
    twice = [name for name, count in Counter(frame.name for frame in frames).items() if count > 1]
    if twice:
        found.append(missing(f"{listed(twice)}: occurs twice (suffixes do not count)", "rename one of them"))
    return facts, found


def _counted(look: Callable[[Path], Any], total: int, progress: Progress | None) -> Callable[[Path], Any]:
    """Return `look` that reports each call."""
    done = 0

    def counted(path: Path) -> Any:
        nonlocal done
        try:
            return look(path)
        finally:
            done += 1
            if progress is not None:
                progress(done, total)

    return counted


def _check_poses(frames: Sequence[Frame]) -> list[Finding]:
    centres = np.stack([-frame.cam_from_world[:3, :3].T @ frame.cam_from_world[:3, 3] for frame in frames])
    if len(frames) > 1 and np.ptp(centres, axis=0).max() < 1e-9:
        return [missing("all cameras stand at one point: no depth can be seen", "take photos from several places")]
    distance = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    limit = 20 * max(np.median(distance), 1e-9)
    far = [frame.name for frame, away in zip(frames, distance, strict=True) if away > limit]
    if far and len(frames) > 2:
        return [note(f"the camera of {listed(far)} is far from all others", "look at its pose; remove it if wrong")]
    return []


def _cameras(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    """Return the different lenses with the number of views each has taken."""
    lenses = Counter(frame.lens for frame in frames)
    return [
        {
            "views": count,
            "width": lens.width,
            "height": lens.height,
            "focal_px": round(lens.fx, 1),
            "fov_degrees": round(float(np.degrees(fov_from_focal(lens.fx, lens.width))), 1),
            "distorted": lens.is_distorted,
        }
        for lens, count in lenses.most_common()
    ]


def _check_masks(frames: Sequence[Frame], root: Path, settings: DataSettings) -> tuple[dict[str, Any], list[Finding]]:
    """Return numbers of the masks, and what is wrong with any of them."""
    of_frame = {frame.mask_path: frame for frame in frames if frame.mask_path is not None}
    without = [frame.name for frame in frames if frame.mask_path is None]
    facts: dict[str, Any] = {"views": len(of_frame), "views_without": without}
    if not of_frame:
        return facts, [_no_masks(root / (OBJECT_PATH if settings.object_path == "auto" else settings.object_path))]
    masks, broken = probe(of_frame, _mask_numbers)
    found = [_problem(message) for message in broken]
    cure = "make the mask from this photo, or remove it"
    found += wrong_shapes({path: numbers.size for path, numbers in masks.items()}, of_frame, cure)
    if without:
        found.append(note(f"{len(without)} of {len(frames)} views have no mask: {listed(without)}", _MAKE_MASKS))
    if masks:
        facts |= _mask_facts(list(masks.values()))
        found += _odd_masks(masks)
    return facts, found


def _mask_numbers(path: Path) -> _MaskNumbers:
    ids = read_mask(path)
    values, counts = np.unique(ids, return_counts=True)
    zero = int(counts[values == 0].sum())
    kind = path.suffix.removeprefix(".")
    if path.suffix not in (".npy", ".npz"):
        mode = open_image(path).mode
        kind = "16-bit" if mode.startswith("I") else {"L": "8-bit", "P": "8-bit palette", "1": "1-bit"}.get(mode, mode)
    return _MaskNumbers(
        size=(ids.shape[1], ids.shape[0]),
        kind=kind,
        num_segments=int((values > 0).sum()),
        largest=int(values[-1]),
        zero_share=zero / ids.size,
    )


def _mask_facts(masks: Sequence[_MaskNumbers]) -> dict[str, Any]:
    segments = [numbers.num_segments for numbers in masks]
    return {
        "kinds": dict(Counter(numbers.kind for numbers in masks)),
        "segments_per_view": {
            "least": min(segments),
            "median": float(np.median(segments)),
            "most": max(segments),
        },
        "largest_id": max(numbers.largest for numbers in masks),
        "share_of_id_0": round(float(np.mean([numbers.zero_share for numbers in masks])), 4),
        "all_black": sum(numbers.largest == 0 for numbers in masks),
    }


def _no_masks(folder: Path) -> Finding:
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    if not files:
        return note("no masks: only colour can be trained", _MAKE_MASKS)
    names = listed(sorted(path.name for path in files))
    cure = f"name masks like their photos, with {', '.join(MASK_SUFFIXES)}"
    return missing(f"{folder}: none of its {len(files)} files is the mask of a photo ({names})", cure)


def _strays(masks: Sequence[Path]) -> list[Finding]:
    """Return a note on mask-like files in the folders of the masks that belong to no view."""
    if not masks:
        return []
    folder, used = Path(os.path.commonpath([path.parent for path in masks])), {path.resolve() for path in masks}
    suffixes = {*MASK_SUFFIXES, ".jpg", ".jpeg"}
    files = {path for parent in {path.parent for path in masks} for path in parent.iterdir() if path.is_file()}
    strays = [path for path in sorted(files) if path.suffix.lower() in suffixes and path.resolve() not in used]
    if not strays:
        return []
    names = listed([path.relative_to(folder).as_posix() for path in strays])
    cure = f"name masks like their photos, with {', '.join(MASK_SUFFIXES)} (JPEG destroys ids); remove the others"
    return [note(f"{folder}: {names} belongs to no view", cure)]


def _odd_masks(masks: Mapping[Path, _MaskNumbers]) -> list[Finding]:
    """Return notes on masks that can be read but are hardly meant."""
    found = []
    black = [path.name for path, numbers in masks.items() if numbers.largest == 0]
    if len(black) == len(masks):
        found.append(missing("all masks are black: nothing is labelled", _MAKE_MASKS))
    elif black:
        found.append(note(f"{listed(black)}: all black, trains colour only", "make them again if that is not meant"))
    at_end = [p.name for p, numbers in masks.items() if "8-bit" in numbers.kind and numbers.largest == _LARGEST_8_BIT]
    if at_end:
        cure = "8 bits end there: if there were more segments, save masks as 16-bit PNG"
        found.append(note(f"{listed(at_end)}: ids reach 255", cure))
    many = [path.name for path, numbers in masks.items() if numbers.num_segments > _MANY_SEGMENTS]
    if many:
        cure = "are these colours or smoothed borders instead of ids? Save ids, resampled to the nearest pixel only"
        found.append(note(f"{listed(many)}: more than {_MANY_SEGMENTS} segments", cure))
    full = [path.name for path, numbers in masks.items() if numbers.num_segments == 1 and numbers.zero_share == 0]
    if full:
        found.append(note(f"{listed(full)}: one segment fills the picture", "is this a mask of objects?"))
    return found


def _truth(root: Path) -> dict[str, int]:
    """Return the folders that hold truth, with the number of files in each; none is opened."""
    folders = {name: root / name for name in TRUTH_FOLDERS if (root / name).is_dir()}
    return {name: sum(path.is_file() for path in folder.rglob("*")) for name, folder in folders.items()}


def _check_loading(settings: DataSettings) -> tuple[dict[str, Any], list[Finding]]:
    """Load the scene as training does, small; return split, extent and points, and what the reader says."""
    small = replace(settings, resolution=_LOAD_WIDTH)
    found = []
    try:
        scene = load_scene(replace(small, eval=True))
    except UserError as error:
        try:
            scene = load_scene(replace(small, eval=False))
        except UserError as other:
            return {}, [_problem(str(other))]
        what, _, cure = str(error).rpartition("; ")
        found.append(note(f"with --eval: {what}", cure))
    num_views = len(scene.train) + len(scene.test)
    if num_views < _FEW_VIEWS:
        found.append(note(f"only {num_views} views", "objects come out blurred; 30 and more are usual"))
    for line in scene.notes:
        if not any(words in line for words in _SAID_ELSEWHERE):
            what, _, cure = line.rpartition("; ")
            found.append(note(what or line, cure if what else ""))
    own = scene.notes[-1].endswith("from the scene")
    facts: dict[str, Any] = {
        "split": {"train": len(scene.train), "test_with_eval": len(scene.test)},
        "radius": round(scene.radius, 4),
        "zero_id": scene.zero_id,
        "points": {"of_the_scene": len(scene.points.positions) if own else 0},
    }
    if own:
        facts["points"]["visible_share"] = share = round(visible_share(scene), 4)
        if share < _FEW_VISIBLE:
            found.append(
                missing(
                    f"the cameras hardly see the scene's points ({100 * share:.1f} % of them in a view)",
                    "poses and points disagree: check axes (OpenCV or OpenGL), camera-to-world, and scale",
                )
            )
    return facts, found


def visible_share(scene: Scene) -> float:
    """Return which share of the initial points lies inside a training view's picture, averaged over views."""
    positions = scene.points.positions
    positions = positions[:: max(1, len(positions) // _POINTS_TRIED)].astype(np.float64)
    shares = []
    for view in scene.train:
        pixels, depth = project(positions, view.camera)
        inside = (pixels >= 0).all(axis=1) & (pixels <= [view.camera.width, view.camera.height]).all(axis=1)
        shares.append((inside & (depth > 0)).mean())
    return float(np.mean(shares))


def check_lines(check: SceneCheck) -> list[str]:
    """Return the page: a line per topic, then what deserves attention, each with its cure, then the verdict."""
    facts = check.facts
    rows = {"scene": f"{facts['scene']}, layout {facts['layout']}"}
    if "views" in facts:
        sizes = ", ".join(f"{size} ({count})" for size, count in facts["views"]["sizes"].items())
        rows["views"] = f"{facts['views']['posed']} with a pose; photos {sizes or 'none readable'}"
        rows["cameras"] = "; ".join(_camera_words(camera) for camera in facts["cameras"][:3])
        if len(facts["cameras"]) > 3:
            rows["cameras"] += f"; and {len(facts['cameras']) - 3} more"
        rows["masks"] = _mask_words(facts)
    if "split" in facts:
        split, points = facts["split"], facts["points"]
        rows["split"] = f"{split['train']} train, {split['test_with_eval']} held out with --eval"
        rows["radius"] = f"{facts['radius']:.3g} world units around the training cameras"
        rows["points"] = "none of its own, training makes them from the photos"
        if points["of_the_scene"]:
            seen = f"a view shows {100 * points['visible_share']:.0f} % of them on average"
            rows["points"] = f"{points['of_the_scene']} of the scene; {seen}"
    truth = facts["truth"]
    rows["truth"] = ", ".join(f"{name}/ ({count} files)" for name, count in truth.items()) or "none: nothing to score"
    lines = [f"{name:<8} {text}" for name, text in rows.items()]
    for finding in sorted(check.findings, key=lambda finding: finding.status):  # "missing" comes before "note"
        lines.append(f"{'problem' if finding.status == 'missing' else 'note':<8} {finding.what}")
        if finding.cure:
            lines.append(f"{'':<8}   -> {finding.cure}")
    return [*lines, _verdict(check)]


def _verdict(check: SceneCheck) -> str:
    problems = sum(finding.status == "missing" for finding in check.findings)
    if problems:
        rest = "" if "split" in check.facts else "; split and points are looked at once these are repaired"
        return f"{problems} problem{'s' if problems > 1 else ''}{rest}"
    return "fine: this scene can be trained" + (" (colour only)" if not check.facts["masks"]["views"] else "")


def _camera_words(camera: Mapping[str, Any]) -> str:
    lens = " distorted, undistorted on load," if camera["distorted"] else ""
    size = f"{camera['width']}x{camera['height']}"
    return f"{camera['views']} views{lens} {size}, focal {camera['focal_px']:g} px, {camera['fov_degrees']:.0f} degrees"


def _mask_words(facts: Mapping[str, Any]) -> str:
    masks, views = facts["masks"], facts["views"]["posed"]
    if "kinds" not in masks:
        return f"{masks['views']} of {views} views"
    segments = masks["segments_per_view"]
    meaning = {"segment": "a segment of its own", "ignore": "unlabelled"}.get(facts.get("zero_id"), "no mask")
    return (
        f"{masks['views']} of {views} views, {' and '.join(masks['kinds'])}; {segments['least']} to {segments['most']} "
        f"segments a view (median {segments['median']:g}), ids up to {masks['largest_id']}; "
        f"{100 * masks['share_of_id_0']:.0f} % of the pixels have id 0 ({meaning})"
    )
