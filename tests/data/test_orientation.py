"""Photos and masks that lie on their side, as EXIF says: what the pose is for, its camera's size tells."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.fixtures import edit_json
from unified_lift.capture.check import check_scene
from unified_lift.data import load_annotations
from unified_lift.data.images import exif_orientation, upright
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError

BACK = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def store(path, orientation):
    """Store a picture so that it looks the same once it is shown in this EXIF orientation."""
    array = np.asarray(Image.open(path))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(upright(array, BACK[orientation])).save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(orientation, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (3, 4, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    assert exif_orientation(tmp_path / "a.png") == orientation
    np.testing.assert_array_equal(upright(image, orientation), ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    np.testing.assert_array_equal(upright(upright(image, orientation), BACK[orientation]), image)


def same_scenes(scene, expected):
    for view, other in zip(scene.train, expected.train, strict=True):
        assert (view.image == other.image).all()
        assert (view.segments == other.segments).all()
        assert view.camera.width == other.camera.width


@pytest.mark.parametrize("masks", ["stored", "shown"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("name", ["colmap", "transforms"])
def test_photos_on_their_side_whose_poses_are_for_the_upright_picture(name, orientation, masks, dataset, read):
    root = dataset(name)
    expected = read(root)
    annotated = load_annotations(DataSettings(source_path=root), [view.name for view in expected.train])
    for path in (root / "images").rglob("*.png"):
        store(path, orientation)
    for folder in ("object_mask", "annotations") if masks == "stored" else ():
        for path in (root / folder).rglob("*.png"):
            Image.fromarray(upright(np.asarray(Image.open(path)), BACK[orientation])).save(path)
    scene = read(root)
    same_scenes(scene, expected)
    assert any("photos are turned as their EXIF data say" in note for note in scene.notes)
    assert any("a mask that is turned" in note for note in scene.notes) == (masks == "stored")
    for key, ids in load_annotations(DataSettings(source_path=root), list(annotated)).items():
        np.testing.assert_array_equal(ids, annotated[key])
    assert check_scene(DataSettings(source_path=root)).facts["fine"]


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_photos_whose_poses_are_for_the_stored_picture_stay_and_masks_made_upright_are_turned(
    orientation, dataset, read
):
    root = dataset("transforms")
    expected = read(root)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (root / "images").rglob("*.png"):
        Image.open(path).save(path, exif=exif)
    same_scenes(read(root), expected)
    if orientation > 4:
        for path in (root / "object_mask").rglob("*.png"):
            Image.fromarray(upright(np.asarray(Image.open(path)), orientation)).save(path)
        same_scenes(read(root), expected)
        assert check_scene(DataSettings(source_path=root)).facts["fine"]


def test_a_photo_on_its_side_that_says_nothing_is_of_another_shape(dataset, read):
    root = dataset("transforms")
    path = root / "images/0002.png"
    Image.fromarray(upright(np.asarray(Image.open(path)), 6)).save(path)
    with pytest.raises(UserError, match=r"0002\.png: the image is 24x32 but transforms\.json says 32x24"):
        read(root, strict=True)
    assert len(read(root).train) == 9


def test_without_sizes_in_the_file_photos_are_used_as_stored(dataset, read):
    root = dataset("transforms")
    for path in (root / "images").rglob("*.png"):
        store(path, 6)
    edit_json(root / "transforms.json", lambda data: [data.pop(key) for key in ("w", "h")])
    for path in (root / "object_mask").rglob("*.png"):
        path.unlink()
    assert {(view.camera.width, view.camera.height) for view in read(root).train} == {(24, 32)}
