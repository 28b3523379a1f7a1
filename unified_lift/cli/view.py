"""unified-lift view: a trained scene in the browser."""

import sys
from dataclasses import dataclass
from pathlib import Path

from unified_lift.cli.model_flags import Device, ModelFlags, opened, with_objects
from unified_lift.device import chosen_device
from unified_lift.editing import script
from unified_lift.errors import UserError
from unified_lift.fileio import write_text
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.outputs import saved_levels
from unified_lift.viewer.renderer import cameras_of
from unified_lift.viewer.server import Viewer
from unified_lift.viewer.session import Session


@dataclass(frozen=True, kw_only=True)
class ViewCommand(ModelFlags):
    """Open a trained scene in the browser: look at it, select objects, edit, save, film.

    Example: unified-lift view -m output/desk
    """

    edits: Path | None = None
    """Edits to begin with: an edits.yaml that the viewer or `edit` wrote."""
    out: Path | None = None
    """Folder suggested for the edited scene; it can be changed in the browser. Default: <model>_edited."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine only (and through ssh -L), 0.0.0.0 from all."""
    port: int = 8080
    """Port; the next free one if it is taken."""
    share: bool = False
    """Also ask for a public address, at which the scene travels through a server of the viser project."""
    device: Device = "auto"


def view_main(argv: list[str]) -> int:
    """Parse, then serve until interrupted."""
    command = ViewCommand.parsed(argv, prog="unified-lift view", keep=("--port",))
    viewer = open_viewer(command)
    try:
        if (port := viewer.port) != command.port:
            print(f"note: port {command.port} is taken, so it is {port}")
        print(f"{command.model_path}: open {viewer.url} in a browser; Ctrl-C ends")
        if command.host in ("127.0.0.1", "localhost"):
            print(f"over SSH, on your own machine first: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE")
        if command.share:
            shared = viewer.shared_at
            print(f"public address: {shared}" if shared else "note: the sharing server gave no public address")
        sys.stdout.flush()
        viewer.wait()
    finally:
        viewer.stop()
        for session in viewer.sessions:
            if session.is_dirty:
                model = session.original.path
                path = model.with_name(f"{model.resolve().name}_unsaved_edits.yaml")
                write_text(path, script.dump(session.operations))
                print(f"{path}: your unsaved edits; go on with: unified-lift view -m {model} --edits {path}")
    return 0


def open_viewer(command: ViewCommand) -> Viewer:
    """Return the viewer, already serving; a UserError where model, edits or address cannot be used."""
    if not 1 <= command.port <= 65_535:
        raise UserError(f"--port must lie in 1..65535, received {command.port}")
    model, device = command.model_path, chosen_device(command.device)
    own = with_objects(opened(model, iteration=command.iteration, device=device))
    scenes = [own, *(load_model(model, level=name, device=device) for name in saved_levels(model))]
    scenes.sort(key=lambda scene: -len(scene.objects))  # parts first, wholes last
    cameras = cameras_of(own)
    edits = [] if command.edits is None else script.read_script(command.edits, flag="--edits")
    sessions = [Session(scene, edits=edits if scene is own else ()) for scene in scenes]
    out = command.out or model.with_name(f"{model.resolve().name}_edited")
    level = [scene is own for scene in scenes].index(True)
    return Viewer(sessions, cameras, level=level, host=command.host, port=command.port, out=out, share=command.share)
