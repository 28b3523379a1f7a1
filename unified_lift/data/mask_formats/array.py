"""NumPy arrays: `.npy`, and `.npz` with one array or one under a known name."""

import io
import math
import threading
import zipfile
from typing import IO

import numpy as np

from unified_lift.data.mask_formats.base import MaskFile, MaskFormat
from unified_lift.errors import UserError
from unified_lift.reading import reading

_NPZ_KEYS = ("indices", "segments", "ids", "mask", "masks", "arr_0")  # `indices` is OmniSeg3D's patch map
_MOST, _MOST_OF_STACKS = 2**27, 2**30  # numbers of a map of ids, bytes of a stack of masks
# NumPy parses the header of an array with `ast`, which Python before 3.11.8 and 3.12.2 does not survive in two threads
# at once ("AST constructor recursion depth mismatch"); the disk is read outside of it.
_PARSING = threading.Lock()


def read(mask: MaskFile) -> tuple[np.ndarray, str]:
    """Return the array of a file and the file's kind."""
    path, missing = mask.path, "no such file; restore it or remove it from the scene"
    with reading(path, "array", fix="write the mask again", missing=missing):
        content = io.BytesIO(path.read_bytes())
        try:
            with _PARSING:
                loaded = np.load(content, allow_pickle=False)
                if isinstance(loaded, np.lib.npyio.NpzFile):
                    keys = list(loaded.files)
                    known = [key for key in _NPZ_KEYS if key in keys] or (keys if len(keys) == 1 else [])
                    if not known:
                        raise UserError(f"{path}: holds {keys}; name the id map one of {', '.join(_NPZ_KEYS)}")
                    with zipfile.ZipFile(content) as archive, archive.open(f"{known[0]}.npy") as member:
                        _refuse_vast(member)
                    loaded = loaded[known[0]]
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
            what = "not a readable array but a pickled list or object, which could run code"
            fix = 'of SAM\'s masks save np.stack([mask["segmentation"] for mask in masks])'
            raise UserError(f"{path}: {what}; {fix}") from None
        return np.asarray(loaded), path.suffix.removeprefix(".")


def _refuse_vast(member: IO[bytes]) -> None:
    """Raise a ValueError where an array is larger than masks of any photo, before it is unpacked; zeros pack well."""
    version = np.lib.format.read_magic(member)
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = parse(member)
    if math.prod(shape) > (_MOST if len(shape) < 3 else _MOST_OF_STACKS // kind.itemsize):
        raise ValueError(f"it claims {' x '.join(map(str, shape))} numbers")


FORMAT = MaskFormat(looks_for=".npy, .npz", suffixes=(".npy", ".npz"), read=read, precedence=20)
