"""Calls of a method as a training stage makes them."""

import torch

from unified_lift.methods import METHODS
from unified_lift.methods.base import StepInfo, ViewPixels


def build(name, *, data_says="segment", **settings):
    """A method with settings other than its defaults, for data in which id 0 is what they say."""
    return METHODS[name].build(METHODS[name].settings(**settings), zero_id=data_says, seed=0)


def losses(method, features, slot, num_segments, progress=0.5, *, view=0, step=0, gaussian_features=None):
    """Terms of pixels of one view."""
    own = torch.zeros(1, method.feature_dim) if gaussian_features is None else gaussian_features
    return method.losses(ViewPixels(features, slot, num_segments), StepInfo(progress, step, view, own))
