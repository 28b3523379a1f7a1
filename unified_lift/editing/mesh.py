"""A triangle mesh of a part of a scene: depth that Gaussians render, fused into a grid, and the surface in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from unified_lift.editing.placement import cameras_of
from unified_lift.errors import UserError
from unified_lift.model.render import render
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.labels import robust_box
from unified_lift.ops.cameras import look_at
from unified_lift.types import Camera

_CELLS = 128  # along the longest side of the box
_MARGIN = 0.15  # of the longest side, around the robust box of the centres
_BAND = 3.0  # cells, in which the distance to the surface is kept
_MOST_VIEWS, _PIXELS = 60, 320
_SOLID = 0.5  # a pixel of less alpha is empty: nothing lies along its ray
_LEAST_PART = 0.02  # of the vertices of the largest connected part: smaller ones are floaters


class Mesh(NamedTuple):
    """Triangles, counter-clockwise from outside: vertices float64 [V, 3], colours uint8 [V, 3], faces int32 [F, 3]."""

    vertices: np.ndarray
    colors: np.ndarray
    faces: np.ndarray


@torch.no_grad()
def mesh_of(scene: TrainedScene) -> Mesh:
    """Return the surface of a part of a scene in the user's coordinates.

    Seen from the cameras of the model, zoomed to the part; without any, from 60 around it. Where none of them sees a
    surface, the mesh is open.
    Source: Curless and Levoy 1996 (truncated signed distances, their mean over views; empty pixels count as far in
        front), Gibson 1998 (surface nets: a vertex in each cell with a crossing, at the mean of its crossings).
    A UserError: there is no surface.
    """
    means = scene.gaussians.means.detach().cpu().double().numpy()
    low, high = robust_box(means)
    side = max(float((high - low).max()), 1e-6)
    low, high = low - _MARGIN * side, high + _MARGIN * side
    step = (1 + 2 * _MARGIN) * side / _CELLS
    shape = tuple(int(count) for count in np.ceil((high - low) / step) + 1)
    axes = [torch.arange(count, dtype=torch.float32) for count in shape]
    nodes = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3) * step + torch.tensor(low).float()
    distance, weight = torch.zeros(2, len(nodes))
    color, color_weight = torch.zeros(len(nodes), 3), torch.zeros(len(nodes))
    for camera in _views(scene, low, high):
        _fuse(scene, camera, nodes, _BAND * step, distance, weight, color, color_weight)
    field = torch.where(weight > 0, distance / weight.clamp(min=1), torch.nan).reshape(shape).numpy()
    places, faces = surface_net(field)
    places, faces = _large_parts(places, faces)
    if not len(faces):
        raise UserError(f"{scene.path}: a part has no surface to make a mesh of; export it as ply or points instead")
    nearest = np.ravel_multi_index(tuple(np.rint(places).astype(np.int64).T), shape)
    colors = (color / color_weight.clamp(min=1e-6)[:, None])[torch.from_numpy(nearest)].clamp(0, 1) * 255
    vertices = scene.frame.outside(places * step + low)
    return Mesh(vertices, colors.round().byte().numpy(), faces.astype(np.int32))


def surface_net(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices [V, 3], in cells, and triangles [F, 3] of where a field [X, Y, Z] is 0: inside it is negative.

    A node that is NaN is not known: no surface is made beside it.
    """
    shape = np.array(field.shape)
    sums, quads = np.zeros((field.size, 4)), []
    for axis in range(3):
        others = [(axis + 1) % 3, (axis + 2) % 3]
        first, second = (np.moveaxis(field, axis, 0)[part] for part in (slice(-1), slice(1, None)))
        first, second = (np.moveaxis(part, 0, axis) for part in (first, second))
        start = np.argwhere((first < 0) != (second < 0))
        start = start[((start[:, others] > 0) & (start[:, others] < shape[others] - 1)).all(axis=1)]
        one, two = first[tuple(start.T)], second[tuple(start.T)]
        known = np.isfinite(one) & np.isfinite(two)
        start, one, two = start[known], one[known], two[known]
        crossing = start.astype(np.float64)
        crossing[:, axis] += one / (one - two)
        around = []  # the four cells that share the edge, counter-clockwise about the axis
        for shift in ((-1, -1), (0, -1), (0, 0), (-1, 0)):
            cell = start.copy()
            cell[:, others] += shift
            around.append(np.ravel_multi_index(tuple(cell.T), field.shape))
            np.add.at(sums, around[-1], np.column_stack([crossing, np.ones(len(cell))]))
        quad = np.stack(around, axis=1)
        quads.append(np.where((one < 0)[:, None], quad, quad[:, ::-1]))
    quad = np.concatenate(quads)
    used, index = np.unique(quad, return_inverse=True)
    quad = index.reshape(-1, 4)
    return sums[used, :3] / sums[used, 3:], np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]])


def _fuse(
    scene: TrainedScene, camera: Camera, nodes: Tensor, band: float, distance: Tensor, weight: Tensor, color: Tensor,
    color_weight: Tensor,
) -> None:  # fmt: skip
    """Add what a camera sees to the sums at nodes [M, 3]: distances in bands, at most 1, and colours near surfaces."""
    out = render(scene.gaussians, camera)
    alpha, image = out.alpha.cpu(), out.image.cpu()
    depth = torch.where(alpha > _SOLID, out.depth.cpu() / alpha.clamp(min=_SOLID), torch.inf)
    pose = torch.from_numpy(camera.cam_from_world).float()
    x, y, z = (nodes @ pose[:3, :3].T + pose[:3, 3]).T
    column, row = (camera.fx * x / z + camera.cx).floor(), (camera.fy * y / z + camera.cy).floor()
    seen = (z > 0) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    index = torch.nonzero(seen)[:, 0]
    pixel = row[index].long() * camera.width + column[index].long()
    ahead = (depth.view(-1)[pixel] - z[index]) / band
    near = ahead >= -1  # farther behind the surface nothing is known
    index, pixel, ahead = index[near], pixel[near], ahead[near]
    distance[index] += ahead.clamp(max=1)
    weight[index] += 1
    close = ahead < 1
    index, pixel = index[close], pixel[close]
    color[index] += image.reshape(-1, 3)[pixel] / alpha.view(-1, 1)[pixel]
    color_weight[index] += 1


def _views(scene: TrainedScene, low: np.ndarray, high: np.ndarray) -> list[Camera]:
    """Return cameras that show the box between two corners [3] as large as it fits, or all that they see if inside."""
    cameras, middle = cameras_of(scene), (low + high) / 2
    if not cameras:
        order = np.arange(_MOST_VIEWS) + 0.5
        z, turn = 1 - 2 * order / _MOST_VIEWS, order * np.pi * (3 - 5**0.5)  # a golden spiral
        sides = np.column_stack([np.sqrt(1 - z * z) * np.cos(turn), z, np.sqrt(1 - z * z) * np.sin(turn)])
        size, lens = _PIXELS, {"fx": 1.0 * _PIXELS, "fy": 1.0 * _PIXELS, "cx": _PIXELS / 2, "cy": _PIXELS / 2}
        reach = 1.5 * float(np.linalg.norm(high - low))
        poses = [look_at(middle + reach * side, middle, np.array([0.0, 0, 1])) for side in sides]
        cameras = [Camera(cam_from_world=pose, width=size, height=size, **lens) for pose in poses]
    corners = np.stack(np.meshgrid(*zip(low, high), indexing="ij"), axis=-1).reshape(-1, 3)
    return [_zoomed(camera, corners) for camera in cameras[:: -(-len(cameras) // _MOST_VIEWS)]]


def _zoomed(camera: Camera, corners: np.ndarray) -> Camera:
    pose = camera.cam_from_world
    x, y, z = (corners @ pose[:3, :3].T + pose[:3, 3]).T
    if z.min() < 1e-2 * np.abs(z).max():
        scale = _PIXELS / max(camera.width, camera.height)
        return camera.resized(max(1, round(scale * camera.width)), max(1, round(scale * camera.height)))
    u, v = camera.fx * x / z, camera.fy * y / z
    scale = _PIXELS / max(float(np.ptp(u)), float(np.ptp(v)), 1e-6)
    width, height = (max(1, int(np.ceil(scale * np.ptp(values)))) for values in (u, v))
    lens = {
        "fx": camera.fx * scale,
        "fy": camera.fy * scale,
        "cx": float(-scale * u.min()),
        "cy": float(-scale * v.min()),
    }
    return Camera(cam_from_world=pose, width=width, height=height, **lens)


def _large_parts(places: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a mesh without its small connected parts."""
    if not len(faces):
        return places, faces
    links = coo_matrix(
        (np.ones(2 * len(faces)), (faces[:, :2].ravel(), faces[:, 1:].ravel())), shape=(len(places),) * 2
    )
    part = connected_components(links, directed=False)[1]
    sizes = np.bincount(part)
    kept = (sizes >= _LEAST_PART * sizes.max())[part]
    return places[kept], (np.cumsum(kept) - 1)[faces[kept[faces].all(axis=1)]]
