"""What a scene folder contains and what is wrong with it: all of it, not only the first thing.

Annotations and masks of prompts are counted, never opened.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from unified_lift.data import detect_reader, load_scene
from unified_lift.data.base import Frame, SceneDescription, listed
from unified_lift.data.images import Progress, photos_in
from unified_lift.data.issues import Issues, check_masks, check_photos, issue_lines
from unified_lift.data.points import MIN_SEEN, hardly_seen, in_pictures
from unified_lift.data.scene import describe, is_strict, mask_folder
from unified_lift.data.settings import DataSettings
from unified_lift.data.usable import LEFT_OUT
from unified_lift.errors import UserError
from unified_lift.ops.cameras import fov_degrees

ANNOTATION_FOLDERS = (
    "annotations/gt_instance",
    "test_mask",
    "instance",
    "semantic_instance",
    "Sequence_1/semantic_instance",
    "imap/00/semantic_instance",
)
"""Where the layouts keep what only evaluation reads."""
_MAKE_MASKS = "make masks with unified-lift masks -s SCENE, or put one PNG of ids per photo into object_mask/"
_SAID_ELSEWHERE = ("resized from", "initial points", "have no mask", "no mask folder", LEFT_OUT)
_LABELS = {"error": "problem", "note": "note", "ok": "found"}


class SceneCheck(NamedTuple):
    """What was found: `facts` as JSON values by topic (layout, views, ..., findings), and the issues in them."""

    facts: dict[str, Any]
    issues: Issues


def check_scene(settings: DataSettings, *, progress: Progress | None = None) -> SceneCheck:
    """Return what the scene folder of training's data settings contains and what is wrong with it.

    A UserError says that it is no scene folder, or that a flag names a folder that is not there.
    """
    root, issues = settings.source_path, Issues()
    try:
        reader = detect_reader(settings)
    except UserError as error:
        folders = [path for path in (root, root / settings.images) if path.is_dir()]
        if not any(photos_in(folder, "*") for folder in folders):
            raise
        fix = f"there are photos but no poses: unified-lift sfm {folders[-1]} -s SCENE makes a scene of them"
        raise UserError(f"{error}; {fix}") from None
    mask_folder(reader, settings)
    facts: dict[str, Any] = {"scene": root.resolve().name, "layout": reader.name}
    described = SceneDescription(frames=())
    fatal = is_strict(reader, settings)  # else training leaves photos out that it cannot use
    try:
        described = describe(reader, settings)
        for message in described.broken:
            issues.refused(message, fatal=fatal)
    except UserError as error:
        issues.refused(error)
    if described.frames:
        facts |= _check_views(issues, described.frames, progress, fatal=fatal)
        facts["masks"] = _check_masks(issues, described)
    truth = [root / name for name in ANNOTATION_FOLDERS if (root / name).is_dir()]
    num_files = [sum(path.is_file() for path in folder.rglob("*")) for folder in truth]
    facts["truth"] = {path.relative_to(root).as_posix(): count for path, count in zip(truth, num_files)}
    if not issues.errors:
        facts |= _check_loading(issues, settings)
    listing = [{"status": _LABELS[issue.severity], "what": issue.text, "cure": issue.fix} for issue in issues]
    return SceneCheck({**facts, "fine": not issues.errors, "findings": listing}, issues)


def _check_views(issues: Issues, frames: Sequence[Frame], progress: Progress | None, *, fatal: bool) -> dict[str, Any]:
    """Return numbers of photos and cameras; add what is wrong with any of them."""
    photos = check_photos(issues, frames, progress=progress, fatal=fatal)
    sizes = Counter(f"{width}x{height}" for width, height in photos.values())
    centres = np.stack([-frame.cam_from_world[:3, :3].T @ frame.cam_from_world[:3, 3] for frame in frames])
    still = len(frames) > 1 and np.ptp(centres, axis=0).max() < 1e-9
    issues.error("all cameras are at one point: no depth can be seen", "take photos from several places", when=still)
    distance = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    limit = 20 * max(np.median(distance), 1e-9)
    far = [frame.name for frame, away in zip(frames, distance, strict=True) if away > limit]
    text = f"the camera of {listed(far)} is far from all others"
    issues.note(text, "look at its pose; remove it if wrong", when=far and len(frames) > 2)
    cameras = [
        {
            "views": count,
            "width": lens.width,
            "height": lens.height,
            "focal_px": round(lens.fx, 1),
            "fov_degrees": fov_degrees(lens.fx, lens.fy, lens.width, lens.height),
            "distorted": lens.is_distorted,
        }
        for lens, count in Counter(frame.lens for frame in frames).most_common()
    ]
    views = {"posed": len(frames), "readable_photos": len(photos), "sizes": dict(sizes.most_common())}
    return {"views": views, "cameras": cameras}


def _check_masks(issues: Issues, described: SceneDescription) -> dict[str, Any]:
    """Return numbers of the masks; add what is wrong with any, and that none of those that are there can be used."""
    frames = described.frames
    without = [frame.name for frame in frames if frame.mask is None]
    facts: dict[str, Any] = {"views": len(frames) - len(without), "views_without": without}
    if facts["views"]:
        if masks := list(check_masks(issues, frames, make=_MAKE_MASKS).values()):
            segments = [mask.num_segments for mask in masks]
            facts |= {
                "kinds": dict(Counter(mask.kind for mask in masks)),
                "segments_per_view": dict(least=min(segments), median=float(np.median(segments)), most=max(segments)),
                "largest_id": max(mask.largest for mask in masks),
                "share_of_id_0": round(float(np.mean([mask.zero_share for mask in masks])), 4),
                "all_black": sum(mask.num_segments == 0 for mask in masks),
            }
        return facts
    if described.no_mask_used:
        issues.refused(described.no_mask_used)
    issues.note("no masks: only colour can be trained", _MAKE_MASKS, when=not described.no_mask_used)
    return facts


def _check_loading(issues: Issues, settings: DataSettings) -> dict[str, Any]:
    """Load the scene as training does, small; return split, extent and points, and add what the reader says."""
    small = replace(settings, resolution=256)  # px: enough for split, points and poses
    try:
        scene = load_scene(replace(small, eval=True), refuse_unused=True)
    except UserError as error:
        try:
            scene = load_scene(replace(small, eval=False), refuse_unused=True)
        except UserError as other:
            issues.refused(other)
            return {}
        text, _, fix = str(error).rpartition("; ")
        issues.note(f"with --eval: {text}", fix)
    num_views = len(scene.train) + len(scene.test)
    few = "objects come out blurred; 30 and more are usual"
    issues.note(f"only {num_views} views", few, when=num_views < 8)
    for line in scene.notes:
        text, _, fix = line.rpartition("; ")
        said = any(words in line for words in _SAID_ELSEWHERE)
        issues.note(text or line, fix if text else "", when=not said)
    own = scene.notes[-1].endswith("from the scene")
    points: dict[str, Any] = {"of_the_scene": len(scene.points.positions) if own else 0}
    if own:
        seen = in_pictures(scene.points.positions, [view.camera for view in scene.train])
        points["visible_share"] = round(float(seen.mean()), 4)
        text = hardly_seen(seen, "the scene's points") or ""
        fix = "poses and points disagree: check axes (OpenCV or OpenGL), camera-to-world, and scale"
        issues.add("error" if seen.mean() < MIN_SEEN else "note", text, fix, when=text)
    split = {"train": len(scene.train), "test_with_eval": len(scene.test)}
    radius = scene.radius / scene.frame.scale
    radius = round(radius, 4) or float(f"{radius:.4g}")
    shares = [1 - float(view.valid.float().mean()) for view in (*scene.train, *scene.test) if view.valid is not None]
    left_out = {"views": len(shares), "share": round(float(np.mean(shares)), 4) if shares else 0.0}
    meaning = {"zero_id": scene.zero_id, "void_ids": list(scene.void_ids)}
    return {"split": split, "radius": radius, **meaning, "points": points, "left_out": left_out}


def check_lines(check: SceneCheck) -> list[str]:
    """Return the page: a line per topic, then what deserves attention, each with its fix, then the verdict."""
    facts, errors = check.facts, check.issues.errors
    rows = {"scene": f"{facts['scene']}, layout {facts['layout']}"}
    if "views" in facts:
        sizes = ", ".join(f"{size} ({count})" for size, count in facts["views"]["sizes"].items())
        rows["views"] = f"{facts['views']['posed']} with a pose; photos {sizes or 'none readable'}"
        words = "{views} views{lens} {width}x{height}, focal {focal_px:g} px, {fov_degrees:.0f} degrees"
        lenses = ["", " distorted, undistorted on load,"]
        cameras = [words.format(lens=lenses[one["distorted"]], **one) for one in facts["cameras"]]
        more = [f"and {len(cameras) - 3} more"] if len(cameras) > 3 else []
        rows["cameras"], rows["masks"] = "; ".join(cameras[:3] + more), _mask_words(facts)
    if "split" in facts:
        split, points = facts["split"], facts["points"]
        rows["split"] = f"{split['train']} train, {split['test_with_eval']} held out with --eval"
        rows["radius"] = f"{facts['radius']:.3g} world units around the training cameras"
        rows["points"] = "none of its own, training makes them from the photos"
        if points["of_the_scene"]:
            seen = f"a view shows {100 * points['visible_share']:.0f} % of them on average"
            rows["points"] = f"{points['of_the_scene']} of the scene; {seen}"
    if (left := facts.get("left_out", {"views": 0}))["views"]:
        rows["left out"] = f"{100 * left['share']:.1f} % of the pixels of {left['views']} views neither train nor count"
    counted = ", ".join(f"{name}/ ({count} files)" for name, count in facts["truth"].items())
    rows["ground truth"] = counted or "none: eval scores pictures, and objects by the masks alone"
    if errors:
        verdict = f"{len(errors)} problem{'s' if len(errors) > 1 else ''}"
        verdict += "" if "split" in facts else "; split and points are looked at once these are repaired"
    else:
        verdict = "fine: this scene can be trained" + ("" if facts["masks"]["views"] else " (colour only)")
    notes = [issue for issue in check.issues if issue.severity == "note"]
    topics = [f"{name:<12} {text}" for name, text in rows.items()]
    return [*topics, *issue_lines([*errors, *notes], _LABELS), verdict]


def _mask_words(facts: Mapping[str, Any]) -> str:
    masks = facts["masks"]
    words = f"{masks['views']} of {facts['views']['posed']} views"
    if "kinds" not in masks:
        return words
    segments = masks["segments_per_view"]
    meaning = {"segment": "a segment of its own", "ignore": "unlabelled"}.get(facts.get("zero_id", ""), "no mask")
    void = facts.get("void_ids") or [0]
    share = "some" if max(void) > 0 else f"{100 * masks['share_of_id_0']:.0f} %"
    return (
        f"{words}, {' and '.join(masks['kinds'])}; {segments['least']} to {segments['most']} segments a view (median "
        f"{segments['median']:g}), ids up to {masks['largest_id']}; {share} of the pixels have id "
        f"{', '.join(map(str, void))} ({meaning})"
    )
