"""One HTML page with the splats in it: opens without a server, without a network, and turns under the mouse."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from unified_lift.errors import UserError
from unified_lift.evaluation.pictures import object_colors
from unified_lift.model.splat import splat_rows
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.outputs import read_frame
from unified_lift.types import IDENTITY, Similarity

_PAGE = Path(__file__).with_name("page.html")
_FIELD_OF_VIEW = 0.9  # radians, vertical, where no camera is known
_MOST = 1e15  # beyond, nothing of a camera is meant
_BULK = 0.9  # share of the Gaussians that the first view shows
_ROOM = 1.3  # what it shows besides, in radii of the bulk


def first_view(
    path: Path,
    positions: np.ndarray,
    *,
    is_whole: bool,
    frame: Similarity = IDENTITY,
    placed: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the first view: the first camera of the model for a whole scene, else from its side, as near as it fits.

    It holds the points eye and target and the direction up, inside of `frame`, and the vertical fieldOfView in radians.
    `path` is cameras.json of the model, a UserError if it is not readable; without one it is looked at along +z with -y
    up. `positions` are the centres of the Gaussians, [N, 3]; `placed` as in `TrainedScene`.
    """
    middle = np.median(positions, axis=0)
    radius = max(float(np.quantile(np.linalg.norm(positions - middle, axis=1), _BULK)), 1e-6)
    try:
        cameras = json.loads(path.read_text()) if path.is_file() else []
        places = np.array([camera["position"] for camera in cameras], np.float64).reshape(-1, 3)
        turns = np.array([camera["rotation"] for camera in cameras], np.float64).reshape(-1, 3, 3)
        angles = [2 * np.arctan(camera["height"] / (2 * camera["fy"])) for camera in cameras]
        if not all(np.abs(values).max(initial=0) < _MOST for values in (frame.inside(places), turns, angles)):
            raise ValueError("numbers out of range")
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{path}: not a list of cameras ({error}); train or --resume again") from None
    if placed is not None:
        places = places @ placed[:3, :3].T + placed[:3, 3]
        turns = placed[:3, :3] / np.cbrt(np.linalg.det(placed[:3, :3])) @ turns
    places = frame.inside(places)
    if len(places) == 0:
        places, turns, angles = np.array([middle - [0, 0, 3 * radius]]), np.eye(3)[None], [_FIELD_OF_VIEW]
    distances = np.linalg.norm(places - middle, axis=1)
    if is_whole:
        eye, target = places[0], places[0] + turns[0, :, 2] * max(np.median(distances), 1e-6)
    else:
        side = _unit(places[distances.argmin()] - middle, otherwise=[0, 0, -1])
        eye, target = middle + side * _ROOM * radius / np.tan(angles[0] / 2), middle
    up = _unit(-turns[:, :, 1].mean(axis=0), otherwise=[0, -1, 0])
    return {"eye": eye.tolist(), "target": target.tolist(), "up": up.tolist(), "fieldOfView": float(angles[0])}


def _unit(vector: np.ndarray, *, otherwise: list[float]) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length > 1e-6 else np.array(otherwise, np.float64)


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>.html`."""
    rows, scene = splat_rows(scene.gaussians), scene.as_one_object()
    ids, index = np.unique(scene.object_ids.cpu().numpy(), return_inverse=True)
    if len(ids) > 2**16:
        raise UserError(f"--format html: {len(ids)} objects; a page can list {2**16}, export fewer with --objects")
    lies: dict[str, Any] = {"frame": read_frame(scene.path)}
    if scene.placed is not None:
        lies = {"frame": scene.frame, "placed": scene.placed}
    described = {
        "title": f"{scene.path.name} {stem}".strip(),
        "objects": [
            {"id": code, "name": scene.name_of(code), "color": color}
            for code, color in zip(ids.tolist(), object_colors(ids.clip(min=0)).tolist())
        ],
        "antialiased": scene.gaussians.antialiased,
        "background": [1, 1, 1] if scene.settings.geometry.white_background else [0, 0, 0],
        **first_view(scene.path / "cameras.json", rows["position"], is_whole=stem == "scene", **lies),
    }
    filled = {"SCENE": json.dumps(described).replace("<", "\\u003c")}  # a name must not end it
    for place, values in (("SPLATS", rows), ("IDS", index.astype("<u2"))):
        filled[place] = base64.b64encode(values.tobytes()).decode()
    # At once: places are looked for in the page alone, not in what was put into it.
    page = re.sub(r"/\*([A-Z]+)\*/", lambda place: filled[place[1]], _PAGE.read_text("utf-8"))
    (folder / f"{stem}.html").write_text(page, "utf-8")
