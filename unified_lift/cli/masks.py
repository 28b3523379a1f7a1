"""unified-lift masks: per-view segment ids of a scene's photos, from a 2D model or without one."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch

from unified_lift.capture.mask_generators import GENERATORS
from unified_lift.capture.mask_runs import RECORD, MaskJob, evenly, make_masks, mask_path
from unified_lift.capture.masks import GRANULARITIES, FilterSettings, GeneratorSettings, Granularity
from unified_lift.cli.flags import canonical, parsed
from unified_lift.cli.names import program
from unified_lift.data.base import OBJECT_PATH
from unified_lift.data.scene import load_frames
from unified_lift.data.settings import DataSettings
from unified_lift.device import chosen_device
from unified_lift.settings.limits import Range, check_ranges

P = TypeVar("P", bound=GeneratorSettings)


@dataclass(frozen=True, kw_only=True)
class MasksCommand(Generic[P]):
    """Make one map of segment ids for every photo of a scene: 16-bit PNG files that train.py reads.

    Called again, it makes what is missing.

    Example: unified-lift masks -s data/desk --provider regions

    With weights: unified-lift masks -s data/desk --provider sam --weights sam_vit_h_4b8939.pth

    Flags of one generator: unified-lift masks --provider sam --help
    """

    source_path: Path
    """Scene folder (-s), of any layout that train.py reads."""
    provider: Literal[tuple(GENERATORS)]  # type: ignore[valid-type]
    """The mask generator: segment-anything, a transformers model, or regions of like colour (no weights)."""
    out: Path = Path(OBJECT_PATH)
    """Folder of the masks inside the scene; --granularity all adds _whole, _part and _subpart to its name."""
    granularity: Literal["whole", "part", "subpart", "all"] = "whole"
    """Which of nested masks: whole objects [paper 4.1], parts, subparts, or each in a folder of its own."""
    images: str = DataSettings().images
    """Image folder inside a COLMAP scene (3DGS -i)."""
    limit: Annotated[int, Range(0)] = 0
    """Only so many photos, evenly spread, to look at first; 0 = all. The same command without it makes the others."""
    overwrite: bool = False
    """Replace masks that are there."""
    jobs: Annotated[int, Range(0)] = 0
    """Processes of a generator that needs no weights; 0 = one per core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; `auto`: a CUDA device if there is one."""
    quiet: bool = False
    """No progress bar."""
    filter: FilterSettings
    proposals: P


def masks_main(argv: list[str]) -> int:
    """Parse, make what is missing, write the preview. Return the exit code."""
    argv = canonical(argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--provider")
    name = early.parse_known_args(argv)[0].provider
    settings = GENERATORS[name].settings if name in GENERATORS else GeneratorSettings  # tyro names the right ones
    form: Any = MasksCommand
    command: MasksCommand[Any] = parsed(
        form[settings], argv, command="masks", shown={"proposals": f"provider {name}"} if name else {}
    )
    check_ranges(command)
    data = DataSettings(source_path=command.source_path, images=command.images)
    available = load_frames(data, lambda note: print(f"note: {note}"))
    frames = evenly(available, command.limit)
    is_cuda = command.device == "auto" and torch.cuda.is_available()  # no rasterizer is needed here, unlike in training
    device = chosen_device("cuda" if is_cuda else command.device)
    job = MaskJob(provider=command.provider, settings=command.proposals, filter=command.filter, device=device)
    path = command.source_path / command.out
    paths: dict[Granularity, Path] = {one: path.with_name(f"{path.name}_{one}") for one in GRANULARITIES}
    if command.granularity != "all":
        paths = {command.granularity: path}
    processes = command.jobs or os.cpu_count() or 1
    folders = make_masks(job, frames, paths, overwrite=command.overwrite, processes=processes, quiet=command.quiet)
    for granularity, folder in folders.items():
        views = [folder.views[frame.name] for frame in frames]
        ids = sorted(view["ids"] for view in views)
        covered = sum(view["covered"] for view in views) / len(views)
        print(
            f"{folder.path}: {len(views)} masks ({granularity}), {ids[0]} to {ids[-1]} ids, {covered:.0%} of the "
            f"pixels; look at {folder.write_preview(frames)}; how they were made: {RECORD}"
        )
        if empty := [frame.name for frame, view in zip(frames, views) if view["ids"] == 0]:
            nothing = f"nothing was found in {len(empty)} of {len(frames)} photos"
            shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            print(f"note: {nothing} ({shown}); they will train colour only")
    read = {frame.mask.path for frame in load_frames(data) if frame.mask}
    for folder in folders.values():
        if not any(mask_path(folder.path, frame) in read for frame in frames):
            print(f"{program('train')} reads these with --object_path {folder.path.name}")
    if warning := GENERATORS[command.provider].caution:
        print(f"note: {warning}")
    if len(frames) < len(available):
        rest = len(available) - len(frames)
        print(f"--limit {command.limit}: the other {rest} of {len(available)} photos get theirs without --limit")
    return 0
