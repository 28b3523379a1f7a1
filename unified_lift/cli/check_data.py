"""unified-lift check-data: what a scene folder contains, what is wrong with it and how to repair it."""

from dataclasses import dataclass, fields
from pathlib import Path

from unified_lift.capture.check import check_lines, check_scene
from unified_lift.cli.flags import parsed
from unified_lift.data.images import Alpha
from unified_lift.data.settings import DataSettings
from unified_lift.fileio import write_json
from unified_lift.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class CheckDataCommand:
    """Say in one page what a scene folder contains, what is wrong with it, and how to repair it.

    Nothing is changed. Exit code 0: fine, 1: problems were found, 2: not a scene folder.

    Example: unified-lift check-data -s scenes/holiday
    """

    source_path: Path
    """Scene folder (-s)."""
    images: str = DataSettings.images
    """Image folder inside a COLMAP scene (-i)."""
    sparse: str = DataSettings.sparse
    """Which COLMAP model of several to look at: its folder inside `sparse/`; `auto` = that with the most images."""
    object_path: str = DataSettings.object_path
    """Mask folder inside the scene; `auto` = the dataset's own."""
    void_id: str = DataSettings.void_id
    """Id of pixels that are in no mask, where that is not 0: auto, none or an id."""
    exclude: str = DataSettings.exclude
    """Pixels that neither train nor count: auto, none or a folder of pictures that are black there."""
    alpha: Alpha = DataSettings.alpha
    """What the alpha of photos means."""
    train_split: bool = False
    """Train on the names found in images_train/."""
    llffhold: int = DataSettings.llffhold
    """Every llffhold-th view is held out where the dataset has no split of its own."""
    strict: bool = False
    """A photo that is missing, broken or twice there is a problem; else training leaves it out, which is noted."""
    json: Path | None = None
    """Write facts and issues to this file too."""
    quiet: bool = False
    """No progress bar."""


def check_data_main(argv: list[str]) -> int:
    """Parse, look, print. Return the exit code."""
    command = parsed(CheckDataCommand, argv, command="check-data")
    names = {field.name for field in fields(command)} - {"json", "quiet"}
    settings = DataSettings(**{name: getattr(command, name) for name in names})
    with progress_bar("read photos", quiet=command.quiet, leave=False) as progress:
        check = check_scene(settings, progress=progress)
    print("\n".join(check_lines(check)))
    if command.json is not None:
        write_json(command.json, check.facts)
    return 0 if check.facts["fine"] else 1
