"""Scenes for the viewer: four objects on a floor, and a camera above it."""

from types import SimpleNamespace

import numpy as np
import torch

from tests.saved_model import floor_gaussians
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.labels import GaussianLabels
from unified_lift.ops.cameras import look_at
from unified_lift.types import Camera


def floor_scene(**changes) -> TrainedScene:
    """Return the miniature world as objects 0 (the floor) to 3."""
    gaussians = floor_gaussians()
    ids = gaussians.features.detach().argmax(dim=1)
    return TrainedScene(gaussians=gaussians, labels=GaussianLabels(ids, torch.ones(len(ids))), **changes)


def camera_above(point, *, height=2.0, width=96, rows=64) -> Camera:
    """Return a camera that looks straight down at a point of the floor."""
    x, y = (float(value) for value in torch.as_tensor(point[:2]).detach())
    pose = look_at(np.array([x, y, height]), np.array([x, y, 0.0]), np.array([0.0, 1.0, 0.0]))
    return Camera(cam_from_world=pose, fx=80.0, fy=80.0, cx=width / 2, cy=rows / 2, width=width, height=rows)


def window_of(wxyz, position, fov, width, height):
    """Return what viser tells of a browser window."""
    camera = SimpleNamespace(wxyz=wxyz, position=position, fov=fov, image_width=width, image_height=height)
    return SimpleNamespace(camera=camera)
