"""LERF-Mask (Gaussian Grouping): a COLMAP scene whose test views have one exact mask per text prompt.

`images/frame_*.jpg` are the captures and `images/test_<k>.jpg` the test views, all registered in `sparse/0/`;
`images_train/` lists the captures; `object_mask/` holds tracked SAM ids, all black for test views;
`test_mask/<k>/<prompt>.png` is the mask of the k-th test view (by sorted name), foreground above grey value 128. Some
test views have no folder, and no view has every prompt. There is no map of all objects.

Test views never train, with or without `eval`. Differs: Gaussian Grouping and Unified-Lift train mask id 0 as one more
object or segment; here it is unlabelled.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from unified_lift.data import colmap
from unified_lift.data.base import Reader, SceneDescription
from unified_lift.data.images import photos_in
from unified_lift.data.settings import DataSettings, names_in_images_train
from unified_lift.errors import UserError

PROMPT_MASKS = "test_mask"
TRAIN_LIST = "images_train"
PROMPTS = {
    "figurines": "green apple, green toy chair, old camera, porcelain hand, red apple, red toy chair, "
    "rubber duck with red hat",
    "ramen": "chopsticks, egg, glass of water, pork belly, wavy noodles in bowl, yellow bowl",
    "teatime": "apple, bag of cookies, coffee mug, cookies on a plate, paper napkin, plate, sheep, spoon handle, "
    "stuffed bear, tea in a glass",
}
"""The text prompts of each scene, comma-separated [Gaussian Grouping]."""


def detect(root: Path) -> bool:
    """Return whether the folder holds a COLMAP scene with `images_train/` and `test_mask/`."""
    folders = ("images", TRAIN_LIST, PROMPT_MASKS)
    return all((root / folder).is_dir() for folder in folders) and colmap.model_folder(root) is not None


def describe(root: Path, settings: DataSettings) -> SceneDescription:
    """Return the COLMAP scene of which only the views listed in `images_train/` train."""
    described = colmap.describe(root, settings)
    names = [frame.name for frame in described.frames]
    train = names_in_images_train(names, root)
    tests = [name for name in names if name not in set(train)]

    def prompt_masks(wanted: Collection[str]) -> dict[str, dict[str, Path]]:
        folders = prompt_folders(root)
        for index, folder in folders.items():
            if index >= len(tests):
                what = f"there is no test view {index} (counted from 0: {', '.join(tests)})"
                fix = f"add its photo to {root / settings.images} and to the COLMAP model, or remove this folder"
                raise UserError(f"{folder}: {what}; {fix}")
        return {tests[index]: prompt_files(path) for index, path in folders.items() if tests[index] in wanted}

    return replace(described, train_only=train, annotations=lambda _: {}, prompt_masks=prompt_masks)


def prompt_folders(root: Path) -> dict[int, Path]:
    """Return the folders of prompt masks by the index of their test view; a UserError names one that has none."""
    paths = [path for path in (root / PROMPT_MASKS).iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in paths:
        if not path.name.isdecimal():
            raise UserError(f"{path}: is not named after the index of a test view; rename it to 0, 1, ... or remove it")
    return {int(path.name): path for path in sorted(paths, key=lambda path: int(path.name))}


def prompt_files(folder: Path) -> dict[str, Path]:
    """Return prompt -> mask file: the prompt is the file name up to the first dot, and occurs once."""
    found: dict[str, Path] = {}
    for path in photos_in(folder, "*"):
        prompt = path.name.split(".")[0]
        if prompt in found:
            raise UserError(f"{path}: {found[prompt].name} is a mask of the same prompt; remove one of them")
        if not path.name.startswith("."):
            found[prompt] = path
    return found


READER = Reader(
    name="lerf_mask",
    looks_for=f"images/, {TRAIN_LIST}/, {PROMPT_MASKS}/ and a COLMAP model",
    detect=detect,
    describe=describe,
    protocol="lerf_mask",
    precedence=20,
)
