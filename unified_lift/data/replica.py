"""Replica, eight rooms in three public renderings; input masks are the user's own.

Line n of a trajectory is the camera-to-world matrix of frame n, OpenCV axes, 16 numbers by rows. The principal points
of all three count from the first pixel's centre; here they gain half a pixel. Numbers are numbers: 2 comes before 10.
Only the frames of the benchmark are read.

`object_mask/<photo's stem>.png` in the scene folder holds per-view ids of a 2D model, 0 = claimed by no mask.
Annotations: the instance maps of the rendering (id 0 = no object); nice-slam's has none, there they are
`annotations/gt_instance/frame<n>.png` or the `semantic_instance/` (with `traj_w_c.txt`) of a vMAP recording of the same
walk. Initial points: `point_cloud.ply` where there is one, else the depth maps of the training frames.
"""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_lift.data.base import Frame, Reader, SceneDescription, fit_lens, make_camera, rigid_pose, sound_frames
from unified_lift.data.images import image_size, open_image, parallel_map, read_image, resize_image
from unified_lift.data.lens import Lens
from unified_lift.data.masks import MaskFile, find_mask, read_mask
from unified_lift.data.settings import DataSettings, split_names
from unified_lift.errors import UserError
from unified_lift.fileio import number, read_json, text_encoding
from unified_lift.ops.cameras import invert_rigid, unproject
from unified_lift.plyio import finite_points, read_point_cloud
from unified_lift.types import PointCloud

SAME_WALK = 1e-4  # how far two trajectories may differ in any number to be one walk
NUM_DEPTH_POINTS = 100_000  # [DN-Splatter: 51 pixels of each of 2000 frames]
_FIRST_CENTRE = 0.5  # corner-origin coordinate of the first pixel's centre
_POSES, _MAPS = "traj_w_c.txt", "semantic_instance/semantic_instance_{}"  # of Semantic-NeRF and vMAP


def benchmark_split(layout: str, count: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the training and of the held-out frames out of `count`."""
    if layout == "semantic_nerf":  # its own rule
        return list(range(0, count, 5)), list(range(2, count, 5))
    return [n for n in range(0, count, 25) if n % 125], list(range(0, count, 125))  # every fifth of 25th [DN-Splatter]


class Recording(NamedTuple):
    """One rendered walk through a room; names of photos, depths and annotations have a place for the frame's number."""

    layout: str
    folder: Path
    trajectory: Path
    photos: Path
    depths: Path  # 16-bit, along the camera axis
    annotations: Path | None  # instance ids, without suffix; None where there are none

    def photo(self, frame: int) -> Path:
        """Return the photo of a frame, a JPEG or PNG; where it is missing, the path it should have."""
        path = self.photos.with_name(self.photos.name.format(frame))
        candidates = (path, path.with_suffix(".jpg"), path.with_suffix(".png"))
        return next((candidate for candidate in candidates if candidate.is_file()), path)

    def depth(self, frame: int) -> Path:
        """Return where the depth of a frame is, if there is one."""
        return self.depths.with_name(self.depths.name.format(frame))

    def annotation(self, frame: int) -> MaskFile | None:
        """Return the instance map of a frame, None where there is none."""
        return find_mask(self.annotations.parent, self.annotations.name.format(frame)) if self.annotations else None


def find_recording(root: Path) -> Recording | None:
    """Return the recording of the benchmark in a scene folder, None where there is none."""

    def existing(*patterns: Path) -> Path | None:
        return next((pattern for pattern in patterns if pattern.parent.is_dir()), None)

    trajectory, photos = root / "traj.txt", root / "results/frame{:06d}.jpg"
    if trajectory.is_file() and existing(photos):
        maps = existing(root / "annotations/gt_instance/frame{:06d}", root / _MAPS)
        return Recording("nice_slam", root, trajectory, photos, photos.with_name("depth{:06d}.png"), maps)
    for folder in (root, root / "Sequence_1", root / "imap/00"):
        trajectory, photos = folder / _POSES, folder / "rgb/rgb_{}.png"
        if trajectory.is_file() and existing(photos):
            layout = "vmap" if folder.resolve().parent.name in ("imap", "vmap") else "semantic_nerf"
            depths = folder / "depth/depth_{}.png"
            return Recording(layout, folder, trajectory, photos, depths, existing(folder / _MAPS))
    return None


def read_trajectory(path: Path) -> np.ndarray:
    """Return the camera-to-world matrices of all frames as stored, float64 [N, 4, 4]."""
    try:
        lines = path.read_text(encoding=text_encoding(path)).rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as text ({error}); fetch it again") from None
    if not lines:
        raise UserError(f"{path}: holds no pose; fetch it again")
    poses = []
    for line in lines:
        try:
            poses.append(np.array(line.split(), dtype=np.float64).reshape(4, 4))
        except ValueError:
            what = f"line {len(poses) + 1} does not hold the 16 numbers of a camera-to-world matrix"
            raise UserError(f"{path}: {what}; fetch it again") from None
    return np.stack(poses)


def read_lens(recording: Recording, frame: int) -> Lens:
    """Return the lens of the recording's photos; `frame` is one whose photo may be looked at for its size."""
    if recording.layout == "nice_slam":
        source, camera = _camera_parameters(recording)
        width, height, fx, fy, cx, cy = (number(camera, key, source) for key in ("w", "h", "fx", "fy", "cx", "cy"))
        if min(width, height) < 1 or min(fx, fy) <= 0:
            raise UserError(f"{source}: sizes and focal lengths must be positive; fetch it again")
    else:
        width, height = image_size(recording.photo(frame))
        fx = fy = width / 2
        cx, cy = (width - 1) / 2, (height - 1) / 2
    return Lens(fx, fy, cx + _FIRST_CENTRE, cy + _FIRST_CENTRE, int(width), int(height))


def read_depth(recording: Recording, frame: int) -> np.ndarray:
    """Return depth along the camera axis in metres, 0 = unknown, float64 [H, W]."""
    path, scale = recording.depth(frame), 1000.0  # units per metre
    if recording.layout == "nice_slam":
        source, camera = _camera_parameters(recording)
        scale = number(camera, "scale", source, default=6553.5)
        if not 1e-9 < scale < 1e9:
            raise UserError(f"{source}: scale is {scale:g}, not the depth levels of a metre; fetch it again")
    image = open_image(path)
    if not image.mode.startswith("I"):
        raise UserError(f"{path}: image mode {image.mode} is not a 16-bit depth map; fetch it again")
    return np.asarray(image, dtype=np.float64) / scale


def _camera_parameters(recording: Recording) -> tuple[Path, dict]:
    """Return `cam_params.json` of the recording or of the folder above, and what it says about the camera."""
    places = [folder / "cam_params.json" for folder in (recording.folder, recording.folder.resolve().parent)]
    source = next((path for path in places if path.is_file()), None)
    if source is None:
        what = "neither here nor one folder up"
        raise UserError(f"{places[0]}: {what}; copy cam_params.json from the root of the download")
    camera = read_json(source).get("camera")
    if not isinstance(camera, dict):
        raise UserError(f"{source}: has no object named camera; fetch it again")
    return source, camera


def check_same_walk(recording: Recording) -> None:
    """Raise a UserError where instance maps of vMAP lie beside nice-slam photos of another walk; only poses tell."""
    maps, other = recording.annotations, recording.folder / _POSES
    if recording.layout != "nice_slam" or maps is None or maps.parent.name != "semantic_instance":
        return
    if not other.is_file():
        what = f"the instance maps in {maps.parent} were rendered along this trajectory"
        raise UserError(f"{other}: {what}; copy it from the same sequence, so that it can be compared with traj.txt")
    own, theirs = read_trajectory(recording.trajectory), read_trajectory(other)
    if own.shape != theirs.shape or not np.abs(own - theirs).max() <= SAME_WALK:
        what = f"is another walk than {recording.trajectory.name} ({len(theirs)} and {len(own)} poses)"
        fix = "render maps along traj.txt into annotations/gt_instance/, or use the vMAP recording as the scene"
        raise UserError(f"{other}: {what}; the instance maps in {maps.parent} do not belong to these photos: {fix}")


def describe(root: Path, settings: DataSettings) -> SceneDescription:
    """Return the frames that the benchmark uses, in numeric order."""
    recording = find_recording(root)
    assert recording is not None, "the folder was recognised"
    poses = read_trajectory(source := recording.trajectory)
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
    num_without = len(seen) - len(with_depth)
    notes = [f"{len(numbers)} frames of the {recording.layout} rendering belong to the benchmark"]
    if not settings.random_init and not cloud.is_file() and 0 < num_without < len(seen):
        notes.append(f"{num_without} of {len(seen)} training frames have no depth map for initial points")

    def annotations(names: Collection[str]) -> dict[str, np.ndarray]:
        check_same_walk(recording)
        maps = {name: recording.annotation(numbers[name]) for name in names}
        return {name: read_mask(mask) for name, mask in maps.items() if mask is not None}

    depths = partial(depth_points, with_depth, recording, seed=settings.points_seed)
    return SceneDescription(
        frames=frames,
        broken=broken,
        held_out=test,
        points=partial(read_point_cloud, cloud) if cloud.is_file() else depths,
        notes=notes,
        annotations=annotations,
    )


def benchmark_frames(recording: Recording, count: int) -> tuple[dict[str, int], list[str]]:
    """Return name -> number of the frames that the benchmark uses out of `count`, and the names held out."""
    train, test = benchmark_split(recording.layout, count)
    names = {n: recording.photo(n).stem for n in sorted((*train, *test))}
    return {name: n for n, name in names.items()}, [names[n] for n in test]


def depth_points(
    frames: Mapping[int, Frame], recording: Recording, *, seed: int, count: int = NUM_DEPTH_POINTS
) -> PointCloud | None:
    """Return about `count` coloured points at random pixels of the depth maps of `frames`, by number; None without any.

    Differs: DN-Splatter takes the same 51 pixels of all 2000 frames, test views included.
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
    detect=find_recording,
    describe=describe,
    protocol="replica",
    precedence=30,
)
