"""The panels beside the picture: what the user reads, chooses and presses."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_lift.editing.formats import FORMATS
from unified_lift.editing.operations import Recolour, Remove
from unified_lift.editing.placement import Placement
from unified_lift.types import Camera
from unified_lift.viewer.brush import Brush
from unified_lift.viewer.renderer import MODES, PICKED, camera_of
from unified_lift.viewer.shaping import Shaping

if TYPE_CHECKING:
    from unified_lift.viewer.server import Viewer

_NOTHING = "no object (click one)"
_LISTED = 300  # most objects in the drop-down: a browser takes seconds to draw thousands
_SCENE, _AS_IT_IS = "the whole scene", "as in the scene"

UPS = {"y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0), "-y": (0.0, -1.0, 0.0), "-z": (0.0, 0.0, -1.0)}
BUTTONS: dict[str, dict[str, Callable[[Viewer, Any], object]]] = {
    "History": {"Undo": lambda viewer, _: viewer.session.undo(), "Redo": lambda viewer, _: viewer.session.redo()},
    "Set": {
        "Rename": lambda viewer, _: viewer.session.rename(viewer.chosen[-1], viewer.panels.name.value),
        "Recolour": lambda viewer, _: viewer.session.apply(
            Recolour(objects=viewer.chosen, color="#" + bytes(viewer.panels.paint.value).hex())
        ),
    },
    "Look": {
        "Hide / show": lambda viewer, _: viewer.session.hide(*viewer.chosen),
        "Isolate": lambda viewer, _: viewer.session.isolate(*viewer.chosen),
    },
    "Edit": {
        "Duplicate": lambda viewer, client: viewer.session.duplicate(
            *viewer.chosen, along=camera_of(client).cam_from_world[0, :3].tolist()
        ),
        "Delete": lambda viewer, _: viewer.session.apply(Remove(objects=viewer.chosen)),
    },
    "Parts": {
        "Merge": lambda viewer, _: viewer.session.apply(viewer.panels.shaping.edit("merge")),
        "Split": lambda viewer, _: viewer.session.split(viewer.chosen, viewer.panels.shaping.edit("split")),
    },
    "Border": {
        "Grow": lambda viewer, _: viewer.session.apply(viewer.panels.shaping.edit("grow")),
        "Shrink": lambda viewer, _: viewer.session.apply(viewer.panels.shaping.edit("shrink")),
    },
    "Labels": {"Clean": lambda viewer, _: viewer.session.apply(viewer.panels.shaping.edit("clean"))},
    "Numbers": {"Apply": lambda viewer, _: viewer.session.apply(viewer.panels.shaping.edit("move"))},
    "All": {
        "Show all": lambda viewer, _: viewer.session.isolate(None),
        "Select all": lambda viewer, _: viewer.session.select_all(),
        "Select none": lambda viewer, _: viewer.session.select(),
    },
    "View": {
        "Frame": lambda viewer, client: viewer.frame(client),
        "In view": lambda viewer, client: viewer.panels.list_seen(camera_of(client)),
    },
    "Unsaved": {
        "Go on": lambda viewer, _: list(map(viewer.session.go_on, viewer.session.journal.found[:1])),
        "Drop": lambda viewer, _: list(map(viewer.session.journal.drop, viewer.session.journal.found[:1])),
    },
    "Camera path": {
        "Add this view": lambda viewer, client: viewer.path.append(camera_of(client)),
        "Drop last": lambda viewer, _: viewer.path.pop() if viewer.path else None,
        "Clear": lambda viewer, _: viewer.path.clear(),
    },
}
"""Group -> label, which the user reads -> action, given viser's handle of the window. A further button is one entry."""

KEYS = (
    ("delete", None, "Edit", "Delete"),
    ("Z", "cmd/ctrl", "History", "Undo"),
    ("Z", "cmd/ctrl+shift", "History", "Redo"),
    ("A", "cmd/ctrl", "All", "Select all"),
    ("escape", None, "All", "Select none"),
    ("H", None, "Look", "Hide / show"),
    ("F", None, "View", "Frame"),
)
"""Key, keys held with it, and the button that it presses, as viser calls them. Ctrl+K lists them in the browser."""


class Panels:
    """What the user reads, chooses and presses."""

    shaping: Shaping

    def __init__(self, viewer: Viewer, server: Any, icon: Any, out: Path) -> None:
        gui, viewer.panels = server.gui, self
        self._viewer, self._gui = viewer, gui
        self._head = gui.add_html("")  # names are shown as HTML, where they can be quoted; in Markdown they cannot
        self._left = self.add_buttons("Unsaved")
        self._status = gui.add_markdown("")
        self.mode = gui.add_dropdown("Show", tuple(MODES))
        self.mode.on_update(lambda _: self._show())
        self._legend = gui.add_html("", visible=False)
        hint = "Which way is up on the screen; auto: as the cameras were held. The scene stays as it is."
        self.up = gui.add_dropdown("Up", ("auto", *UPS), hint=hint)
        self.on(self.up.on_update, lambda _, axis: viewer.stand(axis))
        if len(viewer.sessions) > 1:
            last, hint = len(viewer.sessions) - 1, "From parts to wholes."
            level = gui.add_slider("Level", min=0, max=last, step=1, initial_value=viewer.level, hint=hint)
            self.on(level.on_update, lambda _, chosen: viewer.use_level(int(chosen)))
        self.add_buttons("History")
        for key, held, group, label in KEYS:
            command = gui.add_command(label, hotkey=key, modifier=held)
            self.on(command.on_trigger, partial(self._press, group, label))
        tabs = gui.add_tab_group()
        with tabs.add_tab("Objects", icon.CUBE):
            hint = "Or click it, in the picture or below; with Shift, further ones."
            self._object_box = gui.add_dropdown("Selected", (_NOTHING,), hint=hint)
            self.on(self._object_box.on_update, self._choose)
            self.name: Any = gui.add_text("Name", "")
            self.paint: Any = gui.add_rgb("Colour", (220, 60, 50))
            for group in ("Set", "Look", "Edit"):
                self.add_buttons(group)
            self.handles = gui.add_checkbox("Move", False, hint="Drag the arrows to shift it, the arcs to turn it.")
            self.on(self.handles.on_update, lambda *_: None)  # what follows every change is enough
            self._of_object = (self.name, self.paint, self.handles)
            self.shaping = Shaping(viewer, gui, server.scene)
            self.brush = Brush(viewer, gui, server.scene)
            self.add_buttons("All")
            self.add_buttons("View")
            self.search: Any = gui.add_text("Search", "", hint="Parts of a name, or an id.")
            self.search.on_update(viewer.queued(self._list_again))
            self._seen: list[int] | None = None  # objects in view, largest first, if these are to be listed
            gui.add_html(PICKED)
            picked = gui.add_text("", "")
            self.on(picked.on_update, self._pick)
            self._list = gui.add_html("")
        with tabs.add_tab("Save", icon.DEVICE_FLOPPY):
            self.folder = gui.add_text("Folder", str(out), hint="New model folder, on the machine that serves this.")
            told = "Writes a model folder with the edited scene, and the edits as `edits.yaml`. Hiding is no edit."
            gui.add_markdown(told)
            save = gui.add_button("Save edits", icon=icon.DEVICE_FLOPPY)
            self.on(save.on_click, lambda event, _: viewer.save(event, self.folder.value.strip()))
        with tabs.add_tab("Export", icon.DOWNLOAD):
            self.part: Any = gui.add_dropdown("What", (_SCENE, "selected objects"))
            self.format: Any = gui.add_dropdown("Format", tuple(FORMATS), initial_value="ply")
            hint = "Which way is up in the file; auto: as programs take it that open the format."
            self.file_up: Any = gui.add_dropdown("Up is", (_AS_IT_IS, "auto", "y", "z"), hint=hint)
            told = "Your browser downloads it; several files come as one `.zip`. What is hidden is part of the scene."
            gui.add_markdown(told)
            gui.add_button("Export", icon=icon.DOWNLOAD).on_click(viewer.export)
        with tabs.add_tab("Video", icon.VIDEO):
            self._path_text = gui.add_markdown("")
            self.add_buttons("Camera path")
            self.seconds = gui.add_slider("Seconds", min=1, max=60, step=1, initial_value=6)
            video = str(out.with_name(f"{out.name}_path.mp4"))
            self.video_file = gui.add_text("File", video, hint="On the machine that serves this.")
            self.progress = gui.add_progress_bar(0, visible=False)
            gui.add_button("Write video", icon=icon.VIDEO).on_click(viewer.film)

    def refresh(self) -> None:
        """Show how things are."""
        self.shaping.refresh()
        session, scene, chosen = self._viewer.session, self._viewer.session.scene, self._viewer.session.selected
        several = len(session.selection) > 1
        edits, saved = len(session.operations), "**not saved**" if session.is_dirty else "saved"
        state = f"{edits} edit{'s' * (edits > 1)}, {saved}" if edits else saved if session.is_dirty else "no edits"
        size = f"{len(scene.objects)} object{'s' * (len(scene.objects) != 1)} · {len(scene):,} Gaussians"
        self._status.content = f"{size}  \n{state}" + f" · {len(session.selection)} selected" * several
        journal, lines = session.journal, [self._viewer.title]
        lines += [f"Edits will be lost when the viewer ends: {journal.problem}"] * bool(journal.problem)
        lines += [f"Edits that were never saved: {path.name}" for path in journal.found[:1]]
        self._left.visible = bool(journal.found)
        self._head.content = f'<div style="padding:6px 12px 4px">{"<br/>".join(map(html.escape, lines))}</div>'
        self._list_objects()
        self.name.value = "" if chosen is None else scene.name_of(chosen)
        for control in self._of_object:
            control.disabled = chosen is None  # and not away, as cards should stay where they are
        count = len(self._viewer.path)
        self._path_text.content = f"{count} view{'s' * (count != 1)} on the path{'; two make a path' * (count < 2)}"

    @property
    def wanted(self) -> tuple[tuple[int | str, ...], str, Placement]:
        """Return what is to be exported: parts, format and placement; a UserError: no object is selected."""
        parts = ("scene",) if self.part.value == _SCENE else self._viewer.chosen
        return parts, self.format.value, Placement(up=None if self.file_up.value == _AS_IT_IS else self.file_up.value)

    def _show(self) -> None:
        self._legend.content = MODES[self.mode.value].legend
        self._legend.visible = bool(self._legend.content)
        self._viewer.loop.redraw()

    def list_seen(self, camera: Camera) -> None:
        """List what a window shows, until something is searched."""
        self.search.value, self._seen = "", self._viewer.session.in_view(camera)

    def _list_again(self, _: object) -> None:
        with self._viewer.busy:
            if self.search.value:
                self._seen = None
            self._list_objects()

    def _list_objects(self) -> None:
        """Show the first of the objects that are searched, or in view, and those that are selected."""
        session, chosen = self._viewer.session, self._viewer.session.selected
        found = session.found(self.search.value)
        if self._seen is not None and not self.search.value:
            found = [one for one in self._seen if one in session.scene.objects]
        listed = dict.fromkeys([*found[:_LISTED], *session.selection[-_LISTED:]])
        self._object_box.options = (_NOTHING, *map(session.label, sorted(listed)))
        self._object_box.value = _NOTHING if chosen is None else session.label(chosen)
        self._list.content = self._viewer.thumbnails.cards(session, found, self.search.value)

    def on(self, register: Callable, action: Callable[[Any, Any], object]) -> None:
        """Let a user's input do something; changes made by ourselves have no client and do nothing.

        `action` is given the event and what the input said when it came: by its turn, it may say something else.
        """

        async def asked(event: Any) -> None:
            value = getattr(event.target, "value", None)

            def run(event: Any) -> None:
                with self._viewer.change(event):
                    action(event, value)

            if event.client is not None:
                await self._viewer.queued(run)(event)

        register(asked)

    def add_buttons(self, group: str) -> Any:
        """Add the buttons of a group of `BUTTONS` to the open container."""
        buttons = self._gui.add_button_group(group, tuple(BUTTONS[group]))
        self.on(buttons.on_click, lambda event, label: BUTTONS[group][label](self._viewer, event.client))
        return buttons

    def _press(self, group: str, label: str, event: Any, _: object) -> None:
        BUTTONS[group][label](self._viewer, event.client)

    def _pick(self, _: object, told: str) -> None:
        """Select the object of a card, told as its id, `add` or `only`, and the time."""
        object_id, how, *_ = [*told.split(), "", ""]
        if object_id.isdecimal():
            self._viewer.session.select(int(object_id), add=how == "add")

    def _choose(self, _: object, label: str) -> None:
        session = self._viewer.session
        labels = {session.label(object_id): object_id for object_id in session.scene.objects}
        session.select(labels.get(label))
