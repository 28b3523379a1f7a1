"""NumPy arrays: `.npy`, and `.npz` with one array or one under a known name."""

import io
import threading
import zipfile

import numpy as np

from unified_lift.data.mask_formats.base import MaskFile, MaskFormat
from unified_lift.errors import UserError

_NPZ_KEYS = ("indices", "segments", "ids", "mask", "masks", "arr_0")  # `indices` is OmniSeg3D's patch map
# NumPy parses the header of an array with `ast`, which Python before 3.11.8 and 3.12.2 does not survive in two threads
# at once ("AST constructor recursion depth mismatch"); the disk is read outside of it.
_PARSING = threading.Lock()


def read(mask: MaskFile) -> tuple[np.ndarray, str]:
    """Return the array of a file and the file's kind."""
    path = mask.path
    try:
        content = io.BytesIO(path.read_bytes())
        with _PARSING:
            loaded = np.load(content, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                keys = list(loaded.files)
                known = [key for key in _NPZ_KEYS if key in keys] or (keys if len(keys) == 1 else [])
                if not known:
                    raise UserError(f"{path}: holds {keys}; name the id map one of {', '.join(_NPZ_KEYS)}")
                loaded = loaded[known[0]]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it or remove it from the scene") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            what = "not a readable array but a pickled list or object, which could run code"
            fix = 'of SAM\'s masks save np.stack([mask["segmentation"] for mask in masks])'
            raise UserError(f"{path}: {what}; {fix}") from None
        raise UserError(f"{path}: not a readable array ({error}); write the mask again") from None
    return loaded, path.suffix.removeprefix(".")


FORMAT = MaskFormat(looks_for=".npy, .npz", suffixes=(".npy", ".npz"), read=read, precedence=20)
