"""unified-lift sfm: photos or a video to a scene with camera poses."""

from unified_lift.capture.sfm import PICTURE, REPORT, SfmSettings, reconstruct
from unified_lift.capture.sfm_report import report_lines
from unified_lift.cli.flags import parsed


def sfm_main(argv: list[str]) -> int:
    """Parse, reconstruct, report. Return the exit code."""
    settings = parsed(SfmSettings, argv, command="sfm")
    print("\n".join(report_lines(reconstruct(settings))))
    print(f"{settings.source_path}: ready for masks and training; see {REPORT} and {PICTURE} there")
    return 0
