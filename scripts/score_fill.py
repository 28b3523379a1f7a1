"""How well removed objects are filled in the room of the demo, whose generator knows what is behind them.

    python scripts/score_fill.py -m output/demo --json output/fill.json

For each object, PSNR in the held-out views. Inside its exact outline, against the room without it and its shadow: with
the hole left ("hole") and filled ("inside"). Where it covers less than a tenth of a pixel: before against after
("before"), and, as a shadow there goes too, the change against that between the two rooms ("change"). An object that is
in --json is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from unified_lift.data import load_annotations
from unified_lift.data.images import write_image
from unified_lift.editing.operations import Isolate, Remove
from unified_lift.fileio import read_json, write_json
from unified_lift.model.render import render
from unified_lift.modelfolder.inference import TrainedScene, load_model, views_of
from unified_lift.modelfolder.labels import segment_by_labels
from unified_lift.synthetic.scene import SyntheticSettings, synthetic_room
from unified_lift.types import Camera


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model_path", type=Path, required=True)
    parser.add_argument("-s", "--source_path", type=Path, help="the scene, if it moved")
    parser.add_argument("--json", type=Path, help="where scores are kept")
    parser.add_argument("--objects", type=int, nargs="*", help="ids of the generator; all unless said")
    parser.add_argument("--shadow", choices=("true", "false"), default="true")
    parser.add_argument("--pictures", type=Path, help="a folder for pictures: before, filled, room without the object")
    args = parser.parse_args(argv)
    scene = load_model(args.model_path, source_path=args.source_path)
    views = views_of(scene).test
    cameras = [view.camera for view in views]
    annotated = load_annotations(scene.settings.data, [view.name for view in views])
    true = np.stack([annotated[view.name] for view in views])
    room = synthetic_room(SyntheticSettings(**read_json(scene.settings.data.source_path / "scene.json")["settings"]))
    labels = [segment_by_labels(scene.gaussians, scene.object_ids, camera).object_ids.numpy() for camera in cameras]
    whole, before = np.stack([room.render(camera)[0] / 255 for camera in cameras]), pictures(scene, cameras)[0]
    rows = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    print("object  pixels   hole  inside | outside: before  change    (dB)  seconds")
    for true_id in args.objects or [one.object_id for one in room.objects]:
        if str(true_id) not in rows:
            inside, own = true == true_id, int(np.bincount(np.stack(labels)[true == true_id]).argmax())
            wanted = np.stack([room.without(true_id).render(camera)[0] / 255 for camera in cameras])
            outside = ~inside & (pictures(Isolate(objects=(own,)).apply(scene), cameras)[1] < 0.1)
            hole, began = pictures(Remove(objects=(own,)).apply(scene), cameras)[0], perf_counter()
            filled = Remove(objects=(own,), fill=True, shadow=args.shadow == "true").apply(scene)
            seconds, after = perf_counter() - began, pictures(filled, cameras)[0]
            change = before + wanted - whole
            pairs = {"hole": (hole, wanted, inside), "inside": (after, wanted, inside)}
            pairs |= {"before": (before, after, outside), "change": (after, change, outside)}
            rows[str(true_id)] = {name: psnr(*pair) for name, pair in pairs.items()}
            rows[str(true_id)] |= {"pixels": int(inside.sum()), "seconds": seconds}
            if args.json:
                write_json(args.json, rows)
            if args.pictures:
                shown = inside.sum(axis=(1, 2)).argsort()[::-4][:3]
                strips = [np.concatenate(one[shown], axis=1) for one in (before, after, wanted)]
                image = (255 * np.concatenate(strips)).round().astype(np.uint8)
                args.pictures.mkdir(parents=True, exist_ok=True)
                write_image(args.pictures / f"{true_id}.png", image)
        row = rows[str(true_id)]
        scores = "{hole:6.1f}  {inside:6.1f}            {before:6.1f}  {change:6.1f}  {seconds:13.0f}".format(**row)
        print(f"{true_id:6d}  {row['pixels']:6d} {scores}", flush=True)
    for name in ("hole", "inside", "before", "change"):
        values = [row[name] for row in rows.values()]
        print(f"{name}: worst {min(values):.1f}, median {np.median(values):.1f}, best {max(values):.1f}")
    return 0


@torch.no_grad()
def pictures(scene: TrainedScene, cameras: list[Camera]) -> tuple[np.ndarray, np.ndarray]:
    """Return colours [V, H, W, 3] and alpha [V, H, W] of a scene."""
    outs = [render(scene.gaussians, one, background=scene.background, with_features=False) for one in cameras]
    return np.stack([out.image.clamp(0, 1).numpy() for out in outs]), np.stack([out.alpha.numpy() for out in outs])


def psnr(image: np.ndarray, target: np.ndarray, chosen: np.ndarray) -> float:
    """Return the PSNR of the chosen pixels, in dB."""
    return float(-10 * np.log10(max(float(((image - target)[chosen] ** 2).mean()), 1e-10)))


if __name__ == "__main__":
    sys.exit(main())
