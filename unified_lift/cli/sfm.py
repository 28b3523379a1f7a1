"""unified-lift sfm: photos or a video to a scene with camera poses."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from unified_lift.capture.sfm import PICTURE, REPORT, SfmSettings, reconstruct
from unified_lift.capture.sfm_report import report_lines
from unified_lift.cli.flags import canonical


@dataclass(frozen=True, kw_only=True)
class SfmCommand(SfmSettings):
    """Find the camera poses of your photos or of a video's sharp frames, and write a scene that train.py reads.

    Example: unified-lift sfm holiday/photos -s scenes/holiday
    """

    photos: tyro.conf.Positional[Path]
    """Folder of photos, searched with its sub-folders, or a video file."""


def sfm_main(argv: list[str]) -> int:
    """Parse, reconstruct, report. Return the exit code."""
    command = tyro.cli(SfmCommand, args=canonical(argv), prog="unified-lift sfm")
    print("\n".join(report_lines(reconstruct(command))))
    print(f"{command.source_path}: ready for masks and training; see {REPORT} and {PICTURE} there")
    return 0
