"""Segment Anything: a grid of points asks the network, which answers each point with three nested masks.

The package's own generator mixes the three answers into one list and forgets which was which, and its box NMS then lets
a part push out the whole. Here every granularity is asked for by itself, filtered and deduplicated by the package's
code [LangSplat]; the paper's "largest granularity" is `whole`.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from unified_lift.capture.masks import SAM_INDEX, GeneratorEntry, Granularity, Proposal, SamLikeSettings, needed_library
from unified_lift.errors import UserError
from unified_lift.settings.limits import Range


@dataclass(frozen=True, kw_only=True)
class SamSettings(SamLikeSettings):
    """Settings of `sam`; the defaults are those of the official generator."""

    weights: Path | None = None
    """Checkpoint file, such as sam_vit_h_4b8939.pth."""
    model: str = "vit_h"
    """Network the checkpoint belongs to: vit_h, vit_l or vit_b."""
    box_nms_thresh: Annotated[float, Range(0, 1)] = 0.7
    """Of two masks whose boxes overlap by more than this IoU the better stays [SAM]."""
    crop_n_layers: Annotated[int, Range(0)] = 0
    """Also ask crops of the photo, 2^n along each side in layer n [SAM]; LangSplat: 1."""
    min_mask_region_area: Annotated[int, Range(0)] = 0
    """Pixels; smaller islands and holes of a mask are removed [SAM]; LangSplat: 100."""


class SamGenerator:
    """The automatic mask generator of `segment-anything`, one granularity at a time."""

    def __init__(self, network: Any, settings: SamSettings, *, facts: dict[str, Any]) -> None:
        asked = {key: value for key, value in asdict(settings).items() if key not in ("weights", "model")}
        self.facts, self._network = facts, network
        self._generator = _library().SamAutomaticMaskGenerator(network, **asked)
        self._encoded: dict[tuple, dict[str, Any]] = {}
        predictor = self._generator.predictor
        encode = predictor.set_image

        def encode_once(image: np.ndarray, image_format: str = "RGB") -> None:
            key = image.shape, image.tobytes()
            if key not in self._encoded:
                encode(image, image_format)
                names = ("original_size", "input_size", "features")
                self._encoded[key] = {name: getattr(predictor, name) for name in names}
            vars(predictor).update(self._encoded[key], is_image_set=True)

        predictor.set_image = encode_once

    def propose(self, image: np.ndarray, granularities: Collection[Granularity]) -> list[Proposal]:
        """Return the proposals of these granularities; each crop of the photo is encoded once for all of them."""
        proposals = []
        for granularity in granularities:
            chosen = [SAM_INDEX[granularity]]  # of masks [B, 3, h, w] and predicted IoU [B, 3]
            # Before the step to full size, which is the costly one.
            hook = self._network.mask_decoder.register_forward_hook(
                lambda module, inputs, outputs, chosen=chosen: tuple(one[:, chosen] for one in outputs)
            )
            try:
                found = self._generator.generate(image)
            finally:
                hook.remove()
            for record in found:
                mask, score, stability = (record[k] for k in ("segmentation", "predicted_iou", "stability_score"))
                proposals.append(Proposal(mask=mask, score=score, stability=stability, granularity=granularity))
        self._encoded.clear()
        return proposals


_library = partial(needed_library, "segment_anything", "sam", '"unified-lift[masks]"')


def _load(settings: SamSettings, device: torch.device) -> SamGenerator:
    library = _library()
    if settings.model not in library.sam_model_registry:
        raise UserError(f"--model {settings.model}: no such SAM; there are vit_h, vit_l, vit_b")
    weights = settings.weights
    if weights is None:
        raise UserError("--weights: missing; give the checkpoint file of SAM, such as sam_vit_h_4b8939.pth")
    if not weights.is_file():
        raise UserError(f"--weights {weights}: no such file; download the checkpoint and give its path")
    network = library.sam_model_registry[settings.model](checkpoint=None)
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # noqa: BLE001 (torch raises anything from OSError to UnpicklingError on damaged files)
        reason = str(error).strip().splitlines()[0]
        what = f"not a checkpoint of {settings.model} ({reason})"
        raise UserError(f"--weights {weights}: {what}; fetch it again or name its network with --model") from None
    versions = {"segment_anything": version("segment_anything"), "torch": torch.__version__}
    facts = {**versions, "weights": weights.name, "weights_bytes": weights.stat().st_size}
    return SamGenerator(network.to(device).eval(), settings, facts=facts)


GENERATOR = GeneratorEntry(name="sam", settings=SamSettings, load=_load)
