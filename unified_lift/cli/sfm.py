"""unified-lift sfm: photos or a video to a scene with camera poses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from unified_lift.capture.sfm import PICTURE, REPORT, STAGES, SfmSettings, reconstruct
from unified_lift.capture.sfm_report import report_lines
from unified_lift.cli.flags import canonical

_NAMES = {
    "photos": "prepare photos",
    "features": "find features",
    "matches": "match photos",
    "mapping": "place cameras",
    "undistortion": "undistort",
}


@dataclass(frozen=True, kw_only=True)
class SfmCommand:
    """Find the camera poses of your photos or of a video's sharp frames, and write a scene that train.py reads.

    Example: unified-lift sfm holiday/photos -s scenes/holiday
    """

    photos: tyro.conf.Positional[Path]
    """Folder of photos, or a video file."""
    source_path: Path
    """Scene folder to write (-s)."""
    max_size: int = SfmSettings.max_size
    """Longer side in pixels of the photos that are matched and written."""
    frames: int = SfmSettings.frames
    """Frames taken from a video: the sharpest in each of as many equal stretches."""
    matcher: Literal["exhaustive", "sequential"] = SfmSettings.matcher
    """`exhaustive` compares all pairs; `sequential` only photos with near names: quicker for long videos."""
    cameras: Literal["shared", "each"] = SfmSettings.cameras
    """`shared`: photos of one size have one lens; `each`: every photo its own (zoom, several devices)."""
    quiet: bool = False
    """No progress bars."""


def sfm_main(argv: list[str]) -> int:
    """Parse, reconstruct, report. Return the exit code."""
    command = tyro.cli(SfmCommand, args=canonical(argv), prog="unified-lift sfm")
    settings = SfmSettings(
        photos=command.photos,
        scene=command.source_path,
        max_size=command.max_size,
        frames=command.frames,
        matcher=command.matcher,
        cameras=command.cameras,
    )
    bars = _Bars(quiet=command.quiet)
    try:
        report = reconstruct(settings, progress=bars.update)
    finally:
        bars.close()
    print("\n".join(report_lines(report)))
    print(f"{settings.scene}: ready for masks and training; see {REPORT} and {PICTURE} there")
    return 0


class _Bars:
    """One progress bar per stage, the next beginning where the one before ends."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._bar, self._stage = quiet, None, ""

    def update(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.close()
            self._stage = stage
            label = f"{STAGES.index(stage) + 1}/{len(STAGES)} {_NAMES[stage]:<14}"
            if total == 0:
                if not self._quiet:
                    tqdm.write(f"{label}: there already")
                return
            self._bar = tqdm(total=total, desc=label, disable=self._quiet, dynamic_ncols=True)
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
