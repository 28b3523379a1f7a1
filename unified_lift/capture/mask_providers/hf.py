"""Any mask-generation model of `transformers` (SAM, SAM-HQ, SAM 2, ...), from a local folder."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unified_lift.capture.masks import Level, Proposal, Provider, ProviderSettings
from unified_lift.errors import UserError

_INDEX: dict[Level, int] = {"subpart": 0, "part": 1, "whole": 2}  # of the three masks per point
_NUM_LEVELS = 3


@dataclass(frozen=True, kw_only=True)
class HfSettings(ProviderSettings):
    """Settings of `hf`; the defaults are those of the official SAM generator."""

    weights: Path | None = None
    """Folder of a model as transformers saves it: config.json, preprocessor_config.json, model.safetensors."""
    points_per_side: int = 32
    """Points along each side of the photo [SAM]."""
    points_per_batch: int = 64
    """Points at a time; fewer need less memory."""
    pred_iou_thresh: float = 0.88
    """Least predicted IoU [SAM]."""
    stability_score_thresh: float = 0.95
    """Least stability [SAM]."""
    crops_n_layers: int = 0
    """Also ask crops of the photo, 2^n along each side in layer n [SAM]."""

    def check(self) -> None:
        """Raise a UserError where a value makes no sense."""
        for name in ("pred_iou_thresh", "stability_score_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} must lie between 0 and 1, received {getattr(self, name)}")
        for name, least in (("points_per_side", 1), ("points_per_batch", 1), ("crops_n_layers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}, received {getattr(self, name)}")


class HfProposer:
    """The `mask-generation` pipeline of transformers.

    The pipeline forgets which of a point's three masks is which; a hook on the model hands it one of the three at a
    time. Of a model that gives another number of masks per point the levels are unknown: it can make whole objects
    only, from all of its masks, of which the filter drops those that lie inside larger ones.
    """

    def __init__(self, pipeline: Any, settings: HfSettings, *, facts: dict[str, Any]) -> None:
        """Take the pipeline.

        Args:
            pipeline: `transformers.pipeline("mask-generation", ...)`.
            settings: How it is asked.
            facts: Stored beside the masks.
        """
        self.facts = facts
        self._pipeline = pipeline
        self._settings = settings
        self._level: Level = "whole"
        pipeline.model.register_forward_hook(self._choose)

    def propose(self, image: np.ndarray, levels: Collection[Level]) -> list[Proposal]:
        """Return the proposals of these granularities; each level is one pass of the network.

        The pipeline applies the stability threshold but does not tell the stability, which therefore counts as 1.

        Raises:
            UserError: Parts are wanted of a model that does not tell levels.
        """
        proposals, settings = [], self._settings
        for level in levels:
            self._level = level
            found = self._pipeline(
                Image.fromarray(image),
                points_per_crop=settings.points_per_side,
                points_per_batch=settings.points_per_batch,
                pred_iou_thresh=settings.pred_iou_thresh,
                stability_score_thresh=settings.stability_score_thresh,
                crops_n_layers=settings.crops_n_layers,
            )
            proposals += [
                Proposal(mask=np.asarray(mask, dtype=bool), score=float(score), granularity=level)
                for mask, score in zip(found["masks"], found["scores"], strict=True)
            ]
        return proposals

    def _choose(self, model: Any, inputs: Any, outputs: Any) -> Any:
        """Leave one level in the outputs: `pred_masks` [1, points, 3, h, w] and `iou_scores` [1, points, 3]."""
        if outputs["pred_masks"].shape[2] == _NUM_LEVELS:
            chosen = slice(_INDEX[self._level], _INDEX[self._level] + 1)
            outputs["pred_masks"] = outputs["pred_masks"][:, :, chosen]
            outputs["iou_scores"] = outputs["iou_scores"][:, :, chosen]
        elif self._level != "whole":
            raise UserError(
                f"--granularity {self._level}: {self._settings.weights} does not give three masks per point, so its "
                "levels are unknown; use --granularity whole"
            )
        return outputs


def _load(settings: HfSettings, device: torch.device) -> HfProposer:
    if settings.weights is None or not settings.weights.is_dir():
        given = "missing" if settings.weights is None else f"{settings.weights}: no such folder"
        raise UserError(f"--weights {given}; give the folder of a mask-generation model as transformers saves it")
    try:
        library = importlib.import_module("transformers")
        importlib.import_module("torchvision")  # the pipeline's box NMS
    except ImportError as error:
        raise UserError(
            f"--provider hf: {error.name or 'transformers'} is not installed; run pip install transformers torchvision"
        ) from None
    try:
        config = library.AutoConfig.from_pretrained(settings.weights, local_files_only=True)
        pipeline = library.pipeline("mask-generation", model=str(settings.weights), device=device)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--weights {settings.weights}: not a mask-generation model of transformers ({reason}); check the folder"
        ) from None
    facts = {
        "transformers": library.__version__,
        "torch": torch.__version__,
        "weights": settings.weights.name,
        "model_type": config.model_type,
    }
    return HfProposer(pipeline, settings, facts=facts)


PROVIDER = Provider(name="hf", settings=HfSettings, load=_load)
