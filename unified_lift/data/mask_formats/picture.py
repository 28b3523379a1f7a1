"""PNG: grey of 8 or 16 bits holds the id, palettes the *index*, RGB red + 256 green + 65536 blue; alpha is ignored.

Any other picture named by its path is read in the same way.
"""

import numpy as np

from unified_lift.data.images import open_image
from unified_lift.data.mask_formats.base import MaskFile, MaskFormat
from unified_lift.errors import UserError

_KINDS = {"L": "8-bit", "P": "8-bit palette", "1": "1-bit"}


def read(mask: MaskFile) -> tuple[np.ndarray, str]:
    """Return the ids of a picture and its kind."""
    image = open_image(mask.path)
    if image.mode.startswith("I"):
        return np.asarray(image), "16-bit"
    if image.mode in ("PA", "LA"):
        return np.asarray(image)[..., 0], image.mode
    if image.mode == "RGBA":
        return np.asarray(image)[..., :3], image.mode
    if image.mode not in (*_KINDS, "RGB"):
        raise UserError(f"{mask.path}: image mode {image.mode} holds no ids; save it as 8- or 16-bit grey PNG")
    return np.asarray(image), _KINDS.get(image.mode, image.mode)


FORMAT = MaskFormat(looks_for=".png", suffixes=(".png",), read=read, precedence=10)
