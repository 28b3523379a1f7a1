"""Which object is meant: by a mask, by likeness or by words; and the view that shows an object best."""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.evaluation.grounding import Grounding, pretrained
from unified_lift.evaluation.pictures import borders, rendering_of, write_picture
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.labels import segment_by_labels
from unified_lift.types import Camera, Scene, View

TextEncoder = Callable[[Sequence[np.ndarray], Sequence[str]], tuple[Tensor, Tensor]]
"""Returns unit vectors [images, E] and [texts, E] of uint8 RGB pictures of any size and of texts, as CLIP does."""
Found = dict[int, float]
"""Object id -> how well it fits what was asked, 1 = perfectly; the best first."""
MIN_RELEVANCY = 0.5  # from here on words fit an object better than the canonical ones do
_CANONICAL_TEXTS, _RELEVANCY_SCALE = ("object", "things", "stuff", "texture"), 10.0  # [LERF]
_CROP_MARGIN = 0.15  # of the larger side of the object's box
_CLIP_BATCH, _OBJECTS_AT_ONCE = 32, 256  # pictures encoded together; objects whose pictures are in memory
_MAX_VIEWS = 24  # among which the best view of an object is sought, evenly spread
_DIM = 0.25  # brightness of what was not asked for


def object_masks(scene: TrainedScene, camera: Camera) -> dict[int, np.ndarray]:
    """Return object id -> its visible pixels, bool [H, W], of every object seen from a camera."""
    ids = _ids_seen(scene, camera)
    return {int(object_id): ids == object_id for object_id in np.unique(ids) if object_id >= 0}


def _ids_seen(scene: TrainedScene, camera: Camera) -> np.ndarray:
    """Return the object that each pixel shows, int64 [H, W], -1 = none."""
    found = segment_by_labels(scene.gaussians, scene.object_ids, camera)
    return torch.where(found.confidence > 0, found.object_ids, -1).cpu().numpy()


def best_views(scene: TrainedScene, cameras: Iterable[Camera]) -> dict[int, int]:
    """Return object id -> index of the camera that sees most of it; unseen: absent."""
    best: dict[int, tuple[float, int]] = {}
    for index, camera in enumerate(cameras):
        ids, counts = np.unique(_ids_seen(scene, camera), return_counts=True)
        for object_id, share in zip(ids.tolist(), (counts / counts.sum()).tolist(), strict=True):
            if object_id >= 0 and (object_id not in best or share > best[object_id][0]):
                best[object_id] = share, index
    return {object_id: index for object_id, (_, index) in best.items()}


def _masks_in(
    scene: TrainedScene, cameras: Sequence[Camera], views: Mapping[int, int]
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Yield object id, index of its camera as in `views`, what that shows, and its pixels, bool [H, W]; by camera."""
    of_camera: dict[int, list[int]] = {}
    for object_id, index in views.items():
        of_camera.setdefault(index, []).append(object_id)
    for index, object_ids in of_camera.items():
        (image, _), ids = rendering_of(scene, cameras[index]), _ids_seen(scene, cameras[index])
        for object_id in object_ids:
            yield object_id, index, image, ids == object_id


def objects_like(scene: TrainedScene, object_id: int) -> Found:
    """Return the other objects by falling cosine of mean features; a UserError: no such object, or no features."""
    scene.mask([object_id])
    if not scene.gaussians.feature_dim:
        raise UserError(f"{scene.path}: has no features, so nothing is like anything; give a lifted model")
    values, index = torch.unique(scene.object_ids, return_inverse=True)
    features = scene.gaussians.features.detach() * scene.confidence[:, None].clamp(min=1e-3)  # unseen ones hardly count
    sums = torch.zeros(len(values), features.shape[1], device=features.device).index_add_(0, index, features)
    directions = torch.nn.functional.normalize(sums, dim=1)
    cosines = directions @ directions[values == object_id][0]
    return _best_first((key, fit) for key, fit in zip(values.tolist(), cosines.tolist()) if key != object_id)


def objects_by_grounding(scene: TrainedScene, text: str, view: View, grounding: Grounding) -> Found:
    """Return objects by falling IoU with what is found in the photo of a view; a UserError: a mask of another size."""
    mask = grounding(view.image.numpy(), [text]).masks.get(text)
    if mask is None:
        return {}
    if mask.shape != (view.camera.height, view.camera.width):
        size, expected = (f"{shape[1]} x {shape[0]}" for shape in (mask.shape, view.image.shape))
        raise UserError(f"--grounding: the mask is {size}, view {view.name} is {expected} pixels")
    ious = {key: (own & mask).sum() / (own | mask).sum() for key, own in object_masks(scene, view.camera).items()}
    return _best_first((key, float(iou)) for key, iou in ious.items() if iou > 0)


def objects_by_text(scene: TrainedScene, text: str, cameras: Sequence[Camera], encode: TextEncoder) -> Found:
    """Return the objects that words describe, by falling relevancy; those below 0.5 are left out.

    Every object is shown to the encoder in the view that shows most of it: cut out with its surroundings, and alone on
    grey. Its score is the relevancy of LERF (Eq. 2 there) of the mean of both: the smallest of softmax(10 x cosine)
    against each of "object", "things", "stuff", "texture".
    """
    views = best_views(scene, cameras)
    if not views:
        return {}
    fits: dict[int, float] = {}
    shown = _masks_in(scene, cameras, views)
    while some := list(itertools.islice(shown, _OBJECTS_AT_ONCE)):
        crops = []
        for _, _, image, mask in some:
            box = _box(mask)
            crops += [image[box], np.where(mask[box][..., None], image[box], np.uint8(127))]
        images, texts = encode(crops, (text, *_CANONICAL_TEXTS))
        pooled = torch.nn.functional.normalize(images.view(len(some), 2, -1).mean(dim=1), dim=1)
        cosines = pooled @ texts.T  # [objects, 1 + canonical]
        relevancy = torch.sigmoid(_RELEVANCY_SCALE * (cosines[:, :1] - cosines[:, 1:])).min(dim=1).values
        fits |= zip((object_id for object_id, *_ in some), relevancy.tolist(), strict=True)
    return _best_first((key, fits[key]) for key in views if fits[key] > MIN_RELEVANCY)


def clip_encoder(folder: Path, *, device: torch.device) -> TextEncoder:
    """Return CLIP from a folder of `transformers`; a UserError: that is not installed, or the folder holds none."""
    processor, clip = pretrained(folder, "CLIPProcessor", "CLIPModel", flag="--model ", device=device)

    @torch.no_grad()
    def encode(images: Sequence[np.ndarray], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = []
        for start in range(0, len(images), _CLIP_BATCH):
            # As PIL images: an array of height 3 would be taken for one with the channels first.
            batch = [Image.fromarray(image) for image in images[start : start + _CLIP_BATCH]]
            out = clip(**processor(text=list(texts), images=batch, padding=True, return_tensors="pt").to(device))
            encoded.append(torch.nn.functional.normalize(out.image_embeds.float(), dim=1).cpu())
        return torch.cat(encoded), torch.nn.functional.normalize(out.text_embeds.float(), dim=1).cpu()

    return encode


def views_to_ask(scene: Scene, name: str | None) -> list[View]:
    """Return the view of that name; without a name, training views evenly spread, among which the best are sought."""
    if name is None:
        step = max(1, math.ceil(len(scene.train) / _MAX_VIEWS))
        return list(scene.train[::step])
    named = {view.name: view for view in (*scene.train, *scene.test)}
    if name not in named:
        listed = ", ".join(list(named)[:8]) + (" ..." if len(named) > 8 else "")
        raise UserError(f"--view {name}: no such view; there are {listed}")
    return [named[name]]


def write_best_views(scene: TrainedScene, ids: Collection[int], views: Sequence[View], out: Path) -> dict[int, int]:
    """Write `<id>.png`, the rest dimmed, and `<id>_mask.png` of each object in the view that shows most of it.

    Returned is object id -> index of its view; objects that no view shows are absent.
    """
    cameras = [view.camera for view in views]
    best = best_views(scene, cameras)
    shown = {object_id: best[object_id] for object_id in ids if object_id in best}
    for object_id, _, image, mask in _masks_in(scene, cameras, shown):
        highlighted = np.where(mask[..., None], image, np.rint(_DIM * image).astype(np.uint8))
        highlighted[borders(mask)] = 255
        write_picture(out / f"{object_id}.png", highlighted)
        write_picture(out / f"{object_id}_mask.png", mask)
    return shown


def _best_first(found: Iterable[tuple[int, float]]) -> Found:
    return dict(sorted(found, key=lambda one: -one[1]))


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the box around a mask, widened by a margin."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    margin = max(1, round(_CROP_MARGIN * (max(width, height) - 1)))
    return slice(max(0, y - margin), y + height + margin), slice(max(0, x - margin), x + width + margin)
