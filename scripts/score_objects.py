"""How cleanly the objects of a trained scene can be cut out and taken away, on its held-out views.

    python scripts/score_objects.py -m output/demo

Each annotated object is matched with the one whose Gaussians have most of the votes in its masks. "cut out": IoU of
alpha > 0.5 of the object alone with its mask, pixels that show another annotated object left out, since nothing is
known of what is behind it. "survives": share of its mask that the object alone still covers. "taken away": PSNR
between the pictures with and without it, outside what it covers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unified_lift.data import load_annotations
from unified_lift.editing.operations import Isolate, Remove
from unified_lift.fileio import write_json
from unified_lift.model.render import render
from unified_lift.modelfolder.inference import TrainedScene, load_model, views_of
from unified_lift.modelfolder.labels import segment_by_labels
from unified_lift.types import Camera


class ObjectScores(NamedTuple):
    """Of one annotated object: its match, cut-out IoU, surviving share, PSNR (dB) of the rest without it."""

    true_id: int
    object_id: int
    iou: float
    survives: float
    psnr: float


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model_path", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    model = load_model(args.model_path)
    views = views_of(model).test
    true_ids = load_annotations(model.settings.data, [view.name for view in views])
    if not true_ids:
        parser.error(f"{args.model_path}: no held-out view has annotations; train with --eval on a scene with them")
    rows = scores_of(model, [(view.camera, true_ids[view.name]) for view in views if view.name in true_ids])
    print("annotated  object  cut out (IoU)  survives  taken away (PSNR, dB)")
    for row in rows:
        print(f"{row.true_id:9d}  {row.object_id:6d}  {row.iou:13.3f}  {row.survives:8.3f}  {row.psnr:21.1f}")
    for name, values in zip(("IoU", "survives", "PSNR"), np.array(rows).T[2:], strict=True):
        print(f"{name}: worst {min(values):.3f}, median {np.median(values):.3f}, best {max(values):.3f}")
    if args.json:
        write_json(args.json, [row._asdict() for row in rows])
    return 0


def scores_of(scene: TrainedScene, views: list[tuple[Camera, np.ndarray]]) -> list[ObjectScores]:
    """Return the scores of every annotated object; `views`: camera and true ids [H, W], 0 = no object."""
    labels = [segment_by_labels(scene.gaussians, scene.object_ids, camera).object_ids.numpy() for camera, _ in views]
    pictures = [alpha_and_image(scene, camera)[1] for camera, _ in views]
    found = []
    for true_id in sorted({int(i) for _, ids in views for i in np.unique(ids)} - {0}):
        inside = np.concatenate([ids[true == true_id] for ids, (_, true) in zip(labels, views, strict=True)])
        own = int(np.bincount(inside).argmax())
        alone, without = Isolate(objects=(own,)).apply(scene), Remove(objects=(own,)).apply(scene)
        counts, errors = np.zeros(3, int), []  # pixels shared, in either, in the mask
        for picture, (camera, true) in zip(pictures, views, strict=True):
            shown, mask = alpha_and_image(alone, camera)[0].numpy() > 0.5, true == true_id
            hidden = ~mask & (true != 0)
            counts += [part.sum() for part in (shown & mask, (shown | mask) & ~hidden, mask)]
            outside = torch.from_numpy(~shown & ~mask)
            errors.append((picture - alpha_and_image(without, camera)[1])[outside].square().mean())
        iou, survives = counts[0] / np.maximum(counts[1:], 1)
        psnr = float(-10 * torch.stack(errors).mean().log10())
        found.append(ObjectScores(true_id, own, float(iou), float(survives), psnr))
    return found


@torch.no_grad()
def alpha_and_image(scene: TrainedScene, camera: Camera) -> tuple[Tensor, Tensor]:
    out = render(scene.gaussians, camera, with_features=False)
    return out.alpha, out.image.clamp(0, 1)


if __name__ == "__main__":
    sys.exit(main())
