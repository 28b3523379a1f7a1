"""The list of objects with small pictures, seen from a training camera, and kept until they change."""

import base64
import html
from collections.abc import Sequence

import cv2
import numpy as np
import torch

from unified_lift.metrics.image import quantize_uint8
from unified_lift.model.render import render
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.ops.cameras import look_at, project
from unified_lift.ops.segments import segment_sum
from unified_lift.types import Camera
from unified_lift.viewer.session import Session

SIZE = (88, 66)  # width and height in pixels
_CARDS = 48  # most objects in the list: each picture travels to the browser; the drop-down has all

_STYLE = """
<style>
.ul-list{display:grid;grid-template-columns:repeat(3,1fr);gap:6px;padding:2px 10px 8px;max-height:27em;overflow-y:auto}
.ul-card{border:2px solid transparent;border-radius:6px;background:rgba(128,128,128,.12);padding:3px;font-size:11px;
line-height:1.25;overflow:hidden}
.ul-card img{width:100%;border-radius:4px;display:block;margin-bottom:2px}
.ul-card b{display:block;font-weight:600;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.ul-card span{opacity:.65}
.ul-card.on{border-color:#f2b705}
.ul-card.off{opacity:.4}
.ul-note{padding:0 10px 6px;font-size:12px;opacity:.7}
</style>
"""
_FIELD = 0.8  # of the picture that the object fills
_EXTENT = (3, 97)  # percentiles between which it counts as wide
_BACKDROP = (0.93, 0.94, 0.96)
_MIN_FOCAL, _MAX_FOCAL = 0.4, 40.0  # of the width
_QUALITY = 80


class Thumbnails:
    """Draws them when asked; moving or naming an object does not draw it again, painting it does."""

    def __init__(self, cameras: Sequence[Camera]) -> None:
        self._cameras = list(cameras)
        self._kept: dict[int, tuple[tuple[int, float], bytes]] = {}

    def cards(self, session: Session) -> str:
        """Return the first objects of a session and the selected one as cards."""
        scene, cards = session.scene, []
        first = [key for index, key in enumerate(scene.objects) if index < _CARDS or key == session.selected]
        for object_id, data in self.jpegs(scene, first).items():
            hidden = object_id in session.hidden
            state = " on" * (object_id == session.selected) + " off" * hidden
            label, picture = html.escape(session.label(object_id)), base64.b64encode(data).decode()
            cards.append(
                f'<div class="ul-card{state}" title="{label}"><img alt="" src="data:image/jpeg;base64,{picture}"/>'
                f"<b>{label}</b><span>{scene.objects[object_id]:,}{' · hidden' * hidden}</span></div>"
            )
        more = len(scene.objects) - len(first)
        note = f'<div class="ul-note">and {more} more in the list under "Selected"</div>' if more else ""
        return f'{_STYLE}<div class="ul-list">{"".join(cards)}</div>{note}'

    def jpegs(self, scene: TrainedScene, object_ids: Sequence[int]) -> dict[int, bytes]:
        """Return JPEG files of objects of the scene."""
        looks = _looks(scene)
        for object_id in object_ids:
            if object_id not in self._kept or self._kept[object_id][0] != looks[object_id]:
                picture = thumbnail(scene.subset(scene.object_ids == object_id), self._cameras)
                done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
                assert done
                self._kept[object_id] = (looks[object_id], data.tobytes())
        return {object_id: self._kept[object_id][1] for object_id in object_ids}


@torch.no_grad()
def thumbnail(part: TrainedScene, cameras: Sequence[Camera]) -> np.ndarray:
    """Return a picture of a scene of one object, uint8 [66, 88, 3].

    The nearest camera that has its centre in view, as far as there is one, is turned and zoomed to it.
    """
    means = part.gaussians.means.detach().cpu().numpy().astype(np.float64)
    middle = np.median(means, axis=0)
    camera = min(cameras, key=lambda camera: _unsuited(camera, middle))
    width, height = SIZE
    pose, up, forward = camera.cam_from_world, -camera.cam_from_world[1, :3], middle - camera.position
    if np.linalg.norm(np.cross(forward, up)) > 1e-2 * np.linalg.norm(forward) > 1e-11:  # its own up can stay up
        pose = look_at(camera.position, middle, up)
    at_unit_focal = Camera(cam_from_world=pose, fx=1.0, fy=1.0, cx=0.0, cy=0.0, width=width, height=height)
    slopes, depth = project(means, at_unit_focal)
    slopes = slopes[depth > 1e-3 * depth.max(initial=1e-6)]
    low, high = np.percentile(slopes, _EXTENT, axis=0) if len(slopes) else (np.full(2, -1.0), np.full(2, 1.0))
    focal = float((_FIELD * np.array(SIZE) / np.maximum(high - low, 1e-6)).min())
    focal = min(max(focal, _MIN_FOCAL * width), _MAX_FOCAL * width)
    cx, cy = np.array(SIZE) / 2 - focal * (low + high) / 2
    close = Camera(cam_from_world=pose, fx=focal, fy=focal, cx=cx, cy=cy, width=width, height=height)
    backdrop = torch.tensor(_BACKDROP, device=part.gaussians.device)
    return quantize_uint8(render(part.gaussians, close, background=backdrop, with_features=False).image).cpu().numpy()


def _unsuited(camera: Camera, point: np.ndarray) -> tuple[bool, float]:
    (pixel,), (depth,) = project(point[None], camera)
    inside = depth > 0 and bool(((pixel >= 0) & (pixel < [camera.width, camera.height])).all())
    return not inside, float(np.linalg.norm(camera.position - point)) / camera.fx * camera.width


def _looks(scene: TrainedScene) -> dict[int, tuple[int, float]]:
    """Return object -> (count, sum of its base colours and opacities): equal where a picture of it would be."""
    known, index, counts = torch.unique(scene.object_ids, return_inverse=True, return_counts=True)
    color, opacity = scene.gaussians.sh0.detach()[:, 0], scene.gaussians.logit_opacities.detach()
    value = (color.sum(dim=1) + 3 * color[:, 0]).double() + opacity
    total = segment_sum(value[:, None], index, len(known))[:, 0]
    return dict(zip(known.tolist(), zip(counts.tolist(), total.tolist(), strict=True), strict=True))
