"""From words to a mask in one image: the text step of LERF-Mask, by a user's own masks or by GroundingDINO and SAM."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np
import torch

from unified_lift.data.images import open_image
from unified_lift.errors import UserError
from unified_lift.metrics.prompts import MASK_LEVEL

# Grounded-SAM as Gaussian Grouping's scripts call it.
BOX_THRESHOLD = 0.30
TEXT_THRESHOLD = 0.45


class TextMasks(NamedTuple):
    """What words alone found in the reference image.

    Attributes:
        masks: Prompt -> bool [H, W]; a prompt that was not found has no entry or an empty mask.
        facts: How they were found, ready for JSON.
        warnings: What the reader of the scores must know.
    """

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
        """Take the folder.

        Raises:
            UserError: There is no such folder.
        """
        if not folder.is_dir():
            raise UserError(f"--grounding {folder}: no such folder; give one that holds <prompt>.png for every prompt")
        self.folder = folder

    def find(self, image: np.ndarray, prompts: Sequence[str]) -> TextMasks:
        """Return the masks at their own size.

        Raises:
            UserError: No prompt has a file, or a file is damaged.
        """
        paths = {prompt: self.folder / f"{prompt}.png" for prompt in prompts}
        found = {prompt: read_grey_mask(path) for prompt, path in paths.items() if path.is_file()}
        if not found:
            names = ", ".join(path.name for path in paths.values())
            raise UserError(f"--grounding {self.folder}: no mask of any prompt; name the files {names}")
        absent = [prompt for prompt in prompts if prompt not in found]
        warnings = [f"{self.folder}: no mask, so nothing was found for: {', '.join(absent)}"] if absent else []
        return TextMasks(found, {"provider": "folder", "folder": str(self.folder)}, tuple(warnings))


class GroundingDinoSam:
    """GroundingDINO finds boxes for a prompt, SAM turns each into a mask, and their union is the prompt's mask.

    Source: Grounded-SAM as Gaussian Grouping calls it. The image processor saved with the weights resizes (short side
    800, at most 1333) and normalises.
    """

    def __init__(self, dino: Path, sam: Path, *, device: torch.device) -> None:
        """Load both networks.

        Args:
            dino: Folder of a GroundingDINO model as `transformers` saves it.
            sam: Folder of a SAM model as `transformers` saves it.
            device: Where they run.
        Raises:
            UserError: `transformers` is not installed, or a folder is missing or holds no such model.
        """
        for name, folder in (("dino", dino), ("sam", sam)):
            if not folder.is_dir():
                raise UserError(
                    f"--grounding {name}:{folder}: no such folder; download the weights and give their place"
                )
        library = _transformers()
        try:
            self._dino_processor = library.AutoProcessor.from_pretrained(dino, local_files_only=True)
            self._dino = library.AutoModelForZeroShotObjectDetection.from_pretrained(dino, local_files_only=True)
            self._sam_processor = library.SamProcessor.from_pretrained(sam, local_files_only=True)
            self._sam = library.SamModel.from_pretrained(sam, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--grounding dino:{dino},sam:{sam}: cannot be loaded ({error}); check both folders"
            ) from None
        self._device = device
        self._dino.to(device).eval()
        self._sam.to(device).eval()
        self._facts = {"dino": str(dino), "sam": str(sam), "transformers": library.__version__}

    @torch.no_grad()
    def find(self, image: np.ndarray, prompts: Sequence[str]) -> TextMasks:
        """Return the masks at the size of the image; a prompt without a box has an empty one."""
        masks = {}
        for prompt in prompts:
            boxes = self._boxes(image, prompt)
            masks[prompt] = self._mask(image, boxes) if len(boxes) else np.zeros(image.shape[:2], dtype=bool)
        empty = [prompt for prompt, mask in masks.items() if not mask.any()]
        warnings = [f"GroundingDINO found no box for: {', '.join(empty)}"] if empty else []
        thresholds = {"box_threshold": BOX_THRESHOLD, "text_threshold": TEXT_THRESHOLD}
        return TextMasks(masks, {"provider": "GroundingDINO + SAM", **self._facts, **thresholds}, tuple(warnings))

    def _boxes(self, image: np.ndarray, prompt: str) -> torch.Tensor:
        """Return the boxes of a prompt in pixels, x0 y0 x1 y1, float [B, 4]."""
        caption = prompt.lower().strip().removesuffix(".") + "."  # the form the network was trained on
        inputs = self._dino_processor(images=image, text=caption, return_tensors="pt").to(self._device)
        # Thresholds by position: their names differ between versions of transformers.
        (found,) = self._dino_processor.post_process_grounded_object_detection(
            self._dino(**inputs), inputs["input_ids"], BOX_THRESHOLD, TEXT_THRESHOLD, [image.shape[:2]]
        )
        return found["boxes"].cpu()

    def _mask(self, image: np.ndarray, boxes: torch.Tensor) -> np.ndarray:
        """Return the union of the masks of the boxes, bool [H, W]."""
        inputs = self._sam_processor(image, input_boxes=[boxes.tolist()], return_tensors="pt").to(self._device)
        sizes = [inputs.pop(name).cpu() for name in ("original_sizes", "reshaped_input_sizes")]
        outputs = self._sam(**inputs, multimask_output=False)
        (masks,) = self._sam_processor.image_processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)
        return masks.numpy().astype(bool).any(axis=(0, 1))  # [B, 1, H, W]


def grounding_of(text: str, *, device: torch.device) -> Grounding:
    """Return the provider that `--grounding` names: a folder of masks, or `dino:FOLDER,sam:FOLDER`.

    Raises:
        UserError: The text is neither, or what it names is not there.
    """
    if not text.startswith("dino:"):
        return FolderGrounding(Path(text))
    dino, comma, sam = text.removeprefix("dino:").partition(",sam:")
    if not comma:
        raise UserError(f"--grounding {text}: SAM's folder is missing; write dino:FOLDER,sam:FOLDER")
    return GroundingDinoSam(Path(dino), Path(sam), device=device)


def read_grey_mask(path: Path) -> np.ndarray:
    """Return where a mask file is brighter than 128, bool [H, W].

    Raises:
        UserError: The file is missing or damaged.
    """
    return np.asarray(open_image(path).convert("L")) > MASK_LEVEL


def _transformers() -> ModuleType:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise UserError(
            "--grounding dino:...: the package transformers is not installed; run `pip install transformers`, "
            "or give a folder of masks instead"
        ) from None
