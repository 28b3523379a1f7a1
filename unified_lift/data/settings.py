"""Which scene is read and how: the settings of all readers, and the views that train or are held out by them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np

from unified_lift.data.images import Alpha, photos_in
from unified_lift.errors import UserError
from unified_lift.types import Range

ALL_VIEWS, HALF_OF_VIEWS = 100, 50  # n_views values with a meaning of their own [Gaussian Grouping]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which scene to read and how. Flags keep the meaning they have in 3DGS, Gaussian Grouping and Unified-Lift."""

    source_path: Path = Path()
    """Scene folder (3DGS -s)."""
    images: str = "images"
    """Image folder inside the scene (3DGS -i), such as images_2: of COLMAP, and where transforms.json names images/."""
    sparse: str = "auto"
    """Which COLMAP model of several to read: its folder inside `sparse/`, such as 1; `auto` = that with most images."""
    resolution: Annotated[int, Range(-1, 2**16)] = -1
    """1, 2, 4, 8 divide the size; another positive number is the target width; -1 shrinks only images over 1600 px."""
    eval: bool = False
    """Hold out test views: every 8th by sorted name [3DGS], or the dataset's own split."""
    train_split: bool = False
    """Train on the names found in images_train/, test on the rest [LERF-Mask]."""
    llffhold: Annotated[int, Range(1)] = 8
    """Every llffhold-th view is a test view where the dataset has no split of its own [3DGS]."""
    n_views: Annotated[int, Range(1)] = 100
    """100: all training views; 50: half; another number: that many, evenly spaced [Gaussian Grouping]."""
    object_path: str = "auto"
    """Mask folder inside the scene, or a COCO file of all masks; `auto` = the dataset's own: detic_instance in Messy
    Rooms, else object_mask; `none` = no masks."""
    strict: bool = False
    """Refuse a scene in which a photo is missing, broken or listed twice, or has no usable pose, instead of leaving it
    out. Scenes of the benchmarks are always read so."""
    void_id: str = "auto"
    """Id of pixels that are in no mask, where that is not 0: `auto` = what the masks tell (-1, or 255 far above all
    others), `none`, or an id (several: 0,255). What they are is `zero_id`; 0 is then a segment like others."""
    exclude: str = "auto"
    """Pixels that neither train nor count: `auto` = those that the scene marks (mask_path, dynamic_mask_*.png, black in
    masks/), `none`, or a folder of pictures that are black there."""
    alpha: Alpha = "auto"
    """What the alpha of photos means: `ignore` = nothing, `mask` = transparent pixels neither train nor count,
    `background` = photos lie over the background; `auto` = by layout and photos (docs/masks.md)."""
    random_init: bool = False
    """Start from random points instead of the scene's own."""
    num_random_points: Annotated[int, Range(0, 10**8)] = 20_000
    """Number of random initial points. [ours] 3DGS takes 100k in a fixed cube; ours fill the camera frusta."""
    points_seed: Annotated[int, Range(0, 2**53)] = 0
    """Seed of random initial points."""


def thin(count: int, n_views: int) -> list[int]:
    """Return which of `count` training views stay: 100 all, 50 half, another number that many, evenly spaced."""
    if n_views < 1:
        raise UserError(f"--n_views {n_views}: must be at least 1")
    wanted = {ALL_VIEWS: count, HALF_OF_VIEWS: max(1, round(0.5 * count))}.get(n_views, min(n_views, count))
    return [round(i) for i in np.linspace(0, count - 1, wanted)]


def split_names(
    names: Sequence[str],
    root: Path,
    settings: DataSettings,
    held_out: Collection[str] | None = None,
    train_only: Collection[str] | None = None,
) -> tuple[list[str], list[str]]:
    """Return the training and the test views among `names`, all views of the scene folder `root`, in the order given.

    Without `eval` every view trains. With it the dataset's own list of `held_out` names decides, else every llffhold-th
    name. `train_split` takes the names in `images_train/` for training, with or without `eval`; `train_only` are the
    only ones that the dataset lets train. A UserError says that the split is contradictory or leaves nothing to train.
    """
    if settings.train_split or train_only is not None:
        if settings.eval and held_out is not None:
            raise UserError(f"{root}: the scene has its own list of test views; drop --train_split or remove that list")
        train = list(names_in_images_train(names, root) if train_only is None else train_only)
    elif settings.eval:
        if settings.llffhold < 1:
            raise UserError(f"--llffhold {settings.llffhold}: must be at least 1")
        held = set(names[:: settings.llffhold] if held_out is None else held_out)  # every llffhold-th [3DGS]
        train = [name for name in names if name not in held]
    else:
        train = list(names)
    if not train:
        raise UserError(f"{root}: all {len(names)} views are held out, none is left to train on; drop --eval")
    kept = set(train)
    test = [name for name in names if name not in kept] if settings.eval else []
    return [train[i] for i in thin(len(train), settings.n_views)], test


def names_in_images_train(names: Sequence[str], root: Path) -> list[str]:
    """Return the views whose relative name or stem occurs in `images_train/`; a UserError says that it is empty."""
    folder = root / "images_train"
    stems = {path.relative_to(folder).with_suffix("").as_posix() for path in photos_in(folder)}
    if not stems:
        fix = "add it or drop the flag (a LERF-Mask scene needs it in any case)"
        raise UserError(f"{folder}: --train_split needs this folder with the training images; {fix}")
    return [name for name in names if name in stems or PurePosixPath(name).name in stems]
