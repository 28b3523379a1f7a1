"""unified-lift masks: per-view segment ids of a scene's photos, from a 2D model or without one."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal

import torch
import tyro
from tqdm import tqdm

from unified_lift.capture.contact_sheet import contact_sheet, evenly_spaced, tile
from unified_lift.capture.mask_providers import PROVIDERS
from unified_lift.capture.mask_runs import RECORD, MaskFolder, MaskJob, make_masks, open_folders
from unified_lift.capture.masks import LEVELS, Level, P, PoolSettings, ProviderSettings
from unified_lift.cli.flags import canonical
from unified_lift.data import load_frames
from unified_lift.data.base import OBJECT_PATH, Frame
from unified_lift.data.images import read_image
from unified_lift.data.masks import read_mask
from unified_lift.data.settings import DataSettings
from unified_lift.device import chosen_device
from unified_lift.errors import UserError
from unified_lift.evaluation.pictures import write_picture

_SHEET_VIEWS = 12
ProviderName = Literal[tuple(PROVIDERS)]  # type: ignore[valid-type]


@dataclass(frozen=True, kw_only=True)
class MasksCommand(Generic[P]):
    """Make one map of segment ids for every photo of a scene: 16-bit PNG files that train.py reads.

    Example: unified-lift masks -s data/desk --provider regions

    With weights: unified-lift masks -s data/desk --provider sam --weights sam_vit_h_4b8939.pth

    Each provider has flags of its own: unified-lift masks --provider sam --help

    Called again, it makes what is missing. Short flags: -s source_path, -i images.
    """

    source_path: Path
    """Scene folder (-s), of any layout that train.py reads."""
    provider: ProviderName
    """Who proposes masks: segment-anything, a transformers model, or regions of like colour (no weights)."""
    out: Path = Path(OBJECT_PATH)
    """Folder of the masks inside the scene; --granularity all adds _whole, _part and _subpart to its name."""
    granularity: Literal["whole", "part", "subpart", "all"] = "whole"
    """Which of nested masks: whole objects [paper 4.1], parts, subparts, or each in a folder of its own."""
    images: str = DataSettings().images
    """Image folder inside a COLMAP scene (3DGS -i)."""
    overwrite: bool = False
    """Replace masks that are there."""
    jobs: int = 0
    """Processes of a provider that needs no weights; 0 = one per core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; `auto`: a CUDA device if there is one."""
    quiet: bool = False
    """No progress bar."""
    pool: PoolSettings
    proposals: P


def masks_main(argv: list[str]) -> int:
    """Parse, make what is missing, write the preview. Return the exit code."""
    command = parse(argv)
    frames = load_frames(DataSettings(source_path=command.source_path, images=command.images))
    job = MaskJob(
        provider=command.provider,
        settings=command.proposals,
        pool=command.pool,
        folders=_folders(command),
        device=_device(command.device),
    )
    folders = open_folders(job, frames, overwrite=command.overwrite)
    _make(job, frames, folders, jobs=command.jobs, quiet=command.quiet)
    for level, folder in folders.items():
        _report(level, folder, frames)
    _say_what_is_read(command, frames, folders)
    return 0


def parse(argv: list[str]) -> MasksCommand:
    """Return the command line, with the flags of the provider it names.

    Raises:
        UserError: A value makes no sense.
    """
    argv = canonical(argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--provider")
    name = early.parse_known_args(argv)[0].provider
    settings = PROVIDERS[name].settings if name in PROVIDERS else ProviderSettings  # tyro names the right ones
    command = tyro.cli(
        tyro.conf.OmitArgPrefixes[MasksCommand[settings]],  # type: ignore[valid-type]
        args=argv,
        prog="unified-lift masks",
    )
    command.pool.check()
    command.proposals.check()
    if command.jobs < 0:
        raise UserError(f"--jobs must not be negative, received {command.jobs}")
    return command


def _folders(command: MasksCommand) -> Mapping[Level, Path]:
    path = command.source_path / command.out
    if command.granularity != "all":
        return {command.granularity: path}
    return {level: path.with_name(f"{path.name}_{level}") for level in LEVELS}


def _device(wanted: str) -> torch.device:
    if wanted == "auto":  # no rasterizer is needed here, unlike where a scene is trained
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return chosen_device(wanted)


def _make(
    job: MaskJob, frames: Sequence[Frame], folders: Mapping[Level, MaskFolder], *, jobs: int, quiet: bool
) -> None:
    progress = make_masks(job, frames, folders, processes=jobs or os.cpu_count() or 1)
    todo = next(progress).total
    if todo < len(frames):
        print(f"{len(frames) - todo} of {len(frames)} photos have their masks already")
    for _ in tqdm(progress, total=todo, desc=f"masks ({job.provider})", disable=quiet, dynamic_ncols=True):
        pass


def _report(level: Level, folder: MaskFolder, frames: Sequence[Frame]) -> None:
    """Write the contact sheet beside the folder and say what came out."""
    chosen = [frames[index] for index in evenly_spaced(len(frames), _SHEET_VIEWS)]
    sheet = folder.path.with_name(f"{folder.path.name}_preview.png")
    tiles = [tile(read_image(f.image_path, alpha=f.alpha), read_mask(folder.mask_path(f))) for f in chosen]
    write_picture(sheet, contact_sheet(tiles))
    views = [folder.views[frame.name] for frame in frames]
    ids = sorted(view["ids"] for view in views)
    covered = sum(view["covered"] for view in views) / len(views)
    print(
        f"{folder.path}: {len(views)} masks ({level}), {ids[0]} to {ids[-1]} ids, {covered:.0%} of the pixels; "
        f"look at {sheet}; how they were made: {RECORD}"
    )
    empty = [frame.name for frame in frames if folder.views[frame.name]["ids"] == 0]
    if empty:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        print(f"note: nothing was found in {len(empty)} of {len(frames)} photos ({shown}); they will train colour only")


def _say_what_is_read(command: MasksCommand, frames: Sequence[Frame], folders: Mapping[Level, MaskFolder]) -> None:
    """Say which flag train.py needs where it would not read these masks by itself."""
    now = load_frames(DataSettings(source_path=command.source_path, images=command.images))
    read = {frame.mask_path for frame in now}
    for folder in folders.values():
        if not any(folder.mask_path(frame) in read for frame in frames):
            print(f"train.py reads these with --object_path {folder.path.name}")
