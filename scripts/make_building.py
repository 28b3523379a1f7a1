"""A building of K x K copies of a trained scene that share nothing: photos, masks, exact ids, first points and splat.

    python scripts/make_building.py -m output/demo --out BUILDING --copies 3 --distance 15
    python train.py -s BUILDING -m MODEL --eval --iterations 0 --init_ply BUILDING/merged.ply

The scene must be one as `unified-lift demo` writes it: transforms.json, photos in `images/`, masks of the same names in
`object_mask/`, first points in `points3D.ply`. Exact ids of copy n are n times one
more than the largest id above those of the first; 0 stays 0.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from plyfile import PlyData, PlyElement

from unified_lift.data import load_annotations
from unified_lift.data.masks import write_mask
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.evaluation.pictures import MAX_ID
from unified_lift.fileio import holds_files, replacing_folder, write_json
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.outputs import iteration_dir

FOLDERS = ("images", "object_mask")
ANNOTATIONS = "annotations/gt_instance"
SPLITS = ("train_filenames", "val_filenames", "test_filenames")


def main(argv: list[str] | None = None) -> int:
    """Write the building; 2 if there is nothing to copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model_path", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new folder, or an empty one")
    parser.add_argument("--copies", type=int, default=3, help="along both axes of the ground, x and y")
    parser.add_argument("--distance", type=float, default=15.0, help="from copy to copy, world units")
    parser.add_argument("--held_out", type=int, default=-1, help="held-out views of each copy, -1 = all (-1)")
    args = parser.parse_args(argv)
    if args.copies < 1:
        parser.error(f"--copies must be at least 1, received {args.copies}")
    if holds_files(args.out):
        parser.error(f"--out {args.out}: is not empty; name a new folder")
    try:
        model = load_model(args.model_path)
        scene = model.settings.data.source_path
        if not (scene / "transforms.json").is_file():
            raise UserError(f"{scene}: has no transforms.json; only such scenes are copied")
        splat = iteration_dir(args.model_path, model.iteration) / "point_cloud.ply"
        offsets = [
            (args.distance * (n % args.copies), args.distance * (n // args.copies)) for n in range(args.copies**2)
        ]
        with replacing_folder(args.out) as out:
            write_scene(scene, out, offsets, args.held_out)
            for source, name in ((splat, "merged.ply"), (scene / "points3D.ply", "points3D.ply")):
                write_points(source, out / name, offsets)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{args.out}: {len(offsets)} copies of {scene}")
    return 0


def write_scene(scene: Path, out: Path, offsets: list[tuple[float, float]], held_out: int) -> None:
    """Write photos, masks, exact ids and cameras of all copies, with the first `held_out` test views of each."""
    content: dict[str, Any] = json.loads((scene / "transforms.json").read_text(encoding="utf-8"))
    left_out = set(content.get("test_filenames", ())[held_out:]) if held_out >= 0 else set()
    content["frames"] = [frame for frame in content["frames"] if frame["file_path"] not in left_out]
    names = [Path(frame["file_path"]).stem for frame in content["frames"]]
    exact = load_annotations(DataSettings(source_path=scene), names)
    step = 1 + max((int(ids.max()) for ids in exact.values()), default=0)
    if step * len(offsets) > MAX_ID:
        most = f"{len(offsets)} copies of {step - 1} ids need more than the {MAX_ID} that a picture of ids holds"
        raise UserError(f"{scene}: {most}; ask for fewer --copies")
    frames, splits = [], {split: list[str]() for split in SPLITS}
    for folder in (*FOLDERS, ANNOTATIONS):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for copy, offset in enumerate(offsets):
        for frame in content["frames"]:
            photo = Path(frame["file_path"]).name
            name = f"r{copy:03d}_{photo}"
            for folder in FOLDERS:
                if not (scene / folder / photo).is_file():
                    raise UserError(f"{scene / folder / photo}: is not there; only scenes as of the demo are copied")
                shutil.copyfile(scene / folder / photo, out / folder / name)
            if (ids := exact.get(Path(photo).stem)) is not None:
                write_mask(out / ANNOTATIONS / name, np.where(ids > 0, ids + step * copy, 0))
            pose = np.array(frame["transform_matrix"])
            pose[:2, 3] += offset
            frames.append({"file_path": f"images/{name}", "object_mask_path": f"object_mask/{name}"})
            frames[-1]["transform_matrix"] = pose.tolist()
            for split in SPLITS:
                if frame["file_path"] in content.get(split, ()):
                    splits[split].append(f"images/{name}")
    write_json(out / "transforms.json", content | {"frames": frames} | splits)


def write_points(source: Path, target: Path, offsets: list[tuple[float, float]]) -> None:
    """Write the copies of a `.ply` of points or Gaussians as one."""
    rows = PlyData.read(str(source))["vertex"].data
    copies = []
    for x, y in offsets:
        moved = rows.copy()
        moved["x"] += x
        moved["y"] += y
        copies.append(moved)
    PlyData([PlyElement.describe(np.concatenate(copies), "vertex")]).write(str(target))


if __name__ == "__main__":
    raise SystemExit(main())
