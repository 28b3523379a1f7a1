"""Splats in files of any format that is read: which one, and what is sound in it."""

from collections.abc import Callable
from pathlib import Path

from unified_lift.errors import UserError
from unified_lift.model import gltf, sog, spz, usd
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.ply import read_ply
from unified_lift.model.raw import RawSplat, sound_gaussians
from unified_lift.model.splat import read_splat_rows
from unified_lift.reading import reading
from unified_lift.types import IDENTITY, Similarity

READ = ".ply (of 3DGS, 2DGS or SuperSplat, compressed or not), .spz, .splat, .sog, .glb and .usda"
SUFFIXES = (".ply", ".spz", ".splat", ".sog", ".glb", ".usda")


def read_splat(path: Path, frame: Similarity = IDENTITY, *, strict: bool = False) -> tuple[Gaussians, list[str]]:
    """Return the sound Gaussians of a splat file in any format that is read, and notes on what was decided.

    They are inside of `frame`, the file is in the user's coordinates. The format is known by the first bytes. Broken
    Gaussians are left out and counted, or refused with `strict`.
    A UserError: no such file, no format that is read, a damaged file, or hardly a sound Gaussian in it.
    """
    return sound_gaussians(_reader(path)(path), path, frame, strict=strict)


def _reader(path: Path) -> Callable[[Path], RawSplat]:
    if path.name == sog.META or (path / sog.META).is_file():
        return sog.read_sog
    if path.is_dir():
        saved = sorted(path.glob("point_cloud/iteration_*/point_cloud.ply"), key=lambda file: file.stat().st_mtime)
        raise UserError(f"{path}: is a folder; name the splat in it" + (f", such as {saved[-1]}" if saved else ""))
    fix = "restore it or correct the path"
    with reading(path, "splat", fix=fix, missing=f"no such file; {fix}"), open(path, "rb") as file:
        head = file.read(4)
    suffix = path.suffix.lower()
    if head[:2] == spz.GZIP or head == spz.MAGIC:
        return spz.read_spz
    if head == usd.HEAD and suffix != ".ply":
        return usd.read_usda
    if head == gltf.MAGIC and suffix != ".ply":
        return gltf.read_glb
    if head == b"PK\x03\x04":
        return sog.read_sog
    if head[:3] == b"ply" or suffix == ".ply":
        return read_ply
    if suffix == ".splat":
        return read_splat_rows
    raise UserError(f"{path}: no splat that is read; those are {READ}; convert it, for example with SuperSplat")
