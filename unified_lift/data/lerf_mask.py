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
from PIL import Image

from unified_lift.data import colmap
from unified_lift.data.base import OBJECT_PATH, Frame, Reader, Store, as_pinhole
from unified_lift.data.colmap_io import ColmapCamera, points_of, write_model
from unified_lift.data.images import IMAGE_SUFFIXES, Progress, read_image, write_image
from unified_lift.data.masks import same_aspect
from unified_lift.data.miniature import LANDMARK_ID, floor_cloud, miniature_views, orbit
from unified_lift.data.splits import split_names
from unified_lift.errors import UserError
from unified_lift.types import DataSettings, Scene

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


def write_miniature(root: Path) -> None:
    """Write 8 captures and 3 test views of 32x24: 8-bit tracked masks, two prompts in view 0, one in view 2.

    A prompt has spaces. Mask values of 129 are foreground and of 128 are not.
    """
    names = [f"frame_{n:05d}" for n in range(1, 9)] + [f"test_{n}" for n in range(3)]
    cameras = orbit(len(names), width=32, height=24)
    focal = cameras[0].fx
    lens = ColmapCamera(model="PINHOLE", width=32, height=24, params=(focal, focal, 16.0, 12.0))
    images = {n + 1: colmap.observed_image(camera, f"{names[n]}.jpg", camera_id=1) for n, camera in enumerate(cameras)}
    write_model(root / "sparse/0", {1: lens}, images, points_of(*floor_cloud(300)))
    for name, view in zip(names, miniature_views(cameras), strict=True):
        write_image(root / "images" / f"{name}.jpg", view.image)
        is_test = name.startswith("test_")
        tracked = np.where(view.ids > 255, view.ids - 250, view.ids)  # one 8-bit id per object in all views
        _write_grey(root / "object_mask" / f"{name}.png", np.zeros_like(tracked) if is_test else tracked)
        if not is_test:
            write_image(root / TRAIN_LIST / f"{name}.jpg", view.image)
        if name in ("test_0", "test_2"):
            folder = root / PROMPT_MASKS / name[-1]
            _write_grey(folder / "red coin with a very long name.png", _prompt_mask(view.ids == LANDMARK_ID))
            if name == "test_0":
                _write_grey(folder / "blue coin.png", _prompt_mask(view.ids == 301))


def _prompt_mask(inside: np.ndarray) -> np.ndarray:
    """Return the grey mask of a region with the two values next to the threshold in it."""
    grey = np.where(inside, 255, 0)
    grey[tuple(np.argwhere(inside)[0])] = 129
    grey[tuple(np.argwhere(~inside)[-1])] = 128
    return grey


def _write_grey(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


READER = Reader(
    name="lerf_mask",
    looks_for=f"images/, {TRAIN_LIST}/, {PROMPT_MASKS}/ and a COLMAP model",
    detect=detect,
    load=load,
    load_annotations=load_annotations,
    write_miniature=write_miniature,
    protocol="lerf_mask",
    load_prompt_masks=load_prompt_masks,
    precedence=20,
    frames=colmap.frames_of,
)
