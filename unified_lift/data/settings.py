"""Which scene is read and how: the settings of all readers."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which scene to read and how. Flags keep the meaning they have in 3DGS, Gaussian Grouping and Unified-Lift."""

    source_path: Path = Path()
    """Scene folder (3DGS -s)."""
    images: str = "images"
    """Image folder inside a COLMAP scene (3DGS -i)."""
    resolution: int = -1
    """1, 2, 4, 8 divide the size; another positive number is the target width; -1 shrinks only images over 1600 px."""
    eval: bool = False
    """Hold out test views: every 8th by sorted name [3DGS], or the dataset's own split."""
    train_split: bool = False
    """Train on the names found in images_train/, test on the rest [LERF-Mask]."""
    llffhold: int = 8
    """Every llffhold-th view is a test view where the dataset has no split of its own [3DGS]."""
    n_views: int = 100
    """100: all training views; 50: half; another number: that many, evenly spaced [Gaussian Grouping]."""
    object_path: str = "auto"
    """Mask folder inside the scene; `auto` = the dataset's own: detic_instance in Messy Rooms, else object_mask."""
    random_init: bool = False
    """Start from random points instead of the scene's own."""
    num_random_points: int = 20_000
    """Number of random initial points. [ours] 3DGS takes 100k in a fixed cube; ours fill the camera frusta."""
    points_seed: int = 0
    """Seed of random initial points."""
