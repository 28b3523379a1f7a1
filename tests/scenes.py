"""A scene small enough to train in a test: three coloured balls, six cameras on a circle, 24x20 pixels."""

import numpy as np
import torch

from unified_lift.types import Camera, PointCloud, Scene, View

CENTRES = np.array([[-0.6, 0.0, 0.0], [0.6, 0.0, 0.0], [0.0, 0.7, 0.3]])
RADII = np.array([0.35, 0.35, 0.3])
COLORS = np.array([[230, 60, 40], [40, 90, 230], [60, 200, 80]])


def circle_camera(angle: float, *, width: int = 24, height: int = 20) -> Camera:
    """Return a camera at distance 3 that looks at the origin, principal point off centre."""
    position = np.array([3 * np.sin(angle), -0.5, -3 * np.cos(angle)])
    forward = -position / np.linalg.norm(position)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ position
    return Camera(
        cam_from_world=pose, fx=26.0, fy=26.0, cx=width / 2 + 0.7, cy=height / 2 - 0.4, width=width, height=height
    )


def exact_ids(camera: Camera) -> np.ndarray:
    """Return the ball (1..3) seen by each pixel, 0 = none, by ray casting, int32 [H, W]."""
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    rays = np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones_like(x)], axis=-1)
    rays = rays @ camera.cam_from_world[:3, :3]
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    nearest, ids = np.full(x.shape, np.inf), np.zeros(x.shape, np.int32)
    for index, (centre, radius) in enumerate(zip(CENTRES, RADII, strict=True), start=1):
        offset = camera.position - centre
        half_b = rays @ offset
        under = half_b**2 - (offset @ offset - radius**2)
        distance = np.where(under > 0, -half_b - np.sqrt(np.maximum(under, 0)), np.inf)
        hit = distance < nearest
        nearest[hit], ids[hit] = distance[hit], index
    return ids


def tiny_scene(*, zero_id: str = "segment", num_views: int = 6, seed: int = 0) -> Scene:
    """Return the scene; mask ids are shuffled in every view, as a 2D model would give them."""
    rng = np.random.default_rng(seed)
    views = []
    for index in range(num_views + 2):
        camera = circle_camera(0.5 * index)
        ids = exact_ids(camera)
        image = np.concatenate([[[20, 20, 25]], COLORS])[ids].astype(np.uint8)
        names = np.concatenate([[0], rng.permutation(np.arange(300, 303))]).astype(np.int32)
        segments = torch.from_numpy(names[ids])
        views.append(View(name=f"view_{index}", camera=camera, image=torch.from_numpy(image), segments=segments))
    directions = rng.normal(size=(3, 40, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    positions = (CENTRES[:, None] + directions * RADII[:, None, None]).reshape(-1, 3).astype(np.float32)
    colors = COLORS.repeat(40, axis=0).astype(np.uint8)
    return Scene(
        name="balls",
        dataset="test",
        train=tuple(views[:num_views]),
        test=tuple(views[num_views:]),
        points=PointCloud(positions=positions, colors=colors),
        zero_id=zero_id,
    )
