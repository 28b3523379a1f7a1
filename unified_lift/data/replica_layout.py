"""Replica on disk: the three public renderings of its rooms, as recordings with numbered frames and one trajectory.

| layout | photo | trajectory | size | benchmark frames |
|---|---|---|---|---|
| nice_slam | `results/frame000025.jpg` | `traj.txt` | `cam_params.json`, also one up | 0, 25, ...; every 5th tests |
| semantic_nerf | `rgb/rgb_25.png` | `traj_w_c.txt` | the photos', 90 degrees wide | 0, 5, ... train; 2, 7, ... test |
| vmap | `rgb/rgb_25.png` in `imap/NN/` | `traj_w_c.txt` | the photos', 90 degrees wide | as nice_slam |

Line n of a trajectory is the camera-to-world matrix of frame n, OpenCV axes, 16 numbers by rows. The principal points
of all three count from the first pixel's centre; here they gain half a pixel. Numbers are numbers: 2 comes before 10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unified_lift.data.images import image_size, open_image
from unified_lift.data.lens import Lens
from unified_lift.data.masks import MaskFile, find_mask
from unified_lift.data.splits import dn_splatter, semantic_nerf
from unified_lift.errors import UserError
from unified_lift.fileio import number, read_json

SEQUENCES = (".", "Sequence_1", "imap/00")
"""Where the recording of the benchmark lies inside a scene folder, in the order looked at."""
PHOTO_SUFFIXES = (".jpg", ".png")
SAME_WALK = 1e-4  # how far two trajectories may differ in any number to be one walk
_VMAP_PARENTS = ("imap", "vmap")
_MILLIMETRES, _NICE_SLAM_DEPTH = 1000.0, 6553.5  # depth units per metre
_FIRST_CENTRE = 0.5  # corner-origin coordinate of the first pixel's centre


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one rendering names its files; paths are relative to the recording and have the frame's number in them.

    Attributes:
        name: Of the rendering.
        trajectory: Pose file.
        photo: With the suffix of the release; other renderings of it may have another of `PHOTO_SUFFIXES`.
        depth: 16-bit depth along the camera axis.
        annotations: Instance ids without suffix, in the order looked for.
        split: Number of frames -> training and held-out frames.
    """

    name: str
    trajectory: str = "traj_w_c.txt"
    photo: str = "rgb/rgb_{}.png"
    depth: str = "depth/depth_{}.png"
    annotations: tuple[str, ...] = ("semantic_instance/semantic_instance_{}",)
    split: Callable[[int], tuple[list[int], list[int]]] = dn_splatter


SEMANTIC_NERF, VMAP = Layout(name="semantic_nerf", split=semantic_nerf), Layout(name="vmap")
NICE_SLAM = Layout(
    name="nice_slam",
    trajectory="traj.txt",
    photo="results/frame{:06d}.jpg",
    depth="results/depth{:06d}.png",
    annotations=("annotations/gt_instance/frame{:06d}", *VMAP.annotations),
)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One rendered walk through a room: the folder of photos and trajectory, and how they are named."""

    folder: Path
    layout: Layout

    @property
    def trajectory(self) -> Path:
        """Return the pose file."""
        return self.folder / self.layout.trajectory

    def photo(self, frame: int) -> Path:
        """Return the photo of a frame; where it is missing, the path it should have."""
        path = self.folder / self.layout.photo.format(frame)
        candidates = (path, *(path.with_suffix(suffix) for suffix in PHOTO_SUFFIXES))
        return next((candidate for candidate in candidates if candidate.is_file()), path)

    def depth(self, frame: int) -> Path:
        """Return where the depth of a frame is, if it is there."""
        return self.folder / self.layout.depth.format(frame)

    @property
    def annotation_pattern(self) -> Path | None:
        """Return the first kind of instance maps whose folder exists, None where there is none."""
        patterns = [self.folder / pattern for pattern in self.layout.annotations]
        return next((pattern for pattern in patterns if pattern.parent.is_dir()), None)

    def annotation(self, frame: int) -> MaskFile | None:
        """Return the instance map of a frame, None where there is none."""
        pattern = self.annotation_pattern
        return find_mask(pattern.parent, pattern.name.format(frame)) if pattern is not None else None


def find_recording(root: Path) -> Recording | None:
    """Return the recording in a scene folder (or in its `Sequence_1/` or `imap/00/`), None where there is none."""
    if (root / "traj.txt").is_file() and (root / "results").is_dir():
        return Recording(folder=root, layout=NICE_SLAM)
    for folder in (root / name for name in SEQUENCES):
        if (folder / "traj_w_c.txt").is_file() and (folder / "rgb").is_dir():
            is_vmap = folder.resolve().parent.name in _VMAP_PARENTS
            return Recording(folder=folder, layout=VMAP if is_vmap else SEMANTIC_NERF)
    return None


def read_trajectory(path: Path) -> np.ndarray:
    """Return the camera-to-world matrices of all frames as stored, float64 [N, 4, 4].

    Raises:
        UserError: The file is missing, empty, or a line does not hold 16 numbers.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as text ({error}); fetch it again") from None
    if not lines:
        raise UserError(f"{path}: holds no pose; fetch it again")
    poses = []
    for n, line in enumerate(lines):
        try:
            poses.append(np.array(line.split(), dtype=np.float64).reshape(4, 4))
        except ValueError:
            raise UserError(
                f"{path}: line {n + 1} does not hold the 16 numbers of a camera-to-world matrix; fetch it again"
            ) from None
    return np.stack(poses)


def read_lens(recording: Recording, frame: int) -> Lens:
    """Return the lens of the recording's photos; `frame` is one whose photo may be looked at for its size.

    Raises:
        UserError: The camera file or the photo is missing or damaged.
    """
    if recording.layout is NICE_SLAM:
        source, camera = _camera_parameters(recording)
        width, height, fx, fy, cx, cy = (number(camera, key, source) for key in ("w", "h", "fx", "fy", "cx", "cy"))
        if min(width, height) < 1 or min(fx, fy) <= 0:
            raise UserError(f"{source}: sizes and focal lengths must be positive; fetch it again")
    else:
        width, height = image_size(recording.photo(frame))
        fx = fy = width / 2
        cx, cy = (width - 1) / 2, (height - 1) / 2
    return Lens(fx=fx, fy=fy, cx=cx + _FIRST_CENTRE, cy=cy + _FIRST_CENTRE, width=int(width), height=int(height))


def read_depth(recording: Recording, frame: int) -> np.ndarray:
    """Return depth along the camera axis in metres, 0 = unknown, float64 [H, W].

    Raises:
        UserError: The file is missing, damaged or has 8 bits.
    """
    path, scale = recording.depth(frame), _MILLIMETRES
    if recording.layout is NICE_SLAM:
        source, camera = _camera_parameters(recording)
        scale = number(camera, "scale", source, default=_NICE_SLAM_DEPTH)
    image = open_image(path)
    if not image.mode.startswith("I"):
        raise UserError(f"{path}: image mode {image.mode} is not a 16-bit depth map; fetch it again")
    return np.asarray(image, dtype=np.float64) / scale


def _camera_parameters(recording: Recording) -> tuple[Path, dict]:
    """Return `cam_params.json` of the recording or of the folder above, and what it says about the camera."""
    places = [folder / "cam_params.json" for folder in (recording.folder, recording.folder.resolve().parent)]
    source = next((path for path in places if path.is_file()), None)
    if source is None:
        raise UserError(
            f"{places[0]}: neither here nor one folder up; copy cam_params.json from the root of the download"
        )
    camera = read_json(source).get("camera")
    if not isinstance(camera, dict):
        raise UserError(f"{source}: has no object named camera; fetch it again")
    return source, camera


def check_same_walk(recording: Recording) -> None:
    """Raise a UserError where instance maps of vMAP lie beside nice-slam photos of another walk, or one cannot tell.

    Only the poses can tell: both renderings have 2000 frames of one size.
    """
    pattern = recording.annotation_pattern
    if recording.layout is not NICE_SLAM or pattern is None or pattern.parent.name != "semantic_instance":
        return
    other = recording.folder / VMAP.trajectory
    if not other.is_file():
        raise UserError(
            f"{other}: the instance maps in {pattern.parent} were rendered along this trajectory; copy it from the "
            "same sequence, so that it can be compared with traj.txt"
        )
    own, theirs = read_trajectory(recording.trajectory), read_trajectory(other)
    if own.shape != theirs.shape or not np.abs(own - theirs).max() <= SAME_WALK:
        raise UserError(
            f"{other}: is another walk than {recording.trajectory.name} ({len(theirs)} and {len(own)} poses); the "
            f"instance maps in {pattern.parent} do not belong to these photos: render maps along traj.txt into "
            "annotations/gt_instance/, or use the vMAP recording as the scene"
        )
