"""unified-lift doctor: what this machine can do, and what is missing for the rest."""

from dataclasses import dataclass
from pathlib import Path

from unified_lift.capture.mask_generators import package_trials
from unified_lift.cli.flags import parsed
from unified_lift.data.settings import DataSettings
from unified_lift.doctor import examine, scene_budget


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """Look at devices, compiled kernels, packages, disk and memory. Exit code 0: training can run; 1: it cannot.

    Example: unified-lift doctor -s data/desk
    """

    source_path: Path | None = None
    """Scene folder (-s): also say what it needs of memory and where its photos would be kept."""
    images: str = "images"
    """Image folder inside a COLMAP scene (-i)."""
    resolution: int = -1
    """As in train.py (-r): 1, 2, 4, 8 divide the size, another number is the width."""
    model_path: Path = Path("output")
    """Where models are to be written (-m): free space is looked up there."""


def doctor_main(argv: list[str]) -> int:
    """Parse, examine, print. Return the exit code."""
    command = parsed(DoctorCommand, argv, command="doctor")
    found = examine(command.model_path, trials=package_trials())
    if command.source_path is not None:
        data = DataSettings(source_path=command.source_path, images=command.images, resolution=command.resolution)
        found += scene_budget(data)
    width = max(len(one.topic) for one in found)
    for one in found:
        print(f"{'BROKEN' if one.state == 'broken' else one.state:<7}{one.topic:<{width}}  {one.text}")
    broken = [one.topic for one in found if one.state == "broken"]
    print(f"training cannot run: {', '.join(broken)}" if broken else "training can run")
    return 1 if broken else 0
