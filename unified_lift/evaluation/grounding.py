"""From words to a mask in one image: the text step of LERF-Mask, by a user's own masks or by GroundingDINO and SAM."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from unified_lift.data.images import open_image
from unified_lift.errors import UserError
from unified_lift.metrics.prompts import MASK_LEVEL

BOX_THRESHOLD, TEXT_THRESHOLD = 0.30, 0.45  # Grounded-SAM as Gaussian Grouping's scripts call it


class TextMasks(NamedTuple):
    """What words found: prompt -> bool [H, W], absent or empty if it was not found; facts for JSON; warnings."""

    masks: dict[str, np.ndarray]
    facts: dict[str, object]
    warnings: tuple[str, ...] = ()


class Grounding(Protocol):
    """Finds prompts in an image."""

    def find(self, image: np.ndarray, prompts: Sequence[str]) -> TextMasks:
        """Return the masks of the prompts in an image, uint8 RGB [H, W, 3]."""


class FolderGrounding:
    """The user's masks of the reference image: `<folder>/<prompt>.png`, grey, the object brighter than 128.

    A prompt without a file was not found, as when a detector returns no box.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"--grounding {folder}: no such folder; give one that holds <prompt>.png for every prompt")
        self.folder = folder

    def find(self, image: np.ndarray, prompts: Sequence[str]) -> TextMasks:
        """Return the masks at their own size; a UserError if no prompt has a file, or one is damaged."""
        paths = {prompt: self.folder / f"{prompt}.png" for prompt in prompts}
        present = {prompt: path for prompt, path in paths.items() if path.is_file()}
        found = {prompt: np.asarray(open_image(path).convert("L")) > MASK_LEVEL for prompt, path in present.items()}
        if not found:
            names = ", ".join(path.name for path in paths.values())
            raise UserError(f"--grounding {self.folder}: no mask of any prompt; name the files {names}")
        absent = ", ".join(prompt for prompt in prompts if prompt not in found)
        warnings = (f"{self.folder}: no mask, so nothing was found for: {absent}",) if absent else ()
        return TextMasks(found, {"provider": "folder", "folder": str(self.folder)}, warnings)


class GroundingDinoSam:
    """GroundingDINO finds boxes for a prompt, SAM turns each into a mask, and their union is the prompt's mask.

    Source: Grounded-SAM as Gaussian Grouping calls it. The image processor saved with the weights resizes (short side
    800, at most 1333) and normalises. Both folders hold a model as `transformers` saves it.
    """

    def __init__(self, dino: Path, sam: Path, *, device: torch.device) -> None:
        for name, folder in (("dino", dino), ("sam", sam)):
            if not folder.is_dir():
                fix = "download the weights and give their place"
                raise UserError(f"--grounding {name}:{folder}: no such folder; {fix}")
        try:
            library = importlib.import_module("transformers")
        except ImportError:
            fix = "run `pip install transformers`, or give a folder of masks instead"
            raise UserError(f"--grounding dino:...: the package transformers is not installed; {fix}") from None

        def loaded(kind: str, folder: Path) -> Any:  # noqa: ANN401 (transformers is not a dependency)
            return getattr(library, kind).from_pretrained(folder, local_files_only=True)

        try:
            self._dino_processor = loaded("AutoProcessor", dino)
            self._dino = loaded("AutoModelForZeroShotObjectDetection", dino).to(device).eval()
            self._sam_processor = loaded("SamProcessor", sam)
            self._sam = loaded("SamModel", sam).to(device).eval()
        except (OSError, ValueError) as error:
            problem = f"cannot be loaded ({error}); check both folders"
            raise UserError(f"--grounding dino:{dino},sam:{sam}: {problem}") from None
        self._device = device
        self._facts = {"dino": str(dino), "sam": str(sam), "transformers": library.__version__}

    @torch.no_grad()
    def find(self, image: np.ndarray, prompts: Sequence[str]) -> TextMasks:
        """Return the masks at the size of the image; a prompt without a box has an empty one."""
        masks = {prompt: self._mask(image, prompt) for prompt in prompts}
        empty = ", ".join(prompt for prompt, mask in masks.items() if not mask.any())
        warnings = (f"GroundingDINO found no box for: {empty}",) if empty else ()
        thresholds = {"box_threshold": BOX_THRESHOLD, "text_threshold": TEXT_THRESHOLD}
        return TextMasks(masks, {"provider": "GroundingDINO + SAM", **self._facts, **thresholds}, warnings)

    def _mask(self, image: np.ndarray, prompt: str) -> np.ndarray:
        """Return the union of the masks of a prompt's boxes, bool [H, W]."""
        caption = prompt.lower().strip().removesuffix(".") + "."  # the form the network was trained on
        inputs = self._dino_processor(images=image, text=caption, return_tensors="pt").to(self._device)
        # Thresholds by position: their names differ between versions of transformers.
        (found,) = self._dino_processor.post_process_grounded_object_detection(
            self._dino(**inputs), inputs["input_ids"], BOX_THRESHOLD, TEXT_THRESHOLD, [image.shape[:2]]
        )
        boxes = found["boxes"].cpu()  # pixels, x0 y0 x1 y1, [B, 4]
        if not len(boxes):
            return np.zeros(image.shape[:2], dtype=bool)
        inputs = self._sam_processor(image, input_boxes=[boxes.tolist()], return_tensors="pt").to(self._device)
        sizes = [inputs.pop(name).cpu() for name in ("original_sizes", "reshaped_input_sizes")]
        outputs = self._sam(**inputs, multimask_output=False)
        (masks,) = self._sam_processor.image_processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)
        return masks.numpy().astype(bool).any(axis=(0, 1))  # [B, 1, H, W]


def grounding_of(text: str, *, device: torch.device) -> Grounding:
    """Return what `--grounding` names: a folder of masks, or `dino:FOLDER,sam:FOLDER`; else raise a UserError."""
    if not text.startswith("dino:"):
        return FolderGrounding(Path(text))
    dino, comma, sam = text.removeprefix("dino:").partition(",sam:")
    if not comma:
        raise UserError(f"--grounding {text}: SAM's folder is missing; write dino:FOLDER,sam:FOLDER")
    return GroundingDinoSam(Path(dino), Path(sam), device=device)
