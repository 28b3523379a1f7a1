"""The part of the panels where objects are cut, joined and placed by numbers; and the box that cuts them, as lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from unified_lift.editing.operations import Operation
from unified_lift.editing.script import read_operation
from unified_lift.errors import UserError
from unified_lift.modelfolder.labels import robust_box

if TYPE_CHECKING:
    from unified_lift.viewer.server import Viewer

_BOX_COLOR = (255, 214, 10)
_FIRST_DISTANCE = 0.01  # of the distance from the first camera to what it looks at


class Shaping:
    """Inputs of the edits that need numbers; lengths and places are in the user's coordinates."""

    def __init__(self, viewer: Viewer, gui: Any, scene: Any) -> None:
        """Add the inputs to the open container of `gui`; the box is shown in `scene`."""
        self._viewer, self._scene, self._lines = viewer, scene, None
        frame = viewer.session.original.frame
        with gui.add_folder("Cut and join", expand_by_default=False):
            viewer.panels.add_buttons("Parts")
            self._gap = gui.add_number("Gap", 3.0, min=0.1, step=0.5, hint="Split: pieces so many spacings apart.")
            self.has_box: Any = gui.add_checkbox("Box", False, hint="Split what is inside of the yellow box off.")
            self._low = gui.add_vector3("From", (0.0, 0.0, 0.0), step=0.001)
            self._high = gui.add_vector3("To", (0.0, 0.0, 0.0), step=0.001)
            reach = float(f"{_FIRST_DISTANCE * viewer.reach / frame.scale:.2g}")
            hint = "Grow and shrink: so far from the other objects, in units of the scene."
            self._distance = gui.add_number("Distance", reach, min=0.0, step=reach / 10, hint=hint)
            viewer.panels.add_buttons("Border")
            hint = "Clean: Gaussians less sure than this are given to the nearest other object."
            self._sure = gui.add_slider("Sure", min=0, max=1, step=0.05, initial_value=0.5, hint=hint)
            hint = "Clean: small pieces so many spacings away are given away too; 0 = none."
            self._outliers = gui.add_number("Outliers", 5.0, min=0.0, step=0.5, hint=hint)
            viewer.panels.add_buttons("Labels")
        with gui.add_folder("Place by numbers", expand_by_default=False):
            self._shift = gui.add_vector3("Shift", (0.0, 0.0, 0.0), step=0.001)
            self._axis = gui.add_vector3("Axis", (0.0, 0.0, 1.0), step=0.1, hint="Right-handed, through the middle.")
            self._degrees = gui.add_number("Degrees", 0.0, step=1.0)
            self._scale = gui.add_number("Scale", 1.0, min=1e-3, step=0.05)
            viewer.panels.add_buttons("Numbers")
        viewer.panels.on(self.has_box.on_update, self._begin_box)
        for corner in (self._low, self._high):
            corner.on_update(lambda _: self.refresh())

    def edit(self, key: str) -> Operation:
        """Return the edit of the selected objects that a script calls `key`; a UserError: a number is out of range."""
        settings: dict[str, Any] = {"objects": self._viewer.chosen}
        if key == "merge" and len(self._viewer.chosen) < 2:
            raise UserError("one object is selected; select another with Shift")
        if key == "split":
            corners = [self._low.value, self._high.value]
            settings |= {"box": corners} if self.has_box.value else {"gap": self._gap.value}
        elif key in ("grow", "shrink"):
            settings["distance"] = self._distance.value
        elif key == "clean":
            settings |= {"min_confidence": self._sure.value, "outliers": self._outliers.value}
        elif key == "move":
            settings |= {"translate": self._shift.value, "scale": self._scale.value}
            if self._degrees.value:
                settings["rotate"] = {"axis": self._axis.value, "degrees": self._degrees.value}
        return read_operation({key: settings}, "numbers")

    def refresh(self) -> None:
        """Show the box if it is wanted."""
        if self._lines is not None:
            self._lines.remove()
            self._lines = None
        if self.has_box.value:
            corners = np.array([self._low.value, self._high.value])
            low, high = np.sort(self._viewer.session.original.frame.inside(corners), axis=0)
            size, middle = tuple(np.maximum(high - low, 1e-9)), tuple((low + high) / 2)
            self._lines = self._scene.add_box(
                "/box", dimensions=size, position=middle, color=_BOX_COLOR, wireframe=True
            )

    def _begin_box(self, _: object, is_wanted: bool) -> None:
        """Begin with one half of the selected objects, along their longest side."""
        if is_wanted and self._viewer.session.selection:
            scene = self._viewer.session.scene
            means = scene.gaussians.means.detach()[scene.mask(self._viewer.chosen)].cpu().double().numpy()
            low, high = np.array(scene.frame.outside(robust_box(means)))
            margin, longest = 0.1 * (high - low), int((high - low).argmax())
            low, high = low - margin, high + margin
            high[longest] = (low + high)[longest] / 2
            self._low.value, self._high.value = (tuple(np.round(corner, 4).tolist()) for corner in (low, high))
        self.refresh()
