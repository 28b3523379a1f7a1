"""What the geometry of a trained scene allows: held-out scores if every pixel of the training views had its true id.

    python scripts/score_ceiling.py -m output/room_25
    python scripts/score_ceiling.py -m output/room_25 --steps 800 --json ceiling.json

The Gaussians stay where they are. Each gets a channel for every annotated id; these are blended like features, and a
pixel takes the largest. "votes": the share of a Gaussian's blending weight that lies in pixels of each id. "fitted":
from there, trained with the cross-entropy of the pixels' true ids. Beside the model's own scores, which may well lie
above the votes, this tells whether masks or geometry are the limit. Nothing of it is saved in the model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diff_gaussian_rasterization import blend, scatter
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from tqdm import trange

from unified_lift.data import load_annotations
from unified_lift.device import chosen_device
from unified_lift.errors import UserError
from unified_lift.evaluation.evaluate import load_ground_truth, protocol_named, score_objects
from unified_lift.fileio import write_json
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import blending_weights
from unified_lift.modelfolder.inference import load_model, render_view, views_of
from unified_lift.ops.resample import nearest
from unified_lift.types import Camera

SCORES = ("PQ_scene", "PQ_things", "mIoU", "F1", "num_objects_true", "num_objects_pred")
PIXELS_PER_STEP = 16_384
# Shares lie in [0, 1]; as logits they start as sure as this makes them.
LOGIT_OF_ONE = 4.0
LEARNING_RATE = 0.05
SETTLING_RATE = 0.01  # over the last third
Seen = tuple[Camera, Tensor]
"""A camera and the channel of each of its pixels, int64 [P]."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model_path", type=Path, required=True)
    parser.add_argument("-s", "--source_path", type=Path, help="scene folder, if it has moved since training")
    parser.add_argument("--iteration", type=int, default=-1, help="saved iteration; -1 = the last")
    parser.add_argument("--steps", type=int, default=400, help="of the fit, %(default)s")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path, help="also write the scores to this file")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error("--steps must be at least 1")
    try:
        rows = ceilings(args)
    except UserError as error:
        parser.error(str(error))
    names = [name for name in SCORES if name in rows["fitted"]]
    print(" " * 8 + "".join(f"{name:>18}" for name in names))
    for row, scores in rows.items():
        print(f"{row:8}" + "".join(f"{scores[name]:18.4g}" for name in names))
    if args.json:
        write_json(args.json, rows)
    return 0


def ceilings(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the scores of the model, where it was lifted, of votes and of fitted channels."""
    device = chosen_device(args.device)
    model = load_model(args.model_path, iteration=args.iteration, source_path=args.source_path, device=device)
    scene = views_of(model)
    data = model.settings.data
    protocol, annotations = protocol_named("auto", data), load_annotations(data, [view.name for view in scene.train])
    ground_truth = load_ground_truth(protocol, data, [view.name for view in scene.test])
    if not annotations or not ground_truth.annotations:
        lacking = "its training views or its held-out views have no annotations"
        raise UserError(f"{args.model_path}: {lacking}; train with --eval on a scene that has them for all")

    def scores(ids_of: Callable[[Camera], Tensor]) -> dict[str, float]:
        ids = {view.name: ids_of(view.camera).cpu().numpy().astype(np.int32) for view in scene.test}
        return score_objects(model, scene, protocol, ground_truth, ids).scores

    rows = {"model": scores(lambda camera: render_view(model, camera).object_ids)} if model.is_lifted else {}
    known = [(view.camera, annotations[view.name]) for view in scene.train if view.name in annotations]
    resized = [torch.from_numpy(nearest(ids, camera.height, camera.width)).reshape(-1) for camera, ids in known]
    channels, index = torch.cat(resized).unique(return_inverse=True)
    parts = index.to(device).split([len(ids) for ids in resized])
    seen = [(camera, part) for (camera, _), part in zip(known, parts, strict=True)]
    shares = shares_of_votes(model.gaussians, seen, len(channels))
    fitted = fitted_channels(model.gaussians, seen, shares * LOGIT_OF_ONE, steps=args.steps, quiet=args.quiet)
    for name, values in (("votes", shares), ("fitted", fitted)):
        rows[name] = scores(lambda camera, values=values: channels[largest(model.gaussians, camera, values).cpu()])
    return rows


@torch.no_grad()
def shares_of_votes(gaussians: Gaussians, seen: Sequence[Seen], num_channels: int) -> Tensor:
    """Return the share of each Gaussian's blending weight in pixels of each channel, 0 where none sees it, [N, K]."""
    votes = torch.zeros(len(gaussians), num_channels, device=gaussians.device)
    for camera, channel in seen:
        votes += scatter(blending_weights(gaussians, camera), one_hot(channel, num_channels).float(), len(gaussians))
    return votes / votes.sum(dim=1, keepdim=True).clamp(min=1e-12)


def fitted_channels(gaussians: Gaussians, seen: Sequence[Seen], start: Tensor, *, steps: int, quiet: bool) -> Tensor:
    """Return values [N, K] whose blends are logits of the pixels' channels, trained from `start`."""
    values = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([values], lr=LEARNING_RATE, eps=1e-15)
    generator, order = torch.Generator().manual_seed(0), []
    for step in trange(steps, desc="fit", disable=quiet, dynamic_ncols=True):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE if 3 * step < 2 * steps else SETTLING_RATE
        order = order or torch.randperm(len(seen), generator=generator).tolist()
        camera, channel = seen[order.pop()]
        chosen = torch.randperm(len(channel), generator=generator)[:PIXELS_PER_STEP]
        pixels = torch.stack([chosen % camera.width, chosen // camera.width], dim=-1).to(values.device)
        weights = blending_weights(gaussians, camera, pixels=pixels)
        loss = cross_entropy(blend(weights, values), channel[chosen.to(values.device)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return values.detach()


@torch.no_grad()
def largest(gaussians: Gaussians, camera: Camera, values: Tensor) -> Tensor:
    """Return the channel with the largest blend at every pixel, int64 [H, W]."""
    return blend(blending_weights(gaussians, camera), values).argmax(dim=1).view(camera.height, camera.width)


if __name__ == "__main__":
    sys.exit(main())
