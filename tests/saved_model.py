"""A model without training: flat Gaussians on the floor of the miniature world, one code for each coin; its viewers."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from tests.data.fixtures import write_dataset
from tests.data.fixtures.floor import floor_colors, floor_ids
from unified_lift.data import load_scene
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.model.ply import write_gaussians
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.labels import GaussianLabels, label_gaussians
from unified_lift.modelfolder.settings import TrainSettings
from unified_lift.ops.cameras import look_at
from unified_lift.types import Camera

SPACING, EXTENT = 0.09, 2.6
COIN_IDS = (0, 7, 300, 301)  # annotated ids in the order of the codes


def floor_gaussians() -> Gaussians:
    """Return opaque flat Gaussians on a grid, coloured as the floor is, their features one-hot by coin."""
    ticks = np.arange(-EXTENT, EXTENT, SPACING)
    points = np.stack([*np.meshgrid(ticks, ticks), np.zeros((len(ticks),) * 2)], axis=-1).reshape(-1, 3)
    count, slots = len(points), np.searchsorted(COIN_IDS, floor_ids(points))
    colors = torch.from_numpy(floor_colors(points) / 255).float()
    flat = torch.tensor([SPACING * 0.55, SPACING * 0.55, 1e-3])
    return Gaussians(
        {
            "means": torch.from_numpy(points).float(),
            "quats": torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
            "log_scales": flat.log().repeat(count, 1),
            "logit_opacities": torch.full((count,), 3.0),
            "sh0": ((colors - 0.5) / SH_C0)[:, None],
            "shN": torch.zeros(count, 3, 3),
            "features": torch.eye(4, 16)[slots],
        }
    )


def save_model(
    root: Path, *, reader: str = "transforms", hold_out: bool = True, lifted: bool = True, iteration: int = 40
) -> Path:
    """Write a miniature scene and a model of it below `root`; return the model folder."""
    scene_dir, model = root / "scene", root / "model"
    if not scene_dir.exists():
        scene_dir.mkdir(parents=True)
        write_dataset(reader, scene_dir)
    settings = TrainSettings(model_path=model)
    settings = replace(
        settings,
        data=replace(settings.data, source_path=scene_dir, eval=hold_out, random_init=True, num_random_points=8),
        geometry=replace(settings.geometry, iterations=iteration, sh_degree=1),
    )
    scene = load_scene(settings.data)
    outputs.write_run_header(settings, scene)
    gaussians = floor_gaussians()
    folder = outputs.iteration_dir(model, iteration)
    write_gaussians(folder / "point_cloud.ply", gaussians)
    if lifted:
        method = settings.build_method(zero_id=scene.zero_id)
        method.load_object_state(torch.eye(4, 16))
        labels = label_gaussians(gaussians, method, [view.camera for view in scene.train])
        num_views = dict(enumerate(labels.num_views.tolist()))
        outputs.write_objects(folder, gaussians, labels, method=method, num_views=num_views)
    return model


def shift_gaussians(model: Path, iteration: int, offset: float) -> None:
    """Move the saved scene, so that its pictures change."""
    gaussians, folder = floor_gaussians(), outputs.iteration_dir(model, iteration)
    gaussians.set("means", gaussians.means + offset)
    write_gaussians(folder / "point_cloud.ply", gaussians)
    ids = gaussians.features.detach().argmax(dim=1).numpy()
    write_gaussians(folder / "point_cloud_objects.ply", gaussians, object_ids=ids)


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
