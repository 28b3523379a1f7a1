"""Checks of a download against what is known of a benchmark: what is there, what is missing, what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from unified_lift.data import colmap, lerf_mask, messy_rooms
from unified_lift.data.base import OBJECT_PATH, Frame, without_pose_note
from unified_lift.data.findings import (
    Finding,
    check_masks,
    check_photos,
    is_complete,
    listed,
    mask_facts,
    missing,
    note,
    photo_size,
    present,
    probe,
    wrong_shapes,
)
from unified_lift.data.images import IMAGE_SUFFIXES
from unified_lift.data.masks import find_mask, read_mask
from unified_lift.data.ply import read_point_cloud
from unified_lift.data.replica_layout import (
    Recording,
    check_same_walk,
    find_recording,
    read_depth,
    read_frames,
    read_trajectory,
)
from unified_lift.data.settings import DataSettings
from unified_lift.data.splits import last_fifth
from unified_lift.errors import UserError

LERF_MASK_SCENES = tuple(lerf_mask.PROMPTS)
LERF_MASK_TEST_VIEWS = (2, 4)  # fewest and most
REPLICA_SCENES = ("room0", "room1", "room2", "office0", "office1", "office2", "office3", "office4")
REPLICA_FRAMES = {"nice_slam": 2000, "semantic_nerf": 900, "vmap": 2000}
REPLICA_SIZES = {"nice_slam": (1200, 680), "semantic_nerf": (640, 480), "vmap": (1200, 680)}
MESSY_ROOMS_IDS = {  # truth ids seen in the test views, background included [PCF-Lift's result table]
    "old_room_25": 26,
    "old_room_50": 51,
    "old_room_100": 101,
    "old_room_500": 465,
    "large_corridor_25": 26,
    "large_corridor_50": 51,
    "large_corridor_100": 101,
    "large_corridor_500": 454,
}
_LERF_MASK_SOURCE = "fetch data/lerf_mask from the Gaussian Grouping authors' Hugging Face page"
_REPLICA_SOURCE = (
    "fetch the nice-slam rendering of Replica (its download script; DN-Splatter uses the same), or the rooms of the "
    "Semantic-NeRF or the vMAP release"
)
_MESSY_ROOMS_SOURCE = "fetch the Messy Rooms data set from the Contrastive Lift project page"
_MAKE_MASKS = (
    "run a 2D segmenter (for the paper: SAM, whole objects only) on every training photo and save one 8- or 16-bit "
    "grey PNG of ids under the photo's name, 0 = claimed by no mask"
)


def check_lerf_mask(root: Path) -> list[Finding]:
    """Return what is there and what is missing of the three LERF-Mask scenes.

    Raises:
        UserError: There is no such folder.
    """
    return _check_scenes(root, {name: (name,) for name in LERF_MASK_SCENES}, _lerf_mask_scene, _LERF_MASK_SOURCE)


def check_replica(root: Path, *, num_frames: Mapping[str, int] = REPLICA_FRAMES) -> list[Finding]:
    """Return what is there and what is missing of the eight Replica scenes, in whichever rendering.

    Args:
        root: Holds the scenes, spelled `room0` or `room_0`.
        num_frames: Length of the trajectory in each layout.
    Raises:
        UserError: There is no such folder.
    """
    spellings = {name: (name, f"{name[:-1]}_{name[-1]}") for name in REPLICA_SCENES}

    def check(folder: Path) -> list[Finding]:
        return _replica_scene(folder, num_frames)

    return _check_scenes(root, spellings, check, _REPLICA_SOURCE)


def check_messy_rooms(root: Path) -> list[Finding]:
    """Return what is there and what is missing of the eight Messy Rooms scenes.

    Raises:
        UserError: There is no such folder.
    """
    return _check_scenes(root, {name: (name,) for name in MESSY_ROOMS_IDS}, _messy_rooms_scene, _MESSY_ROOMS_SOURCE)


def _check_scenes(
    root: Path, spellings: Mapping[str, tuple[str, ...]], check: Callable[[Path], list[Finding]], source: str
) -> list[Finding]:
    """Return the findings of each scene under the first spelling that exists."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds {', '.join(spellings)}")
    findings = []
    for names in spellings.values():
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if folder is None:
            findings.append(missing(f"{' or '.join(names)}: no such scene", source))
        else:
            findings += check(folder)
    return findings


def _lerf_mask_scene(folder: Path) -> list[Finding]:
    scene, found = folder.name, []
    folders = ("images", lerf_mask.TRAIN_LIST, lerf_mask.PROMPT_MASKS)
    for name in folders:
        if not (folder / name).is_dir():
            found.append(missing(f"{scene}/{name}: no such folder", _LERF_MASK_SOURCE))
    if not colmap.detect(folder):
        found.append(missing(f"{scene}/sparse/0: no COLMAP model there", _LERF_MASK_SOURCE))
    if found:
        return found
    settings = DataSettings(source_path=folder)
    try:
        frames = colmap.read_frames(folder, folder / OBJECT_PATH, images=settings.images)
        tests = lerf_mask.test_frames(folder, settings)
    except UserError as error:
        return [missing(f"{scene}: {error}", _LERF_MASK_SOURCE)]
    held_out = {frame.name for frame in tests}
    train = [frame for frame in frames if frame.name not in held_out]
    found += check_photos(f"{scene}/images", frames, _LERF_MASK_SOURCE)
    for alone in without_pose_note(folder / "images", [frame.image_path for frame in frames], frames[0].source):
        found.append(missing(alone, _LERF_MASK_SOURCE))
    found += _lerf_mask_split(folder, frames, tests)
    found += check_masks(f"{scene}/{OBJECT_PATH}", train, kinds=("L", "P"), cure=_MAKE_MASKS)
    return found + _prompt_masks(folder, tests)


def _lerf_mask_split(folder: Path, frames: Sequence[Frame], tests: Sequence[Frame]) -> list[Finding]:
    what = f"{folder.name}/{lerf_mask.TRAIN_LIST}"
    paths = (folder / lerf_mask.TRAIN_LIST).iterdir()
    captures = {path.stem for path in paths if path.suffix in IMAGE_SUFFIXES}
    strangers = sorted(captures - {frame.name for frame in frames})
    found = []
    if strangers:
        found.append(missing(f"{what}: {listed(strangers)} not registered in the COLMAP model", _LERF_MASK_SOURCE))
    names = [frame.name for frame in tests]
    fewest, most = LERF_MASK_TEST_VIEWS
    if not fewest <= len(tests) <= most:
        found.append(
            missing(
                f"{what}: leaves {len(tests)} test views ({listed(names)}), {fewest} to {most} are expected",
                "list all captures there and no test view; " + _LERF_MASK_SOURCE,
            )
        )
    else:
        what += f": {len(frames) - len(tests)} training views, {len(tests)} test views ({', '.join(names)})"
        found.append(present(what))
    return found


def _prompt_masks(folder: Path, tests: Sequence[Frame]) -> list[Finding]:
    """Return whether the prompts of the scene, and no others, have truth masks of the right shape."""
    what, prompts, found = f"{folder.name}/{lerf_mask.PROMPT_MASKS}", lerf_mask.PROMPTS[folder.name], []
    seen: Counter[str] = Counter()
    try:
        files = [(k, lerf_mask.prompt_files(inner)) for k, inner in lerf_mask.prompt_folders(folder)]
    except UserError as error:
        return [missing(f"{folder.name}: {error}", _LERF_MASK_SOURCE)]
    for k, of_view in files:
        if k >= len(tests):
            found.append(
                missing(f"{what}/{k}: there is no test view {k}, only {len(tests)} of them", _LERF_MASK_SOURCE)
            )
            continue
        sizes, broken = probe(of_view.values(), photo_size)
        found += [missing(message, _LERF_MASK_SOURCE) for message in broken]
        found += wrong_shapes(sizes, {path: tests[k] for path in sizes}, _LERF_MASK_SOURCE)
        strangers = sorted(set(of_view) - set(prompts))
        if strangers:
            cure = f"the prompts, with spaces, are: {'; '.join(prompts)}"
            found.append(missing(f"{what}/{k}: {listed(strangers)} is no prompt of this scene", cure))
        seen.update(prompt for prompt, path in of_view.items() if path in sizes and prompt in prompts)
    absent = [prompt for prompt in prompts if not seen[prompt]]
    if absent:
        found.append(missing(f"{what}: no view has a readable mask of {listed(absent)}", _LERF_MASK_SOURCE))
    summary = f"{what}: {sum(seen.values())} masks of {len(prompts) - len(absent)} of {len(prompts)} prompts in views "
    return [*found, present(summary + ", ".join(str(k) for k, _ in files))]


def _replica_scene(folder: Path, num_frames: Mapping[str, int]) -> list[Finding]:
    recording = find_recording(folder)
    if recording is None:
        what = f"{folder.name}: neither traj.txt and results/ nor traj_w_c.txt and rgb/ (Sequence_1/, imap/00/)"
        return [missing(what, _REPLICA_SOURCE)]
    layout, found, masks = recording.layout.name, [], folder / OBJECT_PATH
    scene = (recording.folder.relative_to(folder.parent)).as_posix()
    try:
        count = len(read_trajectory(recording.trajectory))
        frames, test = read_frames(recording, masks)
    except UserError as error:
        return [missing(f"{scene}: {error}", _REPLICA_SOURCE)]
    what = f"{scene}/{recording.trajectory.name}: {count} poses ({layout} rendering), "
    if count == num_frames[layout]:
        what += f"{len(frames) - len(test)} training and {len(test)} test views"
        found.append(present(what))
    else:
        what += f"{num_frames[layout]} are expected"
        found.append(missing(what, _REPLICA_SOURCE))
    photos = f"{scene}/{Path(recording.layout.photo).parent}"
    found += check_photos(photos, list(frames.values()), _REPLICA_SOURCE, usual=REPLICA_SIZES[layout])
    train = {n: frame for n, frame in frames.items() if n not in test}
    found += _depths(scene, folder, recording, train)
    found += _replica_truth(scene, recording, {n: frames[n] for n in test})
    return found + check_masks(f"{folder.name}/{masks.name}", list(train.values()), kinds=None, cure=_MAKE_MASKS)


def _depths(scene: str, folder: Path, recording: Recording, train: Mapping[int, Frame]) -> list[Finding]:
    """Return where initial points come from: the scene can do without, but starts better with depth."""
    cloud = folder / "point_cloud.ply"
    if cloud.is_file():
        try:
            return [present(f"{folder.name}/{cloud.name}: {len(read_point_cloud(cloud).positions)} initial points")]
        except UserError as error:
            return [missing(str(error), "write it again, or remove it: the depth maps serve as well")]
    paths = [path for path in map(recording.depth, train) if path.is_file()]
    good, broken = probe(paths, lambda path: read_depth(path, scale=1.0).shape)
    found = [missing(message, _REPLICA_SOURCE) for message in broken]
    what = f"{scene}/{Path(recording.layout.depth).parent}: {len(good)} of {len(train)} training views have depth"
    if len(good) == len(train):
        return [present(what)]
    cure = "initial points come from the other views" if good else "initial points are triangulated from the photos"
    return [*found, note(what, f"{cure}; for the usual ones {_REPLICA_SOURCE}")]


def _replica_truth(scene: str, recording: Recording, test: Mapping[int, Frame]) -> list[Finding]:
    cure = {
        "nice_slam": (
            "this rendering comes without instance maps: render Replica's habitat/mesh_semantic.ply along traj.txt "
            "into annotations/gt_instance/frame<6 digits>.png (16-bit), or copy semantic_instance/ and traj_w_c.txt "
            "of vMAP's imap/00 beside traj.txt, if the trajectories agree"
        ),
        "semantic_nerf": "fetch Replica_Instance_Segmentation of Semantic-NeRF and unpack semantic_instance.zip here",
        "vmap": "fetch the vMAP release again",
    }[recording.layout.name]
    pattern = recording.truth_pattern()
    if pattern is None:
        return [missing(f"{scene}: no instance maps of the test views", cure)]
    what, found = f"{scene}/{pattern.parent.relative_to(recording.folder)}", []
    try:
        check_same_walk(recording)
    except UserError as error:
        found.append(missing(f"{scene}: {error}", cure))
    paths = {n: recording.truth(n) for n in test}
    absent = [frame.name for n, frame in test.items() if paths[n] is None]
    if absent:
        found.append(missing(f"{what}: no map of {listed(absent)}", cure))
    of_frame = {path: test[n] for n, path in paths.items() if path is not None}
    maps, broken = probe(of_frame, mask_facts)
    found += [missing(message, cure) for message in broken]
    found += wrong_shapes({path: size for path, (size, _, _) in maps.items()}, of_frame, cure)
    narrow = [path.name for path, (_, mode, _) in maps.items() if mode in ("L", "P")]
    if narrow:
        delivered = pattern.parent.name == "semantic_instance"  # as released these are 16-bit
        say = missing if delivered else note
        found.append(say(f"{what}: {listed(narrow)} has 8 bits, ids above 255 would have been cut", cure))
    largest = max((largest for _, _, largest in maps.values()), default=0)
    what += f": {len(maps)} of {len(test)} test views have truth, largest id {largest}"
    return [*found, present(what)]


def _messy_rooms_scene(folder: Path) -> list[Finding]:
    scene = folder.name
    if not messy_rooms.detect(folder):
        what = f"{scene}: metadata.json and color/ are not both there"
        return [missing(what, _MESSY_ROOMS_SOURCE)]
    try:
        frames = messy_rooms.read_frames(folder, folder / messy_rooms.INPUT_MASKS)
    except UserError as error:
        return [missing(f"{scene}: {error}", _MESSY_ROOMS_SOURCE)]
    if not frames:
        return [missing(f"{scene}/color: no photos", _MESSY_ROOMS_SOURCE)]
    tests = [frames[i] for i in last_fifth(len(frames))]
    found = check_photos(f"{scene}/color", frames, _MESSY_ROOMS_SOURCE)
    what = (
        f"{scene}/metadata.json: {len(frames)} poses, {len(frames) - len(tests)} training and {len(tests)} test views"
    )
    found.append(present(what))
    for name in ("instance", "semantic", messy_rooms.INPUT_MASKS):
        found += _id_arrays(folder / name, frames, wide=name != "semantic")
    return found if not is_complete(found) else found + _visible_ids(folder, tests)


def _id_arrays(folder: Path, frames: Sequence[Frame], *, wide: bool) -> list[Finding]:
    """Return whether every frame has an array of its photo's shape; `wide` ones need more than 8 bits."""
    what, paths = f"{folder.parent.name}/{folder.name}", [find_mask(folder, frame.name) for frame in frames]
    absent = [frame.name for frame, path in zip(frames, paths, strict=True) if path is None]
    found = []
    if absent:
        found.append(missing(f"{what}: no array of {listed(absent)}", _MESSY_ROOMS_SOURCE))
    of_frame = {path: frame for frame, path in zip(frames, paths, strict=True) if path is not None}
    arrays, broken = probe(of_frame, _array_header)
    found += [missing(message, _MESSY_ROOMS_SOURCE) for message in broken]
    found += wrong_shapes({path: size for path, (size, _) in arrays.items()}, of_frame, _MESSY_ROOMS_SOURCE)
    narrow = [path.name for path, (_, num_bytes) in arrays.items() if num_bytes < 2]
    if wide and narrow:
        found.append(
            missing(
                f"{what}: {listed(narrow)} has 8 bits, which cannot hold the ids of 500 objects", _MESSY_ROOMS_SOURCE
            )
        )
    return [*found, present(f"{what}: {len(arrays)} of {len(frames)} views")]


def _visible_ids(folder: Path, tests: Sequence[Frame]) -> list[Finding]:
    """Return whether the test views show as many truth ids as are reported for the scene."""
    names = [frame.name for frame in tests]
    try:
        maps = messy_rooms.load_annotations(folder, names, DataSettings(source_path=folder))
    except UserError as error:
        return [missing(f"{folder.name}: {error}", _MESSY_ROOMS_SOURCE)]
    seen = len(set().union(*(np.unique(ids).tolist() for ids in maps.values())))
    expected = MESSY_ROOMS_IDS[folder.name]
    what = f"{folder.name}: {seen} truth ids in the test views, background included"
    if seen == expected:
        return [present(what)]
    cure = f"others report {expected}: is it the same release and the same order of frames?"
    return [note(what, cure)]


def _array_header(path: Path) -> tuple[tuple[int, int], int]:
    """Return (width, height) and bytes per id; of .npy files only the header is read, and the length compared."""
    if path.suffix != ".npy":
        ids = read_mask(path)
        return (ids.shape[1], ids.shape[0]), ids.dtype.itemsize
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable array ({error}); fetch it again") from None
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise UserError(f"{path}: {array.dtype} {list(array.shape)} where whole numbers [H, W] belong; fetch it again")
    return (array.shape[1], array.shape[0]), array.dtype.itemsize
