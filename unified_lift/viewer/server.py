"""The browser side of the viewer: windows of viser, wired to a session, a frame loop and panels."""

import asyncio
import contextlib
import io
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_lift.editing.operations import Operation, centroid
from unified_lift.errors import UserError
from unified_lift.modelfolder.inference import object_at
from unified_lift.types import Camera
from unified_lift.viewer.cameras import camera_of, start_view
from unified_lift.viewer.frames import Frame, FrameLoop
from unified_lift.viewer.panels import Panels
from unified_lift.viewer.renderer import FeatureColors, Renderer
from unified_lift.viewer.session import Session
from unified_lift.viewer.thumbnails import Thumbnails

_JPEG_QUALITY, _ROUGH_JPEG_QUALITY = 90, 60
_GIZMO_SHARE = 0.12  # of the distance from the first camera to what it looks at


class Viewer:
    """A running viewer. Everything it does goes through the session, so windows opened later show the same."""

    def __init__(
        self,
        sessions: Sequence[Session],
        cameras: Sequence[Camera],
        *,
        level: int = 0,
        title: str,
        host: str,
        port: int,
        save_to: Path,
        share: bool = False,
    ) -> None:
        """Start serving at `host` and `port`, or the next free port; `share`: also ask viser's relay for an address.

        Args:
            sessions: The same Gaussians labelled at one or more granularities, fine to coarse; each has its own edits.
            cameras: Those of its photos; the first one is how a window opens.
            level: The session to begin with.
            save_to: Folder suggested for edited scenes; videos go beside what it would hold.
        Raises:
            UserError: viser is not installed, or the address cannot be used.
        """
        try:
            import viser
        except ImportError:
            raise UserError('view: viser is not installed; pip install "unified-lift[viewer]"') from None
        self.sessions, self.level, self.title = sessions, level, title
        self.thumbnails = Thumbnails(cameras)
        self.is_stopping = False
        self.loop = FrameLoop(self._draw)
        self.renderers = [Renderer(FeatureColors(session.original)) for session in sessions]
        self._busy = threading.Lock()  # one change at a time, so that panels show what they belong to
        try:  # where nothing can listen, viser would wait for ever
            socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"--host {host}: {reason}; use 127.0.0.1, or 0.0.0.0 for all") from None
        with contextlib.redirect_stdout(io.StringIO()):  # its banner; the command prints its own line
            self._server = viser.ViserServer(host=host, port=port, label=title, verbose=False)
        self._host = host
        self._server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=share)
        self._server.gui.main_panel.dock_right()
        position, target, up, fov = start_view(cameras)
        self._reach = float(np.linalg.norm(target - position))
        self._server.scene.set_up_direction(tuple(up))
        first = self._server.initial_camera
        first.position, first.look_at, first.up, first.fov = position, target, up, fov
        first.near, first.far = 1e-3 * self._reach, 1e3 * self._reach
        self.gizmo: Any = None  # handles of the selected object, while they are shown
        self._pivot = np.zeros(3)
        self.panels = Panels(self, self._server.gui, viser.Icon, save_to=save_to)
        self.refresh()
        self._server.on_client_connect(self._welcome)
        self._server.on_client_disconnect(lambda client: self.loop.forget(client.client_id))
        self._server.scene.on_click()(self._clicked)
        self.loop.start()
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

    @property
    def session(self) -> Session:
        """Return the session of the granularity in use."""
        return self.sessions[self.level]

    def use_level(self, level: int) -> None:
        """Choose the granularity; each keeps its edits, selection and hidden objects."""
        self.level = level
        self.session.preview(None)

    def wait(self) -> None:
        """Wait until the process is interrupted."""
        threading.Event().wait()

    def stop(self) -> None:
        """Stop serving; a video that is being written is given up."""
        self.is_stopping = True
        self.loop.stop()
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()

    # ---- windows ----

    def _welcome(self, client: Any) -> None:
        def show(frame: Frame) -> None:
            quality = _ROUGH_JPEG_QUALITY if frame.moving else _JPEG_QUALITY
            client.scene.set_background_image(frame.picture, format="jpeg", jpeg_quality=quality)
            client.flush()

        def moved(_: object) -> None:
            if client.camera.image_width > 0 and client.camera.image_height > 0:
                self.loop.watch(client.client_id, camera_of(client), show)

        client.camera.on_update(moved)
        moved(None)

    def _draw(self, camera: Camera) -> np.ndarray:
        session, renderer = self.sessions[level := self.level], self.renderers[level]
        return renderer.frame(session.shown, camera, mode=self.panels.mode, selected=session.selected)

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
            with self.reporting(event, "Not done"):
                yield
            self.refresh()
        self.loop.redraw()

    @contextlib.contextmanager
    def reporting(self, event: Any, title: str) -> Iterator[None]:
        """Do something, and tell the user what went wrong."""
        try:
            yield
        except (UserError, OSError) as error:
            self.tell(event, title, str(error), color="red")

    def tell(self, event: Any, title: str, text: str, *, color: str) -> None:
        """Show a message in the window that asked, if it is still open."""
        if event.client.client_id in self._server.get_clients():
            event.client.add_notification(title, text, color=color)

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
        if event.phase == "update":
            self.session.preview(operation)
            self.loop.redraw(rough=True)
        else:
            await asyncio.to_thread(self._let_go, event, operation)

    def _let_go(self, event: Any, operation: Operation) -> None:
        with self.change(event):
            self.session.apply(operation)
