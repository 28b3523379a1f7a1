"""Scalars and images of a run: metrics.jsonl always, TensorBoard if asked."""

import json
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from unified_lift.fileio import write_text
from unified_lift.provenance import Provenance
from unified_lift.reading import as_text, reading

_TAGS = {  # 3DGS and Unified-Lift names, which existing dashboards expect
    "photometric": "train_loss_patches/photometric_loss",
    "total": "train_loss_patches/total_loss",
    "class": "train/association",
    "num_gaussians": "total_points",
    "seconds_per_step": "iter_time",
    "psnr": "test/loss_viewpoint - psnr",
}
_STAGES = {"geometry": 0, "test": 0, "lift": 1, "refine": 2}  # by order; test scores belong to geometry


class RunLog:
    """Append-only log of a model folder: `<model>/metrics.jsonl`, and `<model>/tb` if asked."""

    def __init__(self, model_path: Path, *, tensorboard: bool, provenance: Provenance = "relative") -> None:
        self._file = open(model_path / "metrics.jsonl", "a", buffering=1)  # one line at a time
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not needed for `none`

            with ExitStack() as stack:
                if provenance == "relative":  # else the name of the machine is part of the file's
                    stack.enter_context(mock.patch.object(socket, "gethostname", return_value="host"))
                self._writer = SummaryWriter(str(model_path / "tb"))

    def scalars(self, stage: str, step: int, total_steps: int, values: Mapping[str, float]) -> None:
        """Write one line {stage, step, ...values} and its TensorBoard scalars at `total_steps`."""
        self._file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        if self._writer is not None:  # all values in one event: an eighth of the time of add_scalar for each
            from tensorboard.compat.proto.summary_pb2 import Summary

            scalars = [Summary.Value(tag=_TAGS.get(k, f"train/{k}"), simple_value=v) for k, v in values.items()]
            self._writer.file_writer.add_summary(Summary(value=scalars), total_steps)

    def image(self, tag: str, total_steps: int, image: Tensor) -> None:
        """Write an image in [0, 1], [H, W, 3], to TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(as_text(tag), image.clamp(0, 1), total_steps, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def rewind_log(model_path: Path, *, stage: str, step: int) -> None:
    """Drop the lines written after a checkpoint taken in `stage` at `step`: the resumed run writes them again."""
    at = (_STAGES[stage], step)
    kept = [line for line in read_log(model_path) if (_STAGES[line["stage"]], line["step"]) <= at]
    write_text(model_path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))


def read_log(model_path: Path) -> list[dict]:
    """Return the lines of metrics.jsonl; an empty list if there are none. A cut last line is dropped.

    A UserError: other lines than `RunLog` writes.
    """
    path = model_path / "metrics.jsonl"
    if not path.exists():
        return []
    with reading(path, "log", fix="move it away; only plots need it"):
        lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        for number, line in enumerate(lines, start=1):
            numbers = {**line, "stage": 0}.values()
            if line["stage"] not in _STAGES or {type(value) for value in numbers} - {int, float}:
                raise ValueError(f"line {number} is not a stage and numbers")
        return lines
