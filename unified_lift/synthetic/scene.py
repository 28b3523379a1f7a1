"""The synthetic scene: a procedural room, photographed exactly, with masks as unsure as a real 2D model's.

It is written in the `transforms` layout, so that everything downstream runs on files as it would on a user's scene.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from unified_lift.fileio import holds_files, write_json
from unified_lift.ops.cameras import flip_opengl_opencv, invert_rigid, look_at, unproject
from unified_lift.plyio import write_point_cloud
from unified_lift.settings.limits import Range, check_ranges
from unified_lift.synthetic.room import SyntheticRoom, build_house
from unified_lift.types import Camera, PointCloud

MIN_SEGMENT_AREA = 12  # a 2D model proposes nothing smaller than this, and a cut leaves no smaller piece
DEPTH_NOISE = 0.005  # relative error of initial points along the ray, as a good structure from motion leaves it


@dataclass(frozen=True, kw_only=True)
class SyntheticSettings:
    """What the synthetic room holds and how wrong its masks are."""

    rooms: Annotated[int, Range(1)] = 1
    """Rooms on a grid, with doors between neighbours. What is counted below is counted for each of them. [ours]"""
    num_objects: Annotated[int, Range(1)] = 12
    """Objects in the room. [ours]"""
    num_views: Annotated[int, Range(2)] = 60
    """Photos; the last fifth is held out. [ours]"""
    width: Annotated[int, Range(8)] = 160
    """Image width in pixels."""
    height: Annotated[int, Range(8)] = 120
    """Image height in pixels."""
    num_points: Annotated[int, Range(4)] = 10_000
    """Initial points, sampled on what the training views see."""
    seed: int = 0
    """Seed of the room, the cameras and the noise."""
    drop: Annotated[float, Range(0, 1)] = 0.08
    """Probability that an object has no mask in a view."""
    merge: Annotated[float, Range(0, 1)] = 0.04
    """Probability that two touching objects share one mask in a view."""
    split: Annotated[float, Range(0, 1)] = 0.06
    """Probability that a mask is cut in two by a line."""
    jitter: Annotated[float, Range(0)] = 0.5
    """Standard deviation of the displacement of mask borders, pixels."""
    false_positives: Annotated[float, Range(0)] = 0.2
    """Expected number of masks on nothing, per view."""
    shuffle: bool = True
    """Draw new ids for every view, as a model without tracking does."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def num_train(self) -> int:
        """Return the number of training views of a room: all but the last fifth, at least one of each."""
        return self.num_views - max(1, round(0.2 * self.num_views))


def synthetic_house(settings: SyntheticSettings) -> tuple[SyntheticRoom, ...]:
    """Return the rooms that these settings describe."""
    return build_house(settings.rooms, settings.num_objects, settings.seed)


def synthetic_room(settings: SyntheticSettings) -> SyntheticRoom:
    """Return the room that these settings describe, the first one of a house."""
    return synthetic_house(settings)[0]


def build_cameras(room: SyntheticRoom, settings: SyntheticSettings) -> tuple[Camera, ...]:
    """Return cameras all around the objects of a room at eye height of a child to an adult, in random order."""
    rng = np.random.default_rng([settings.seed, 1, room.number])
    width, height, scale = settings.width, settings.height, settings.width / 160
    lens: dict[str, Any] = {"width": width, "height": height, "fx": 150.0 * scale, "fy": 150.0 * scale}
    lens |= {"cx": width / 2 + 2.5 * scale, "cy": height / 2 - 1.5 * scale}
    cameras = []
    # Evenly spread azimuths (a random one each would leave gaps), then shuffled so that the held-out tail is fair.
    azimuths = (rng.permutation(settings.num_views) + rng.uniform(-0.3, 0.3, settings.num_views)) / settings.num_views
    for azimuth in azimuths * 2 * np.pi:
        distance = room.rug_radius * rng.uniform(1.62, 2.05)
        elevation = np.deg2rad(rng.uniform(17, 44))
        target = room.centre + [*rng.normal(0, 0.08 * room.rug_radius, 2), 0.14 * room.rug_radius]
        flat = np.cos(elevation) * np.array([np.cos(azimuth), np.sin(azimuth)])
        position = target + distance * np.array([*flat, np.sin(elevation)])
        cameras.append(Camera(cam_from_world=look_at(position, target, np.array([0.0, 0, 1])), **lens))
    return tuple(cameras)


def noisy_segments(ids: np.ndarray, settings: SyntheticSettings, rng: np.random.Generator) -> np.ndarray:
    """Return what a 2D model would make of exact ids, int32 [H, W], 0 = room: segment ids, int32 [H, W], 0 = nothing.

    Borders wobble; segments are lost, merged, cut or made up. Without `shuffle` an intact one keeps its object's id.
    """
    segments = ids.astype(np.int32)
    if settings.jitter:  # ids are read at positions moved by a smooth random field
        field = np.stack([gaussian_filter(rng.standard_normal(ids.shape), 3.0, mode="wrap") for _ in range(2)])
        field *= settings.jitter / field.std(axis=(1, 2), keepdims=True)
        rows, cols = np.rint(np.indices(ids.shape) + field).astype(int)
        segments = segments[rows.clip(0, ids.shape[0] - 1), cols.clip(0, ids.shape[1] - 1)]
    _merge_touching(segments, settings.merge, rng)
    for segment in np.unique(segments[segments > 0]):
        mask = segments == segment
        if mask.sum() < MIN_SEGMENT_AREA or rng.random() < settings.drop:
            segments[mask] = 0
        elif rng.random() < settings.split:  # along a line through its centre, unless a side would be tiny
            rows, cols = np.nonzero(mask)
            angle = rng.uniform(0, np.pi)
            side = np.cos(angle) * (cols - cols.mean()) + np.sin(angle) * (rows - rows.mean()) > 0
            if MIN_SEGMENT_AREA <= side.sum() <= len(side) - MIN_SEGMENT_AREA:
                segments[rows[side], cols[side]] = segments.max() + 1
    for _ in range(rng.poisson(settings.false_positives)):  # ellipses of 3 to 8 % of the height
        radii, centre = rng.uniform(0.03, 0.08, 2) * ids.shape[0], rng.uniform(0, 1, 2) * ids.shape
        rows, cols = (np.indices(ids.shape) - centre[:, None, None]) / radii[:, None, None]
        segments[(segments == 0) & (rows**2 + cols**2 <= 1)] = segments.max() + 1
    if settings.shuffle:
        values, dense = np.unique(segments, return_inverse=True)
        fresh = np.zeros(len(values), dtype=np.int32)
        fresh[values > 0] = rng.permutation((values > 0).sum()) + 1
        segments = fresh[dense].reshape(segments.shape)
    return segments


def _merge_touching(segments: np.ndarray, probability: float, rng: np.random.Generator) -> None:
    """Give some touching pairs one id, in place. A segment takes part in one merge at most."""
    edges = [(segments[:, :-1], segments[:, 1:]), (segments[:-1], segments[1:])]
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in edges])
    pairs = np.unique(np.sort(pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs > 0).all(axis=1)], axis=1), axis=0)
    used: set[int] = set()
    for first, second in pairs.tolist():
        if rng.random() < probability and not used & {first, second}:
            segments[segments == second] = first
            used |= {first, second}


def _surface_points(
    views: list[tuple[Camera, np.ndarray, np.ndarray]], count: int, rng: np.random.Generator
) -> PointCloud:
    """Return points on what the views (camera, colour, depth) see, with a small error in depth."""
    picks = rng.integers(len(views), size=count)
    positions, colors = [], []
    for index, number in zip(*np.unique(picks, return_counts=True), strict=True):
        camera, image, depth = views[index]
        rows, cols = rng.integers(camera.height, size=number), rng.integers(camera.width, size=number)
        away = depth[rows, cols] * (1 + DEPTH_NOISE * rng.standard_normal(number))
        positions.append(unproject(np.column_stack([cols, rows]) + 0.5, away, camera))
        colors.append(image[rows, cols])
    return PointCloud(positions=np.concatenate(positions).astype(np.float32), colors=np.concatenate(colors))


def write_synthetic(root: Path, settings: SyntheticSettings, *, train_views: int | None = None) -> None:
    """Write the scene in the `transforms` layout, with annotations and `scene.json` (all parameters, object list).

    Args:
        root: A new or empty folder, else a ValueError.
        settings: The room and the errors of its masks.
        train_views: Only so many of the training views are listed, and initial points are on what these see; the views
            held out are those of the whole scene, so that scores can be compared. None = all.
    """
    if holds_files(root):
        raise ValueError(f"{root} is not empty: name a new folder for the synthetic scene")
    train = settings.num_train if train_views is None else min(train_views, settings.num_train)
    if train < 1:
        raise ValueError(f"a synthetic scene needs a training view, received {train_views}")
    house = synthetic_house(settings)
    cameras = [camera for room in house for camera in build_cameras(room, settings)]
    number = np.arange(len(cameras)) % settings.num_views  # within the room
    listed, held_out = np.flatnonzero(number < train), np.flatnonzero(number >= settings.num_train)
    views, objects = [], []
    for index, camera in enumerate(cameras):
        image, ids, depth = house[index // settings.num_views].render(camera)
        segments = noisy_segments(ids, settings, np.random.default_rng([settings.seed, 2, index]))
        pictures = {"images": image[..., ::-1], "object_mask": segments, "annotations/gt_instance": ids}
        for folder, pixels in pictures.items():
            path = root / folder / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            encoded = cv2.imencode(".png", pixels if folder == "images" else pixels.astype(np.uint16))[1]
            path.write_bytes(encoded.tobytes())
        views.append((camera, image, depth))
    num_points, rng = settings.rooms * settings.num_points, np.random.default_rng([settings.seed, 3])
    points = _surface_points([views[index] for index in listed], num_points, rng)
    write_point_cloud(root / "points3D.ply", points)
    write_json(root / "transforms.json", _transforms(cameras, listed, held_out))
    for room in house:
        for one in room.objects:
            low, high = room.centre + one.bounds
            centre, size = np.round((low + high) / 2, 4).tolist(), np.round(high - low, 4).tolist()
            objects.append({"id": one.object_id, "kind": one.kind, "name": one.name, "centre": centre, "size": size})
    walls = {"half_width": house[0].half, "height": house[0].height, "rug_radius": house[0].rug_radius}
    # The file of one room does not say that it is one: it stays what it was before there were houses.
    described = {name: value for name, value in asdict(settings).items() if (name, value) != ("rooms", 1)}
    about = {"settings": described, "zero_id": "segment", "room": walls, "objects": objects}
    write_json(root / "scene.json", about)


def _transforms(cameras: list[Camera], train: np.ndarray, test: np.ndarray) -> dict[str, object]:
    """Return the content of transforms.json: OpenGL camera-to-world poses and the split, given indices of cameras."""
    paths = [f"images/{index:04d}.png" for index in range(len(cameras))]
    frames = [
        {
            "file_path": paths[index],
            "object_mask_path": f"object_mask/{index:04d}.png",
            "transform_matrix": flip_opengl_opencv(invert_rigid(cameras[index].cam_from_world)).tolist(),
        }
        for index in sorted([*train, *test])
    ]
    fields = {"w": "width", "h": "height", "fl_x": "fx", "fl_y": "fy", "cx": "cx", "cy": "cy"}
    return {
        "camera_model": "OPENCV",
        **{name: getattr(cameras[0], field) for name, field in fields.items()},
        "ply_file_path": "points3D.ply",
        "zero_id": "segment",
        "train_filenames": [paths[index] for index in train],
        "val_filenames": [paths[index] for index in test],
        "test_filenames": [paths[index] for index in test],
        "frames": frames,
    }
