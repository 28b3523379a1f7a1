"""Replica, eight rooms in three public renderings (`replica_layout.py`); input masks are the user's own.

`object_mask/<photo's stem>.png` in the scene folder holds per-view ids of a 2D model, 0 = claimed by no mask. Truth:
the instance maps of the rendering; nice-slam's has none, there they are `annotations/gt_instance/frame<n>.png` or the
`semantic_instance/` (with `traj_w_c.txt`) of a vMAP recording of the same walk. Truth id 0 = no object.

Only the frames of the benchmark are read. Initial points: `point_cloud.ply` where there is one, else the depth maps of
the training frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from unified_lift.data.base import OBJECT_PATH, Frame, Reader, Store, fit_lens, make_camera, make_scene, mask_folder
from unified_lift.data.images import Progress, parallel_map, read_image, resize_image
from unified_lift.data.masks import read_mask
from unified_lift.data.ply import finite_points, read_point_cloud
from unified_lift.data.replica_layout import (
    Recording,
    check_same_walk,
    depth_scale,
    find_recording,
    read_depth,
    read_frames,
)
from unified_lift.data.settings import DataSettings
from unified_lift.data.splits import split_names
from unified_lift.errors import UserError
from unified_lift.ops.cameras import unproject
from unified_lift.types import PointCloud, Scene

NUM_DEPTH_POINTS = 100_000  # [DN-Splatter: 51 pixels of each of 2000 frames]


def detect(root: Path) -> bool:
    """Return whether the folder holds one of the three renderings."""
    return find_recording(root) is not None


def load(root: Path, settings: DataSettings, *, progress: Progress | None = None, store: Store | None = None) -> Scene:
    """Return the scene of the benchmark's frames.

    Raises:
        UserError: Names the file and the cure.
    """
    folder, notes = mask_folder(root, settings)
    recording = _recording(root)
    frames, test = read_frames(recording, folder)
    held_out = [frames[n].name for n in test]
    listed = list(frames.values())
    train = set(split_names([frame.name for frame in listed], root, settings, held_out=held_out)[0])
    seen = {n: frame for n, frame in frames.items() if frame.name in train}
    with_depth = [n for n in seen if recording.depth(n).is_file()]
    cloud = root / "point_cloud.ply"
    notes.append(f"{len(frames)} frames of the {recording.layout.name} rendering belong to the benchmark")
    if not settings.random_init and not cloud.is_file() and 0 < len(with_depth) < len(seen):
        notes.append(
            f"{len(seen) - len(with_depth)} of {len(seen)} training frames have no depth map for initial points"
        )
    points = (
        partial(read_point_cloud, cloud)
        if cloud.is_file()
        else partial(depth_points, {n: seen[n] for n in with_depth}, recording, seed=settings.points_seed)
    )
    return make_scene(
        listed,
        root,
        settings,
        dataset="replica",
        points=points,
        zero_id="ignore",
        held_out=held_out,
        notes=notes,
        progress=progress,
        store=store,
    )


def frames_of(root: Path, settings: DataSettings, problems: list[str] | None = None) -> list[Frame]:
    """Return all frames of the benchmark with their masks; `problems` as in `sound_ones`.

    Raises:
        UserError: Names the file and the cure.
    """
    return list(read_frames(_recording(root), mask_folder(root, settings)[0], problems=problems)[0].values())


def load_annotations(root: Path, names: Sequence[str], settings: DataSettings) -> dict[str, np.ndarray]:
    """Return the instance ids of the named views that have a map, int32 [H, W] at native size.

    Raises:
        UserError: The maps belong to another walk, or one is damaged.
    """
    recording = _recording(root)
    check_same_walk(recording)
    wanted, found = set(names), {}
    for n, frame in read_frames(recording, root / OBJECT_PATH)[0].items():
        path = recording.truth(n) if frame.name in wanted else None
        if path is not None:
            found[frame.name] = read_mask(path)
    return found


def depth_points(
    frames: dict[int, Frame], recording: Recording, *, seed: int, count: int = NUM_DEPTH_POINTS
) -> PointCloud | None:
    """Return about `count` coloured points at random pixels of the frames' depth maps, None without frames.

    Differs: DN-Splatter takes the same 51 pixels of all 2000 frames, test views included.
    Args:
        frames: Number -> training frame that has a depth map.
        seed: Of the choice of pixels.
    Raises:
        UserError: A depth map or photo is damaged.
    """
    if not frames:
        return None
    read = partial(_points_of_frame, recording, depth_scale(recording), seed, -(-count // len(frames)))
    parts = parallel_map(read, list(frames.items()))
    return finite_points(*(np.concatenate([part[which] for part in parts]) for which in (0, 1)))


def _points_of_frame(
    recording: Recording, scale: float, seed: int, count: int, item: tuple[int, Frame]
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and colours seen at `count` random pixels, fewer where the depth is unknown."""
    n, frame = item
    depth, image = read_depth(recording.depth(n), scale=scale), read_image(frame.image_path)
    height, width = depth.shape
    lens = fit_lens(frame, width=image.shape[1], height=image.shape[0])
    camera = make_camera(frame.cam_from_world, lens, source=frame.source, name=frame.name).resized(width, height)
    chosen = np.random.default_rng([seed, n]).choice(width * height, min(count, width * height), replace=False)
    chosen = chosen[depth.ravel()[chosen] > 0]
    pixels = np.stack([chosen % width, chosen // width], axis=1) + 0.5
    positions = unproject(pixels, depth.ravel()[chosen], camera)
    return positions, resize_image(image, width, height).reshape(-1, 3)[chosen]


def _recording(root: Path) -> Recording:
    recording = find_recording(root)
    if recording is None:
        raise UserError(f"{root}: holds no Replica rendering; looked for {READER.looks_for}")
    return recording


READER = Reader(
    name="replica",
    looks_for="traj.txt and results/, or traj_w_c.txt and rgb/ (also in Sequence_1/ or imap/00/)",
    detect=detect,
    load=load,
    load_annotations=load_annotations,
    protocol="replica",
    precedence=30,
    frames=frames_of,
)
