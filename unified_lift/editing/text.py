"""CLIP from a local folder, for finding objects by words."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unified_lift.errors import UserError

_BATCH = 32  # pictures encoded together


def clip_encoder(
    folder: Path, *, device: torch.device
) -> Callable[[Sequence[np.ndarray], Sequence[str]], tuple[Tensor, Tensor]]:
    """Return the `TextEncoder` of a CLIP model as `transformers` saves it; nothing is downloaded.

    Raises:
        UserError: `transformers` is not installed, or the folder is missing or holds no CLIP.
    """
    if not folder.is_dir():
        raise UserError(f"--model {folder}: no such folder; download a CLIP model and give its place")
    try:
        library = importlib.import_module("transformers")
    except ImportError:
        raise UserError(
            '--model: the package transformers is not installed; pip install "unified-lift[grounding]"'
        ) from None
    try:
        processor = library.CLIPProcessor.from_pretrained(folder, local_files_only=True)
        clip = library.CLIPModel.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"--model {folder}: cannot be loaded ({error}); give a folder with a CLIP model") from None
    clip.to(device).eval()

    @torch.no_grad()
    def encode(images: Sequence[np.ndarray], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return unit vectors [images, E] and [texts, E] of uint8 RGB pictures of any size and of texts, on the CPU."""
        encoded = []
        for start in range(0, len(images), _BATCH):
            # As PIL images: an array of height 3 would be taken for one with the channels first.
            batch = [Image.fromarray(image) for image in images[start : start + _BATCH]]
            inputs = processor(text=list(texts), images=batch, padding=True, return_tensors="pt")
            out = clip(**inputs.to(device))
            encoded.append(torch.nn.functional.normalize(out.image_embeds.float(), dim=1).cpu())
        return torch.cat(encoded), torch.nn.functional.normalize(out.text_embeds.float(), dim=1).cpu()

    return encode
