"""Write one picture of a rendered model: photo, render, predicted objects, overlay of some held-out views.

python scripts/make_montage.py -m output/demo -o docs/images/demo.png [--views 3] [--scale 2]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

KINDS = ("gt", "renders", "objects_color", "overlay", "uncertainty")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model_path", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--scale", type=float, default=2.0)
    args = parser.parse_args()
    folders = sorted((args.model_path / "test").glob("ours_*"))
    if not folders:
        print(f"error: {args.model_path}: no test/ours_* there; run render.py -m first", file=sys.stderr)
        return 2
    names = [path.relative_to(folders[-1] / "renders") for path in sorted((folders[-1] / "renders").rglob("*.png"))]
    rows = []
    for index in np.linspace(0, len(names) - 1, args.views).astype(int):
        pictures = [cv2.imread(str(folders[-1] / kind / names[index])) for kind in KINDS]
        row = np.hstack([picture for picture in pictures if picture is not None])
        rows.append(cv2.resize(row, None, fx=args.scale, fy=args.scale, interpolation=cv2.INTER_NEAREST))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(args.out), np.vstack(rows))
    print(f"{args.out}: {len(rows)} views")
    return 0


if __name__ == "__main__":
    sys.exit(main())
