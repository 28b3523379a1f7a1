"""Pictures of rendered views: colours of objects, uncertainty, depth, and the PNG files of a model folder.

Colours are uint8 RGB, [H, W, 3]; ids are integers [H, W]. Files: `<model>/{train,test}/ours_<N>/<kind>/<view>.png`.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.fileio import replacing
from unified_lift.modelfolder.inference import TrainedScene, render_view
from unified_lift.modelfolder.outputs import iteration_dir
from unified_lift.progress import Bar
from unified_lift.types import Camera, View

Rendering = tuple[np.ndarray, np.ndarray | None]
"""A view as stored pictures hold it: colour uint8 [H, W, 3]; object ids int32 [H, W], None without a lift."""
PICTURES = ("renders", "gt", "depth")
"""Kinds that every scene has."""
OBJECT_PICTURES = ("objects_pred", "objects_color", "overlay", "uncertainty")
"""Kinds only a lifted scene has besides."""
MAX_ID = 65_535  # of a 16-bit PNG; larger ids take three bytes
BACKGROUND_COLOR = (58, 63, 74)  # of id 0: slate, so that objects stand out
UNMATCHED_COLOR = (214, 214, 214)  # of a true object that no predicted object is matched with
PALETTE_SIZE = 1_024  # ids this far apart share a colour; more colours cannot be told apart

_LIGHTNESS = np.linspace(0.50, 0.86, 9)  # OKLab: neither near black nor near white, so that borders show
_CHROMA = np.linspace(0.07, 0.175, 6)
_HUES = np.arange(120) * (2 * np.pi / 120)
_FIRST_COLOR = 2624  # an orange, as an index of those that a screen can show: where the greedy search begins
_WEIGHTS = (0.75, 1, 1)  # of the axes: hue tells objects apart better than lightness does
_CONE_FROM_LAB = [[1, 1, 1], [0.3963377774, -0.1055613458, -0.0894841775], [0.2158037573, -0.0638541728, -1.2914855480]]
_LINEAR_FROM_CONE = [
    [4.0767416621, -1.2684380046, -0.0041960863],
    [-3.3077115913, 2.6097574011, -0.7034186147],
    [0.2309699292, -0.3413193965, 1.7076147010],
]


def object_colors(ids: np.ndarray) -> np.ndarray:
    """Return the colour of every id, uint8 [..., 3], the same in every picture; a ValueError: an id is negative."""
    ids = np.asarray(ids)
    if ids.size and int(ids.min()) < 0:
        raise ValueError(f"ids must not be negative, received {int(ids.min())}")
    return _palette()[np.where(ids == 0, 0, 1 + (ids - 1) % (PALETTE_SIZE - 1))]


def partner_colors(ids: np.ndarray, partners: Mapping[int, int | None]) -> np.ndarray:
    """Return ids [H, W] in the colours of their partners, uint8 [H, W, 3]; one without partner is light grey."""
    values, index = np.unique(ids, return_inverse=True)
    found = [partners.get(value) for value in values.tolist()]
    table = np.array([UNMATCHED_COLOR if partner is None else object_colors(np.array(partner)) for partner in found])
    return table.astype(np.uint8).reshape(-1, 3)[index.reshape(ids.shape)]


def borders(ids: np.ndarray) -> np.ndarray:
    """Return where a pixel's id differs from that of its right or lower neighbour, bool [H, W]."""
    return (np.diff(ids, axis=1, append=ids[:, -1:]) != 0) | (np.diff(ids, axis=0, append=ids[-1:]) != 0)


def overlay(image: np.ndarray, ids: np.ndarray, *, share: float = 0.5) -> np.ndarray:
    """Return the picture, uint8 [H, W, 3], with a `share` of the object colours of `ids` [H, W]; borders are white."""
    mixed = (1 - share) * image + share * object_colors(ids).astype(np.float32)
    mixed[borders(ids)] = 255
    return np.rint(mixed).astype(np.uint8)


def uncertainty_picture(confidence: np.ndarray) -> np.ndarray:
    """Return 1 - confidence, in [0, 1], [H, W], in the colour map `inferno`: black = certain, bright = unsure."""
    return _mapped(1 - np.clip(confidence, 0, 1), cv2.COLORMAP_INFERNO)


def depth_picture(depth: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return inverse depth [H, W], percentiles 2 to 98, in the map `turbo`: near = red, black where alpha <= 0.5."""
    seen = (alpha > 0.5) & (depth > 0)
    inverse = 1 / np.where(seen, depth, 1)
    low, high = np.percentile(inverse[seen], (2, 98)) if seen.any() else (0, 1)
    picture = _mapped(np.clip((inverse - low) / max(high - low, 1e-12), 0, 1), cv2.COLORMAP_TURBO)
    picture[~seen] = 0
    return picture


def quantize_uint8(image: Tensor) -> np.ndarray:
    """Return floor(clamp(255 x + 0.5, 0, 255)) of values in [0, 1], any shape: what a stored picture holds."""
    return (image * 255 + 0.5).clamp(0, 255).floor().to(torch.uint8).cpu().numpy()


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a whole PNG file: colour uint8 [H, W, 3], ids [H, W] or bool [H, W] (0, 255).

    Ids take 16 bits or, where one is above 65,535, three bytes, the lowest as red. A ValueError: one below 0; a
    UserError: one that takes more.
    """
    if picture.ndim == 3:
        pixels = picture[..., ::-1]
    elif picture.dtype == bool:
        pixels = picture.astype(np.uint8) * 255
    elif picture.size and picture.min() < 0:
        raise ValueError(f"{path}: ids must not be negative, received {picture.min()}")
    elif picture.size and picture.max() >= 2**24:
        raise UserError(f"{path}: a picture of ids holds {2**24 - 1} at most, received {picture.max()}; merge objects")
    elif picture.size and picture.max() > MAX_ID:
        pixels = np.stack([picture >> shift & 255 for shift in (16, 8, 0)], axis=-1).astype(np.uint8)
    else:
        pixels = picture.astype(np.uint16)
    with replacing(path, sync=False) as partial:  # made again at will
        partial.write_bytes(cv2.imencode(".png", pixels, (cv2.IMWRITE_PNG_COMPRESSION, 3))[1].tobytes())


def read_picture(path: Path) -> np.ndarray:
    """Return a PNG of `write_picture`, uint8 RGB [H, W, 3] or int32 ids [H, W]; a UserError if missing or damaged."""
    # Not by its name: OpenCV crashes at one that is no text.
    data = np.frombuffer(path.read_bytes() if path.is_file() else b"", np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if pixels is None:
        raise UserError(f"{path}: missing or damaged picture; write it again with render.py")
    return pixels.astype(np.int32) if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1])


def read_ids(path: Path) -> np.ndarray:
    """Return the ids of a PNG of `write_picture`, int32 [H, W]; errors as there."""
    found = read_picture(path)
    return found if found.ndim == 2 else found.astype(np.int32) @ np.array([1, 2**8, 2**16], dtype=np.int32)


def pictures_dir(model_path: Path, split: str, iteration: int) -> Path:
    """Return `<model>/{train,test}/ours_<N>`."""
    return model_path / split / f"ours_{iteration}"


def picture_path(folder: Path, kind: str, name: str) -> Path:
    """Return `<folder>/<kind>/<view name>.png`; sub-folders of the name stay, so no two views collide."""
    return folder / kind / f"{name}.png"


def write_renderings(model: TrainedScene, views: Sequence[View], folder: Path, *, quiet: bool) -> None:
    """Write all pictures of the views below `folder`."""
    with ThreadPoolExecutor(4) as pool:
        jobs = []
        for view in Bar(views, desc=f"render {folder.parent.name}", disable=quiet):
            rendered = render_view(model, view.camera)
            image = quantize_uint8(rendered.image)
            depth = depth_picture(rendered.depth.numpy(), rendered.alpha.numpy())
            shown = dict(zip(PICTURES, (image, view.image.numpy(), depth), strict=True))
            if rendered.object_ids is not None and rendered.confidence is not None:
                ids, unsure = rendered.object_ids.numpy(), uncertainty_picture(rendered.confidence.numpy())
                shown |= zip(OBJECT_PICTURES, (ids, object_colors(ids), overlay(image, ids), unsure), strict=True)
            for kind, picture in shown.items():
                jobs.append(pool.submit(write_picture, picture_path(folder, kind, view.name), picture))
    for job in jobs:
        job.result()  # passes errors on


def rendering_of(model: TrainedScene, camera: Camera) -> Rendering:
    """Return what a model shows from a camera."""
    rendered = render_view(model, camera)
    ids = None if rendered.object_ids is None else rendered.object_ids.numpy().astype(np.int32)
    return quantize_uint8(rendered.image), ids


def stored_renderings(model: TrainedScene, views: Sequence[View], *, quiet: bool = True) -> Iterator[Rendering]:
    """Yield the stored pictures of views, missing or old ones drawn anew; a UserError: damaged or of another size."""
    folder = pictures_dir(model.path, "test", model.iteration)
    saved = max(path.stat().st_mtime for path in iteration_dir(model.path, model.iteration).iterdir())
    kinds = (*PICTURES, *(OBJECT_PICTURES if model.is_lifted else ()))

    def is_stale(path: Path) -> bool:
        return not path.exists() or path.stat().st_mtime < saved

    stale = [view for view in views if any(is_stale(picture_path(folder, kind, view.name)) for kind in kinds)]
    if stale:
        write_renderings(model, stale, folder, quiet=quiet)
    for view in views:
        path = picture_path(folder, "renders", view.name)
        image = read_picture(path)
        if image.shape != tuple(view.image.shape):
            raise UserError(f"{path}: size differs from the photo's; delete {folder} and run eval.py again")
        ids = picture_path(folder, "objects_pred", view.name)
        yield image, read_ids(ids) if model.is_lifted else None


def _mapped(values: np.ndarray, colormap: int) -> np.ndarray:
    grey = np.rint(values * 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(grey, colormap)[..., ::-1])


@functools.lru_cache(maxsize=1)
def _palette() -> np.ndarray:
    """Return PALETTE_SIZE colours, each the farthest from all before it in OKLab [B. Ottosson 2020]."""
    lightness, chroma, hue = map(np.ravel, np.meshgrid(_LIGHTNESS, _CHROMA, _HUES, indexing="ij"))
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    linear = (lab @ _CONE_FROM_LAB) ** 3 @ _LINEAR_FROM_CONE
    shown = ((linear >= 0) & (linear <= 1)).all(axis=1)  # by a screen
    linear, space = linear[shown], lab[shown] * _WEIGHTS
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    chosen = [_FIRST_COLOR]
    distance = np.full(len(space), np.inf)
    for _ in range(PALETTE_SIZE - 2):
        distance = np.minimum(distance, np.square(space - space[chosen[-1]]).sum(axis=1))
        chosen.append(int(distance.argmax()))
    return np.concatenate([[BACKGROUND_COLOR], np.rint(255 * srgb)[chosen]]).astype(np.uint8)
