"""Segment Anything: a grid of points asks the network, which answers each point with three nested masks.

The package's own generator mixes the three answers into one list and forgets which was which, and its box NMS then lets
a part push out the whole. Here every granularity is a pool of its own from the start, filtered and deduplicated by
the package's code [LangSplat]; the paper's "largest granularity" is the pool `whole`.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unified_lift.capture.masks import (
    SAM_INDEX,
    GeneratorEntry,
    GeneratorSettings,
    Granularity,
    Proposal,
    check_least,
    check_shares,
)
from unified_lift.errors import UserError

_MODELS = ("vit_h", "vit_l", "vit_b")


@dataclass(frozen=True, kw_only=True)
class SamSettings(GeneratorSettings):
    """Settings of `sam`; the defaults are those of the official generator."""

    weights: Path | None = None
    """Checkpoint file, such as sam_vit_h_4b8939.pth."""
    model: str = "vit_h"
    """Network the checkpoint belongs to: vit_h, vit_l or vit_b."""
    points_per_side: int = 32
    """Points along each side of the photo [SAM]; Gaussian Grouping and Gaga: 64."""
    points_per_batch: int = 64
    """Points at a time; fewer need less memory [SAM]."""
    pred_iou_thresh: float = 0.88
    """Least predicted IoU [SAM]; Gaussian Grouping, Gaga and LangSplat: 0.7."""
    stability_score_thresh: float = 0.95
    """Least stability [SAM]; LangSplat: 0.85."""
    box_nms_thresh: float = 0.7
    """Of two masks whose boxes overlap by more than this IoU the better stays [SAM]."""
    crop_n_layers: int = 0
    """Also ask crops of the photo, 2^n along each side in layer n [SAM]; LangSplat: 1."""
    min_mask_region_area: int = 0
    """Pixels; smaller islands and holes of a mask are removed [SAM]; LangSplat: 100."""

    def check(self) -> None:
        """Raise a UserError where a value makes no sense."""
        check_shares(self, "pred_iou_thresh", "stability_score_thresh", "box_nms_thresh")
        check_least(self, points_per_side=1, points_per_batch=1, crop_n_layers=0, min_mask_region_area=0)


class SamGenerator:
    """The automatic mask generator of `segment-anything`, one granularity at a time."""

    def __init__(self, network: Any, settings: SamSettings, *, facts: dict[str, Any]) -> None:
        """Take a `segment_anything.modeling.Sam`, how it is asked, and what is stored beside the masks."""
        library = _segment_anything()
        self.facts = facts
        asked = {key: value for key, value in asdict(settings).items() if key not in ("weights", "model")}
        self._generator = library.SamAutomaticMaskGenerator(network, **asked)
        self._predictor = _predictor_class(library.SamPredictor)(network)
        self._generator.predictor = self._predictor

    def propose(self, image: np.ndarray, granularities: Collection[Granularity]) -> list[Proposal]:
        """Return the proposals of these granularities; the photo is encoded once for all of them."""
        self._predictor.forget()
        proposals = []
        for granularity in granularities:
            self._predictor.index = SAM_INDEX[granularity]
            for record in self._generator.generate(image):
                mask, score, stability = (record[k] for k in ("segmentation", "predicted_iou", "stability_score"))
                proposals.append(Proposal(mask=mask, score=score, stability=stability, granularity=granularity))
        self._predictor.forget()
        return proposals


def _predictor_class(base: Any) -> Any:
    """Return the package's predictor, made to answer with one of the three masks and to remember what it encoded."""

    class OneMaskPredictor(base):  # a closure, because the package is imported only where it is used
        original_size: Any
        input_size: Any
        features: Any

        def __init__(self, network: Any) -> None:
            super().__init__(network)
            self.index = 2
            self._encoded: dict[bytes, tuple] = {}

        def forget(self) -> None:
            self._encoded.clear()
            self.reset_image()

        def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
            """Encode a crop, unless that was done for another granularity of the same photo."""
            key = str(image.shape).encode() + image.tobytes()
            if key not in self._encoded:
                super().set_image(image, image_format)
                self._encoded[key] = (self.original_size, self.input_size, self.features)
            self.original_size, self.input_size, self.features = self._encoded[key]
            self.is_image_set = True

        def predict_torch(
            self,
            point_coords: Tensor,
            point_labels: Tensor,
            boxes: Tensor | None = None,
            mask_input: Tensor | None = None,
            multimask_output: bool = True,
            return_logits: bool = False,
        ) -> tuple[Tensor, Tensor, Tensor]:
            """Return masks [B, 1, H, W], predicted IoU [B, 1] and small logits [B, 1, h, w] of the chosen index."""
            with torch.no_grad():
                prompts = self.model.prompt_encoder
                sparse, dense = prompts(points=(point_coords, point_labels), boxes=boxes, masks=mask_input)
                logits, quality = self.model.mask_decoder(
                    image_embeddings=self.features,
                    image_pe=prompts.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=multimask_output,
                )
                chosen = slice(self.index, self.index + 1)
                logits, quality = logits[:, chosen], quality[:, chosen]  # before the costly step to full size
                masks = self.model.postprocess_masks(logits, self.input_size, self.original_size)
            return (masks if return_logits else masks > self.model.mask_threshold), quality, logits

    return OneMaskPredictor


def _segment_anything() -> ModuleType:
    try:
        return importlib.import_module("segment_anything")
    except ImportError as error:
        raise UserError(
            f"--provider sam: {error.name or 'segment_anything'} is not installed; "
            'run pip install "unified-lift[masks]"'
        ) from None


def _load(settings: SamSettings, device: torch.device) -> SamGenerator:
    library = _segment_anything()
    if settings.model not in library.sam_model_registry:
        raise UserError(f"--model {settings.model}: no such SAM; there are {', '.join(_MODELS)}")
    if settings.weights is None:
        raise UserError("--weights: missing; give the checkpoint file of SAM, such as sam_vit_h_4b8939.pth")
    if not settings.weights.is_file():
        raise UserError(f"--weights {settings.weights}: no such file; download the checkpoint and give its path")
    network = library.sam_model_registry[settings.model](checkpoint=None)
    try:
        state = torch.load(settings.weights, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except Exception as error:  # noqa: BLE001 (torch raises anything from OSError to UnpicklingError on damaged files)
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--weights {settings.weights}: not a checkpoint of {settings.model} ({reason}); fetch it again or name "
            "its network with --model"
        ) from None
    facts = {
        "segment_anything": version("segment_anything"),
        "torch": torch.__version__,
        "weights": settings.weights.name,
        "weights_bytes": settings.weights.stat().st_size,
    }
    return SamGenerator(network.to(device).eval(), settings, facts=facts)


GENERATOR = GeneratorEntry(name="sam", settings=SamSettings, load=_load)
