"""What a reconstruction came to: numbers, what to do about weak ones, and a picture of points and cameras."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_lift.data.base import Frame, make_camera, name_of
from unified_lift.data.colmap import describe
from unified_lift.data.colmap_tables import ColmapPoints, read_cameras, read_images, read_points
from unified_lift.data.settings import DataSettings
from unified_lift.fileio import replacing
from unified_lift.ops.cameras import fov_degrees, invert_rigid, project


def sparse_report(scene: Path, photos: Path, stages: Mapping[str, Mapping[str, Any]], picture: Path) -> dict[str, Any]:
    """Return the report of a scene as JSON values, and draw its points and cameras to the file `picture`.

    Args:
        photos: Folder of all photos that were tried.
        stages: Per stage `seconds` and `facts`.
    """
    frames = describe(scene, DataSettings(source_path=scene)).frames
    points = read_points(scene / "sparse/0/points3D.bin")
    _draw(picture, frames, points)
    points2d = {name_of(image.name): image.points2d for image in read_images(scene / "sparse/0/images.bin").values()}
    order, errors = np.argsort(points.ids), {}
    for frame in frames:  # distances in pixels between observed points and their projections, [K]
        observed = points2d[frame.name][points2d[frame.name]["point3d"] >= 0]
        seen = order[np.searchsorted(points.ids, observed["point3d"], sorter=order)]
        pixels = project(points.positions[seen], make_camera(frame))[0]
        errors[frame.name] = np.linalg.norm(pixels - observed["xy"], axis=1)
    every = np.concatenate(list(errors.values()))
    tried = sorted(name_of(path.relative_to(photos).as_posix()) for path in photos.rglob("*.jpg"))
    worst = sorted(errors, key=lambda name: -_mean(errors[name]))[:5]
    numbers = {
        "photos": len(tried),
        "registered": len(errors),
        "not_registered": [name for name in tried if name not in errors],
        "points": len(points.ids),
        "observations": len(every),
        "mean_track_length": round(len(every) / max(1, len(points.ids)), 2),
        "mean_reprojection_error_px": round(_mean(every), 3),
        "worst_photos_px": {name: round(_mean(errors[name]), 3) for name in worst},
        "cameras": _cameras(scene),
        "models": stages["mapping"]["facts"]["models"],
        "settings": {name: stages[name]["facts"] for name in ("photos", "features", "matches")},
        "seconds": {name: entry["seconds"] for name, entry in stages.items()},
    }
    return {**numbers, "advice": advice(numbers)}


def advice(numbers: Mapping[str, Any]) -> list[str]:
    """Return what to look at, one line each; empty for a sound reconstruction."""
    sizes, lost = " and ".join(map(str, numbers["models"])), len(numbers["not_registered"])
    apart = f"the photos fall into groups that do not overlap ({sizes}): take some photos between them"
    homeless = f"{lost} photos found no place: add photos that overlap with them, or leave them out"
    inexact = "the reprojection error is large: did something move, or the zoom change (--cameras each)?"
    short = "points are seen in few photos each: smaller steps between photos make poses firmer"
    weaknesses = {
        apart: len(numbers["models"]) > 1,
        homeless: numbers["registered"] < 0.9 * numbers["photos"],
        inexact: numbers["mean_reprojection_error_px"] > 2,
        short: numbers["mean_track_length"] < 3,
    }
    return [text for text, is_weak in weaknesses.items() if is_weak]


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the report as a table for the terminal."""
    form = "{width}x{height}, focal {focal_px:g} px, {fov_degrees:.0f} degrees"
    cameras = [form.format_map(camera) for camera in report["cameras"]]
    more = [f"and {len(cameras) - 2} more"] if len(cameras) > 2 else []
    seconds = ", ".join(f"{name} {seconds:.0f}" for name, seconds in report["seconds"].items())
    table = {
        "registered": f"{report['registered']} of {report['photos']} photos",
        "reprojection": f"{report['mean_reprojection_error_px']:.2f} px mean error",
        "points": f"{report['points']}, each seen in {report['mean_track_length']:.1f} photos on average",
        "camera": "; ".join(cameras[:2] + more),
        "time": f"{sum(report['seconds'].values()):.0f} s ({seconds})",
    }
    if report["not_registered"]:
        table["no pose"] = ", ".join(report["not_registered"])
    return [f"{name:<13} {text}" for name, text in table.items()] + [f"note: {line}" for line in report["advice"]]


def _draw(path: Path, frames: Sequence[Frame], points: ColmapPoints) -> None:
    """Draw the points and the cameras of a scene, seen from above and from the side."""
    from matplotlib.figure import Figure  # half a second to import

    poses = np.stack([invert_rigid(frame.cam_from_world) for frame in frames])
    centres, ahead = poses[:, :3, 3], poses[:, :3, 2]
    axes = level_axes(poses)
    # Far outliers would shrink everything else to a dot.
    middle = np.median(np.concatenate([points.positions, centres]), axis=0)
    distance = np.linalg.norm(points.positions - middle, axis=1)
    reach = max(np.quantile(distance, 0.95), np.linalg.norm(centres - middle, axis=1).max())
    shown = np.flatnonzero(distance <= reach)
    shown = shown[:: max(1, len(shown) // 20_000)]
    flat, colors = points.positions[shown] @ axes.T, points.colors[shown] / 255.0
    cameras, looks = centres @ axes.T, ahead @ axes.T
    length = 0.08 * float(np.ptp(np.concatenate([flat, cameras]), axis=0).max())
    lines = np.stack([cameras, cameras + length * looks])  # [2, M, 3]
    figure = Figure(figsize=(10.0, 5.0), layout="constrained")
    for panel, (title, vertical) in enumerate((("from above", 1), ("from the side", 2))):
        drawing = figure.add_subplot(1, 2, panel + 1)
        drawing.scatter(flat[:, 0], flat[:, vertical], s=1.5, c=colors, linewidths=0)
        drawing.plot(lines[..., 0], lines[..., vertical], color="#b4533c", linewidth=0.8)
        drawing.scatter(cameras[:, 0], cameras[:, vertical], s=9, c="#b4533c", linewidths=0)
        drawing.set(xticks=[], yticks=[])
        drawing.set_title(title, fontsize=9)
        drawing.set_aspect("equal", adjustable="datalim")
        drawing.margins(0.08)
    figure.suptitle(f"{len(poses)} cameras (red), {len(points.ids)} points", fontsize=10)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def level_axes(world_from_cam: np.ndarray) -> np.ndarray:
    """Return right, forward and up of an upright observer as rows [3, 3]; poses [M, 4, 4] have OpenCV axes."""
    up = -world_from_cam[:, :3, 1].mean(axis=0)
    if np.linalg.norm(up) < 1e-6:  # cameras in all orientations: any direction will do
        up = np.array([0.0, 0.0, 1.0])
    up = up / np.linalg.norm(up)
    right = np.cross(np.eye(3)[np.argmin(np.abs(up))], up)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(up, right), up])


def _cameras(scene: Path) -> list[dict[str, Any]]:
    """Return size and focal length of the different cameras after undistortion."""
    found = []
    for camera in read_cameras(scene / "sparse/0/cameras.bin").values():
        (fx, fy), size = camera.params[:2], (camera.width, camera.height)
        found.append((*size, round(fx, 1), fov_degrees(fx, fy, *size)))
    names = ("width", "height", "focal_px", "fov_degrees")
    return [dict(zip(names, values, strict=True)) for values in dict.fromkeys(found)]


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else 0.0
