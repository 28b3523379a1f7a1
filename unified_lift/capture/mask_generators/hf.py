"""Any mask-generation model of `transformers` (SAM, SAM-HQ, SAM 2, ...), from a local folder."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image

from unified_lift.capture.masks import SAM_INDEX, GeneratorEntry, Granularity, Proposal, SamLikeSettings
from unified_lift.capture.networks import (
    needed_library,
    one_line,
    require_download,
    require_finite,
    require_torchvision,
)
from unified_lift.errors import UserError
from unified_lift.progress import silence_transformers
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
    library = _library(device)
    for path in sorted(weights.iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin"):
            require_download(path)
    local = {"local_files_only": True, "trust_remote_code": False}
    what = f"--weights {weights}: not a mask-generation model of transformers"
    with one_line(what, fix="check the folder, and that your transformers knows this model"):
        config = library.AutoConfig.from_pretrained(weights, **local)
        kind = library.AutoModelForMaskGeneration
        model, loaded = kind.from_pretrained(weights, **local, output_loading_info=True)
        # Positions are stored once in older checkpoints and shared after loading.
        missing = sorted(name for name in loaded["missing_keys"] if not name.endswith("positional_embedding"))
        if missing:
            raise ValueError(f"its files lack {len(missing)} tensors of {config.model_type}, first {missing[0]}")
        require_finite(weights, model.state_dict())
    with one_line(f"--weights {weights}: its preprocessor_config.json cannot be used", fix="fetch the whole folder"):
        processor = library.AutoImageProcessor.from_pretrained(weights, **local)
    with one_line(what, fix="your transformers cannot make masks with it"):
        pipeline = library.pipeline("mask-generation", model=model, image_processor=processor, device=device)
    versions = {"transformers": library.__version__, "torch": torch.__version__}
    facts = {**versions, "weights": weights.name, "model_type": config.model_type}
    return HfGenerator(pipeline, settings, facts=facts)


def _library(device: torch.device) -> ModuleType:
    """Return transformers, silenced: what it would print of a wrong model becomes an error here."""
    require_torchvision("hf", device)  # first: without it transformers complains of other things
    library = needed_library("transformers", "hf", "transformers torchvision")
    silence_transformers(library)
    return library


def small_sam(library: ModuleType) -> tuple[Any, Any]:
    """Return a SAM of 64 pixels with random weights that is certain of its masks, and its image processor."""
    sizes = {"hidden_size": 32, "image_size": 64, "patch_size": 16}
    config = library.SamConfig(
        vision_config=sizes
        | {"num_hidden_layers": 2, "num_attention_heads": 2, "output_channels": 32, "num_pos_feats": 16}
        | {"window_size": 2, "global_attn_indexes": [1], "mlp_dim": 64},
        prompt_encoder_config=sizes | {"image_embedding_size": 4, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
    )
    processor = library.SamImageProcessor(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    return certain(library.SamModel(config)), processor


def certain(model: Any) -> Any:
    """Return a random SAM, SAM 2 or SAM 3 of transformers with logits far from 0 and a high opinion of itself."""
    with torch.no_grad():
        model.mask_decoder.iou_prediction_head.proj_out.bias += 0.95
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight *= 1000
    return model.eval()


def _trial() -> HfGenerator:
    library = _library(torch.device("cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = small_sam(library)
    pipeline = library.pipeline("mask-generation", model=model, image_processor=processor, device="cpu")
    settings = HfSettings(points_per_side=3, pred_iou_thresh=0, stability_score_thresh=0)
    return HfGenerator(pipeline, settings, facts={})


GENERATOR = GeneratorEntry(name="hf", settings=HfSettings, load=_load, trials={"transformers": _trial})
