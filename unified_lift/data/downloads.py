"""Checks of a download against what is known of a benchmark: what is present, what is missing, what to do about it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unified_lift.data import colmap, lerf_mask, messy_rooms, replica
from unified_lift.data.base import OBJECT_PATH, Frame, Reader, SceneDescription, listed
from unified_lift.data.images import photos_in
from unified_lift.data.issues import Issues, check_masks, check_photos, check_shape, photo_size, probe
from unified_lift.data.masks import MaskFile, find_mask, read_mask
from unified_lift.data.replica import Recording
from unified_lift.data.scene import describe
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.plyio import read_point_cloud

REPLICA_SCENES = ("room0", "room1", "room2", "office0", "office1", "office2", "office3", "office4")
REPLICA_FRAMES = {"nice_slam": 2000, "semantic_nerf": 900, "vmap": 2000}
# Exact ids seen in the test views, background included [PCF-Lift's result table].
MESSY_ROOMS_IDS = {"old_room_25": 26, "old_room_50": 51, "old_room_100": 101, "old_room_500": 465}
MESSY_ROOMS_IDS |= {"large_corridor_25": 26, "large_corridor_50": 51, "large_corridor_100": 101}
MESSY_ROOMS_IDS["large_corridor_500"] = 454
_MAKE_MASKS = (
    "run a 2D segmenter (for the paper: SAM, whole objects only) on every training photo and save one 8- or 16-bit "
    "grey PNG of ids under the photo's name, 0 = claimed by no mask"
)
_INSTANCE_MAPS = {
    "nice_slam": (
        "this rendering comes without instance maps: render Replica's habitat/mesh_semantic.ply along traj.txt "
        "into annotations/gt_instance/frame<6 digits>.png (16-bit), or copy semantic_instance/ and traj_w_c.txt "
        "of vMAP's imap/00 beside traj.txt, if the trajectories agree"
    ),
    "semantic_nerf": "fetch Replica_Instance_Segmentation of Semantic-NeRF and unpack semantic_instance.zip here",
    "vmap": "fetch the vMAP release again",
}


def check_download(benchmark: str, root: Path) -> Issues:
    """Return what is present and what is missing of all scenes of one of `BENCHMARKS`; a UserError: no such folder."""
    scenes, source, check = BENCHMARKS[benchmark]
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds {', '.join(names[0] for names in scenes)}")
    issues = Issues(source)
    for names in scenes:
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if folder is None:
            issues.error(f"{' or '.join(names)}: no such scene")
            continue
        try:
            check(folder, issues)
        except UserError as error:
            issues.refused(error, f"{folder.name}: ")
    return issues


def _described(
    reader: Reader, folder: Path, issues: Issues, photos: str, *, usual: tuple[int, int] | None = None
) -> SceneDescription:
    """Return what the reader says; check that every posed photo is readable, and of one size that fits its camera."""
    described = describe(reader, DataSettings(source_path=folder))
    for message in described.broken:
        issues.refused(message, f"{folder.name}: ")
    sizes = check_photos(issues, described.frames, folder=photos)
    counts = Counter(sizes.values())
    odd = [path.name for path, size in sizes.items() if size != counts.most_common(1)[0][0]]
    issues.error(f"{photos}: {listed(odd)} has another size", when=odd)
    found = " and ".join(f"{width}x{height}" for width, height in sorted(counts))
    if usual is not None and counts and set(counts) != {usual}:
        text = f"{photos}: {found} where {usual[0]}x{usual[1]} is usual"
        issues.note(text, "scores of other sizes do not compare")
    issues.add("ok", f"{photos}: {len(sizes)} of {len(described.frames)} photos, {found or 'no size'}")
    return described


def _masks(issues: Issues, what: str, train: Sequence[Frame], *, as_released: bool) -> None:
    """Check that every training view has an input mask of its photo's shape; those released are 8-bit."""
    masks = check_masks(issues, train, make=_MAKE_MASKS, folder=what, needed=True)
    other = [path.name for path, numbers in masks.items() if not numbers.kind.startswith("8-bit")]
    fix = "they are read; as released the masks are 8-bit: record where these come from"
    issues.note(f"{what}: {listed(other)} is not 8-bit", fix, when=as_released and other)
    issues.add("ok", f"{what}: {len(masks)} of {len(train)} training views have a mask")


def _lerf_mask_scene(folder: Path, issues: Issues) -> None:
    scene, before = folder.name, len(issues)
    for name in ("images", lerf_mask.TRAIN_LIST, lerf_mask.PROMPT_MASKS):
        issues.error(f"{scene}/{name}: no such folder", when=not (folder / name).is_dir())
    issues.error(f"{scene}/sparse/0: no COLMAP model there", when=not colmap.model_folder(folder))
    if len(issues) > before:
        return
    described = _described(lerf_mask.READER, folder, issues, f"{scene}/images")
    for note in described.notes:
        issues.error(note, when="no pose in" in note)
    train_names, names = set(described.train_only or ()), [frame.name for frame in described.frames]
    train, tests = ([f for f in described.frames if (f.name in train_names) == trains] for trains in (True, False))
    what = f"{scene}/{lerf_mask.TRAIN_LIST}"
    strangers = sorted({path.stem for path in photos_in(folder / lerf_mask.TRAIN_LIST, "*")} - set(names))
    issues.error(f"{what}: {listed(strangers)} not registered in the COLMAP model", when=strangers)
    usual, listing = 2 <= len(tests) <= 4, listed([frame.name for frame in tests])
    issues.add("ok", f"{what}: {len(train)} training views, {len(tests)} test views ({listing})", when=usual)
    text = f"{what}: leaves {len(tests)} test views ({listing}), 2 to 4 are expected"
    issues.error(text, "list all captures there and no test view", when=not usual)
    _masks(issues, f"{scene}/{OBJECT_PATH}", train, as_released=True)
    _prompt_masks(folder, tests, issues)


def _prompt_masks(folder: Path, tests: Sequence[Frame], issues: Issues) -> None:
    """Check that the prompts of the scene, and no others, have masks of the right shape."""
    what, prompts = f"{folder.name}/{lerf_mask.PROMPT_MASKS}", lerf_mask.PROMPTS[folder.name].split(", ")
    seen: Counter[str] = Counter()
    files = {k: lerf_mask.prompt_files(inner) for k, inner in lerf_mask.prompt_folders(folder).items()}
    for k, of_view in files.items():
        if k >= len(tests):
            issues.error(f"{what}/{k}: there is no test view {k}, only {len(tests)} of them")
            continue
        sizes = probe(issues, of_view.values(), photo_size)
        for path, size in sizes.items():
            check_shape(issues, path, size, tests[k])
        strangers = sorted(set(of_view) - set(prompts))
        fix = f"the prompts, with spaces, are: {'; '.join(prompts)}"
        issues.error(f"{what}/{k}: {listed(strangers)} is no prompt of this scene", fix, when=strangers)
        seen.update(prompt for prompt, path in of_view.items() if path in sizes and prompt in prompts)
    absent = [prompt for prompt in prompts if not seen[prompt]]
    issues.error(f"{what}: no view has a readable mask of {listed(absent)}", when=absent)
    counts = f"{seen.total()} masks of {len(prompts) - len(absent)} of {len(prompts)} prompts"
    issues.add("ok", f"{what}: {counts} in views {', '.join(map(str, files))}")


def _replica_scene(folder: Path, issues: Issues) -> None:
    recording = replica.find_recording(folder)
    if recording is None:
        issues.error(f"{folder.name}: neither traj.txt and results/ nor traj_w_c.txt and rgb/ (Sequence_1/, imap/00/)")
        return
    layout, scene = recording.layout, recording.folder.relative_to(folder.parent).as_posix()
    count, expected = len(replica.read_trajectory(recording.trajectory)), REPLICA_FRAMES[layout]
    photos = f"{scene}/{recording.photos.parent.name}"
    frames = _described(
        replica.READER, folder, issues, photos, usual=(640, 480) if layout == "semantic_nerf" else (1200, 680)
    ).frames
    numbers, held_out = replica.benchmark_frames(recording, count)
    train, test = ({numbers[f.name]: f for f in frames if (f.name in held_out) == held} for held in (False, True))
    what = f"{scene}/{recording.trajectory.name}: {count} poses ({layout} rendering)"
    whole = count == expected
    issues.add("ok", f"{what}, {len(train)} training and {len(test)} test views", when=whole)
    issues.error(f"{what}, {expected} are expected", when=not whole)
    _initial_points(scene, folder, recording, train, issues)
    _instance_maps(scene, recording, test, own := Issues(_INSTANCE_MAPS[layout]))
    issues += own
    _masks(issues, f"{folder.name}/{OBJECT_PATH}", list(train.values()), as_released=False)


def _initial_points(scene: str, folder: Path, recording: Recording, train: Mapping[int, Frame], issues: Issues) -> None:
    """Check where initial points come from: the scene can do without depth, but starts better with it."""
    cloud = folder / "point_cloud.ply"
    if cloud.is_file():
        try:
            issues.add("ok", f"{folder.name}/{cloud.name}: {len(read_point_cloud(cloud).positions)} initial points")
        except UserError as error:
            issues.error(str(error), "write it again, or remove it: the depth maps serve as well")
        return
    numbers = [n for n in train if recording.depth(n).is_file()]
    good = probe(issues, numbers, lambda n: replica.read_depth(recording, n).shape)
    what = f"{scene}/{recording.depths.parent.name}: {len(good)} of {len(train)} training views have depth"
    fix = "initial points come from the other views" if good else "initial points are triangulated from the photos"
    whole = len(good) == len(train)
    issues.add("ok" if whole else "note", what, "" if whole else f"{fix}; for the usual ones {issues.fix}")


def _instance_maps(scene: str, recording: Recording, test: Mapping[int, Frame], issues: Issues) -> None:
    pattern = recording.annotations
    if pattern is None:
        issues.error(f"{scene}: no instance maps of the test views")
        return
    what = f"{scene}/{pattern.parent.relative_to(recording.folder)}"
    try:
        replica.check_same_walk(recording)
    except UserError as error:
        issues.refused(error, f"{scene}: ")
    annotated = [replace(frame, mask=recording.annotation(n)) for n, frame in test.items()]
    maps = check_masks(issues, annotated, make=issues.fix, folder=what, needed=True)
    narrow = [path.name for path, numbers in maps.items() if numbers.kind.startswith("8-bit")]
    text = f"{what}: {listed(narrow)} has 8 bits, ids above 255 would have been cut"
    released = pattern.parent.name == "semantic_instance"  # these have 16 bits
    issues.add("error" if released else "note", text, issues.fix, when=narrow)
    largest = max((numbers.largest for numbers in maps.values()), default=0)
    issues.add("ok", f"{what}: {len(maps)} of {len(test)} test views have exact ids, largest id {largest}")


def _messy_rooms_scene(folder: Path, issues: Issues) -> None:
    scene, before = folder.name, len(issues.errors)
    if not messy_rooms.detect(folder):
        issues.error(f"{scene}: metadata.json and color/ are not both there")
        return
    described = _described(messy_rooms.READER, folder, issues, f"{scene}/color")
    frames, tests = described.frames, list(described.held_out or ())
    if not frames:
        issues.error(f"{scene}/color: no photos")
        return
    counts = f"{len(frames) - len(tests)} training and {len(tests)} test views"
    issues.add("ok", f"{scene}/metadata.json: {len(frames)} poses, {counts}")
    for name in ("instance", "semantic", messy_rooms.INPUT_MASKS):
        _id_arrays(folder / name, frames, issues)
    if len(issues.errors) > before:
        return
    maps = messy_rooms.exact_ids(folder, tests)
    seen, expected = len({i for ids in maps.values() for i in np.unique(ids).tolist()}), MESSY_ROOMS_IDS[scene]
    text = f"{scene}: {seen} exact ids in the test views, background included"
    fix = f"others report {expected}: is it the same release and the same order of frames?"
    issues.add("ok" if seen == expected else "note", text, "" if seen == expected else fix)


def _id_arrays(folder: Path, frames: Sequence[Frame], issues: Issues) -> None:
    """Check that every frame has an array of its photo's shape; those of objects need more than 8 bits."""
    what, masks = f"{folder.parent.name}/{folder.name}", {frame.name: find_mask(folder, frame.name) for frame in frames}
    of_mask = {mask: frame for frame in frames if (mask := masks[frame.name])}
    absent = [name for name, mask in masks.items() if not mask]
    issues.error(f"{what}: no array of {listed(absent)}", when=absent)
    arrays = probe(issues, of_mask, _array_header)
    for mask, (size, _) in arrays.items():
        check_shape(issues, mask.path, size, of_mask[mask])
    narrow = [mask.path.name for mask, (_, num_bytes) in arrays.items() if num_bytes < 2]
    text = f"{what}: {listed(narrow)} has 8 bits, which cannot hold the ids of 500 objects"
    issues.error(text, when=narrow and folder.name != "semantic")
    issues.add("ok", f"{what}: {len(arrays)} of {len(frames)} views")


def _array_header(mask: MaskFile) -> tuple[tuple[int, int], int]:
    """Return (width, height) and bytes per id; of .npy files only the header is read, and the length compared."""
    path = mask.path
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False) if path.suffix == ".npy" else read_mask(mask)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable array ({error}); fetch it again") from None
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise UserError(f"{path}: {array.dtype} {list(array.shape)} where whole numbers [H, W] belong; fetch it again")
    return (array.shape[1], array.shape[0]), array.dtype.itemsize


# The scenes of each download, each under any of several folder names, where to get them, and the check of one.
BENCHMARKS: dict[str, tuple[Sequence[tuple[str, ...]], str, Callable[[Path, Issues], None]]] = {
    "lerf_mask": (
        [(name,) for name in lerf_mask.PROMPTS],
        "fetch data/lerf_mask from the Gaussian Grouping authors' Hugging Face page",
        _lerf_mask_scene,
    ),
    "replica": (
        [(name, f"{name[:-1]}_{name[-1]}") for name in REPLICA_SCENES],
        "fetch the nice-slam rendering of Replica (its download script; DN-Splatter uses the same), or the rooms of "
        "the Semantic-NeRF or the vMAP release",
        _replica_scene,
    ),
    "messy_rooms": (
        [(name,) for name in MESSY_ROOMS_IDS],
        "fetch the Messy Rooms data set from the Contrastive Lift project page",
        _messy_rooms_scene,
    ),
}
