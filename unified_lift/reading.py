"""Reading files that may be anything: whatever is wrong with them becomes one line that names the file and the fix."""

import json
import reprlib
import stat
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.memory import OutOfMemory, described, lack_of_memory

_MAX_HEADER = 1024  # bytes before the numbers of an array in an .npz


@contextmanager
def reading(path: Path, kind: str, *, fix: str, missing: str = "no such file; restore it") -> Iterator[None]:
    """Turn what the block raises, which only reads `path` as a `kind`, into a UserError; those that it raises pass.

    Folders, pipes and devices are refused before anybody opens them: their end may never come.
    """
    try:
        require_file(path)
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: {missing}") from None
    except Exception as error:  # noqa: BLE001  # libraries do not say what they raise: zlib.error, IndexError, ...
        if (cause := lack_of_memory(error)) is not None:
            raise OutOfMemory(f"{path}: {described(cause)}; end other programs, or use a smaller file") from None
        reason = next((line for line in str(error).splitlines() if line), type(error).__name__)[:300]
        raise UserError(f"{path}: not a readable {kind} ({reason}); {fix}") from None


def require_file(path: Path) -> None:
    """Raise a UserError where the path leads to a folder, a pipe or a device, and an OSError where it leads nowhere."""
    if not stat.S_ISREG(path.stat().st_mode):
        what = "a folder" if path.is_dir() else "a named pipe" if path.is_fifo() else "a device"
        raise UserError(f"{path}: is {what}, not a file; put the file in its place")


def parsed_json(path: Path, *, fix: str = "write it again") -> Any:
    """Return what a JSON file holds, in UTF-8, 16 or 32, with or without a byte order mark; else a UserError."""
    with reading(path, "JSON file", fix=fix):
        return json.loads(path.read_bytes())


def parsed_yaml(path: Path, *, kind: str, missing: str) -> Any:
    """Return what a YAML file, or a JSON file by its suffix, holds; a UserError calls it a `kind`."""
    with reading(path, kind, fix="correct it", missing=missing):
        return json.loads(path.read_bytes()) if path.suffix == ".json" else yaml.safe_load(path.read_text("utf-8-sig"))


def read_columns(
    path: Path, names: Collection[str], *, rows: int, fix: str, single: str = "", further: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Return arrays of an .npz by name, each a finite number for each of `rows`, [rows]; if there, `further` such ones,
    and a `single` number.

    A UserError: it holds something else. Lengths are known before memory is taken for them.
    """
    with reading(path, "NPZ", fix=fix), zipfile.ZipFile(path) as file, np.load(path) as saved:  # no ZIP: a pickle to it
        shapes: dict[str, tuple[int, ...]] = {
            name: (rows,) for name in (*names, *(one for one in further if one in saved))
        }
        shapes |= {single: ()} if single in saved else {}
        for name in shapes:
            if file.getinfo(f"{name}.npy").file_size > _MAX_HEADER + 16 * rows:
                raise ValueError(f"{name} holds more than {rows} numbers")
        arrays = {name: saved[name] for name in shapes}
        for name, array in arrays.items():
            if array.shape != shapes[name] or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
                raise ValueError(f"{name} holds {list(array.shape)} {array.dtype}, not {rows} finite numbers")
        return arrays


def read_tensors(path: Path, *, fix: str) -> Any:
    """Return the tree of tensors that torch saved, on the CPU; a UserError: more or other numbers than the file has."""
    with reading(path, "torch file", fix=fix):
        content = torch.load(path, map_location="cpu", weights_only=True)
        for value in content.values() if isinstance(content, dict) else [content]:
            if isinstance(value, Tensor):
                if value.numel() * value.element_size() > path.stat().st_size:
                    raise ValueError(f"it claims {list(value.shape)} numbers, more than it holds")
                if not value.isfinite().all():
                    raise ValueError("it holds NaN or infinite numbers")
        return content


def shown(value: Any) -> str:
    """Return a value as messages show it: of lists and the like the first entries; YAML's aliases can be endless."""
    short = reprlib.Repr()
    short.maxlevel = 2
    return short.repr(value) if isinstance(value, (list, tuple, dict)) else repr(value)


def as_text(name: str) -> str:
    """Return a name of a file as text: bytes of it that are none, which Python keeps as half characters, as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
