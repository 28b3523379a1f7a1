"""Calls of a method as a training stage makes them."""

import torch

from unified_lift.methods.base import StepInfo, ViewPixels


def losses(method, features, slot, num_segments, progress=0.5, *, view=0, step=0, gaussian_features=None):
    """Terms of pixels of one view."""
    own = torch.zeros(1, method.feature_dim) if gaussian_features is None else gaussian_features
    return method.losses(ViewPixels(features, slot, num_segments), StepInfo(progress, step, view, own))
