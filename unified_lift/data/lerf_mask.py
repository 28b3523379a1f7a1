"""LERF-Mask (Gaussian Grouping): a COLMAP scene whose test views have one truth mask per text prompt.

`images/frame_*.jpg` are the captures and `images/test_<k>.jpg` the test views, all registered in `sparse/0/`;
`images_train/` lists the captures; `object_mask/` holds tracked SAM ids, all black for test views;
`test_mask/<k>/<prompt>.png` is the truth of the k-th test view (by sorted name), foreground above grey value 128. Some
test views have no folder, and no view has every prompt. There is no truth map of all objects.

Test views never train, with or without `eval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unified_lift.data import colmap
from unified_lift.data.base import OBJECT_PATH, Frame, Reader, Store, as_pinhole
from unified_lift.data.images import IMAGE_SUFFIXES, Progress, read_image
from unified_lift.data.masks import same_aspect
from unified_lift.data.settings import DataSettings
from unified_lift.data.splits import split_names
from unified_lift.errors import UserError
from unified_lift.types import Scene

PROMPT_MASKS = "test_mask"
TRAIN_LIST = "images_train"
PROMPTS = {
    "figurines": (
        "green apple",
        "green toy chair",
        "old camera",
        "porcelain hand",
        "red apple",
        "red toy chair",
        "rubber duck with red hat",
    ),
    "ramen": ("chopsticks", "egg", "glass of water", "pork belly", "wavy noodles in bowl", "yellow bowl"),
    "teatime": (
        "apple",
        "bag of cookies",
        "coffee mug",
        "cookies on a plate",
        "paper napkin",
        "plate",
        "sheep",
        "spoon handle",
        "stuffed bear",
        "tea in a glass",
    ),
}
"""The text prompts of each scene [Gaussian Grouping]."""
_FOREGROUND = 128  # grey values above it are foreground [Gaussian Grouping]


def detect(root: Path) -> bool:
    """Return whether the folder holds a COLMAP scene with `images_train/` and `test_mask/`."""
    folders = ("images", TRAIN_LIST, PROMPT_MASKS)
    return all((root / folder).is_dir() for folder in folders) and colmap.detect(root)


def load(root: Path, settings: DataSettings, *, progress: Progress | None = None, store: Store | None = None) -> Scene:
    """Return the scene: a COLMAP scene that trains on the views listed in `images_train/`.

    Differs: Gaussian Grouping and Unified-Lift train mask id 0 as one more object or segment; here it is unlabelled.
    Raises:
        UserError: Names the file and the cure.
    """
    scene = colmap.load(root, replace(settings, train_split=True), progress=progress, store=store)
    return replace(scene, dataset="lerf_mask")


def load_annotations(root: Path, names: Sequence[str], settings: DataSettings) -> dict[str, np.ndarray]:
    """Return no truth maps: the data set annotates prompts only."""
    return {}


def load_prompt_masks(root: Path, names: Sequence[str], settings: DataSettings) -> dict[str, dict[str, np.ndarray]]:
    """Return view -> prompt -> truth mask of the named test views, bool [H, W] at native size.

    Raises:
        UserError: A folder belongs to no test view, a prompt occurs twice, or a mask has another shape than its photo.
    """
    tests, wanted, found = test_frames(root, settings), set(names), {}
    for index, folder in prompt_folders(root):
        if index >= len(tests):
            listed = ", ".join(frame.name for frame in tests)
            raise UserError(
                f"{folder}: there is no test view {index} (counted from 0: {listed}); add its photo to "
                f"{root / settings.images} and to the COLMAP model, or remove this folder"
            )
        if tests[index].name in wanted:
            found[tests[index].name] = {
                prompt: _read_prompt_mask(path, tests[index]) for prompt, path in prompt_files(folder).items()
            }
    return found


def test_frames(root: Path, settings: DataSettings) -> list[Frame]:
    """Return the test views, those that `images_train/` does not list, sorted by name."""
    frames = colmap.read_frames(root, root / OBJECT_PATH, images=settings.images)
    chosen = replace(settings, train_split=True, eval=True)
    tests = set(split_names([frame.name for frame in frames], root, chosen)[1])
    return [frame for frame in frames if frame.name in tests]


def prompt_folders(root: Path) -> list[tuple[int, Path]]:
    """Return the folders of truth masks that exist, each with the index of its test view.

    Raises:
        UserError: A folder's name is not a number.
    """
    folders = []
    for path in sorted((root / PROMPT_MASKS).iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        if not path.name.isdecimal():
            raise UserError(f"{path}: is not named after the index of a test view; rename it to 0, 1, ... or remove it")
        folders.append((int(path.name), path))
    return sorted(folders)


def prompt_files(folder: Path) -> dict[str, Path]:
    """Return prompt -> mask file: the prompt is the file name up to the first dot.

    Raises:
        UserError: Two files are named after one prompt.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        prompt = path.name.split(".")[0]
        if prompt in found:
            raise UserError(f"{path}: {found[prompt].name} is a mask of the same prompt; remove one of them")
        found[prompt] = path
    return found


def _read_prompt_mask(path: Path, frame: Frame) -> np.ndarray:
    """Return where the mask is foreground, bool [H, W]; of a colour picture the brightest channel counts."""
    mask = read_image(path).max(axis=-1) > _FOREGROUND
    if not same_aspect((mask.shape[1], mask.shape[0]), (frame.lens.width, frame.lens.height)):
        raise UserError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]} but the photo of {frame.name} is "
            f"{frame.lens.width}x{frame.lens.height}, another shape; fetch it again"
        )
    return as_pinhole(mask.astype(np.int32), frame.lens) > 0


READER = Reader(
    name="lerf_mask",
    looks_for=f"images/, {TRAIN_LIST}/, {PROMPT_MASKS}/ and a COLMAP model",
    detect=detect,
    load=load,
    load_annotations=load_annotations,
    protocol="lerf_mask",
    load_prompt_masks=load_prompt_masks,
    precedence=20,
    frames=colmap.frames_of,
)
