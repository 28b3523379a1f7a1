"""What a metric is: its name, unit and direction, and how one held-out view is scored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unified_lift.types import View

ColorCorrect = Literal["none", "affine", "quadratic"]
"""How the colours of a rendering are fitted to those of a photo before they are compared."""


@dataclass(frozen=True, kw_only=True)
class ViewBundle:
    """What a model shows in one held-out view, and what is known of that view."""

    view: View
    image: Tensor  # the rendering as a stored 8-bit picture holds it, in [0, 1], [H, W, 3]
    object_ids: np.ndarray | None  # predicted, int32 [H, W]; None where the model knows no objects
    annotation: np.ndarray | None  # ids at their own size, 0 = no object; None where there are none
    depth: Callable[[], Tensor]  # renders the mean camera depth in world units, 0 where nothing is, [H, W]
    color_correct: ColorCorrect = "none"  # for the scores with fitted colours; none: no such scores

    @property
    def photo(self) -> Tensor:
        """Return the photo in [0, 1], [H, W, 3]."""
        return self.view.image / 255

    @property
    def valid(self) -> Tensor:
        """Return the pixels the lens saw, bool [H, W]."""
        return torch.ones(self.image.shape[:2], dtype=torch.bool) if self.view.valid is None else self.view.valid


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number in results.json.

    `function` returns the value of a view, None (or no finite number) where it does not apply; the scene's is the mean
    over views. Without one, a protocol computes it.
    """

    name: str
    label: str = ""
    unit: str = "%"  # a fraction in [0, 1], printed in percent; `count`; another, printed behind it; "": none
    higher_is_better: bool | None = True  # None: a fact about the scene and no score
    limit: float | None = 1  # largest value, where plots end
    is_headline: bool = False  # among the large numbers at the top of the report
    function: Callable[[ViewBundle], float | None] | None = None

    @property
    def title(self) -> str:
        """Return the name, with the unit if numbers have one."""
        return self.name if self.unit in ("", "%", "count") else f"{self.name} [{self.unit}]"

    def text(self, value: float) -> str:
        """Return a value as people read it: counts whole, fractions in percent."""
        if self.unit == "count":
            return f"{int(value):,}"
        if self.unit == "%":
            return f"{100 * value:.1f} %"
        return f"{value:.2f} {self.unit}" if self.unit else f"{value:.4f}"


_COUNTS = {
    "num_objects_true": "annotated objects in the held-out views",
    "num_objects_pred": "predicted objects in the held-out views",
    "num_objects_found": "pairs with IoU > 0.5",
    "num_prompts": "text prompts",
    "num_prompt_masks": "their annotated masks",
    "num_objects_3d": "objects that own Gaussians, background included",
    "num_gaussians": "Gaussians",
    "num_objects": "annotated objects in the view",
}
METRICS = tuple(Metric(name=name, label=label, unit="count", higher_is_better=None) for name, label in _COUNTS.items())


def require_same_shape(image: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless both are [H, W, 3] of one size."""
    if image.shape != target.shape or image.ndim != 3:
        raise ValueError(f"images must be [H, W, 3] twice, received {list(image.shape)} and {list(target.shape)}")
