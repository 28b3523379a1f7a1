"""The browser side of the viewer: panels and windows of viser, wired to a session and a frame loop."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import html
import io
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_lift.editing.operations import Operation
from unified_lift.errors import UserError
from unified_lift.evaluation.video import FPS, path_through, write_video
from unified_lift.modelfolder.inference import TrainedScene, object_at
from unified_lift.types import Camera
from unified_lift.viewer.cameras import start_view, window_camera
from unified_lift.viewer.frames import MODES, FeatureColors, Frame, FrameLoop, Painter
from unified_lift.viewer.session import Session
from unified_lift.viewer.thumbnails import Thumbnails

if TYPE_CHECKING:
    import viser

_NOTHING = "(click an object)"
_MODE_LABELS = {"rgb": "RGB", "ids": "Object ids", "features": "Features", "uncertainty": "Uncertainty"}
_JPEG_QUALITY, _ROUGH_JPEG_QUALITY = 90, 60
_CARDS = 48
"""Most objects in the picture list: each picture travels to the browser; the drop-down has all."""
_GIZMO = "/move"
_GIZMO_SHARE = 0.12  # of the distance from the first camera to what it looks at
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


class Viewer:
    """A running viewer. Everything it does goes through the session, so windows opened later show the same."""

    def __init__(
        self,
        session: Session,
        cameras: Sequence[Camera],
        *,
        title: str,
        host: str,
        port: int,
        save_to: Path,
        write: Callable[[Path, TrainedScene, Sequence[Operation]], Path],
        share: bool = False,
    ) -> None:
        """Start serving.

        Args:
            session: The open scene.
            cameras: Those of its photos; the first one is how a window opens.
            title: Name of the scene.
            host: Address to listen on.
            port: Wanted port; the next free one if it is taken.
            save_to: Folder suggested for edited scenes; videos go beside what it would hold.
            write: Saves an edited scene in a folder.
            share: Also ask viser's relay for a public address.
        Raises:
            UserError: viser is not installed, or the address cannot be used.
        """
        viser = _viser()
        self.session = session
        self._title, self._write = title, write
        self._feature_colors = [FeatureColors(scene) for scene in session.originals]
        self._painters = [Painter(colors) for colors in self._feature_colors]
        self._thumbnails = Thumbnails(cameras)
        self._keys: list[Camera] = []
        self._filming, self._stopping = threading.Lock(), False
        self._busy = threading.Lock()  # one change at a time, so that panels show what they belong to
        self._loop = FrameLoop(self._draw)
        _require_own_address(host)
        with contextlib.redirect_stdout(io.StringIO()):  # its banner; the command prints its own line
            self._server: viser.ViserServer = viser.ViserServer(host=host, port=port, label=title, verbose=False)
        self._host = host
        self._server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=share)
        self._server.gui.main_panel.dock_right()
        self._set_up_scene(cameras)
        self._gizmo: Any = None
        self._build_panels(viser, save_to)
        self._refresh()
        self._server.on_client_connect(self._welcome)
        self._server.on_client_disconnect(lambda client: self._loop.forget(client.client_id))
        self._server.scene.on_click()(self._clicked)
        self._loop.start()
        self.shared_at = self._server.request_share_url(verbose=False) if share else None

    @property
    def port(self) -> int:
        """Return the port it serves on."""
        return self._server.get_port()

    @property
    def url(self) -> str:
        """Return what to open on this machine."""
        host = "localhost" if self._host in ("0.0.0.0", "127.0.0.1", "::") else self._host  # noqa: S104
        return f"http://{host}:{self.port}"

    def wait(self) -> None:
        """Wait until the process is interrupted."""
        threading.Event().wait()

    def stop(self) -> None:
        """Stop serving; a video that is being written is given up."""
        self._stopping = True
        self._loop.stop()
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()

    # ---- windows ----

    def _set_up_scene(self, cameras: Sequence[Camera]) -> None:
        start = start_view(cameras)
        self._reach = float(np.linalg.norm(start.target - start.position))
        scene = self._server.scene
        scene.set_up_direction(tuple(start.up))
        first = self._server.initial_camera
        first.position, first.look_at, first.up, first.fov = start.position, start.target, start.up, start.fov
        first.near, first.far = 1e-3 * self._reach, 1e3 * self._reach

    def _welcome(self, client: viser.ClientHandle) -> None:
        def moved(_: object) -> None:
            if client.camera.image_width > 0 and client.camera.image_height > 0:
                send = functools.partial(_show, client)
                self._loop.watch(client.client_id, _camera_of(client), send)

        client.camera.on_update(moved)
        moved(None)

    def _draw(self, camera: Camera) -> np.ndarray:
        session = self.session
        return self._painters[session.level].paint(session.shown, camera, mode=self._mode, selected=session.selected)

    def _clicked(self, event: Any) -> None:
        camera = _camera_of(event.client)
        u, v = event.screen_pos
        pixel = (u * camera.width, v * camera.height)
        with self._change(event):
            shown = self.session.shown
            self.session.select(object_at(shown, camera, *pixel) if len(shown) else None)

    # ---- panels ----

    def _build_panels(self, viser: Any, save_to: Path) -> None:
        gui, icon = self._server.gui, viser.Icon
        self._status = gui.add_markdown("")
        self._mode_box = gui.add_dropdown("Show", tuple(_MODE_LABELS.values()), initial_value=_MODE_LABELS["rgb"])
        self._mode_box.on_update(lambda _: self._loop.redraw())
        self._level_slider: Any = None
        if self.session.num_levels > 1:
            self._level_slider = gui.add_slider(
                "Level",
                min=0,
                max=self.session.num_levels - 1,
                step=1,
                initial_value=self.session.level,
                hint="From parts to wholes.",
            )
            self._on(self._level_slider.on_update, lambda _: self.session.use_level(int(self._level_slider.value)))
        history = gui.add_button_group("History", ("Undo", "Redo"))
        self._on(history.on_click, lambda event: self._press({"Undo": "undo", "Redo": "redo"}, event))
        tabs = gui.add_tab_group()
        with tabs.add_tab("Objects", icon.CUBE):
            self._build_object_panel(gui)
        with tabs.add_tab("Save", icon.DEVICE_FLOPPY):
            self._build_save_panel(gui, icon, save_to)
        with tabs.add_tab("Video", icon.VIDEO):
            self._build_video_panel(gui, icon, save_to)

    def _build_object_panel(self, gui: Any) -> None:
        self._object_box = gui.add_dropdown("Selected", (_NOTHING,), hint="Or click it in the picture.")
        self._on(self._object_box.on_update, self._chosen)
        self._name = gui.add_text("Name", "")
        self._paint = gui.add_rgb("Colour", (220, 60, 50))
        groups = (
            ("Set", ("Rename", "Recolour")),
            ("Look", ("Hide / show", "Isolate")),
            ("Edit", ("Duplicate", "Delete")),
        )
        self._actions = [gui.add_button_group(*group) for group in groups]
        for group in self._actions:
            self._on(group.on_click, self._act)
        self._handles = gui.add_checkbox("Move", False, hint="Drag the arrows to shift it, the arcs to turn it.")
        self._on(self._handles.on_update, lambda _: None)  # what follows every change is enough
        everything = gui.add_button_group("All", ("Show all",))
        self._on(everything.on_click, lambda _: self.session.show_all())
        self._list = gui.add_html("")

    def _build_save_panel(self, gui: Any, icon: Any, save_to: Path) -> None:
        self._folder = gui.add_text("Folder", str(save_to), hint="New model folder, on the machine that serves this.")
        gui.add_markdown(
            "Writes a model folder with the edited scene, and the edits as `edits.yaml`. Hiding is no edit."
        )
        save = gui.add_button("Save edits", icon=icon.DEVICE_FLOPPY)
        self._on(save.on_click, self._save)

    def _build_video_panel(self, gui: Any, icon: Any, save_to: Path) -> None:
        self._keys_text = gui.add_markdown("")
        keys = gui.add_button_group("Camera path", ("Add this view", "Drop last", "Clear"))
        self._on(keys.on_click, self._edit_path)
        self._seconds = gui.add_slider("Seconds", min=1, max=60, step=1, initial_value=6)
        video = save_to.with_name(f"{save_to.name}_path.mp4")
        self._video_file = gui.add_text("File", str(video), hint="On the machine that serves this.")
        self._progress = gui.add_progress_bar(0, visible=False)
        film = gui.add_button("Write video", icon=icon.VIDEO)
        film.on_click(self._film)

    # ---- what the panels do ----

    @property
    def _mode(self) -> Any:
        return MODES[list(_MODE_LABELS.values()).index(self._mode_box.value)]

    def _on(self, register: Callable, action: Callable[[Any], object]) -> None:
        """Let a user's input do something; changes made by ourselves have no client and do nothing."""

        def run(event: Any) -> None:
            if event.client is not None:
                with self._change(event):
                    action(event)

        register(run)

    @contextlib.contextmanager
    def _change(self, event: Any) -> Iterator[None]:
        """Do something, tell the user what went wrong, and show how things are then."""
        with self._busy:
            try:
                yield
            except (UserError, OSError) as error:
                self._tell(event, "Not done", str(error), color="red")
            self._refresh()
        self._loop.redraw()

    def _tell(self, event: Any, title: str, text: str, *, color: str) -> None:
        """Show a message in the window that asked, if it is still open."""
        if event.client.client_id in self._server.get_clients():
            event.client.add_notification(title, text, color=color)

    def _press(self, methods: dict[str, str], event: Any) -> None:
        getattr(self.session, methods[event.target.value])()

    def _chosen(self, _: Any) -> None:
        labels = {entry.label: entry.object_id for entry in self.session.entries()}
        self.session.select(labels.get(self._object_box.value))

    def _act(self, event: Any) -> None:
        chosen = self.session.selected
        if chosen is None:
            raise UserError("no object is selected; click one")
        action = event.target.value
        if action == "Rename":
            self.session.rename(chosen, self._name.value)
        elif action == "Hide / show":
            self.session.hide(chosen)
        elif action == "Isolate":
            self.session.isolate(chosen)
        elif action == "Duplicate":
            right = _camera_of(event.client).cam_from_world[0, :3]
            self.session.duplicate(chosen, along=right)
        elif action == "Delete":
            self.session.remove(chosen)
        elif action == "Recolour":
            self.session.recolour(chosen, self._paint.value)

    def _save(self, event: Any) -> None:
        folder = Path(self._folder.value.strip()).expanduser()
        if not self._folder.value.strip():
            raise UserError("Folder: no folder is named; name a new one")
        place = self.session.save(lambda scene, edits: self._write(folder, scene, edits))
        self._tell(event, "Saved", f"{place}: open it with: unified-lift view -m {place}", color="green")

    def _edit_path(self, event: Any) -> None:
        if event.target.value == "Add this view":
            self._keys.append(_camera_of(event.client))
        elif event.target.value == "Drop last":
            self._keys = self._keys[:-1]
        else:
            self._keys = []

    def _film(self, event: Any) -> None:
        """Write the video while the viewer goes on."""
        if not self._filming.acquire(blocking=False):
            self._tell(event, "No video", "one is being written; wait for it", color="red")
            return
        path = Path(self._video_file.value.strip()).expanduser()
        shown, mode = self.session.shown, self._mode
        painter = Painter(self._feature_colors[self.session.level])  # its own, so that windows keep theirs
        try:
            if path.suffix != ".mp4":
                raise UserError(f"{path}: a video needs the suffix .mp4")
            cameras = path_through(self._keys, count=round(FPS * self._seconds.value))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._progress.visible = True
            write_video(path, self._film_frames(painter, shown, cameras, mode))
        except (UserError, OSError) as error:
            self._tell(event, "No video", str(error), color="red")
        else:
            self._tell(event, "Video written", str(path), color="green")
        finally:
            self._progress.visible = False
            self._filming.release()

    def _film_frames(
        self, painter: Painter, scene: TrainedScene, cameras: Sequence[Camera], mode: Any
    ) -> Iterator[np.ndarray]:
        for index, camera in enumerate(cameras):
            if self._stopping:
                raise UserError("the viewer was ended before the video was complete")
            yield painter.paint(scene, camera, mode=mode)
            self._progress.value = 100 * (index + 1) / len(cameras)

    # ---- what the panels show ----

    def _refresh(self) -> None:
        session = self.session
        entries = session.entries()
        edits = len(session.operations)
        state = "no edits" if not edits else f"{edits} edit{'s' * (edits > 1)}, "
        if edits or session.is_dirty:
            state = state.removesuffix("no edits") + ("**not saved**" if session.is_dirty else "saved")
        self._status.content = (
            f"**{self._title}** · {len(entries)} objects · {len(session.scene):,} Gaussians  \n{state}"
        )
        self._object_box.options = (_NOTHING, *(entry.label for entry in entries))
        chosen = session.selected
        self._object_box.value = _NOTHING if chosen is None else session.label(chosen)
        self._name.value = "" if chosen is None else session.scene.name_of(chosen)
        for control in (self._name, self._paint, *self._actions, self._handles):
            control.visible = chosen is not None
        self._list.content = self._cards()
        count = len(self._keys)
        self._keys_text.content = f"{count} view{'s' * (count != 1)} on the path" + (
            "; two make a path" if count < 2 else ""
        )
        self._place_gizmo()

    def _cards(self) -> str:
        entries = self.session.entries()
        first = [entry for index, entry in enumerate(entries) if index < _CARDS or entry.selected]
        pictures = self._thumbnails.jpegs(self.session.scene, [entry.object_id for entry in first])
        cards = []
        for entry in first:
            picture = base64.b64encode(pictures[entry.object_id]).decode()
            state = " on" * entry.selected + " off" * entry.hidden
            label = html.escape(entry.label)
            cards.append(
                f'<div class="ul-card{state}" title="{label}"><img alt="" src="data:image/jpeg;base64,{picture}"/>'
                f"<b>{label}</b><span>{entry.count:,}{' · hidden' * entry.hidden}</span></div>"
            )
        more = len(entries) - len(first)
        note = f'<div class="ul-note">and {more} more in the list under "Selected"</div>' if more else ""
        return f'{_STYLE}<div class="ul-list">{"".join(cards)}</div>{note}'

    # ---- the handles that move an object ----

    def _place_gizmo(self) -> None:
        chosen = self.session.selected
        wanted = chosen is not None and self._handles.value
        if not wanted:
            if self._gizmo is not None:
                self._gizmo.remove()
                self._gizmo = None
            return
        self._pivot = np.array(self.session.centroid(chosen))
        if self._gizmo is None:
            self._gizmo = self._server.scene.add_transform_controls(
                _GIZMO, scale=_GIZMO_SHARE * self._reach, depth_test=False, position=self._pivot
            )
            self._gizmo.on_update(self._dragged)
        self._gizmo.position, self._gizmo.wxyz = self._pivot, (1.0, 0.0, 0.0, 0.0)

    async def _dragged(self, event: Any) -> None:
        """Show where the object would go, and move it there when the handle is let go."""
        chosen, gizmo = self.session.selected, event.target
        if chosen is None or event.phase == "start":
            return
        operation = self.session.move(chosen, wxyz=gizmo.wxyz, translation=gizmo.position - self._pivot)
        if event.phase == "update":
            self.session.preview(operation)
            self._loop.redraw(rough=True)
        else:
            await asyncio.to_thread(self._let_go, event, operation)

    def _let_go(self, event: Any, operation: Operation) -> None:
        with self._change(event):
            self.session.apply(operation)


def _require_own_address(host: str) -> None:
    """Raise a UserError if nothing can listen there, for which viser would wait for ever."""
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror or error}; use 127.0.0.1, or 0.0.0.0 for all") from None


def _viser() -> Any:
    try:
        import viser
    except ImportError:
        raise UserError('view: viser is not installed; pip install "unified-lift[viewer]"') from None
    return viser


def _camera_of(client: viser.ClientHandle) -> Camera:
    camera = client.camera
    return window_camera(
        wxyz=camera.wxyz,
        position=camera.position,
        fov=camera.fov,
        width=camera.image_width,
        height=camera.image_height,
    )


def _show(client: viser.ClientHandle, frame: Frame) -> None:
    quality = _ROUGH_JPEG_QUALITY if frame.moving else _JPEG_QUALITY
    client.scene.set_background_image(frame.picture, format="jpeg", jpeg_quality=quality)
    client.flush()
