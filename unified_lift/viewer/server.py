"""The browser side of the viewer: windows of viser and the panels beside the picture, wired to sessions and frames."""

import asyncio
import contextlib
import html
import io
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_lift.editing.operations import Recolour, Remove, centroid
from unified_lift.errors import UserError
from unified_lift.evaluation.video import FPS, path_through, write_video
from unified_lift.memory import enough_memory
from unified_lift.modelfolder.inference import object_at
from unified_lift.modelfolder.outputs import EDITS_FILE, holds_run
from unified_lift.types import Camera
from unified_lift.viewer.frames import FrameLoop
from unified_lift.viewer.guard import Guard
from unified_lift.viewer.renderer import MODES, Renderer, Thumbnails, camera_of, start_view
from unified_lift.viewer.session import Session

_JPEG_QUALITY, _ROUGH_JPEG_QUALITY = 90, 60
_GIZMO_SHARE = 0.12  # of the distance from the first camera to what it looks at
_NOTHING = "(click an object)"

BUTTONS: dict[str, dict[str, Callable[["Viewer", Any], object]]] = {
    "History": {"Undo": lambda viewer, _: viewer.session.undo(), "Redo": lambda viewer, _: viewer.session.redo()},
    "Set": {
        "Rename": lambda viewer, _: viewer.session.rename(viewer.chosen, viewer.panels.name.value),
        "Recolour": lambda viewer, _: viewer.session.apply(
            Recolour(objects=(viewer.chosen,), color="#" + bytes(viewer.panels.paint.value).hex())
        ),
    },
    "Look": {
        "Hide / show": lambda viewer, _: viewer.session.hide(viewer.chosen),
        "Isolate": lambda viewer, _: viewer.session.isolate(viewer.chosen),
    },
    "Edit": {
        "Duplicate": lambda viewer, client: viewer.session.duplicate(
            viewer.chosen, along=camera_of(client).cam_from_world[0, :3].tolist()
        ),
        "Delete": lambda viewer, _: viewer.session.apply(Remove(objects=(viewer.chosen,))),
    },
    "All": {"Show all": lambda viewer, _: viewer.session.isolate(None)},
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


class Panels:
    """What the user reads, chooses and presses."""

    def __init__(self, viewer: "Viewer", gui: Any, icon: Any, out: Path) -> None:
        self._viewer, self._gui = viewer, gui
        self._head = gui.add_html("")  # names are shown as HTML, where they can be quoted; in Markdown they cannot
        self._left = self._add_buttons("Unsaved")
        self._status = gui.add_markdown("")
        self.mode = gui.add_dropdown("Show", tuple(MODES))
        self.mode.on_update(lambda _: viewer.loop.redraw())
        if len(viewer.sessions) > 1:
            last, hint = len(viewer.sessions) - 1, "From parts to wholes."
            level = gui.add_slider("Level", min=0, max=last, step=1, initial_value=viewer.level, hint=hint)
            self._on(level.on_update, lambda _: viewer.use_level(int(level.value)))
        self._add_buttons("History")
        tabs = gui.add_tab_group()
        with tabs.add_tab("Objects", icon.CUBE):
            self._object_box = gui.add_dropdown("Selected", (_NOTHING,), hint="Or click it in the picture.")
            self._on(self._object_box.on_update, self._choose)
            self.name: Any = gui.add_text("Name", "")
            self.paint: Any = gui.add_rgb("Colour", (220, 60, 50))
            groups = [self._add_buttons(group) for group in ("Set", "Look", "Edit")]
            self.handles = gui.add_checkbox("Move", False, hint="Drag the arrows to shift it, the arcs to turn it.")
            self._on(self.handles.on_update, lambda _: None)  # what follows every change is enough
            self._of_object = [self.name, self.paint, *groups, self.handles]
            self._add_buttons("All")
            self._list = gui.add_html("")
        with tabs.add_tab("Save", icon.DEVICE_FLOPPY):
            self.folder = gui.add_text("Folder", str(out), hint="New model folder, on the machine that serves this.")
            told = "Writes a model folder with the edited scene, and the edits as `edits.yaml`. Hiding is no edit."
            gui.add_markdown(told)
            save = gui.add_button("Save edits", icon=icon.DEVICE_FLOPPY)
            self._on(save.on_click, lambda event: viewer.save(event, self.folder.value.strip()))
        with tabs.add_tab("Video", icon.VIDEO):
            self._path_text = gui.add_markdown("")
            self._add_buttons("Camera path")
            self.seconds = gui.add_slider("Seconds", min=1, max=60, step=1, initial_value=6)
            video = str(out.with_name(f"{out.name}_path.mp4"))
            self.video_file = gui.add_text("File", video, hint="On the machine that serves this.")
            self.progress = gui.add_progress_bar(0, visible=False)
            gui.add_button("Write video", icon=icon.VIDEO).on_click(viewer.film)

    def refresh(self) -> None:
        """Show how things are."""
        session, scene, chosen = self._viewer.session, self._viewer.session.scene, self._viewer.session.selected
        edits, saved = len(session.operations), "**not saved**" if session.is_dirty else "saved"
        state = f"{edits} edit{'s' * (edits > 1)}, {saved}" if edits else saved if session.is_dirty else "no edits"
        size = f"{len(scene.objects)} objects · {len(scene):,} Gaussians"
        self._status.content = f"{size}  \n{state}"
        journal, lines = session.journal, [self._viewer.title]
        lines += [f"Edits will be lost when the viewer ends: {journal.problem}"] * bool(journal.problem)
        lines += [f"Edits that were never saved: {path.name}" for path in journal.found[:1]]
        self._left.visible = bool(journal.found)
        self._head.content = f'<div style="padding:6px 12px 0">{"<br/>".join(map(html.escape, lines))}</div>'
        self._object_box.options = (_NOTHING, *map(session.label, scene.objects))
        self._object_box.value = _NOTHING if chosen is None else session.label(chosen)
        self.name.value = "" if chosen is None else scene.name_of(chosen)
        for control in self._of_object:
            control.visible = chosen is not None
        self._list.content = self._viewer.thumbnails.cards(session)
        count = len(self._viewer.path)
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
        self._on(buttons.on_click, lambda event: BUTTONS[group][event.target.value](self._viewer, event.client))
        return buttons

    def _choose(self, _: object) -> None:
        session = self._viewer.session
        labels = {session.label(object_id): object_id for object_id in session.scene.objects}
        session.select(labels.get(self._object_box.value))


class Viewer:
    """A running viewer. Everything it does goes through the session, so windows opened later show the same."""

    panels: Panels

    def __init__(
        self, sessions: list[Session], views: list[Camera], guard: Guard, level: int, port: int, out: Path, share: bool
    ) -> None:
        """Serve Gaussians labelled at one or more granularities, fine to coarse; a window opens with the first view.

        `level` is the session to begin with, `port` may become the next free one, and `share` asks viser's relay for an
        address too. `out` is suggested for edited scenes. A UserError: no viser, none that asks `guard`, no address.
        """
        try:
            import viser
        except ImportError:
            raise UserError('view: viser is not installed; pip install "unified-lift[viewer]"') from None
        self.sessions, self.level = sessions, level
        self.title = self.session.original.path.resolve().name
        self.path: list[Camera] = []  # views that a video passes through
        self.thumbnails = Thumbnails(views)
        self.loop = FrameLoop(self._draw)
        self._renderers = [Renderer(session.original) for session in sessions]
        self._is_stopping = False
        self._busy = threading.Lock()  # one change at a time, so that panels show what they belong to
        self._filming = threading.Lock()
        self._written: dict[Path, tuple[int, int]] = {}  # what this viewer wrote, which alone it may replace
        self.guard, host = guard, guard.host
        try:  # where nothing can listen, viser would wait for ever
            socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
        except OSError as error:
            raise UserError(f"--host {host}: {error.strerror or error}; use 127.0.0.1, or 0.0.0.0 for all") from None
        with contextlib.redirect_stdout(io.StringIO()), guard.watching():  # its banner; the command prints its own line
            self._server = viser.ViserServer(host=host, port=port, label=self.title, verbose=False)
        if not guard.is_asked:
            self._server.stop()
            raise UserError(f"view: viser {viser.__version__} takes no token; pip install viser==1.1.1")
        self.port = self._server.get_port()
        name = "localhost" if guard.is_everywhere or host == "127.0.0.1" else f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self.port}/?token={guard.token}"  # what to open on this machine
        self._server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=share)
        self._server.gui.main_panel.dock_right()
        position, target, up, fov = start_view(views)
        self._reach = float(np.linalg.norm(target - position))
        self._server.scene.set_up_direction(tuple(up))
        first = self._server.initial_camera
        first.position, first.look_at, first.up, first.fov = position, target, up, fov
        first.near, first.far = 1e-3 * self._reach, 1e3 * self._reach
        self.gizmo: Any = None  # handles of the selected object, while they are shown
        self.panels = Panels(self, self._server.gui, viser.Icon, out)
        self._own = (out, Path(self.panels.video_file.value))  # which the user has named, wherever they are
        self.refresh()
        self._server.on_client_connect(self._welcome)
        self._server.on_client_disconnect(lambda client: self.loop.forget(client.client_id))
        self._server.scene.on_click()(self._clicked)
        self.loop.start()
        self.shared_at = None
        if share and (address := self._server.request_share_url(verbose=False)):
            guard.proxies.add(address.split("/")[2])
            self.shared_at = f"{address.rstrip('/')}/?token={guard.token}"

    @property
    def session(self) -> Session:
        """Return the session of the granularity in use."""
        return self.sessions[self.level]

    @property
    def chosen(self) -> int:
        """Return the selected object; a UserError where none is."""
        if self.session.selected is None:
            raise UserError("no object is selected; click one")
        return self.session.selected

    def use_level(self, level: int) -> None:
        """Choose the granularity; each keeps its edits, selection and hidden objects."""
        self.level = level
        self.session.preview(None)

    def wait(self) -> None:
        """Wait until the process is interrupted."""
        threading.Event().wait()

    def stop(self) -> None:
        """Stop serving; a video that is being written is given up."""
        self._is_stopping = True
        self.loop.stop()
        for session in self.sessions:
            session.journal.close()
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()

    # ---- windows ----

    def _welcome(self, client: Any) -> None:
        def show(picture: np.ndarray, moving: bool) -> None:
            quality = _ROUGH_JPEG_QUALITY if moving else _JPEG_QUALITY
            client.scene.set_background_image(picture, format="jpeg", jpeg_quality=quality)
            client.flush()

        def moved(_: object) -> None:
            if min(client.camera.image_width, client.camera.image_height) > 0 and 0 < client.camera.fov < np.pi:
                self.loop.watch(client.client_id, camera_of(client), show)

        client.camera.on_update(moved)
        moved(None)

    def _draw(self, camera: Camera) -> np.ndarray:
        session, renderer = self.sessions[level := self.level], self._renderers[level]
        return renderer.frame(session.shown, camera, mode=self.panels.mode.value, selected=session.selected)

    def _clicked(self, event: Any) -> None:
        camera, (u, v) = camera_of(event.client), event.screen_pos
        with self.change(event):
            shown = self.session.shown
            self.session.select(object_at(shown, camera, u * camera.width, v * camera.height) if len(shown) else None)

    # ---- changes ----

    @contextlib.contextmanager
    def change(self, event: Any) -> Iterator[None]:
        """Do something, tell the user what went wrong, and show how things are then."""
        with self._busy:
            with self._reporting(event, "Not done"):
                yield
            self.refresh()
        self.loop.redraw()

    @contextlib.contextmanager
    def _reporting(self, event: Any, title: str) -> Iterator[None]:
        try:
            with enough_memory("the viewer", lower="end other programs that hold some, or use --device cpu"):
                yield
        except (UserError, OSError) as error:
            self._tell(event, title, str(error), color="red")

    def _tell(self, event: Any, title: str, text: str, *, color: str = "green") -> None:
        """Show a message in the window that asked, if it is still open."""
        if event.client.client_id in self._server.get_clients():
            event.client.add_notification(title, text, color=color)

    def save(self, event: Any, named: str) -> None:
        """Write the edited scene to the folder that the user named."""
        if not named:
            raise UserError("Folder: no folder is named; name a new one")
        folder = self.guard.place(named, own=self._own)
        if holds_run(folder) and not self._wrote(folder):
            raise UserError(f"{named}: holds a model already; name a new folder")
        self.session.save(folder, overwrite=self._wrote(folder))
        self._written[folder] = _stamp(folder)
        self._tell(event, "Saved", f"{named}: open it with: unified-lift view -m {named}")

    def film(self, event: Any) -> None:
        """Write the video of the camera path while the viewer goes on."""
        with self._reporting(event, "No video"):
            if not self._filming.acquire(blocking=False):
                raise UserError("one is being written; wait for it")
            try:
                path = self.guard.place(self.panels.video_file.value.strip(), own=self._own)
                if path.suffix != ".mp4":
                    raise UserError(f"{path}: a video needs the suffix .mp4")
                self._require_own(path)
                cameras = path_through(self.path, count=round(FPS * self.panels.seconds.value))
                path.parent.mkdir(parents=True, exist_ok=True)
                self.panels.progress.visible = True
                write_video(path, self._film_frames(cameras, path))
                self._written[path] = _stamp(path)
            finally:
                self.panels.progress.visible = False
                self._filming.release()
            self._tell(event, "Video written", str(path))

    def _wrote(self, path: Path) -> bool:
        """Return whether this viewer wrote what is there, and nobody has put something else in its place since."""
        return path.exists() and self._written.get(path) == _stamp(path)

    def _require_own(self, path: Path) -> None:
        if path.exists() and not self._wrote(path):
            raise UserError(f"{path}: is there already and this viewer did not write it; name a new file")

    def _film_frames(self, cameras: Sequence[Camera], path: Path) -> Iterator[np.ndarray]:
        scene, mode = self.session.shown, self.panels.mode.value  # as they are at the start
        renderer = Renderer(self.session.original)
        for index, camera in enumerate(cameras):
            if self._is_stopping:
                raise UserError("the viewer was ended before the video was complete")
            yield renderer.frame(scene, camera, mode=mode)
            self.panels.progress.value = 100 * (index + 1) / len(cameras)
        self._require_own(path)  # minutes later

    # ---- the handles that move an object ----

    def refresh(self) -> None:
        """Let panels and handles show how things are."""
        self.panels.refresh()
        chosen = self.session.selected
        if chosen is None or not self.panels.handles.value:
            if self.gizmo is not None:
                self.gizmo.remove()
                self.gizmo = None
            return
        self._pivot = np.array(centroid(self.session.scene, [chosen]))
        if self.gizmo is None:
            self.gizmo = self._server.scene.add_transform_controls(
                "/move", scale=_GIZMO_SHARE * self._reach, depth_test=False, position=self._pivot
            )
            self.gizmo.on_update(self.drag)
        self.gizmo.position, self.gizmo.wxyz = self._pivot, (1.0, 0.0, 0.0, 0.0)

    async def drag(self, event: Any) -> None:
        """Show where the object would go, and move it there when the handle is let go."""
        chosen, gizmo = self.session.selected, event.target
        if chosen is None or event.phase == "start":
            return
        operation = self.session.move(chosen, wxyz=gizmo.wxyz, translation=gizmo.position - self._pivot)

        def let_go() -> None:
            with self.change(event):
                self.session.apply(operation)

        if event.phase == "update":
            self.session.preview(operation)
            self.loop.redraw(rough=True)
        else:
            await asyncio.to_thread(let_go)


def _stamp(path: Path) -> tuple[int, int]:
    """Return what tells a video, or the edits of a model folder, from another one in its place."""
    file = path / EDITS_FILE if path.is_dir() else path
    return (file.stat().st_ino, file.stat().st_mtime_ns) if file.exists() else (0, 0)
