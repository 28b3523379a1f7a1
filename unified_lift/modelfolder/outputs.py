"""The model folder: 3DGS layout, so that every viewer and fork can read it."""

import math
import platform
import shutil
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diff_gaussian_rasterization import backend_info

import unified_lift
from unified_lift.errors import UserError
from unified_lift.fileio import (
    NoSecondNames,
    move_together,
    read_json,
    replacing,
    replacing_folder,
    second_name,
    write_json,
    write_text,
)
from unified_lift.methods.base import Method
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.ply import write_gaussians, write_points
from unified_lift.modelfolder.checkpoint import snapshot
from unified_lift.modelfolder.labels import GaussianLabels, describe_objects
from unified_lift.modelfolder.settings import REPLACED, TrainSettings, recorded, with_file
from unified_lift.provenance import near, told_command, told_tree
from unified_lift.reading import read_columns
from unified_lift.settings.yaml import read_settings_file
from unified_lift.types import IDENTITY, Scene, Similarity

_MAX_ID = 2**31 - 1
EDITS_FILE = "edits.yaml"  # all edits since the scene was trained
NO_OBJECT = "no object"
"""Name of the last object, where it is what no mask claims."""
FRAME_FILE = "frame.json"  # of a scene that is not worked on in the user's coordinates
EXPOSURE_FILE = "exposure.json"  # name of training photo -> its colour matrix [3DGS], where --exposure learnt any
FILES_OF_RUN = (
    *("chkpnt*.pth", "metrics.jsonl", "profile.json", EDITS_FILE, FRAME_FILE, EXPOSURE_FILE),
    *("tb", "point_cloud", "levels"),
)
"""Patterns of what one run must not leave to the next."""
_HEADER = ("config.yaml", "cfg_args", "cameras.json", "input.ply", "manifest.json")


def holds_work(model_path: Path) -> bool:
    """Return whether the folder holds what a new run would lose: checkpoints or results."""
    return any(model_path.glob("chkpnt*.pth")) or (model_path / "point_cloud").exists()


def holds_run(model_path: Path) -> bool:
    """Return whether the folder holds a run, of this program or of another 3DGS trainer."""
    return any((model_path / name).exists() for name in ("config.yaml", "cfg_args", "point_cloud"))


def set_earlier_run_aside(model_path: Path) -> bool:
    """Move what an earlier run left, and what would mix with a new one, to `replaced`; return whether it was done.

    What a run left that was not done goes, as what it was to replace is still there.
    """
    files = [path for pattern in FILES_OF_RUN for path in model_path.glob(pattern)]
    was_done = (model_path / "point_cloud").exists() and (
        (model_path / "manifest.json").exists() or not (model_path / "config.yaml").exists()
    )
    if was_done:
        header = [model_path / name for name in _HEADER if (model_path / name).exists()]
        places = [(path, Path(REPLACED, path.relative_to(model_path))) for path in (*files, *header)]
        try:
            with replacing_folder(model_path, outdated=(*FILES_OF_RUN, *_HEADER, REPLACED)) as new:
                for path, place in places:
                    second_name(path, new / place, or_copy=False)
        except NoSecondNames:
            shutil.rmtree(model_path / REPLACED, ignore_errors=True)
            move_together([(path, model_path / place) for path, place in places])
    for path in files:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return was_done


def write_run_header(settings: TrainSettings, scene: Scene) -> None:
    """Write config.yaml, cfg_args, cameras.json, input.ply, and frame.json if there is something to say."""
    model = settings.model_path
    write_settings(model, settings, place=model)
    cameras = [
        {
            "id": index,
            "img_name": view.name,
            "width": view.camera.width,
            "height": view.camera.height,
            "position": scene.frame.outside(view.camera.position).tolist(),
            "rotation": view.camera.cam_from_world[:3, :3].T.tolist(),
            "fy": view.camera.fy,
            "fx": view.camera.fx,
            "fovx": 2 * math.atan(view.camera.width / (2 * view.camera.fx)),
        }
        for index, view in enumerate((*scene.test, *scene.train))
    ]
    write_json(model / "cameras.json", cameras, indent=None)
    write_points(model / "input.ply", scene.points, scene.frame)
    write_frame(model, scene.frame)


def write_settings(folder: Path, settings: TrainSettings, *, place: Path) -> None:
    """Write config.yaml and cfg_args into a folder that is going to be the model folder `place`."""
    content = recorded(settings, place)
    write_text(folder / "config.yaml", yaml.safe_dump(content, sort_keys=False))
    data, geometry = content["data"], settings.geometry
    arguments = Namespace(
        data_device="cpu",
        eval=data["eval"],
        images=data["images"],
        model_path=content["model_path"],
        object_path="object_mask" if data["object_path"] == "auto" else data["object_path"],
        resolution=data["resolution"],
        sh_degree=geometry.sh_degree,
        source_path=data["source_path"],
        white_background=geometry.white_background,
    )
    write_text(folder / "cfg_args", repr(arguments))


def write_frame(folder: Path, frame: Similarity) -> None:
    """Write frame.json into a folder, if the frame is not the identity."""
    if not frame.is_identity:
        meaning = "inside = scale * (yours - offset); checkpoints are inside, all other files are in your coordinates"
        write_json(folder / FRAME_FILE, {**asdict(frame), "meaning": meaning})


def read_frame(folder: Path) -> Similarity:
    """Return the frame of a model folder; the identity without a frame.json; a UserError: a damaged one."""
    path = folder / FRAME_FILE
    if not path.exists():
        return IDENTITY
    content = read_json(path)
    try:
        x, y, z = map(float, content["offset"])
        frame = Similarity(offset=(x, y, z), scale=float(content["scale"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not an offset and a scale ({error}); train or --resume again") from None
    if not (all(abs(value) < 1e15 for value in frame.offset) and 1e-15 < frame.scale < 1e15):
        raise UserError(f"{path}: offset {frame.offset} and scale {frame.scale:g} are none; train or --resume again")
    return frame


def read_run_settings(model_path: Path) -> TrainSettings:
    """Return the settings a model folder was trained with; a UserError where it holds no run."""
    path = model_path / "config.yaml"
    if not path.exists():
        raise UserError(f"{model_path}: no config.yaml there, so no trained model; train one: train.py -m {model_path}")
    return replace(with_file(TrainSettings(), read_settings_file(path), path), model_path=model_path)


def iteration_dir(model_path: Path, iteration: int) -> Path:
    """Return `<model>/point_cloud/iteration_<N>`."""
    return model_path / "point_cloud" / f"iteration_{iteration}"


def level_dir(model_path: Path, name: str) -> Path:
    """Return the model folder of objects of another granularity on the same geometry, `<model>/levels/<name>`."""
    return model_path / "levels" / name


def saved_levels(model_path: Path) -> list[str]:
    """Return the names of the further levels that are lifted, sorted."""
    return sorted(path.parent.name for path in (model_path / "levels").glob("*/manifest.json"))


def saved_iterations(model_path: Path) -> list[int]:
    """Return the iterations whose point cloud is saved, rising."""
    folders = (model_path / "point_cloud").glob("iteration_*/point_cloud.ply")
    return sorted(int(path.parent.name.removeprefix("iteration_")) for path in folders)


def write_objects(
    folder: Path,
    gaussians: Gaussians,
    labels: GaussianLabels,
    *,
    method: Method | None = None,
    names: Mapping[int, str] | None = None,
    num_views: Mapping[int, int] | None = None,
    frame: Similarity = IDENTITY,
) -> None:
    """Write objects.json, the point_cloud_objects.ply of Gaussian Grouping's scripts, and segmentation.npz.

    The last holds object_id int32, confidence float16 [N], feature float16 [N, D], and the id of `NO_OBJECT`, else -1,
    which objects.json does not list; where a hole was filled, `filled` uint8 [N] too. With a method also
    classifier.pth. A FloatingPointError: features that diverged.
    """
    nothing = next((key for key, name in (names or {}).items() if name == NO_OBJECT), -1)
    if method is not None:
        # Through Python's file: else the name of the scratch file would stay in it.
        with replacing(folder / "classifier.pth") as partial, open(partial, "wb") as file:
            torch.save(snapshot(method.object_state()), file)
    ids, confidence = labels.object_ids.cpu().numpy(), labels.confidence.cpu().numpy().astype(np.float16)
    with replacing(folder / "segmentation.npz") as partial, open(partial, "w+b") as file:
        # Uncompressed: features hardly shrink, and half a million Gaussians would take a second longer.
        columns: dict[str, Any] = {"object_id": ids.astype(np.int32), "confidence": confidence}
        columns |= {} if labels.filled is None else {"filled": labels.filled.cpu().numpy()}
        np.savez(file, **columns, no_object=nothing)
        with zipfile.ZipFile(file, "a") as bundle, bundle.open("feature.npy", "w", force_zip64=True) as entry:
            head = {"descr": "<f2", "fortran_order": False, "shape": tuple(gaussians.features.shape)}
            np.lib.format.write_array_header_1_0(entry, head)
            for part in gaussians.parts():
                features = part.features.detach().cpu().numpy()
                if features.size and (most := np.abs(features).max()) > np.finfo(np.float16).max:
                    raise FloatingPointError(f"features reach {most:g}, which is out of all range")
                entry.write(features.astype("<f2").tobytes())
    described = describe_objects(gaussians, labels, names=names, num_views=num_views, frame=frame)
    write_json(folder / "objects.json", {key: one for key, one in described.items() if key != nothing})
    write_gaussians(folder / "point_cloud_objects.ply", gaussians, object_ids=ids, frame=frame)


def read_objects(
    folder: Path, device: torch.device, *, count: int
) -> tuple[GaussianLabels, dict[int, str], dict[int, int]]:
    """Return labels of `count` Gaussians, given names and numbers of views, as `write_objects` wrote them.

    A UserError: a damaged file, or one of other Gaussians.
    """
    path = folder / "segmentation.npz"
    names, fix = ("object_id", "confidence"), "train or --resume again"
    columns = read_columns(path, names, rows=count, single="no_object", further=("filled",), fix=fix)
    ids, confidence = columns["object_id"], columns["confidence"]
    nothing = int(columns.get("no_object", -1))
    if ids.dtype.kind == "f" or ids.min() < 0 or ids.max() > _MAX_ID or confidence.min() < 0 or confidence.max() > 1:
        raise UserError(f"{path}: ids are whole numbers up to {_MAX_ID}, confidence lies in [0, 1]; {fix}")
    arrays = ids.astype(np.int64), confidence.astype(np.float32)
    marks = torch.from_numpy(columns["filled"].astype(np.uint8)).to(device) if "filled" in columns else None
    labels = GaussianLabels(*(torch.from_numpy(values).to(device) for values in arrays), filled=marks)
    path = folder / "objects.json"
    objects = read_json(path) if path.exists() else {}
    try:
        called = {int(key): str(one["name"]) for key, one in objects.items() if one["name"] != f"object {key}"}
        called |= {nothing: NO_OBJECT} if nothing >= 0 else {}
        return labels, called, {int(key): int(one.get("views", 0)) for key, one in objects.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not a list of objects ({error}); train or --resume again") from None


def provenance(settings: TrainSettings, extra: dict[str, Any], *, folder: Path) -> dict[str, Any]:
    """Return what a reader of the results in a model folder needs to know of how they were made."""
    how = settings.run.provenance
    commit = None
    with suppress(OSError, subprocess.SubprocessError):
        command, here = ["git", "rev-parse", "HEAD"], Path(__file__).parent
        commit = subprocess.check_output(command, cwd=here, stderr=subprocess.DEVNULL, text=True, timeout=5).strip()
    words = sys.argv if how == "full" else [Path(sys.argv[0]).name, *sys.argv[1:]]
    facts = {
        "program": f"unified-lift {unified_lift.__version__}",
        "commit": commit,
        "command": " ".join(told_command(words, near(folder), how)),
        "seed": settings.seed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        **({"host": platform.node()} if how == "full" else {}),
        "rasterizer": backend_info(),
        **extra,
    }
    return {key: value if key == "command" else told_tree(value, folder, how) for key, value in facts.items()}
