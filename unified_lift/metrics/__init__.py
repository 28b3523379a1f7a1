"""Scores as pure functions on arrays: image quality, masks, matched IoU, panoptic quality. Equations in the docs."""
