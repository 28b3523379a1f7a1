"""What this machine can do: devices, compiled kernels, packages, and room for a scene."""

import importlib.metadata
import importlib.util
import platform
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from diff_gaussian_rasterization import backend_info
from simple_knn import distCUDA2

import unified_lift
from unified_lift.data.cache import choose_cache, free_bytes
from unified_lift.data.scene import expected_bytes
from unified_lift.data.settings import DataSettings
from unified_lift.device import chosen_device
from unified_lift.errors import UserError
from unified_lift.memory import available_memory
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.model.render import render
from unified_lift.modelfolder.settings import TrainSettings
from unified_lift.types import Camera, DataDevice

GIB = 2**30

OPTIONAL = {
    "pycolmap": ("sfm: poses of own photos", 'pip install "unified-lift[sfm]"'),
    "segment_anything": ("masks: the SAM mask generator", 'pip install "unified-lift[masks]"'),
    "mobile_sam": (
        "masks: MobileSAM, --provider sam --model vit_t",
        "pip install git+https://github.com/ChaoningZhang/MobileSAM.git timm",
    ),
    "transformers": ("masks and text queries by other models", 'pip install "unified-lift[grounding]"'),
    "viser": ("view: the browser viewer", 'pip install "unified-lift[viewer]"'),
    "zstandard": ("splats in SPZ version 4", 'pip install "unified-lift[spz]"'),
    "gsplat": ("--rasterizer gsplat", 'pip install "unified-lift[gsplat]"'),
    "sklearn": ("baselines that cluster with HDBSCAN", 'pip install "unified-lift[baselines]"'),
    "submitit": ("bench --launcher submitit", "pip install submitit"),
}
"""Module of an optional package -> what it is for, and the line that installs it."""
NEEDED = tuple("scipy plyfile cv2 PIL tqdm tensorboard tyro yaml matplotlib jinja2 imageio_ffmpeg".split())
"""Modules of the packages that an installation always brings."""
State = Literal["ok", "note", "broken"]
"""`note`: something optional or fast is missing; `broken`: training cannot run."""


class Diagnosis(NamedTuple):
    """One line of the examination: what was looked at, how it is, and what was found and how to fix it."""

    topic: str
    state: State
    text: str


def examine(folder: Path, *, trials: Mapping[str, Callable[[], str]] | None = None) -> list[Diagnosis]:
    """Return what this machine has, `folder` being where models go; none of it is `broken` if training can run.

    Args:
        trials: Module of an optional package -> does what it is for and says how that went. Others are imported.
    """
    trials = {"zstandard": _try_zstandard, "sklearn": _try_clustering, **(trials or {})}
    info = backend_info()
    is_slow = info["implementation"] == "reference"
    cpu = f"{info['implementation']} ({info['isa']}): {info['reason']}" + ("; this is very slow" if is_slow else "")
    program = f"{unified_lift.__version__}, Python {platform.python_version()}, {platform.platform()}"
    found: dict[str, tuple[State, str]] = {"unified-lift": ("ok", program), "device": _torch()}
    found["rasterizer cpu"] = ("note" if is_slow else "ok", cpu)
    for name in ("cuda", "gsplat"):
        found[f"rasterizer {name}"] = ("ok", "built") if info[name] == name else ("note", str(info[name]))
    for topic, attempt in (("render", _try_render), ("simple_knn", _try_neighbours)):
        try:
            found[topic] = "ok", attempt()
        except Exception as error:  # noqa: BLE001 (whatever goes wrong there is what the user wants to be told)
            found[topic] = "broken", f"{type(error).__name__}: {error}; reinstall the package"
    missing = ", ".join(module for module in NEEDED if importlib.util.find_spec(module) is None)
    found["packages"] = "ok", "all that are needed are installed"
    if missing:
        found["packages"] = "broken", f"missing: {missing}; pip install --upgrade unified-lift"
    for module, (purpose, install) in OPTIONAL.items():
        found[module] = "note", f"not installed ({purpose}); {install}"
        if importlib.util.find_spec(module) is not None:
            names = importlib.metadata.packages_distributions().get(module, [])
            number = importlib.metadata.version(names[0]) if names else "of unknown version"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    outcome = f": {trials[module]()}" if module in trials else ""
                    importlib.import_module(module)
                found[module] = "ok", f"{number} ({purpose}){outcome}"
            except Exception as error:  # noqa: BLE001 (an installed package may be broken in any way)
                reason = next((line for line in str(error).splitlines() if line.strip()), "")[:300]
                said = reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}; {install}"
                found[module] = "note", f"{number} is installed but does not work ({purpose}): {said}"
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(parent).free
    more = "; a large model with its checkpoint needs 2 GiB" if free < 2 * GIB else ""
    found["disk"] = "note" if more else "ok", f"{free / GIB:.1f} GiB free in {folder}{more}"
    found["memory"] = "ok", f"{available_memory() / GIB:.1f} GiB of main memory can be taken"
    return [Diagnosis(topic, *answer) for topic, answer in found.items()]


def scene_budget(data: DataSettings) -> list[Diagnosis]:
    """Return what a scene needs of memory; no pixel is decoded."""
    device = chosen_device("auto")
    free = free_bytes(device)
    try:
        num_bytes = expected_bytes(data)
        choice = choose_cache("auto", num_bytes, free)
    except UserError as error:
        return [Diagnosis("scene", "broken", str(error))]
    settings: TrainSettings[Any, Any] = TrainSettings()
    sh_degree, feature_dim = settings.geometry.sh_degree, settings.method.feature_dim
    # Four times four bytes: each number itself, its gradient, two moments of Adam.
    each = 4 * 4 * (3 + 4 + 3 + 1 + 3 * (sh_degree + 1) ** 2 + feature_dim)
    where: DataDevice = "cuda" if device.type == "cuda" else "cpu"
    taken = num_bytes if choice.kept_on == where else 0
    fit = int(max(free[where] - taken, 0) / 2 / each)
    count = f"{fit / 10**6:.1f} million" if fit >= 10**6 else f"{fit:,}"
    text = (
        f"{each * 10**6 / GIB:.2f} GiB a million with gradients and Adam's moments (SH degree {sh_degree}, "
        f"{feature_dim} features); about {count} fit into half of what remains, the other half is for rendering; "
        "limit them with --max_gaussians"
    )
    return [Diagnosis("scene", "ok", str(choice)), Diagnosis("Gaussians", "ok", text)]


def _torch() -> tuple[State, str]:
    version = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        cards = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
        listed = ", ".join(f"{card.name} ({card.total_memory / GIB:.0f} GiB)" for card in cards)
        return "ok", f"{version}, CUDA {torch.version.cuda}: {listed}"
    why = f"torch is built for CUDA {torch.version.cuda} but sees no card; check nvidia-smi and the driver"
    if torch.version.cuda is None:
        why = "this torch was built without CUDA; with an NVIDIA card install a CUDA build of torch"
    return "note", f"{version} on the CPU, {torch.get_num_threads()} threads: {why}"


def _try_render() -> str:
    """Render a red Gaussian in the middle of a small picture where training would, forward and backward."""
    device = chosen_device("auto")
    table = {
        "means": torch.tensor([[0.0, 0.0, 2.0]]),
        "quats": torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        "log_scales": torch.full((1, 3), -1.0),
        "logit_opacities": torch.full((1,), 3.0),
        "sh0": (torch.tensor([[[1.0, 0.0, 0.0]]]) - 0.5) / SH_C0,
        "shN": torch.zeros(1, 0, 3),
        "features": torch.ones(1, 4),
    }
    gaussians = Gaussians(table).to(device)
    camera = Camera(cam_from_world=np.eye(4), fx=16.0, fy=16.0, cx=8.0, cy=8.0, width=16, height=16)
    image = render(gaussians, camera).image
    image.sum().backward()
    middle, gradient = image[8, 8].tolist(), gaussians.sh0.grad
    if not (middle[0] > 0.5 and middle[1] < 0.1 and gradient is not None and bool(gradient.abs().sum() > 0)):
        raise RuntimeError(f"a red Gaussian came out as {[round(value, 3) for value in middle]}")
    return f"a test picture is right on {device}, and so is its gradient"


def _try_neighbours() -> str:
    """Check distances on four corners of a unit square: two neighbours at 1, one at squared distance 2."""
    square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    found = distCUDA2(square)
    if not torch.allclose(found, torch.full((4,), 4 / 3)):
        raise RuntimeError(f"distances on a unit square came out as {found.tolist()}")
    return "distances to neighbours are right"


def _try_zstandard() -> str:
    """Compress and restore a few bytes."""
    library = importlib.import_module("zstandard")
    if library.ZstdDecompressor().decompress(library.ZstdCompressor().compress(b"splats")) != b"splats":
        raise RuntimeError("bytes come back changed")
    return "bytes come back unchanged"


def _try_clustering() -> str:
    """Cluster two heaps of points."""
    points = np.concatenate([np.arange(8.0), 100 + np.arange(8.0)])[:, None]
    found = importlib.import_module("sklearn.cluster").HDBSCAN(min_cluster_size=4).fit_predict(points)
    if len(set(found[:8]) | set(found[8:])) != 2:
        raise RuntimeError(f"two clusters of points came out as {found.tolist()}")
    return "two clusters of points are found"
