"""Segment Anything: a grid of points asks the network, which answers each point with three nested masks.

The package's own generator mixes the three answers into one list and forgets which was which, and its box NMS then lets
a part push out the whole. Here every granularity is asked for by itself, filtered and deduplicated by the package's
code [LangSplat]; the paper's "largest granularity" is `whole`.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from unified_lift.capture.masks import SAM_INDEX, GeneratorEntry, Granularity, Proposal, SamLikeSettings
from unified_lift.capture.networks import (
    installed_version,
    load_state,
    needed_library,
    read_checkpoint,
    require_torchvision,
)
from unified_lift.errors import UserError
from unified_lift.settings.limits import Range


@dataclass(frozen=True, kw_only=True)
class SamSettings(SamLikeSettings):
    """Settings of `sam`; the defaults are those of the official generator."""

    weights: Path | None = None
    """Checkpoint file, such as sam_vit_h_4b8939.pth."""
    model: str = "vit_h"
    """Network the checkpoint belongs to: vit_h, vit_l, vit_b, or vit_t of MobileSAM."""
    box_nms_thresh: Annotated[float, Range(0, 1)] = 0.7
    """Of two masks whose boxes overlap by more than this IoU the better stays [SAM]."""
    crop_n_layers: Annotated[int, Range(0)] = 0
    """Also ask crops of the photo, 2^n along each side in layer n [SAM]; LangSplat: 1."""
    min_mask_region_area: Annotated[int, Range(0)] = 0
    """Pixels; smaller islands and holes of a mask are removed [SAM]; LangSplat: 100."""


class SamGenerator:
    """The automatic mask generator of `segment-anything` or of MobileSAM, one granularity at a time."""

    def __init__(self, network: Any, settings: SamSettings, *, facts: dict[str, Any]) -> None:
        asked = {key: value for key, value in asdict(settings).items() if key not in ("weights", "model")}
        self.facts, self._network = facts, network
        self._generator = _library(settings.model).SamAutomaticMaskGenerator(network, **asked)
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


_INSTALL = {
    "segment_anything": '"unified-lift[masks]"',
    "mobile_sam": "git+https://github.com/ChaoningZhang/MobileSAM.git timm",
}
_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # of the image encoder's positions


def _library(model: str) -> ModuleType:
    name = "mobile_sam" if model == "vit_t" else "segment_anything"
    return needed_library(name, "sam", _INSTALL[name])


def _require_model(state: dict[str, Tensor], settings: SamSettings) -> None:
    """Raise a UserError where the tensors are known to be of another network than `--model`, which it names."""
    positions, found, fix = state.get("image_encoder.pos_embed"), settings.model, ""
    if any(name.startswith(("sam_mask_decoder.", "sam_prompt_encoder.")) for name in state):
        found, fix = "SAM 2", "use --provider hf with the folder of its transformers version"
    elif any(name.startswith("mask_decoder.hf_") for name in state):
        found, fix = "SAM-HQ", "use --provider hf with the folder of its transformers version"
    elif "image_encoder.patch_embed.seq.0.c.weight" in state:
        found = "vit_t"
    elif positions is not None and positions.ndim == 4:
        found = _WIDTHS.get(positions.shape[-1], settings.model)
    if found != settings.model:
        raise UserError(f"--weights {settings.weights}: is a checkpoint of {found}; {fix or f'add --model {found}'}")


def _load(settings: SamSettings, device: torch.device) -> SamGenerator:
    library = _library(settings.model)
    if settings.model not in library.sam_model_registry:
        raise UserError(f"--model {settings.model}: no such SAM; there are vit_h, vit_l, vit_b, vit_t")
    weights = settings.weights
    if weights is None:
        raise UserError("--weights: missing; give the checkpoint file of SAM, such as sam_vit_h_4b8939.pth")
    if not weights.is_file():
        raise UserError(f"--weights {weights}: no such file; download the checkpoint and give its path")
    require_torchvision("sam", device)
    state = read_checkpoint(weights)
    _require_model(state, settings)
    network = library.sam_model_registry[settings.model](checkpoint=None)
    load_state(network, state, weights, settings.model)
    versions = {library.__name__: installed_version(library.__name__), "torch": torch.__version__}
    facts = {**versions, "weights": weights.name, "weights_bytes": weights.stat().st_size}
    return SamGenerator(network.to(device).eval(), settings, facts=facts)


def small_sam(library: ModuleType) -> Any:
    """Return a SAM of 64 pixels with random weights, its logits far from 0 and its opinion of itself high."""
    parts, width = library.modeling, 32
    network = parts.Sam(
        image_encoder=parts.ImageEncoderViT(
            depth=2, embed_dim=width, img_size=64, num_heads=2, patch_size=16, out_chans=width,
            use_rel_pos=True, global_attn_indexes=[1], window_size=2,
        ),
        prompt_encoder=parts.PromptEncoder(
            embed_dim=width, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4
        ),
        mask_decoder=parts.MaskDecoder(
            num_multimask_outputs=3,
            transformer=parts.TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=64, num_heads=2),
            transformer_dim=width, iou_head_depth=3, iou_head_hidden_dim=32,
        ),
    )  # fmt: skip
    return certain(network)


def certain(network: Any) -> Any:
    """Return a SAM with random weights whose masks pass the filters: logits far from 0, a high opinion of itself."""
    with torch.no_grad():
        for mlp in network.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight *= 1000
        network.mask_decoder.iou_prediction_head.layers[-1].bias += 0.9
    return network.eval()


def _trial(model: str) -> SamGenerator:
    library = _library(model)
    require_torchvision("sam", torch.device("cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = certain(library.sam_model_registry[model]()) if model == "vit_t" else small_sam(library)
    settings = SamSettings(model=model, points_per_side=3, pred_iou_thresh=0, stability_score_thresh=0)
    return SamGenerator(network, settings, facts={})


GENERATOR = GeneratorEntry(
    name="sam",
    settings=SamSettings,
    load=_load,
    trials={"segment_anything": partial(_trial, "vit_h"), "mobile_sam": partial(_trial, "vit_t")},
)
