"""The pictures of a model's views in its folder: `<model>/{train,test}/ours_<N>/<kind>/<view>.png`."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from unified_lift.errors import UserError
from unified_lift.evaluation import pictures
from unified_lift.evaluation.evaluate import Rendering
from unified_lift.modelfolder.inference import RenderedView, TrainedScene, render_view
from unified_lift.modelfolder.outputs import iteration_dir
from unified_lift.types import View

OBJECT_PICTURES = ("objects_pred", "objects_color", "overlay", "uncertainty")
"""Kinds only a lifted scene has, beside renders, gt and depth."""


def pictures_dir(model_path: Path, split: str, iteration: int) -> Path:
    """Return `<model>/{train,test}/ours_<N>`."""
    return model_path / split / f"ours_{iteration}"


def picture_path(folder: Path, kind: str, name: str) -> Path:
    """Return `<folder>/<kind>/<view name>.png`; sub-folders of the name stay, so no two views collide."""
    return folder / kind / f"{name}.png"


def write_renderings(model: TrainedScene, views: Sequence[View], folder: Path, *, quiet: bool) -> None:
    """Write all pictures of the views below `folder`."""
    with ThreadPoolExecutor(4) as pool:
        jobs = []
        for view in tqdm(views, desc=f"render {folder.parent.name}", disable=quiet, dynamic_ncols=True):
            shown = _pictures_of(render_view(model, view.camera)) | {"gt": view.image.numpy()}
            for kind, picture in shown.items():
                jobs.append(pool.submit(pictures.write_picture, picture_path(folder, kind, view.name), picture))
    for job in jobs:
        job.result()  # passes errors on


def _pictures_of(rendered: RenderedView) -> dict[str, np.ndarray]:
    image = pictures.quantize_uint8(rendered.image)
    shown = {"renders": image, "depth": pictures.depth_picture(rendered.depth.numpy(), rendered.alpha.numpy())}
    if rendered.object_ids is not None and rendered.confidence is not None:
        ids, unsure = rendered.object_ids.numpy(), pictures.uncertainty_picture(rendered.confidence.numpy())
        objects = (ids, pictures.object_colors(ids), pictures.overlay(image, ids), unsure)
        shown |= zip(OBJECT_PICTURES, objects, strict=True)
    return shown


def stored_renderings(model: TrainedScene, views: Sequence[View], *, quiet: bool = True) -> Iterator[Rendering]:
    """Yield the stored rendering of each held-out view, after rendering those that are missing or older than the model.

    A picture that is damaged or of another size than the photo is a UserError.
    """
    folder = pictures_dir(model.path, "test", model.iteration)
    saved = max(path.stat().st_mtime for path in iteration_dir(model.path, model.iteration).iterdir())
    kinds = ("renders", "gt", *(OBJECT_PICTURES if model.is_lifted else ()))

    def is_stale(path: Path) -> bool:
        return not path.exists() or path.stat().st_mtime < saved

    stale = [view for view in views if any(is_stale(picture_path(folder, kind, view.name)) for kind in kinds)]
    if stale:
        write_renderings(model, stale, folder, quiet=quiet)
    for view in views:
        path = picture_path(folder, "renders", view.name)
        image = pictures.read_picture(path)
        if image.shape != tuple(view.image.shape):
            raise UserError(f"{path}: size differs from the photo's; delete {folder} and run eval.py again")
        ids = picture_path(folder, "objects_pred", view.name)
        yield Rendering(image, pictures.read_picture(ids) if model.is_lifted else None)
