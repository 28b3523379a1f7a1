"""Replica, eight rooms in three public renderings (`replica_layout.py`); input masks are the user's own.

`object_mask/<photo's stem>.png` in the scene folder holds per-view ids of a 2D model, 0 = claimed by no mask.
Annotations: the instance maps of the rendering; nice-slam's has none, there they are
`annotations/gt_instance/frame<n>.png` or the `semantic_instance/` (with `traj_w_c.txt`) of a vMAP recording of the same
walk. Their id 0 = no object.

Only the frames of the benchmark are read. Initial points: `point_cloud.ply` where there is one, else the depth maps of
the training frames.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from unified_lift.data.base import Frame, Reader, SceneDescription, fit_lens, make_camera, rigid_pose, sound_frames
from unified_lift.data.images import parallel_map, read_image, resize_image
from unified_lift.data.masks import read_mask
from unified_lift.data.replica_layout import (
    Recording,
    check_same_walk,
    find_recording,
    read_depth,
    read_lens,
    read_trajectory,
)
from unified_lift.data.settings import DataSettings
from unified_lift.data.splits import split_names
from unified_lift.errors import UserError
from unified_lift.ops.cameras import invert_rigid, unproject
from unified_lift.plyio import finite_points, read_point_cloud
from unified_lift.types import PointCloud

NUM_DEPTH_POINTS = 100_000  # [DN-Splatter: 51 pixels of each of 2000 frames]


def detect(root: Path) -> bool:
    """Return whether the folder holds one of the three renderings."""
    return find_recording(root) is not None


def describe(root: Path, settings: DataSettings) -> SceneDescription:
    """Return the frames that the benchmark uses, in numeric order.

    Raises:
        UserError: Names the file and the fix.
    """
    recording = find_recording(root)
    if recording is None:
        raise UserError(f"{root}: holds no Replica rendering; looked for {READER.looks_for}")
    source = recording.trajectory
    poses = read_trajectory(source)
    numbers, test = benchmark_frames(recording, len(poses))
    lens, cloud = read_lens(recording, min(numbers.values())), root / "point_cloud.ply"

    def frame_of(item: tuple[str, int]) -> Frame:
        name, n = item
        pose = rigid_pose(poses[n], source=source, name=f"{name} (line {n + 1})")
        photo = recording.photo(n)
        return Frame(name=name, image_path=photo, cam_from_world=invert_rigid(pose), lens=lens, source=source)

    frames, broken = sound_frames(frame_of, numbers.items())
    train = set(split_names(list(numbers), root, settings, held_out=test)[0])
    seen = {numbers[frame.name]: frame for frame in frames if frame.name in train}
    with_depth = {n: frame for n, frame in seen.items() if recording.depth(n).is_file()}
    notes = [f"{len(numbers)} frames of the {recording.layout.name} rendering belong to the benchmark"]
    if not settings.random_init and not cloud.is_file() and 0 < len(with_depth) < len(seen):
        notes.append(
            f"{len(seen) - len(with_depth)} of {len(seen)} training frames have no depth map for initial points"
        )
    depths = partial(depth_points, with_depth, recording, seed=settings.points_seed)
    return SceneDescription(
        frames=frames,
        broken=broken,
        held_out=test,
        points=partial(read_point_cloud, cloud) if cloud.is_file() else depths,
        notes=notes,
        annotations=partial(_instance_maps, recording, numbers),
    )


def benchmark_frames(recording: Recording, count: int) -> tuple[dict[str, int], list[str]]:
    """Return name -> number of the frames that the benchmark uses out of `count`, and the names held out."""
    train, test = recording.layout.split(count)
    names = {n: recording.photo(n).stem for n in sorted((*train, *test))}
    return {name: n for n, name in names.items()}, [names[n] for n in test]


def _instance_maps(recording: Recording, numbers: Mapping[str, int], names: Collection[str]) -> dict[str, np.ndarray]:
    """Return the instance ids of the named views that have a map, int32 [H, W]."""
    check_same_walk(recording)
    maps = {name: recording.annotation(numbers[name]) for name in names}
    return {name: read_mask(mask) for name, mask in maps.items() if mask is not None}


def depth_points(
    frames: Mapping[int, Frame], recording: Recording, *, seed: int, count: int = NUM_DEPTH_POINTS
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
    each = -(-count // len(frames))

    def points_of(item: tuple[int, Frame]) -> tuple[np.ndarray, np.ndarray]:
        n, frame = item
        depth, image = read_depth(recording, n), read_image(frame.image_path)
        height, width = depth.shape
        lens = fit_lens(frame, width=image.shape[1], height=image.shape[0])
        camera = make_camera(frame, lens).resized(width, height)
        chosen = np.random.default_rng([seed, n]).choice(depth.size, min(each, depth.size), replace=False)
        chosen = chosen[depth.ravel()[chosen] > 0]
        pixels = np.stack([chosen % width, chosen // width], axis=1) + 0.5
        colors = resize_image(image, width, height).reshape(-1, 3)
        return unproject(pixels, depth.ravel()[chosen], camera), colors[chosen]

    positions, colors = zip(*parallel_map(points_of, list(frames.items())), strict=True)
    return finite_points(np.concatenate(positions), np.concatenate(colors))


READER = Reader(
    name="replica",
    looks_for="traj.txt and results/, or traj_w_c.txt and rgb/ (also in Sequence_1/ or imap/00/)",
    detect=detect,
    describe=describe,
    protocol="replica",
    precedence=30,
)
