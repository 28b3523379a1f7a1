"""What a protocol is given: the truth of the held-out views, a model's ids there, and prompts found by their words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from tqdm import tqdm

from unified_lift.cli.render import picture_path
from unified_lift.data import detect_reader, load_annotations, load_prompt_masks
from unified_lift.data.masks import same_aspect
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.evaluation.grounding import Grounding, TextMasks
from unified_lift.evaluation.pictures import read_picture, replace_file
from unified_lift.evaluation.protocols import PROTOCOLS, Protocol, ProtocolResult, Subject
from unified_lift.metrics.masks import overlap_table
from unified_lift.modelfolder.inference import TrainedScene, render_likely_ids, segment_view
from unified_lift.ops.resample import nearest
from unified_lift.types import Scene

ReferenceImage = Literal["dataset", "render"]
AS_TRAINED = "as trained"
"""What the honest choice is called where it is none of the candidates."""
ORACLE_WARNING = "`best` was chosen with the annotations and is no fair result; `chosen` was made without them"
_PICTURE_OF: dict[ReferenceImage, str] = {"dataset": "gt", "render": "renders"}


def chosen_protocol(name: str, data: DataSettings) -> Protocol:
    """Return the protocol of a key of `PROTOCOLS`; `auto`: the one that the dataset's reader names.

    Raises:
        UserError: The reader names none that exists.
    """
    if name != "auto":
        return PROTOCOLS[name]
    reader = detect_reader(data)
    if reader.protocol not in PROTOCOLS:
        raise UserError(
            f"--protocol auto: reader {reader.name} names {reader.protocol}, but there are {', '.join(PROTOCOLS)}; "
            "choose one of these"
        )
    return PROTOCOLS[reader.protocol]


def truth_for(protocol: Protocol, data: DataSettings, names: Sequence[str]) -> Subject:
    """Return the truth that a protocol asks for, without any prediction yet."""
    if protocol.truth == "annotations":
        return Subject(names=names, object_ids={}, annotations=load_annotations(data, names))
    return Subject(names=names, object_ids={}, prompt_masks=load_prompt_masks(data, names))


def has_truth(subject: Subject) -> bool:
    """Return whether there is anything to compare with."""
    return bool(subject.annotations or subject.prompt_masks)


def score_model(
    protocol: Protocol, truth: Subject, model: TrainedScene, scene: Scene, object_ids: Mapping[str, np.ndarray]
) -> ProtocolResult:
    """Return the scores of a model whose rendered ids are given.

    Ids rendered at a reduced size (-r) are compared at the size of the truth, nearest pixel, and the report says so.

    Raises:
        UserError: A truth has another shape than the rendering.
    """
    cameras = {view.name: view.camera for view in scene.test}
    for name, ids in object_ids.items():
        shapes = {mask.shape for mask in truth.prompt_masks.get(name, {}).values()}
        shapes |= {truth.annotations[name].shape} if name in truth.annotations else set()
        for shape in shapes:
            if not same_aspect(ids.shape[::-1], shape[::-1]):
                raise UserError(f"view {name}: rendered {ids.shape} and annotated {shape} differ in shape; repair it")
    resized = {
        name: nearest(ids, *truth.annotations[name].shape) if name in truth.annotations else ids
        for name, ids in object_ids.items()
    }
    subject = replace(
        truth,
        object_ids=resized,
        likely_ids=lambda name, threshold: render_likely_ids(model, cameras[name], threshold=threshold).numpy(),
    )
    result = protocol.score(subject)
    facts = {
        "dataset": scene.dataset,
        "scene": scene.name,
        "mask_source": model.settings.data.object_path,
        "predictions_resampled_to_annotations": sum(
            resized[name].shape != ids.shape for name, ids in object_ids.items()
        ),
    }
    return replace(result, report=facts | result.report)  # what a protocol itself says about resampling counts


def grounder(
    grounding: Grounding, folder: Path, *, image: ReferenceImage, masks_dir: Path
) -> Callable[[str, Sequence[str]], TextMasks]:
    """Return what finds prompts in the stored picture of a view, once for each view, and keeps the masks it found.

    Args:
        grounding: Finds prompts in an image.
        folder: Pictures of the held-out views.
        image: Which picture: the dataset's photo or the model's rendering.
        masks_dir: Where to write `<prompt>.png`, so that other models can be given the same masks.
    """

    known: dict[tuple[str, tuple[str, ...]], TextMasks] = {}

    def ground(name: str, prompts: Sequence[str]) -> TextMasks:
        if (name, tuple(prompts)) in known:
            return known[name, tuple(prompts)]
        picture = read_picture(picture_path(folder, _PICTURE_OF[image], name))
        found = grounding.find(picture, prompts)
        for prompt, mask in found.masks.items():
            if not same_aspect(mask.shape[::-1], picture.shape[1::-1]):
                raise UserError(
                    f"--grounding: the mask of {prompt} is {mask.shape[1]}x{mask.shape[0]} but view {name} is "
                    f"{picture.shape[1]}x{picture.shape[0]}, another shape; make it from this view"
                )
            write_prompt_mask(masks_dir / f"{prompt}.png", mask)
        known[name, tuple(prompts)] = found._replace(facts={**found.facts, "reference_image": image})
        return known[name, tuple(prompts)]

    return ground


def write_prompt_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask as 8-bit grey PNG, 255 inside and 0 outside, whole or not at all; folders are made."""
    done, buffer = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    assert done
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda partial: partial.write_bytes(buffer.tobytes()))


def require_candidates(model: TrainedScene) -> None:
    """Raise a UserError unless the model kept several clusterings."""
    if model.method is None or not model.method.candidates():
        raise UserError(
            "--oracle_codebooks: this model keeps no candidates to choose from; train one whose method makes several, "
            "such as --method omniseg3d_gs"
        )


def score_candidates(
    protocol: Protocol, truth: Subject, model: TrainedScene, scene: Scene, *, quiet: bool
) -> dict[str, Any]:
    """Return the scores of every clustering that the method kept, the best of them, and the one it chose itself.

    Raises:
        UserError: The annotations show no object.
    """
    method = model.method
    methods = method.candidates()
    ids: dict[str, dict[str, np.ndarray]] = {name: {} for name in (AS_TRAINED, *methods)}
    for view in tqdm(scene.test, desc="candidates", disable=quiet, dynamic_ncols=True):
        for name, seen in segment_view(model, view.camera, {AS_TRAINED: method, **methods}).items():
            ids[name][view.name] = seen.numpy().astype(np.int32)
    chosen = next((name for name in methods if _same_partition(ids[name], ids[AS_TRAINED])), AS_TRAINED)
    compared = methods if chosen in methods else {AS_TRAINED: method, **methods}
    scores = {
        name: score_model(protocol, truth, replace(model, method=segmenter), scene, ids[name]).scene
        for name, segmenter in compared.items()
    }
    headline = next((key for key in map(protocol.headline_of, scores.values()) if key is not None), None)
    if headline is None:
        raise UserError("--oracle_codebooks: the annotations show no object, so no candidate is better than another")
    best = max(scores, key=lambda name: scores[name].get(headline, -1.0))
    return {
        "protocol": protocol.name,
        "iteration": model.iteration,
        "headline": headline,
        "candidates": scores,
        "best": best,
        "chosen": chosen,
        "warning": ORACLE_WARNING,
    }


def _same_partition(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    """Return whether two sets of label maps show the same segments, whatever their ids."""
    flat = [np.concatenate([ids.reshape(-1) for ids in maps.values()]) for maps in (first, second)]
    rows, columns, counts = overlap_table(*flat)
    return len(rows) == len(columns) == np.count_nonzero(counts)
