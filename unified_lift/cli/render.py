"""render.py: pictures of every view of a trained scene, and a video around it."""

from dataclasses import dataclass
from typing import Annotated

from unified_lift.cli.model_flags import SceneFlags
from unified_lift.evaluation.pictures import pictures_dir, write_renderings
from unified_lift.evaluation.video import orbit_frames, write_video
from unified_lift.settings.limits import Range


@dataclass(frozen=True, kw_only=True)
class RenderCommand(SceneFlags):
    """Render the views of a trained scene: colour, object ids, overlays, uncertainty, depth, and a video.

    Example: unified-lift render -m output/desk
    """

    skip_train: bool = False
    """No pictures of training views [3DGS]."""
    skip_test: bool = False
    """No pictures of held-out views [3DGS]."""
    video: bool = True
    """Write orbit_<N>.mp4: colour beside objects."""
    video_seconds: Annotated[float, Range(0.01, 3600)] = 8.0
    """Length of the video."""


def render_main(argv: list[str]) -> int:
    """Parse, render, write. Return the exit code."""
    command = RenderCommand.parsed(argv, command="render")
    model, scene = command.open()
    if not scene.test and not command.skip_test:
        print("note: no view is held out; train with --eval to have test views")
    if not model.is_lifted:
        print("note: this model knows no objects (no lift was trained): only renders, gt and depth are written")
    for split, views, skipped in (("test", scene.test, command.skip_test), ("train", scene.train, command.skip_train)):
        if views and not skipped:
            folder = pictures_dir(model.path, split, model.iteration)
            write_renderings(model, views, folder, quiet=command.quiet)
            print(f"{folder}: {len(views)} views")
    if command.video:
        video = model.path / f"orbit_{model.iteration}.mp4"
        write_video(video, orbit_frames(model, scene, seconds=command.video_seconds, quiet=command.quiet))
        print(f"{video}: {command.video_seconds:g} s")
    return 0
