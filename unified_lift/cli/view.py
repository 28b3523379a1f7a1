"""unified-lift view: a trained scene in the browser."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from unified_lift.cli.model_flags import Device, ModelFlags, naming, opened, with_objects
from unified_lift.device import chosen_device
from unified_lift.editing import script
from unified_lift.errors import UserError
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.outputs import saved_levels
from unified_lift.types import Range
from unified_lift.viewer.guard import Guard
from unified_lift.viewer.journal import Journal, beside
from unified_lift.viewer.renderer import cameras_of
from unified_lift.viewer.server import Viewer
from unified_lift.viewer.session import Session


@dataclass(frozen=True, kw_only=True)
class ViewCommand(ModelFlags):
    """Open a trained scene in the browser: look at it, select objects, edit, save, film.

    Example: unified-lift view -m output/desk
    """

    edits: Path | None = None
    """Edits to begin with: an edits.yaml that the viewer or `edit` wrote, or unsaved edits that a viewer left."""
    out: Path | None = None
    """Folder suggested for the edited scene; it can be changed in the browser. Default: <model>_edited."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine only (and through ssh -L), 0.0.0.0 from all."""
    allow_host: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further name under which browsers reach it, as that of a proxy; may be repeated."""
    allow_write: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A further folder into which the browser may save; may be repeated. Always: the one that holds the model."""
    port: int = 8080
    """Port; the next free one if it is taken."""
    moving_gaussians: Annotated[int, Range(-1)] = -1
    """Most Gaussians that are drawn while the camera moves, large and opaque ones rather, which stand for all; 0 = all,
    -1 = as many as this machine draws in a tenth of a second. At rest, and for clicks and files, all count. [ours]"""
    share: bool = False
    """Also ask for a public address, at which the scene travels through a server of the viser project."""
    device: Device = "auto"


def view_main(argv: list[str]) -> int:
    """Parse, then serve until interrupted."""
    command = ViewCommand.parsed(argv, command="view", keep=("--port",))
    viewer = open_viewer(command)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a shell ignores the first in the background
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # which nohup wants
            signal.signal(number, signal.default_int_handler)
    try:
        if (port := viewer.port) != command.port:
            print(f"note: port {command.port} is taken, so it is {port}")
        print(f"{command.model_path}: open {viewer.url} in a browser; Ctrl-C ends")
        if 0 < viewer.most < (count := len(viewer.session.shown)):
            print(f"while the camera moves {viewer.most:,} of {count:,} Gaussians are drawn (--moving_gaussians)")
        if command.host in ("127.0.0.1", "localhost"):
            print(f"over SSH, on your own machine first: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE")
        if command.share:
            shared = viewer.shared_at
            print(f"public address: {shared}" if shared else "note: the sharing server gave no public address")
        for path in (path for session in viewer.sessions for path in session.journal.found):
            print(f"note: {path}: edits that were never saved; *Go on* in the browser, or --edits, does them again")
        sys.stdout.flush()
        viewer.wait()
    finally:
        viewer.stop()
        for session in viewer.sessions:
            if session.is_dirty:
                model, journal = session.original.path, session.journal
                told = f"your unsaved edits; go on with: unified-lift view -m {model} --edits {journal.path}"
                print(f"note: edits are lost: {journal.problem}" if journal.problem else f"{journal.path}: {told}")
    return 0


def open_viewer(command: ViewCommand) -> Viewer:
    """Return the viewer, already serving; a UserError where model, edits or address cannot be used."""
    if not 1 <= command.port <= 65_535:
        raise UserError(f"--port must lie in 1..65535, received {command.port}")
    model, device = command.model_path, chosen_device(command.device)
    own = naming(with_objects(opened(model, iteration=command.iteration, device=device)), command.provenance)
    levels = (load_model(model, level=name, device=device) for name in saved_levels(model))
    scenes = [own, *(naming(scene, command.provenance) for scene in levels)]
    scenes.sort(key=lambda scene: -len(scene.objects))  # parts first, wholes last
    cameras = cameras_of(own)
    edits = [] if command.edits is None else script.read_script(command.edits, flag="--edits")
    level = [scene is own for scene in scenes].index(True)
    sessions = [Session(scene, edits if scene is own else (), Journal(scene.path)) for scene in scenes]
    for path in sessions[level].journal.found:
        if command.edits is not None and path.samefile(command.edits):
            sessions[level].go_on(path)
    out = command.out or beside(model, "_edited")
    guard = Guard(command.host, proxies=command.allow_host, folders=(beside(model, "").parent, *command.allow_write))
    flags: dict[str, Any] = {"port": command.port, "out": out, "share": command.share, "most": command.moving_gaussians}
    return Viewer(sessions, cameras, level=level, guard=guard, **flags)
