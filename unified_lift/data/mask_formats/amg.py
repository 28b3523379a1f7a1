"""A folder per photo with one black-and-white picture per mask, as segment-anything's `amg.py` writes them.

`<view>/0.png`, `<view>/1.png`, ... and `metadata.csv`, which adds nothing that is needed.
"""

from pathlib import Path

import numpy as np

from unified_lift.data.images import open_image
from unified_lift.data.mask_formats.base import MaskFile, MaskFormat, painted
from unified_lift.errors import UserError


def layers(folder: Path) -> list[Path]:
    """Return the masks in a folder in the order of their numbers; none where it holds other pictures as well."""
    pictures = [path for path in folder.iterdir() if path.suffix.lower() == ".png"] if folder.is_dir() else []
    numbered = all(path.stem.isdecimal() for path in pictures)
    return sorted(pictures, key=lambda path: int(path.stem)) if numbered else []


def locate(folder: Path, name: str) -> tuple[Path, str] | None:
    """Return the folder of a view: it is called like it, and holds numbered masks."""
    return (folder / name, "") if layers(folder / name) else None


def read(mask: MaskFile) -> tuple[np.ndarray, str]:
    """Return the painted ids and the word for them; a UserError: masks differ in size."""
    pictures = (np.asarray(open_image(path).convert("L")) for path in layers(mask.path))
    try:
        return painted(picture > picture.max() / 2 for picture in pictures), "folders of masks"
    except ValueError as error:
        raise UserError(f"{mask.path}: {error}; make the masks of this photo again") from None


FORMAT = MaskFormat(looks_for="folders of 0.png, 1.png (amg.py)", suffixes=(), read=read, locate=locate)
