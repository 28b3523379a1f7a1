"""What is counted beside the scores."""

from unified_lift.metrics.base import Metric

_LABELS = {
    "num_objects_true": "annotated objects in the held-out views",
    "num_objects_pred": "predicted objects in the held-out views",
    "num_objects_found": "pairs with IoU > 0.5",
    "num_prompts": "text prompts",
    "num_prompt_masks": "their annotated masks",
    "num_objects_3d": "objects that own Gaussians, background included",
    "num_gaussians": "Gaussians",
    "num_objects": "annotated objects in the view",
}
METRICS = tuple(Metric(name=name, label=label, unit="count", higher_is_better=None) for name, label in _LABELS.items())
