"""What lies on pixels that do not count changes nothing at all of what is trained."""

import numpy as np
import pytest
from PIL import Image

from tests.data.fixtures import edit_json, write_dataset
from tests.train.test_training import settings_for
from unified_lift.data.images import write_image
from unified_lift.data.masks import read_mask, write_mask
from unified_lift.train.run import run

LEFT_OUT = np.zeros((24, 32), bool)
LEFT_OUT[5:18, :11] = True  # sides that no resampling meets


def with_garbage(root, garbage, k1):
    """A scene of which a part of every photo and mask is left out, and what is there instead."""
    write_dataset("transforms", root)
    edit_json(root / "transforms.json", lambda content: content.update(k1=k1))
    for path in sorted((root / "images").glob("*.png")):
        image, mask = np.array(Image.open(path).convert("RGB")), root / "object_mask" / path.name
        write_image(path, np.where(LEFT_OUT[..., None], garbage(image.shape), image).astype(np.uint8))
        if mask.is_file():
            write_mask(mask, np.where(LEFT_OUT, garbage(image.shape)[..., 0], read_mask(mask)).astype(np.int32))
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.where(LEFT_OUT, 0, 255).astype(np.uint8)).save(root / "masks" / path.name)
    return root


GARBAGE = {
    "black": lambda shape: np.zeros(shape),
    "noise": lambda shape: np.random.default_rng(0).integers(1, 200, shape),
}


@pytest.mark.parametrize(
    ("k1", "options"),
    [
        (0, {"resolution": 20}),
        (0.1, {"exposure": "affine", "random_background": True, "loss_weights": ["depth=1", "needle=0.1"]}),
        (0.1, {"exposure": "bilateral", "resolution": 40, "lift_iterations": 0}),
    ],
    ids=["shrunk", "undistorted", "enlarged"],
)
def test_garbage_below_a_mask_changes_no_bit_of_the_model(tmp_path, k1, options):
    models = []
    for name, garbage in GARBAGE.items():
        root = with_garbage(tmp_path / name / "scene", garbage, k1)
        settings = settings_for(tmp_path / name / "model", source_path=str(root), **options)
        run(settings)
        models.append(settings.model_path)
    files = ["input.ply", "point_cloud/iteration_24/point_cloud.ply"]
    files += ["point_cloud/iteration_24/segmentation.npz"] if "lift_iterations" not in options else []
    files += ["exposure.json"] if "exposure" in options else []
    for file in files:
        assert len({(model / file).read_bytes() for model in models}) == 1, file
