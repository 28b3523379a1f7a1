"""What the files of a folder hold, without what may differ between two runs of one command: times above all."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from unified_lift import fileio

MAY_DIFFER = {"seconds", "seconds_per_step", "free_bytes", "command"}  # by name, in whatever file


def contents(folder: Path, *, without: Collection[str] = ()) -> dict[str, Any]:
    """Return what each file below a folder holds, by relative path; scratch files and locks are none.

    Checkpoints of the last stage are left out: where the rolling one stands depends on when a run was ended. So are
    files and folders `without`.
    """
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        name = str(path.relative_to(folder))
        if fileio._MARK in name or path.name == fileio.LOCK or {name, *Path(name).parts} & {*without}:
            continue
        data: Any = path.read_bytes()
        try:
            if path.suffix == ".json":
                data = _alike(json.loads(data))
            elif path.suffix == ".jsonl":
                data = [_alike(json.loads(line)) for line in data.splitlines()]
            elif path.suffix == ".pth":
                state = torch.load(path, weights_only=True)
                if path.name.startswith("chkpnt") and state["stage"] == "refine":
                    continue
                data = repr(_alike(state))
        except (ValueError, RuntimeError):
            pass  # cut: as the bytes that are there
        found[name] = data.replace(str(folder), "") if isinstance(data, str) else data
        if path.name in ("config.yaml", "cfg_args"):
            found[name] = data.replace(str(folder).encode(), b"")
    return found


def _alike(tree: Any) -> Any:
    """Return a tree of objects, lists and tensors without what may differ; tensors as their bytes."""
    if isinstance(tree, dict):
        return {key: _alike(value) for key, value in tree.items() if key not in MAY_DIFFER}
    if isinstance(tree, list | tuple):
        return [_alike(value) for value in tree]
    if isinstance(tree, torch.Tensor):
        return str(tree.dtype), list(tree.shape), tree.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return tree
