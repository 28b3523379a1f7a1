"""The browser side of the viewer: windows of viser and their panels, wired to sessions and frames."""

import asyncio
import contextlib
import copy
import io
import math
import mmap
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation as Turn

from unified_lift.editing.formats import export
from unified_lift.editing.operations import centroid
from unified_lift.errors import UserError
from unified_lift.evaluation.video import FPS, path_through, write_video
from unified_lift.memory import enough_memory
from unified_lift.modelfolder.inference import object_at
from unified_lift.modelfolder.labels import robust_box
from unified_lift.modelfolder.outputs import EDITS_FILE, holds_run
from unified_lift.types import Camera
from unified_lift.viewer.frames import LESS, PACE, PACE_OF_MANY, FrameLoop
from unified_lift.viewer.guard import Guard
from unified_lift.viewer.panels import BUTTONS as BUTTONS
from unified_lift.viewer.panels import UPS, Panels
from unified_lift.viewer.renderer import Renderer, Thumbnails, camera_of, start_view
from unified_lift.viewer.session import Session
from unified_lift.viewer.thinning import most_in_time

_JPEG_QUALITY, _ROUGH_JPEG_QUALITY = 90, 60
_FRAMED = 1.3  # of the distance at which what is framed would just fill the window
_GIZMO_SHARE = 0.12  # of the distance from the first camera to what it looks at
_PART = 2**18  # bytes of a file that are sent at a time
_MOVING_SIDE = 400  # pixels of the picture by which the Gaussians of a moving frame are chosen
_BRIEF, _LONG = 6.0, 15.0  # seconds for which good and bad news are shown


class Viewer:
    """A running viewer. Everything it does goes through the session, so windows opened later show the same."""

    panels: Panels

    def __init__(
        self,
        sessions: list[Session],
        views: list[Camera],
        guard: Guard,
        level: int,
        port: int,
        out: Path,
        share: bool,
        most: int = 0,
    ) -> None:
        """Serve Gaussians labelled at one or more granularities, fine to coarse; a window opens with the first view.

        `level` is the session to begin with, `port` may become the next free one, and `share` asks viser's relay for an
        address too. `out` is suggested for edited scenes. While a camera moves at most so many Gaussians are drawn: 0 =
        all, -1 = as many as this machine draws in time. A UserError: no viser, none that asks `guard`, no address.
        """
        try:
            import viser
        except ImportError:
            raise UserError('view: viser is not installed; pip install "unified-lift[viewer]"') from None
        self.sessions, self.level = sessions, level
        self.title = self.session.original.path.resolve().name
        self.path: list[Camera] = []  # views that a video passes through
        self.thumbnails = Thumbnails(views)
        self._renderers = [Renderer(session.original) for session in sessions]
        self._rough_renderers = list(map(copy.copy, self._renderers))  # each keeps what it has drawn last
        self.most = self._in_time(views[0]) if most < 0 else most
        self.loop = FrameLoop(self._draw, pace=PACE_OF_MANY if self.most else PACE, failed=self._no_frame)
        self._is_stopping = False
        self._hands = ThreadPoolExecutor(1, "changes")  # what windows ask for is done in the order in which it came
        self.busy = threading.Lock()  # one change at a time, so that panels show what they belong to
        self._writing = threading.Lock()
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
        self._start = position, target, up, fov = start_view(views)
        self._up, self.target, self.reach = up, target, float(np.linalg.norm(target - position))
        self._server.scene.set_up_direction(tuple(up))
        first = self._server.initial_camera
        first.position, first.look_at, first.up, first.fov = position, target, up, fov
        first.near, first.far = 1e-3 * self.reach, 1e3 * self.reach
        self.gizmo: Any = None  # handles of the selected objects, while they are shown
        self.panels = Panels(self, self._server, viser.Icon, out)
        self._own = (out, Path(self.panels.video_file.value))  # which the user has named, wherever they are
        self.refresh()
        self._server.on_client_connect(self._welcome)
        self._server.on_client_disconnect(lambda client: self.loop.forget(client.client_id))
        for modifier in (None, "shift"):
            self._server.scene.on_click(modifier=modifier)(self.queued(self._clicked))
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
    def chosen(self) -> tuple[int, ...]:
        """Return the selected objects; a UserError where none is."""
        if not self.session.selection:
            raise UserError("no object is selected; click one")
        return self.session.selection

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
        self._hands.shutdown(wait=False, cancel_futures=True)
        self.loop.stop()
        for session in self.sessions:
            session.journal.close()
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()

    # ---- windows ----

    def _welcome(self, client: Any) -> None:
        def show(picture: np.ndarray, moving: bool) -> None:
            if client.client_id not in self._server.get_clients():
                return  # it was closed while the frame was drawn
            quality = _ROUGH_JPEG_QUALITY if moving else _JPEG_QUALITY
            client.scene.set_background_image(picture, format="jpeg", jpeg_quality=quality)
            client.flush()

        def moved(_: object) -> None:
            if min(client.camera.image_width, client.camera.image_height) > 0 and 0 < client.camera.fov < np.pi:
                self.loop.watch(client.client_id, camera_of(client), show)

        client.camera.on_update(moved)
        moved(None)

    def _draw(self, camera: Camera, moving: bool) -> np.ndarray:
        session, level = self.sessions[self.level], self.level
        renderer, most = (self._rough_renderers[level], self.most) if moving else (self._renderers[level], 0)
        return renderer.frame(session.shown_by(most), camera, mode=self.panels.mode.value, selected=session.selection)

    def _in_time(self, view: Camera) -> int:
        """Return how many Gaussians of the scene a moving frame may draw, 0 = all."""
        share, renderer = min(1.0, _MOVING_SIDE / max(view.width, view.height)), self._rough_renderers[self.level]
        small = view.resized(max(1, round(share * view.width)), max(1, round(share * view.height)))
        with enough_memory("the viewer", lower=LESS):
            draw = lambda most: renderer.frame(self.session.shown_by(most), small, mode="RGB")  # noqa: E731
            return most_in_time(draw, len(self.session.shown))

    def _no_frame(self, why: str) -> None:
        for client in self._server.get_clients().values():
            client.add_notification("No picture", why, color="red", auto_close_seconds=_LONG)

    def _clicked(self, event: Any) -> None:
        camera, (u, v) = camera_of(event.client), event.screen_pos
        with self.change(event):
            if self.panels.brush.is_on.value and event.modifier is None:
                self.panels.brush.dab(event.client, event.screen_pos)
                return
            shown = self.session.shown
            found = object_at(shown, camera, u * camera.width, v * camera.height) if len(shown) else None
            self.session.select(found, add=event.modifier == "shift")

    def frame(self, client: Any) -> None:
        """Turn to the selected objects from where the window is, or back to the first view where none is selected."""
        seen, session = client.camera, self.session
        if not session.selection:
            position, target, up = *self._start[:2], self._up
        else:
            means = session.scene.gaussians.means.detach()[session.scene.mask(session.selection)]
            low, high = robust_box(means.cpu().double().numpy())
            target, up = (low + high) / 2, seen.up_direction
            narrow = min(seen.fov, 2 * math.atan(math.tan(seen.fov / 2) * seen.image_width / seen.image_height))
            away = _FRAMED * max(float(np.linalg.norm(high - low)) / 2, 1e-3 * self.reach) / math.sin(narrow / 2)
            forward = Turn.from_quat(np.roll(seen.wxyz, -1)).apply((0.0, 0.0, 1.0))
            position = target - away * forward
        with client.atomic():
            seen.up_direction, seen.position, seen.look_at = up, position, target

    def stand(self, axis: str) -> None:
        """Let an axis of `UPS` be up in all windows; another word: what the cameras take for up."""
        self._up = up = np.array(UPS.get(axis, self._start[2]))
        self._server.scene.set_up_direction(tuple(up))
        self._server.initial_camera.up = up
        for client in self._server.get_clients().values():
            client.camera.up_direction = up

    # ---- changes ----

    def queued(self, action: Callable[[Any], object]) -> Callable[[Any], Any]:
        """Return a callback for viser that does something after all that was asked for before."""

        async def run(event: Any) -> None:
            await asyncio.get_running_loop().run_in_executor(self._hands, action, event)

        return run

    @contextlib.contextmanager
    def change(self, event: Any) -> Iterator[None]:
        """Do something, tell the user what went wrong, and show how things are then."""
        with self.busy:
            with self._reporting(event, "Not done"):
                yield
            with self._reporting(event, "Panels are not up to date"):
                self.refresh()
        self.loop.redraw()

    @contextlib.contextmanager
    def _reporting(self, event: Any, title: str) -> Iterator[None]:
        try:
            with enough_memory("the viewer", lower=LESS):
                yield
        except (UserError, OSError) as error:
            self._tell(event, title, str(error), color="red")

    def _tell(self, event: Any, title: str, text: str, *, color: str = "green") -> None:
        """Show a message in the window that asked, if it is still open."""
        if event.client.client_id in self._server.get_clients():
            seconds = _BRIEF if color == "green" else _LONG
            event.client.add_notification(title, text, color=color, auto_close_seconds=seconds)

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
        with self._reporting(event, "No video"), self._alone():
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
            self._tell(event, "Video written", str(path))

    def export(self, event: Any) -> None:
        """Write the scene or objects as the panel says, and let the browser that asked download the file."""
        with self._reporting(event, "No file"), self._alone(), TemporaryDirectory(prefix="unified_lift_") as scratch:
            parts, name, placement = self.panels.wanted
            waiting = event.client.add_notification("Export", f"{name} is being written", loading=True)
            try:
                out = Path(scratch) / "export"
                made = export(self.session.scene, out, objects=parts, formats=[name], placement=placement)
                files = [path for paths in made.values() for path in paths]
                if len(files) > 1:
                    stem = next(iter(made)) if len(made) == 1 else self.title
                    files = [Path(shutil.make_archive(f"{scratch}/{stem}_{name}", "zip", out))]
                if event.client.client_id not in self._server.get_clients():
                    return  # it has been closed meanwhile
                with files[0].open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    event.client.send_file_download(files[0].name, content, _PART, save_immediately=True)
            finally:
                waiting.remove()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold what one file after the other is written under; a UserError: one is being written."""
        if not self._writing.acquire(blocking=False):
            raise UserError("a file is being written; wait for it")
        try:
            yield
        finally:
            self._writing.release()

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
        chosen = self.session.selection
        if not chosen or not self.panels.handles.value:
            if self.gizmo is not None:
                self.gizmo.remove()
                self.gizmo = None
            return
        self._pivot = np.array(centroid(self.session.scene, chosen))
        if self.gizmo is None:
            self.gizmo = self._server.scene.add_transform_controls(
                "/move", scale=_GIZMO_SHARE * self.reach, depth_test=False, position=self._pivot
            )
            self.gizmo.on_update(self.drag)
        self.gizmo.position, self.gizmo.wxyz = self._pivot, (1.0, 0.0, 0.0, 0.0)

    async def drag(self, event: Any) -> None:
        """Show where the objects would go, and move them there when the handle is let go."""
        chosen, gizmo = self.session.selection, event.target
        if not chosen or event.phase == "start":
            return
        operation = self.session.move(*chosen, wxyz=gizmo.wxyz, translation=gizmo.position - self._pivot)

        def let_go(event: Any) -> None:
            with self.change(event):
                self.session.apply(operation)

        if event.phase == "update":
            self.session.preview(operation)
            self.loop.redraw(rough=True)
        else:
            await self.queued(let_go)(event)


def _stamp(path: Path) -> tuple[int, int]:
    """Return what tells a video, or the edits of a model folder, from another one in its place."""
    file = path / EDITS_FILE if path.is_dir() else path
    return (file.stat().st_ino, file.stat().st_mtime_ns) if file.exists() else (0, 0)
