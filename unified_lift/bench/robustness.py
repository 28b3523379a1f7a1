"""The rooms of the robustness table: synthetic, with one kind of noise in the masks, or with fewer training views.

The other kinds stay at the defaults of SyntheticSettings. Photos and cameras of a seed don't depend on its masks.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unified_lift.bench.tables import SceneFolder
from unified_lift.errors import UserError
from unified_lift.fileio import read_json, write_json
from unified_lift.model.ply import write_points
from unified_lift.synthetic.scene import (
    SyntheticSettings,
    build_cameras,
    surface_points,
    synthetic_room,
    write_synthetic,
)

BASE = SyntheticSettings(num_objects=12, width=160, height=120)
VIEWS = "views"
KINDS: dict[str, tuple[str, tuple[float, ...]]] = {
    "drop": ("probability that an object has no mask", (0, 0.1, 0.2, 0.35, 0.5)),
    "merge": ("probability that touching objects share a mask", (0, 0.05, 0.1, 0.2, 0.35)),
    "split": ("probability that a mask is cut in two", (0, 0.1, 0.2, 0.35, 0.5)),
    "jitter": ("displacement of mask borders [pixels]", (0, 0.5, 1, 1.5, 2.5)),
    "false_positives": ("masks on nothing, per view", (0, 0.5, 1, 2, 4)),
    VIEWS: ("training views", (48, 32, 24, 16, 10)),
}
"""Kind of noise -> what its amounts are, and these, from the easiest to the hardest."""


def noisy_scene(kind: str, amount: float) -> SceneFolder:
    """Return the scene with one kind of noise; jobs make its rooms, one for each seed."""
    return SceneFolder(name=f"{kind}_{amount:g}", path=Path(), kind=kind, amount=amount)


def write_room(root: Path, kind: str, amount: str, *, seed: int) -> None:
    """Write the room of a seed with one kind of noise, or with only so many training views.

    Raises:
        UserError: No such kind, or an amount that it cannot have.
    """
    if kind not in KINDS:
        raise UserError(f"--room {kind}: no such kind of noise; there are {', '.join(KINDS)}")
    try:
        noise: dict[str, Any] = {} if kind == VIEWS else {kind: float(amount)}
        settings, views = replace(BASE, seed=seed, **noise), int(amount) if kind == VIEWS else BASE.num_train
    except ValueError as error:
        raise UserError(f"--room {kind} {amount}: {error}") from None
    partial = root.with_name(root.name + ".partial")  # so that a room is complete or absent
    shutil.rmtree(partial, ignore_errors=True)
    write_synthetic(partial, settings)
    if views < settings.num_train:
        keep_training_views(partial, settings, views)
    partial.rename(root)


def keep_training_views(root: Path, settings: SyntheticSettings, count: int) -> None:
    """Leave a room only its first `count` training views, and initial points only on what these see.

    A smaller `num_views` would also hold out fewer views, and others, whose scores could not be compared.
    """
    path = root / "transforms.json"
    content = read_json(path)
    content["train_filenames"] = content["train_filenames"][:count]
    kept = {*content["train_filenames"], *content["test_filenames"]}
    content["frames"] = [frame for frame in content["frames"] if frame["file_path"] in kept]
    write_json(path, content)
    room = synthetic_room(settings)
    cameras = list(build_cameras(room, settings)[:count])
    images, _, depths = zip(*map(room.render, cameras), strict=True)
    rng = np.random.default_rng([settings.seed, 3])
    points = surface_points(cameras, list(images), list(depths), count=settings.num_points, rng=rng)
    write_points(root / "points3D.ply", points)
