"""What the viewer draws: frames of a scene in its modes, and small pictures of objects; and the cameras of both."""

import base64
import copy
import html
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from unified_lift.editing.formats.html import first_view
from unified_lift.evaluation.pictures import object_colors, quantize_uint8, uncertainty_picture
from unified_lift.evaluation.video import centred_camera, saved_cameras, up_direction
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import RenderOutput, render
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.ops import cameras as geometry
from unified_lift.ops.segments import segment_mean
from unified_lift.types import Camera
from unified_lift.viewer.session import Session

_SIDEWAYS, _SPLAT_SIZE = 0.7, (800, 600)  # radians between the cameras of a splat, and their pixels
_MAP_SHARE = 0.75  # of the colour in modes ids and uncertainty: shading stays visible
_FULL_COLOR = 3.0  # standard deviations of the objects' features that make a full colour
_OUTLINE = (255, 214, 10)
_OUTLINE_EDGE = (20, 20, 20)  # around the outline, so that it shows on yellow things too
_OUTLINE_WIDTH = 1 / 250  # of the height of the frame

SIZE = (88, 66)  # width and height of a small picture in pixels
_CARDS = 48  # most objects in the list: each picture travels to the browser
_FIELD = 0.8  # of the picture that the object fills
_EXTENT = (3, 97)  # percentiles between which it counts as wide
_BACKDROP = (0.93, 0.94, 0.96)
_MIN_FOCAL, _MAX_FOCAL = 0.4, 40.0  # of the width
_QUALITY = 80
_STYLE = """
<style>
.ul-list{display:grid;grid-template-columns:repeat(3,1fr);gap:6px;padding:2px 10px 8px}
.ul-card{border:2px solid transparent;border-radius:6px;background:rgba(128,128,128,.12);padding:3px;font:inherit;
font-size:11px;line-height:1.25;overflow:hidden;color:inherit;text-align:left;cursor:pointer;min-width:0}
.ul-card img{width:100%;aspect-ratio:4/3;border-radius:4px;display:block;margin-bottom:2px}
div:has(>.ul-picked)+div{display:none}
.ul-card b{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;font-weight:600;overflow:hidden;
overflow-wrap:anywhere}
.ul-card i{display:inline-block;width:8px;height:8px;border-radius:2px;margin-right:4px}
.ul-card span{opacity:.65}
.ul-card.on{border-color:#f2b705}
.ul-card.off{opacity:.4}
.ul-note{padding:0 10px 6px;font-size:12px;opacity:.7}
</style>
"""

# What a card does: viser takes messages from its own inputs only, so a hidden one is filled as if somebody typed.
_PICK = """const card=event.target.closest('.ul-card');if(card){
const input=document.querySelector('div:has(>.ul-picked)+div input');
Object.getOwnPropertyDescriptor(HTMLInputElement.prototype,'value').set.call(input,
[card.dataset.id,event.shiftKey?'add':'only',Date.now()].join(' '));
input.dispatchEvent(new Event('input',{bubbles:true}))}""".replace("\n", "")
PICKED = '<i class="ul-picked"></i>'
"""Stands before the input that cards fill with the id of an object, `add` or `only`, and the time."""

# ---- cameras ----


def camera_of(client: Any) -> Camera:
    """Return the camera of a window of viser, whose `fov` is vertical and whose pose has OpenCV axes."""
    seen = client.camera
    focal = geometry.focal_from_fov(seen.fov, seen.image_height)
    world_from_cam = geometry.rigid_from_quaternion(np.asarray(seen.wxyz), np.asarray(seen.position))
    return centred_camera(geometry.invert_rigid(world_from_cam), focal, focal, seen.image_width, seen.image_height)


def cameras_of(scene: TrainedScene) -> list[Camera]:
    """Return the cameras of a scene's model folder; of a splat, which brings none, three that look at it."""
    path = scene.path / "cameras.json"
    if path.exists():
        return saved_cameras(scene.path, scene.frame)
    seen = first_view(path, scene.gaussians.means.detach().cpu().numpy(), is_whole=False)
    eye, target, up = (np.array(seen[key]) for key in ("eye", "target", "up"))
    places = [target + Rotation.from_rotvec(turn * up).apply(eye - target) for turn in (0, _SIDEWAYS, -_SIDEWAYS)]
    focal = geometry.focal_from_fov(seen["fieldOfView"], _SPLAT_SIZE[1])
    return [centred_camera(geometry.look_at(place, target, up), focal, focal, *_SPLAT_SIZE) for place in places]


def start_view(cameras: Sequence[Camera]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return how a window opens: position, target and up, [3] each, and vertical field of view in radians.

    It is the view of the first camera, turned about the point on its axis that is nearest to what all look at.
    """
    first = cameras[0]
    forward = first.cam_from_world[2, :3]
    nearest = float(forward @ (geometry.look_at_point(list(cameras)) - first.position))
    extent = float(np.linalg.norm(np.ptp([camera.position for camera in cameras], axis=0)))
    target = first.position + (nearest if nearest > 0 else extent or 1.0) * forward
    return first.position, target, up_direction(cameras), geometry.fov_from_focal(first.fy, first.height)


# ---- frames ----


FeatureColors = Callable[[Tensor], Tensor]


def feature_colors(scene: TrainedScene) -> FeatureColors:
    """Return a linear map from features [N, D] to colours [N, 3]: where objects differ most becomes R, G, B.

    Grey is the mean of the objects, and most of them lie in [0, 1]. Being linear, the map may be applied to Gaussians
    instead of pixels, so that only three numbers need be blended.
    """
    features = scene.gaussians.features.detach().float()
    known, index = torch.unique(scene.object_ids, return_inverse=True)
    means = segment_mean(features, index, len(known))  # of each object, so that a large one counts no more
    mean = means.mean(dim=0)
    centred = means - mean
    strongest = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :3]
    if strongest.numel():  # an eigenvector has no sign of its own: its largest entry is made positive
        strongest = strongest * torch.sign(strongest.gather(0, strongest.abs().argmax(dim=0, keepdim=True)))
    axes = torch.nn.functional.pad(strongest, (0, 3 - strongest.shape[1]))
    spread = (_FULL_COLOR * (centred @ axes).std(dim=0, correction=0)).clamp(min=1e-6)
    return lambda features: 0.5 + 0.5 * ((features.detach().float() - mean) @ axes) / spread


class Mode(NamedTuple):
    """How a scene is shown: a further one is an entry of `MODES`."""

    values: Callable[[TrainedScene, FeatureColors], Tensor]  # what is blended beside the colours: of Gaussians, [N, K]
    picture: Callable[[RenderOutput, Tensor], np.ndarray]  # uint8 [H, W, 3] of it and blended values, [H, W, K]
    empty: float | None = None  # value of the background; None = the scene's colour
    legend: str = ""  # HTML


def _id_colors(scene: TrainedScene, _: FeatureColors) -> Tensor:
    known, index = torch.unique(scene.object_ids, return_inverse=True)
    return torch.from_numpy(object_colors(known.cpu().numpy())).to(index.device).float()[index] / 255


def _shaded(colors: np.ndarray, out: RenderOutput) -> np.ndarray:
    return cv2.addWeighted(colors, _MAP_SHARE, quantize_uint8(out.image), 1 - _MAP_SHARE, 0)


def _scale(low: str, high: str) -> str:
    """Return the colours of uncertainty as a bar between two words, in HTML."""
    colors = ",".join(f"rgb{tuple(color)}" for color in uncertainty_picture(np.linspace(1, 0, 9)[None])[0].tolist())
    bar = f'<div style="height:10px;border-radius:3px;background:linear-gradient(90deg,{colors})"></div>'
    words = f'<div style="display:flex;justify-content:space-between"><span>{low}</span><span>{high}</span></div>'
    return f'<div class="ul-legend" style="padding:0 12px;font-size:12px">{bar}{words}</div>'


MODES: dict[str, Mode] = {
    "RGB": Mode(lambda scene, _: scene.confidence.new_zeros(len(scene), 0), lambda out, _: quantize_uint8(out.image)),
    "Object ids": Mode(_id_colors, lambda out, colors: _shaded(quantize_uint8(colors), out)),
    "Features": Mode(lambda scene, colors: colors(scene.gaussians.features), lambda _, colors: quantize_uint8(colors)),
    "Uncertainty": Mode(
        lambda scene, _: scene.confidence.float()[:, None],
        lambda out, confidence: _shaded(uncertainty_picture(confidence[..., 0].cpu().numpy()), out),
        empty=1.0,
        legend=_scale("0: every vote for its object", "1: none"),
    ),
}
"""What the user chooses."""


class Renderer:
    """Draws a scene in any mode. One rasterization a frame: what a mode needs is blended as the features."""

    def __init__(self, original: TrainedScene) -> None:
        """Draw features in the colours of the scene as it was opened, whatever is edited."""
        self._colors = feature_colors(original)
        self._kept: tuple[tuple[TrainedScene, str, tuple[int, ...]], Gaussians] | None = None

    @torch.no_grad()
    def frame(
        self, scene: TrainedScene, camera: Camera, *, mode: str, selected: int | Collection[int] | None = None
    ) -> np.ndarray:
        """Return a frame in one of `MODES`, uint8 [H, W, 3]; `selected` objects are outlined where in front."""
        ids = (selected,) if isinstance(selected, int) else tuple(selected or ())
        wanted, chosen = (scene, mode, ids), MODES[mode]
        if self._kept is None or self._kept[0] != wanted:
            further = [chosen.values(scene, self._colors)]
            if ids:
                inside_of = torch.isin(scene.object_ids, torch.tensor(ids, device=scene.object_ids.device))
                further.append(inside_of.float()[:, None])
            _ = scene.gaussians.blocks  # made once, and not for each of the copies
            gaussians = copy.copy(scene.gaussians)  # shares all but the features, which may be gigabytes
            gaussians.table = dict(scene.gaussians.table)
            gaussians.set("features", torch.cat(further, dim=1))
            self._kept = (wanted, gaussians)
        gaussians = self._kept[1]
        out = render(gaussians, camera, background=scene.background, with_features=gaussians.feature_dim > 0)
        values, inside = out.features, None
        if ids:
            values, inside = values[..., :-1], (values[..., -1] > 0.5).cpu().numpy()
        if gaussians.feature_dim > bool(ids):
            empty = scene.background if chosen.empty is None else chosen.empty
            values = values + (1 - out.alpha[..., None]) * empty
        frame = chosen.picture(out, values)
        return frame if inside is None else outlined(frame, inside)


def outlined(frame: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the frame [H, W, 3] with a line around what is `inside`, bool [H, W]."""
    width = max(1, round(_OUTLINE_WIDTH * len(frame)))
    frame = frame.copy()
    for color, radius in ((_OUTLINE_EDGE, width + max(1, width // 2)), (_OUTLINE, width)):
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        frame[(cv2.dilate(inside.astype(np.uint8), disc) > 0) & ~inside] = color
    return frame


# ---- small pictures ----


class Thumbnails:
    """Pictures of objects from the training cameras, kept until an object is painted: moving it keeps its picture."""

    def __init__(self, cameras: Sequence[Camera]) -> None:
        self._cameras = cameras
        self._kept: dict[int, tuple[float, bytes]] = {}
        self._looks: tuple[TrainedScene, dict[int, float]] | None = None

    def cards(self, session: Session, found: Sequence[int], search: str = "") -> str:
        """Return the first of the objects that were found, and those selected, as cards, in HTML."""
        scene, cards = session.scene, []
        first = [key for index, key in enumerate(found) if index < _CARDS or key in session.selection[-_CARDS:]]
        for object_id, data in self.jpegs(scene, first).items():
            hidden = object_id in session.hidden
            state = " on" * (object_id in session.selection) + " off" * hidden
            label, picture = html.escape(session.label(object_id)), base64.b64encode(data).decode()
            color = bytes(object_colors(np.array(object_id))).hex()
            told = f"{scene.objects[object_id]:,}{' · hidden' * hidden}"
            cards.append(
                f'<button class="ul-card{state}" title="{label}" data-id="{object_id}">'
                f'<img alt="" src="data:image/jpeg;base64,{picture}"/>'
                f'<b>{label}</b><i style="background:#{color}"></i><span>{told}</span></button>'
            )
        more = len(found) - len(first)
        note = f"and {more:,} more: search for them, or list what is <i>In view</i>" if more else ""
        note = note if found else f"no object is called {html.escape(search.strip())}"
        note = f'<div class="ul-note">{note}</div>' if note else ""
        return f'{_STYLE}<div class="ul-list" onclick="{_PICK}">{"".join(cards)}</div>{note}'

    def jpegs(self, scene: TrainedScene, object_ids: Sequence[int]) -> dict[int, bytes]:
        """Return JPEG files of objects of the scene."""
        if self._looks is None or self._looks[0] is not scene:
            # The sum of base colours and opacities of an object is the same where a picture of it would be.
            known, index = torch.unique(scene.object_ids, return_inverse=True)
            color, opacity = scene.gaussians.sh0.detach()[:, 0], scene.gaussians.logit_opacities.detach()
            value = (color.sum(dim=1) + 3 * color[:, 0]).double() + opacity
            sums = torch.bincount(index, value, len(known)).tolist()
            self._looks = (scene, dict(zip(known.tolist(), sums, strict=True)))
        looks = self._looks[1]
        for object_id in object_ids:
            if object_id not in self._kept or self._kept[object_id][0] != looks[object_id]:
                picture = thumbnail(scene.subset(scene.object_ids == object_id), self._cameras)
                data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
                self._kept[object_id] = (looks[object_id], data.tobytes())
        return {object_id: self._kept[object_id][1] for object_id in object_ids}


@torch.no_grad()
def thumbnail(part: TrainedScene, cameras: Sequence[Camera]) -> np.ndarray:
    """Return a picture of a scene of one object, uint8 [66, 88, 3]: the nearest camera that sees it, zoomed to it."""
    means = part.gaussians.means.detach().cpu().numpy().astype(np.float64)
    middle = np.median(means, axis=0)

    def unsuited(camera: Camera) -> tuple[bool, float]:
        (pixel,), (depth,) = geometry.project(middle[None], camera)
        inside = depth > 0 and bool(((pixel >= 0) & (pixel < [camera.width, camera.height])).all())
        return not inside, float(np.linalg.norm(camera.position - middle)) / camera.fx * camera.width

    camera = min(cameras, key=unsuited)
    pose, up, forward = camera.cam_from_world, -camera.cam_from_world[1, :3], middle - camera.position
    if np.linalg.norm(np.cross(forward, up)) > 1e-2 * np.linalg.norm(forward) > 1e-11:  # its own up can stay up
        pose = geometry.look_at(camera.position, middle, up)
    width, height = SIZE
    at_unit_focal = Camera(cam_from_world=pose, fx=1.0, fy=1.0, cx=0.0, cy=0.0, width=width, height=height)
    slopes, depth = geometry.project(means, at_unit_focal)
    slopes = slopes[depth > 1e-3 * depth.max(initial=1e-6)]
    low, high = np.percentile(slopes, _EXTENT, axis=0) if len(slopes) else (np.full(2, -1.0), np.full(2, 1.0))
    focal = float((_FIELD * np.array(SIZE) / np.maximum(high - low, 1e-6)).min())
    focal = min(max(focal, _MIN_FOCAL * width), _MAX_FOCAL * width)
    cx, cy = np.array(SIZE) / 2 - focal * (low + high) / 2
    close = Camera(cam_from_world=pose, fx=focal, fy=focal, cx=cx, cy=cy, width=width, height=height)
    backdrop = torch.tensor(_BACKDROP, device=part.gaussians.device)
    return quantize_uint8(render(part.gaussians, close, background=backdrop, with_features=False).image)
