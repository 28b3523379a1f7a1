"""render.py: pictures of every view of a trained scene, and a video around it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from unified_lift.cli.flags import canonical
from unified_lift.device import chosen_device
from unified_lift.errors import UserError
from unified_lift.evaluation.renderings import pictures_dir, write_renderings
from unified_lift.evaluation.video import orbit_frames, write_video
from unified_lift.modelfolder.inference import open_model


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
    path, device = command.model_path, chosen_device(command.device)
    model, scene = open_model(path, iteration=command.iteration, source_path=command.source_path, device=device)
    if not scene.test and not command.skip_test:
        print("note: no view is held out; train with --eval to have test views")
    if not model.is_lifted:
        print("note: this model knows no objects (no lift was trained): only renders, gt and depth are written")
    for split, views, skipped in (("test", scene.test, command.skip_test), ("train", scene.train, command.skip_train)):
        if views and not skipped:
            folder = pictures_dir(path, split, model.iteration)
            write_renderings(model, views, folder, quiet=command.quiet)
            print(f"{folder}: {len(views)} views")
    if command.video:
        video = path / f"orbit_{model.iteration}.mp4"
        write_video(video, orbit_frames(model, scene, seconds=command.video_seconds, quiet=command.quiet))
        print(f"{video}: {command.video_seconds:g} s")
    return 0
