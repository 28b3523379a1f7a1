"""The made-up scenes of bench_scale.py: rooms of balls, with features as a lift would leave them; photos on disk."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unified_lift.fileio import write_json
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.near import remember_views
from unified_lift.model.render import render
from unified_lift.modelfolder.labels import segment_by_labels
from unified_lift.ops.cameras import flip_opengl_opencv, invert_rigid, look_at
from unified_lift.plyio import write_point_cloud
from unified_lift.types import Camera, PointCloud, Scene, View

_EACH, _ROOM, _VIEWS, _AT_WIDTH = 110, 12, 4, 96
_DISTANCE, _RING, _RADIUS, _FLOOR = 10.0, 2.0, 0.4, (8.0, 6.0)  # of rooms, of a room's balls, of a ball; sides
_HOUSE = 4  # rooms
_PHOTO, _DIFFERENT = (1600, 1066), 20  # pixels of photos on disk; pictures of which there are copies


def balls(count: int, device: torch.device) -> tuple[Gaussians, Tensor, Tensor]:
    """Return Gaussians of so many balls in rooms of twelve, the object of each, and the middle of each room [R, 3]."""
    generator = torch.Generator().manual_seed(0)
    origin = _origins(-(-count // _ROOM))
    centres = _centres(count, origin)
    owner = torch.arange(count).repeat_interleave(_EACH)
    number = len(owner)
    codes = normalize(torch.randn(count, 16, generator=generator), dim=1)
    table = {
        "means": centres[owner] + _RADIUS * normalize(torch.randn(number, 3, generator=generator), dim=1),
        "quats": torch.tensor([1.0, 0, 0, 0]).repeat(number, 1),
        "log_scales": torch.full((number, 3), -2.3),
        "logit_opacities": torch.full((number,), 4.0),
        "sh0": torch.zeros(number, 1, 3),
        "shN": torch.zeros(number, 0, 3),
        "features": codes[owner] + 0.05 * torch.randn(number, 16, generator=generator),
    }
    return Gaussians(table).to(device), owner.to(device), origin


def house(number: int, device: torch.device) -> tuple[Gaussians, Tensor, Tensor]:
    """Return Gaussians of four rooms with a floor, object 0, as `balls` does, made on the device.

    They lie on surfaces, equally dense, and shrink as they become more: about ten cover each point. All harmonics.
    """
    generator = torch.Generator(device).manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    origin, count = _origins(_HOUSE).to(device), _HOUSE * _ROOM
    area_of_balls, area_of_floor = count * 4 * np.pi * _RADIUS**2, _HOUSE * _FLOOR[0] * _FLOOR[1]
    on_balls = min(number, max(count, round(number * area_of_balls / (area_of_balls + area_of_floor))))
    ball = torch.arange(on_balls, device=device) % count
    on_floor = number - on_balls
    sides = torch.tensor([*_FLOOR, 0.0], device=device)
    floor = origin[torch.arange(on_floor, device=device) % _HOUSE] + (uniform(on_floor, 3) - 0.5) * sides
    floor[:, 2] -= _RADIUS
    means = [_centres(count, origin)[ball] + _RADIUS * normalize(normal(on_balls, 3), dim=1), floor]
    owner = torch.cat([ball + 1, ball.new_zeros(on_floor)])
    sigma = 0.6 * ((area_of_balls + area_of_floor) / number) ** 0.5
    codes = normalize(normal(count + 1, 16), dim=1)
    table = {
        "means": torch.cat(means),
        "quats": normal(number, 4),
        "log_scales": math.log(sigma) + 0.3 * normal(number, 3),
        "logit_opacities": (0.1 + 0.85 * uniform(number)).logit(),
        "sh0": codes[owner, None, :3] + 0.1 * normal(number, 1, 3),
        "shN": 0.05 * normal(number, 15, 3),
        "features": codes[owner] + 0.05 * normal(number, 16),
    }
    return Gaussians(table), owner, origin


def _origins(rooms: int) -> Tensor:
    side = int(np.ceil(np.sqrt(rooms)))
    return torch.tensor([[_DISTANCE * (room % side), _DISTANCE * (room // side), 0.0] for room in range(rooms)])


def _centres(count: int, origin: Tensor) -> Tensor:
    """Return the middles of balls, [count, 3]: twelve in a ring in each room."""
    index = torch.arange(count, device=origin.device)
    angle = 2 * torch.pi * (index % _ROOM) / _ROOM
    return origin[index // _ROOM] + _RING * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=1)


def height_of(width: int) -> int:
    return max(1, round(0.75 * width))


def cameras_of(origin: Tensor, width: int) -> list[Camera]:
    """Return four cameras for each room, which see it alone."""
    cameras, height, focal = [], height_of(width), 110.0 * width / _AT_WIDTH
    for middle in origin.cpu().numpy():
        for turn in 2 * np.pi * (np.arange(_VIEWS) + 0.5) / _VIEWS:
            pose = look_at(middle + [1.5 * np.cos(turn), 1.5 * np.sin(turn), 8.0], middle, np.array([0.0, 0.0, 1.0]))
            lens = {"fx": focal, "fy": focal, "cx": width / 2, "cy": height / 2, "width": width, "height": height}
            cameras.append(Camera(cam_from_world=pose, **lens))
    return cameras


def scene_of(
    own: Gaussians, owner: Tensor, cameras: list[Camera], device: torch.device, places: np.ndarray
) -> tuple[Scene, list[np.ndarray]]:
    """Return a scene with black photos and masks of the objects, and the object ids [H, W] of each view."""
    remember_views(own, cameras)
    ids = [segment_by_labels(own, owner + 1, camera).object_ids.int() for camera in cameras]
    image = torch.zeros(cameras[0].height, cameras[0].width, 3, dtype=torch.uint8, device=device)
    views = tuple(
        View(name=f"{index}", camera=camera, image=image, segments=each)
        for index, (camera, each) in enumerate(zip(cameras, ids, strict=True))
    )
    points = PointCloud(positions=places, colors=np.zeros((len(places), 3), np.uint8))
    kept_on = "cuda" if device.type == "cuda" else "cpu"
    facts: dict[str, Any] = {"train": views, "test": (), "points": points, "zero_id": "segment", "kept_on": kept_on}
    return Scene(name="building", dataset="made up", **facts), [each.cpu().numpy() for each in ids]


@torch.no_grad()
def with_photos(scene: Scene, own: Gaussians) -> Scene:
    """Return the scene with photos as the Gaussians show it, and noise, so that there is something to learn."""
    views = []
    for view in scene.train:
        image = render(own, view.camera, with_features=False).image
        photo = ((image + 0.05 * torch.randn_like(image)).clamp(0, 1) * 255).to(torch.uint8)
        views.append(View(**{**vars(view), "image": photo}))
    return Scene(**{**vars(scene), "train": tuple(views)})


def write_photos(root: Path, count: int) -> None:
    """Write photos around the origin, a few pictures with masks under many names, and 10,000 points."""
    (width, height), rng, frames = _PHOTO, np.random.default_rng(0), []
    for name in ("images", "object_mask"):
        (root / name).mkdir(parents=True)
    cells = np.kron(rng.permutation(96).reshape(8, 12) + 1, np.ones((-(-height // 8), -(-width // 12))))
    for index in range(count):
        photo, mask = root / "images" / f"{index:05d}.jpg", root / "object_mask" / f"{index:05d}.png"
        if index < _DIFFERENT:
            coarse = rng.integers(0, 255, (height // 4, width // 4, 3), np.uint8)
            cv2.imwrite(str(photo), cv2.resize(coarse, _PHOTO, interpolation=cv2.INTER_CUBIC))
            cv2.imwrite(str(mask), np.roll(cells, 40 * index, axis=1)[:height, :width].astype(np.uint8))
        else:
            for path in (photo, mask):
                os.link(path.with_stem(f"{index % _DIFFERENT:05d}"), path)
        angle = 2 * np.pi * index / count
        place = np.array([4 * np.cos(angle), 4 * np.sin(angle), 1 + index % 3])
        pose = flip_opengl_opencv(invert_rigid(look_at(place, np.zeros(3), np.array([0.0, 0.0, 1.0]))))
        frames.append({"file_path": f"images/{photo.name}", "object_mask_path": f"object_mask/{mask.name}"})
        frames[-1]["transform_matrix"] = pose.tolist()
    points = rng.uniform(-1.5, 1.5, (10_000, 3)).astype(np.float32)
    write_point_cloud(root / "points3D.ply", PointCloud(positions=points, colors=np.full((10_000, 3), 128, np.uint8)))
    lens = {"w": width, "h": height, "fl_x": 1300, "fl_y": 1300, "cx": width / 2, "cy": height / 2}
    write_json(root / "transforms.json", lens | {"ply_file_path": "points3D.ply", "frames": frames})
