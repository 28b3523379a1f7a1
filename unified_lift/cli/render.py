"""render.py: pictures of every view of a trained scene, and a video around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from tqdm import tqdm

from unified_lift.cli.flags import canonical
from unified_lift.device import chosen_device
from unified_lift.errors import UserError
from unified_lift.evaluation.pictures import PictureWriter, depth_picture, object_colors, overlay, uncertainty_picture
from unified_lift.evaluation.video import FPS, video_path, write_video
from unified_lift.metrics.image import quantize_uint8
from unified_lift.modelfolder.inference import RenderedView, TrainedScene, open_model, render_view
from unified_lift.types import Scene, View

OBJECT_PICTURES = ("objects_pred", "objects_color", "overlay", "uncertainty")
"""Folders only a lifted scene has, beside renders, gt and depth."""
_VIDEO_OBJECT_SHARE = 0.75  # of the object colour in the right half of the video: shading stays visible


@dataclass(frozen=True, kw_only=True)
class RenderCommand:
    """Render the views of a trained scene: colour, object ids, overlays, uncertainty, depth, and a video.

    Example: render.py -m output/desk
    """

    model_path: Path
    """Model folder (-m) [3DGS]."""
    iteration: int = -1
    """Saved iteration; -1 = the last [3DGS]."""
    source_path: Path | None = None
    """Scene folder (-s), if it has moved since training."""
    skip_train: bool = False
    """No pictures of training views [3DGS]."""
    skip_test: bool = False
    """No pictures of held-out views [3DGS]."""
    video: bool = True
    """Write orbit_<N>.mp4: colour beside objects."""
    video_seconds: float = 8.0
    """Length of the video."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to render; `auto`: a CUDA device if there is one and the rasterizer was built for it."""
    quiet: bool = False
    """No progress bars [3DGS]."""


def render_main(argv: list[str]) -> int:
    """Parse, render, write. Return the exit code."""
    command = tyro.cli(RenderCommand, args=canonical(argv), prog="render.py")
    if not 0 < command.video_seconds < 3600:
        raise UserError(f"--video_seconds must lie between 0 and 3600, received {command.video_seconds}")
    model, scene = open_model(
        command.model_path,
        iteration=command.iteration,
        source_path=command.source_path,
        device=chosen_device(command.device),
    )
    if not scene.test and not command.skip_test:
        print("note: no view is held out; train with --eval to have test views")
    if not model.is_lifted:
        print("note: this model knows no objects (no lift was trained): only renders, gt and depth are written")
    for split, views, skipped in (("test", scene.test, command.skip_test), ("train", scene.train, command.skip_train)):
        if views and not skipped:
            folder = pictures_dir(command.model_path, split, model.iteration)
            render_split(model, views, folder, quiet=command.quiet)
            print(f"{folder}: {len(views)} views")
    if command.video:
        path = command.model_path / f"orbit_{model.iteration}.mp4"
        write_video(path, _video_frames(model, scene, seconds=command.video_seconds, quiet=command.quiet))
        print(f"{path}: {command.video_seconds:g} s")
    return 0


def pictures_dir(model_path: Path, split: str, iteration: int) -> Path:
    """Return `<model>/{train,test}/ours_<N>`."""
    return model_path / split / f"ours_{iteration}"


def picture_path(folder: Path, kind: str, name: str) -> Path:
    """Return `<folder>/<kind>/<view name>.png`; sub-folders of the name stay, so no two views collide."""
    return folder / kind / f"{name}.png"


def render_split(model: TrainedScene, views: Sequence[View], folder: Path, *, quiet: bool) -> None:
    """Write all pictures of the views below `folder`."""
    with PictureWriter() as writer:
        for view in tqdm(views, desc=f"render {folder.parent.name}", disable=quiet, dynamic_ncols=True):
            for kind, picture in pictures_of(render_view(model, view.camera)).items():
                writer.write(picture_path(folder, kind, view.name), picture)
            writer.write(picture_path(folder, "gt", view.name), view.image.numpy())


def pictures_of(rendered: RenderedView) -> dict[str, np.ndarray]:
    """Return kind -> picture of a rendered view; object pictures only where it was lifted."""
    image = quantize_uint8(rendered.image).numpy()
    pictures = {"renders": image, "depth": depth_picture(rendered.depth.numpy(), rendered.alpha.numpy())}
    if rendered.object_ids is None or rendered.confidence is None:
        return pictures
    ids = rendered.object_ids.numpy()
    objects = (ids, object_colors(ids), overlay(image, ids), uncertainty_picture(rendered.confidence.numpy()))
    return pictures | dict(zip(OBJECT_PICTURES, objects, strict=True))


def _video_frames(model: TrainedScene, scene: Scene, *, seconds: float, quiet: bool) -> Iterator[np.ndarray]:
    """Yield colour beside object colours, [H, 2W, 3]; colour alone where nothing was lifted."""
    count = max(1, round(seconds * FPS))
    path = video_path([view.camera for view in scene.train], count=count)
    for camera in tqdm(path, desc="video", disable=quiet, dynamic_ncols=True):
        rendered = render_view(model, camera)
        image = quantize_uint8(rendered.image).numpy()
        if rendered.object_ids is None:
            yield image
        else:
            yield np.hstack([image, overlay(image, rendered.object_ids.numpy(), share=_VIDEO_OBJECT_SHARE)])
