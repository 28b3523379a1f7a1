"""A brush: what it is drawn over becomes the selected object's. A stroke is one `relabel` of a script."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unified_lift.editing.operations import WHOLE
from unified_lift.editing.regions import Relabel
from unified_lift.errors import UserError
from unified_lift.model.render import render
from unified_lift.ops.cameras import unproject
from unified_lift.types import Camera
from unified_lift.viewer.renderer import camera_of
from unified_lift.viewer.session import Session, rounded

if TYPE_CHECKING:
    from unified_lift.viewer.server import Viewer

_SURFACE = 0.5  # opacity from which a pixel shows a surface that can be painted
_MAX_SIDE = 512  # pixels of the depth that a stroke follows
_STEP = 0.5  # of the brush's radius, from one ball of a stroke to the next
_AROUND = 100.0  # radius of the sphere that catches the mouse, in distances of the first camera from what it looks at
_CURSOR = "<style>canvas{cursor:crosshair!important}</style>"


class Stroke:
    """One stroke over a picture: balls along the surface that is seen, all as large as the brush is at the first."""

    def __init__(self, session: Session, camera: Camera, share: float) -> None:
        """Begin it as a window sees the scene; `share` of the picture's height is the radius of the brush.

        What is met goes to the object selected last. It is taken from the others that are selected or, if there are
        none, from all that are shown. A UserError: no object is selected.
        """
        if not session.selection:
            raise UserError("no object is selected; click one: what you paint becomes its own")
        self.scene, (*others, self._target) = session.scene, session.selection
        shown = [one for one in self.scene.objects if one not in session.hidden]
        self._givers = tuple(others) or (WHOLE if len(shown) == len(self.scene.objects) else tuple(shown))
        size = min(1.0, _MAX_SIDE / max(camera.width, camera.height))
        self._camera = camera.resized(max(1, round(camera.width * size)), max(1, round(camera.height * size)))
        with torch.no_grad():
            out = render(session.shown.gaussians, self._camera, with_features=False)
        depth = torch.where(out.alpha > _SURFACE, out.depth / out.alpha, torch.nan)
        self._depth, self._radius = depth.cpu().numpy(), share * self._camera.height
        self._last: np.ndarray | None = None  # where the mouse was, in pixels
        self._points: list[np.ndarray] = []
        self._reach = 0.0

    def to(self, places: Sequence[tuple[float, float]]) -> None:
        """Go on to further places, each in shares of width and height."""
        for place in places:
            end = np.clip(np.nan_to_num(place), -1, 2) * (self._camera.width, self._camera.height)
            start = end if self._last is None else self._last
            count = 1 + int(np.linalg.norm(end - start) / max(_STEP * self._radius, 1.0))
            for pixel in np.linspace(start, end, count + 1)[1:]:
                self._touch(pixel)
            self._last = end

    def _touch(self, pixel: np.ndarray) -> None:
        column, row = np.floor(pixel).astype(int)
        is_inside = 0 <= column < self._camera.width and 0 <= row < self._camera.height
        if not is_inside or np.isnan(depth := self._depth[row, column]):
            return
        point = unproject(pixel[None], depth[None], self._camera)[0]
        self._reach = self._reach or float(self._radius * depth / self._camera.fy)
        if not self._points or np.linalg.norm(point - self._points[-1]) >= _STEP * self._reach:
            self._points.append(point)

    def edit(self) -> Relabel:
        """Return the edit of the script; a UserError: no surface was met."""
        if not self._points:
            raise UserError("the brush met no surface; paint where something is seen")
        centres = tuple(rounded(point) for point in self.scene.frame.outside(np.array(self._points)))
        radius, *_ = rounded((self._reach / self.scene.frame.scale,) * 3)
        return Relabel(object=self._target, centre=centres, radius=radius, objects=self._givers)


class Brush:
    """The switch and size of the brush, and the strokes that windows are drawing."""

    def __init__(self, viewer: Viewer, gui: Any, scene: Any) -> None:
        """Add the inputs to the open container of `gui`."""
        self._viewer, self._scene = viewer, scene
        self._sphere: Any = None
        self._strokes: dict[int, Stroke] = {}  # by window
        with gui.add_folder("Brush", expand_by_default=False):
            self.is_on: Any = gui.add_checkbox("Paint", False, hint="Instead of turning the view, the mouse paints.")
            hint = "Radius in percent of the height of the picture, as seen where a stroke begins."
            self.size: Any = gui.add_slider("Size", min=0.5, max=20, step=0.5, initial_value=3, hint=hint)
            told = "Drag over the picture: what you paint goes to the object selected last. With several selected, "
            told += "only the others lose some."
            gui.add_markdown(told)
            self._cursor = gui.add_html("")
        viewer.panels.on(self.is_on.on_update, self._switch)

    def _switch(self, _: object, is_wanted: bool) -> None:
        self._cursor.content = _CURSOR * is_wanted
        if self._sphere is not None:
            self._sphere.remove()
            self._sphere = None
        if is_wanted:  # viser tells of drags that begin on something: here on an unseen sphere around everything
            self._sphere = self._scene.add_icosphere(
                "/brush",
                radius=_AROUND * self._viewer.reach,
                subdivisions=1,
                wireframe=True,  # which is drawn in no time, and still felt everywhere
                opacity=0.0,
                side="double",
                cast_shadow=False,
                receive_shadow=False,
                position=self._viewer.target,
            )
            self._sphere.on_drag("left")(self.drag)

    def dab(self, client: Any, place: tuple[float, float]) -> None:
        """Paint at one place of a window; a UserError: nothing changes."""
        stroke = self._begin(client)
        stroke.to([place])
        self._viewer.session.apply(stroke.edit(), seen=stroke.scene)

    async def drag(self, event: Any) -> None:
        """Go on with the stroke of a window; the edit is done when the mouse is let go."""
        places = [event.start_screen_pos] * (event.phase == "start") + [event.end_screen_pos]
        await self._viewer.queued(partial(self._drawn, event.phase, places))(event)

    def _begin(self, client: Any) -> Stroke:
        return Stroke(self._viewer.session, camera_of(client), self.size.value / 100)

    def _drawn(self, phase: str, places: Sequence[tuple[float, float]], event: Any) -> None:
        key, session = event.client.client_id, self._viewer.session
        if phase == "start":
            self._strokes.pop(key, None)
            with self._viewer.change(event):
                self._strokes[key] = self._begin(event.client)
        if (stroke := self._strokes.get(key)) is None:
            return
        stroke.to(places)
        if phase == "end":
            del self._strokes[key]
            with self._viewer.change(event):
                session.preview(None)
                session.apply(stroke.edit(), seen=stroke.scene)
        elif stroke.scene is session.scene:
            try:
                session.preview(stroke.edit())
            except UserError:  # nothing met yet
                return
            self._viewer.loop.redraw(rough=True)
