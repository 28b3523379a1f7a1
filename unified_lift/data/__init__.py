"""Scenes on disk: one reader per layout, chosen by looking at the folder.

Adding a dataset is one file with a `READER`.
"""

from unified_lift.data.annotations import load_annotations, load_prompt_masks
from unified_lift.data.scene import datasets, detect_reader, load_scene
from unified_lift.data.settings import DataSettings

DATASETS = datasets()
__all__ = ["DATASETS", "DataSettings", "detect_reader", "load_annotations", "load_prompt_masks", "load_scene"]
