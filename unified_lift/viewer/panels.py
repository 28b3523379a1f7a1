"""The panels beside the picture. A further button is one entry of `BUTTONS`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_lift.errors import UserError
from unified_lift.evaluation.video import FPS, path_through, write_video
from unified_lift.modelfolder.outputs import holds_run
from unified_lift.types import Camera
from unified_lift.viewer.cameras import camera_of
from unified_lift.viewer.renderer import MODES, Renderer
from unified_lift.viewer.session import Session

if TYPE_CHECKING:
    from unified_lift.viewer.server import Viewer

_NOTHING = "(click an object)"

Action = Callable[["Panels", Any], object]
"""What a button does, given the panels and viser's handle of the window in which it was pressed."""

BUTTONS: dict[str, dict[str, Action]] = {
    "History": {
        "Undo": lambda panels, _: panels.session.undo(),
        "Redo": lambda panels, _: panels.session.redo(),
    },
    "Set": {
        "Rename": lambda panels, _: panels.session.rename(panels.chosen, panels.name.value),
        "Recolour": lambda panels, _: panels.session.recolour(panels.chosen, panels.paint.value),
    },
    "Look": {
        "Hide / show": lambda panels, _: panels.session.hide(panels.chosen),
        "Isolate": lambda panels, _: panels.session.isolate(panels.chosen),
    },
    "Edit": {
        "Duplicate": lambda panels, client: panels.session.duplicate(
            panels.chosen, along=camera_of(client).cam_from_world[0, :3].tolist()
        ),
        "Delete": lambda panels, _: panels.session.remove(panels.chosen),
    },
    "All": {"Show all": lambda panels, _: panels.session.show_all()},
    "Camera path": {
        "Add this view": lambda panels, client: panels.path.append(camera_of(client)),
        "Drop last": lambda panels, _: panels.path.pop() if panels.path else None,
        "Clear": lambda panels, _: panels.path.clear(),
    },
}
"""Group -> label -> action. The label is what the user reads."""


class Panels:
    """What the user reads, chooses and presses."""

    name: Any
    paint: Any

    def __init__(self, viewer: Viewer, gui: Any, icon: Any, *, save_to: Path) -> None:
        self._viewer, self._gui = viewer, gui
        self.path: list[Camera] = []  # views that a video passes through
        self._filming = threading.Lock()
        self._written: set[Path] = set()  # folders of edited scenes: these alone may be replaced
        self._status = gui.add_markdown("")
        self._mode = gui.add_dropdown("Show", tuple(mode.label for mode in MODES.values()))
        self._mode.on_update(lambda _: viewer.loop.redraw())
        if len(viewer.sessions) > 1:
            last, hint = len(viewer.sessions) - 1, "From parts to wholes."
            level = gui.add_slider("Level", min=0, max=last, step=1, initial_value=viewer.level, hint=hint)
            self._on(level.on_update, lambda _: viewer.use_level(int(level.value)))
        self._add_buttons("History")
        tabs = gui.add_tab_group()
        with tabs.add_tab("Objects", icon.CUBE):
            self._object_box = gui.add_dropdown("Selected", (_NOTHING,), hint="Or click it in the picture.")
            self._on(self._object_box.on_update, lambda _: self._choose())
            self.name = gui.add_text("Name", "")
            self.paint = gui.add_rgb("Colour", (220, 60, 50))
            groups = [self._add_buttons(group) for group in ("Set", "Look", "Edit")]
            self.handles = gui.add_checkbox("Move", False, hint="Drag the arrows to shift it, the arcs to turn it.")
            self._on(self.handles.on_update, lambda _: None)  # what follows every change is enough
            self._of_object = [self.name, self.paint, *groups, self.handles]
            self._add_buttons("All")
            self._list = gui.add_html("")
        with tabs.add_tab("Save", icon.DEVICE_FLOPPY):
            hint = "New model folder, on the machine that serves this."
            self.folder = gui.add_text("Folder", str(save_to), hint=hint)
            told = "Writes a model folder with the edited scene, and the edits as `edits.yaml`. Hiding is no edit."
            gui.add_markdown(told)
            self._on(gui.add_button("Save edits", icon=icon.DEVICE_FLOPPY).on_click, self._save)
        with tabs.add_tab("Video", icon.VIDEO):
            self._path_text = gui.add_markdown("")
            self._add_buttons("Camera path")
            self.seconds = gui.add_slider("Seconds", min=1, max=60, step=1, initial_value=6)
            video = save_to.with_name(f"{save_to.name}_path.mp4")
            self._video_file = gui.add_text("File", str(video), hint="On the machine that serves this.")
            self._progress = gui.add_progress_bar(0, visible=False)
            gui.add_button("Write video", icon=icon.VIDEO).on_click(self._film)

    @property
    def session(self) -> Session:
        """Return the open scene."""
        return self._viewer.session

    @property
    def mode(self) -> str:
        """Return which of `MODES` is shown."""
        return next(key for key, mode in MODES.items() if mode.label == self._mode.value)

    @property
    def chosen(self) -> int:
        """Return the selected object; a UserError where none is."""
        if self.session.selected is None:
            raise UserError("no object is selected; click one")
        return self.session.selected

    def refresh(self) -> None:
        """Show how things are."""
        session, scene, chosen = self.session, self.session.scene, self.session.selected
        edits, saved = len(session.operations), "**not saved**" if session.is_dirty else "saved"
        state = f"{edits} edit{'s' * (edits > 1)}, {saved}" if edits else saved if session.is_dirty else "no edits"
        size = f"{len(scene.objects)} objects · {len(scene):,} Gaussians"
        self._status.content = f"**{self._viewer.title}** · {size}  \n{state}"
        self._object_box.options = (_NOTHING, *map(session.label, scene.objects))
        self._object_box.value = _NOTHING if chosen is None else session.label(chosen)
        self.name.value = "" if chosen is None else scene.name_of(chosen)
        for control in self._of_object:
            control.visible = chosen is not None
        self._list.content = self._viewer.thumbnails.cards(session)
        count = len(self.path)
        self._path_text.content = f"{count} view{'s' * (count != 1)} on the path{'; two make a path' * (count < 2)}"

    def _on(self, register: Callable, action: Callable[[Any], object]) -> None:
        """Let a user's input do something; changes made by ourselves have no client and do nothing."""

        def run(event: Any) -> None:
            if event.client is not None:
                with self._viewer.change(event):
                    action(event)

        register(run)

    def _add_buttons(self, group: str) -> Any:
        buttons = self._gui.add_button_group(group, tuple(BUTTONS[group]))
        self._on(buttons.on_click, lambda event: BUTTONS[group][event.target.value](self, event.client))
        return buttons

    def _choose(self) -> None:
        labels = {self.session.label(object_id): object_id for object_id in self.session.scene.objects}
        self.session.select(labels.get(self._object_box.value))

    def _save(self, event: Any) -> None:
        if not (named := self.folder.value.strip()):
            raise UserError("Folder: no folder is named; name a new one")
        folder = Path(named).expanduser()
        place = folder.resolve()
        if holds_run(folder) and place not in self._written:
            raise UserError(f"{folder}: holds a model already; name a new folder")
        self.session.save(folder, overwrite=place in self._written)
        self._written.add(place)
        self._viewer.tell(event, "Saved", f"{folder}: open it with: unified-lift view -m {folder}", color="green")

    def _film(self, event: Any) -> None:
        """Write the video while the viewer goes on."""
        with self._viewer.reporting(event, "No video"):
            if not self._filming.acquire(blocking=False):
                raise UserError("one is being written; wait for it")
            path = Path(self._video_file.value.strip()).expanduser()
            try:
                if path.suffix != ".mp4":
                    raise UserError(f"{path}: a video needs the suffix .mp4")
                cameras = path_through(self.path, count=round(FPS * self.seconds.value))
                path.parent.mkdir(parents=True, exist_ok=True)
                self._progress.visible = True
                write_video(path, self._frames(cameras))
            finally:
                self._progress.visible = False
                self._filming.release()
            self._viewer.tell(event, "Video written", str(path), color="green")

    def _frames(self, cameras: Sequence[Camera]) -> Iterator[np.ndarray]:
        scene, mode = self.session.shown, self.mode  # as they are at the start
        renderer = Renderer(self._viewer.renderers[self._viewer.level].feature_colors)
        for index, camera in enumerate(cameras):
            if self._viewer.is_stopping:
                raise UserError("the viewer was ended before the video was complete")
            yield renderer.frame(scene, camera, mode=mode)
            self._progress.value = 100 * (index + 1) / len(cameras)
