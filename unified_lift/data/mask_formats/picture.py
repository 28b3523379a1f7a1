"""PNG, TIFF, BMP, GIF: grey of 8 to 32 bits holds the id, palettes the *index*, RGB red + 256 green + 65536 blue.

Alpha is ignored. The pages of a TIFF file are a stack of masks. JPEG is refused: it mixes the ids of neighbours.
"""

import numpy as np
from PIL import Image, ImageSequence

from unified_lift.data.images import image_size, open_image
from unified_lift.data.mask_formats.base import MaskFile, MaskFormat, refuse_vast
from unified_lift.errors import UserError

_KINDS = {"L": "8-bit", "P": "8-bit palette", "1": "1-bit", "F": "float"}


def read(mask: MaskFile) -> tuple[np.ndarray, str]:
    """Return the ids of a picture and its kind."""
    if mask.size is not None:
        refuse_vast(mask, *image_size(mask.path))
    image = open_image(mask.path)
    if image.format in ("JPEG", "MPO"):
        what = "is a JPEG, which mixes the ids of neighbouring pixels"
        raise UserError(f"{mask.path}: {what}; export the masks again as PNG")
    if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
        pages = [_ids(page, mask)[0] for page in ImageSequence.Iterator(image)]
        if len({page.shape for page in pages}) > 1:
            raise UserError(f"{mask.path}: its pages differ in size; save one mask a page, or one page of ids")
        return np.stack(pages), "TIFF"
    return _ids(image, mask)


def _ids(image: Image.Image, mask: MaskFile) -> tuple[np.ndarray, str]:
    if image.mode.startswith("I"):
        return np.asarray(image), "16-bit"
    if image.mode in ("PA", "LA"):
        return np.asarray(image)[..., 0], image.mode
    if image.mode == "RGBA":
        return np.asarray(image)[..., :3], image.mode
    if image.mode not in (*_KINDS, "RGB"):
        raise UserError(f"{mask.path}: image mode {image.mode} holds no ids; save it as 8- or 16-bit grey PNG")
    return np.asarray(image), _KINDS.get(image.mode, image.mode)


_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
FORMAT = MaskFormat(looks_for=".png, .tif", suffixes=_SUFFIXES, read=read, precedence=10)
