"""Any mask-generation model of `transformers` (SAM, SAM-HQ, SAM 2, ...), from a local folder."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image

from unified_lift.capture.masks import SAM_INDEX, GeneratorEntry, Granularity, Proposal, SamLikeSettings, needed_library
from unified_lift.errors import UserError
from unified_lift.settings.limits import Range


@dataclass(frozen=True, kw_only=True)
class HfSettings(SamLikeSettings):
    """Settings of `hf`; the defaults are those of the official SAM generator."""

    weights: Path | None = None
    """Folder of a model as transformers saves it: config.json, preprocessor_config.json, model.safetensors."""
    crops_n_layers: Annotated[int, Range(0)] = 0
    """Also ask crops of the photo, 2^n along each side in layer n [SAM]."""


class HfGenerator:
    """The `mask-generation` pipeline of transformers.

    The pipeline forgets which of a point's three masks is which; a hook on the model hands it one of the three at a
    time. A model that gives another number of masks per point can make whole objects only, from all of its masks.
    """

    def __init__(self, pipeline: Any, settings: HfSettings, *, facts: dict[str, Any]) -> None:
        self.facts, self._pipeline, self._settings = facts, pipeline, settings
        self._granularity: Granularity = "whole"
        pipeline.model.register_forward_hook(self._choose)

    def propose(self, image: np.ndarray, granularities: Collection[Granularity]) -> list[Proposal]:
        """Return the proposals of these granularities, each a pass of the network; stability, not told, counts as 1."""
        proposals, asked = [], asdict(self._settings)
        asked["points_per_crop"] = asked.pop("points_per_side")
        asked.pop("weights")
        for granularity in granularities:
            self._granularity = granularity
            found = self._pipeline(Image.fromarray(image), **asked)
            proposals += [
                Proposal(mask=np.asarray(mask, dtype=bool), score=float(score), granularity=granularity)
                for mask, score in zip(found["masks"], found["scores"], strict=True)
            ]
        return proposals

    def _choose(self, model: Any, inputs: Any, outputs: Any) -> Any:
        """Leave one granularity in the outputs: `pred_masks` [1, points, 3, h, w] and `iou_scores` [1, points, 3]."""
        if outputs["pred_masks"].shape[2] == len(SAM_INDEX):
            index = SAM_INDEX[self._granularity]
            for name in ("pred_masks", "iou_scores"):
                outputs[name] = outputs[name][:, :, index : index + 1]
        elif self._granularity != "whole":
            raise UserError(
                f"--granularity {self._granularity}: {self._settings.weights} does not give three masks per point, so "
                "its levels are unknown; use --granularity whole"
            )
        return outputs


def _load(settings: HfSettings, device: torch.device) -> HfGenerator:
    weights = settings.weights
    if weights is None or not weights.is_dir():
        given = "missing" if weights is None else f"{weights}: no such folder"
        raise UserError(f"--weights {given}; give the folder of a mask-generation model as transformers saves it")
    library = needed_library("transformers", "hf", "transformers torchvision")
    needed_library("torchvision", "hf", "transformers torchvision")  # the pipeline's box NMS
    try:
        config = library.AutoConfig.from_pretrained(weights, local_files_only=True)
        pipeline = library.pipeline("mask-generation", model=str(weights), device=device)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        what = f"not a mask-generation model of transformers ({reason})"
        raise UserError(f"--weights {weights}: {what}; check the folder") from None
    versions = {"transformers": library.__version__, "torch": torch.__version__}
    facts = {**versions, "weights": weights.name, "model_type": config.model_type}
    return HfGenerator(pipeline, settings, facts=facts)


GENERATOR = GeneratorEntry(name="hf", settings=HfSettings, load=_load)
