"""From words to a mask in one image: the text step of LERF-Mask, by a user's own masks or by GroundingDINO and SAM."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from unified_lift.data.images import open_image
from unified_lift.errors import UserError
from unified_lift.memory import lack_of_memory
from unified_lift.metrics.prompts import MASK_LEVEL
from unified_lift.progress import silence_transformers

BOX_THRESHOLD, TEXT_THRESHOLD = 0.30, 0.45  # Grounded-SAM as Gaussian Grouping's scripts call it


class TextMasks(NamedTuple):
    """What words found: prompt -> bool [H, W], absent or empty if it was not found; facts for JSON; warnings."""

    masks: dict[str, np.ndarray]
    facts: dict[str, object]
    warnings: tuple[str, ...] = ()


Grounding = Callable[[np.ndarray, Sequence[str]], TextMasks]
"""Finds prompts in an image, uint8 RGB [H, W, 3]."""


def grounding_of(text: str, *, device: torch.device) -> Grounding:
    """Return what `--grounding` names: a folder of masks, or `dino:FOLDER,sam:FOLDER`; else raise a UserError."""
    if not text.startswith("dino:"):
        return masks_in(Path(text))
    dino, comma, sam = text.removeprefix("dino:").partition(",sam:")
    if not comma:
        raise UserError(f"--grounding {text}: SAM's folder is missing; write dino:FOLDER,sam:FOLDER")
    return dino_and_sam(Path(dino), Path(sam), device=device)


def masks_in(folder: Path) -> Grounding:
    """Return what reads the user's masks of the image: `<folder>/<prompt>.png`, grey, the object brighter than 128.

    A prompt without a file was not found, as when a detector returns no box. A UserError: there is no folder, no prompt
    has a file, or one is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"--grounding {folder}: no such folder; give one that holds <prompt>.png for every prompt")

    def find(_: np.ndarray, prompts: Sequence[str]) -> TextMasks:
        paths = {prompt: folder / f"{prompt}.png" for prompt in prompts}
        present = {prompt: path for prompt, path in paths.items() if path.is_file()}
        found = {prompt: np.asarray(open_image(path).convert("L")) > MASK_LEVEL for prompt, path in present.items()}
        if not found:
            names = ", ".join(path.name for path in paths.values())
            raise UserError(f"--grounding {folder}: no mask of any prompt; name the files {names}")
        absent = ", ".join(prompt for prompt in prompts if prompt not in found)
        warnings = (f"{folder}: no mask, so nothing was found for: {absent}",) if absent else ()
        return TextMasks(found, {"provider": "folder", "folder": str(folder.absolute())}, warnings)

    return find


def pretrained(folder: Path, processor: str, model: str, *, flag: str, device: torch.device) -> tuple[Any, Any]:
    """Return a processor and a model of `transformers` from a folder, no download; a UserError begins with `flag`."""
    if not folder.is_dir():
        raise UserError(f"{flag}{folder}: no such folder; download the weights and give their place")
    try:
        library = importlib.import_module("transformers")
    except ImportError:
        fix = 'pip install "unified-lift[grounding]"'
        raise UserError(f"{flag}{folder}: the package transformers is not installed; {fix}") from None
    silence_transformers(library)
    try:
        found = [getattr(library, kind).from_pretrained(folder, local_files_only=True) for kind in (processor, model)]
    except Exception as error:  # damaged files raise anything
        if lack_of_memory(error) is not None:
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{flag}{folder}: cannot be loaded ({reason}); give a folder with a {model}") from None
    return found[0], found[1].to(device).eval()


def dino_and_sam(dino: Path, sam: Path, *, device: torch.device) -> Grounding:
    """Return GroundingDINO and SAM: boxes of a prompt, a mask for each, and their union as the prompt's mask.

    A prompt without a box has an empty mask. The image processor saved with the weights resizes (short side 800, at
    most 1333) and normalises.

    Source: Grounded-SAM as Gaussian Grouping calls it.
    """
    kinds = ("AutoProcessor", "AutoModelForZeroShotObjectDetection")
    dino_processor, detector = pretrained(dino, *kinds, flag="--grounding dino:", device=device)
    sam_processor, segmenter = pretrained(sam, "SamProcessor", "SamModel", flag="--grounding sam:", device=device)
    version = importlib.import_module("transformers").__version__
    facts: dict[str, object] = {"provider": "GroundingDINO + SAM"}
    facts |= {"dino": str(dino.absolute()), "sam": str(sam.absolute())}
    facts |= {"transformers": version, "box_threshold": BOX_THRESHOLD, "text_threshold": TEXT_THRESHOLD}

    def mask_of(image: np.ndarray, prompt: str) -> np.ndarray:
        caption = prompt.lower().strip().removesuffix(".") + "."  # the form the network was trained on
        inputs = dino_processor(images=image, text=caption, return_tensors="pt").to(device)
        # Thresholds by position: their names differ between versions of transformers.
        (found,) = dino_processor.post_process_grounded_object_detection(
            detector(**inputs), inputs["input_ids"], BOX_THRESHOLD, TEXT_THRESHOLD, [image.shape[:2]]
        )
        boxes = found["boxes"].cpu()  # pixels, x0 y0 x1 y1, [B, 4]
        if not len(boxes):
            return np.zeros(image.shape[:2], dtype=bool)
        inputs = sam_processor(image, input_boxes=[boxes.tolist()], return_tensors="pt").to(device)
        sizes = [inputs.pop(name).cpu() for name in ("original_sizes", "reshaped_input_sizes")]
        outputs = segmenter(**inputs, multimask_output=False)
        (masks,) = sam_processor.image_processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)
        return masks.numpy().astype(bool).any(axis=(0, 1))  # [B, 1, H, W]

    @torch.no_grad()
    def find(image: np.ndarray, prompts: Sequence[str]) -> TextMasks:
        masks = {prompt: mask_of(image, prompt) for prompt in prompts}
        empty = ", ".join(prompt for prompt, mask in masks.items() if not mask.any())
        return TextMasks(masks, facts, (f"GroundingDINO found no box for: {empty}",) if empty else ())

    return find
