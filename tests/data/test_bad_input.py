"""Everything a user can get wrong: one line that names the file and the fix."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.data.fixtures import edit_json
from tests.data.fixtures.colmap_model import read_model, write_model
from unified_lift.data import load_annotations
from unified_lift.data.base import quaternion_pose, rigid_pose
from unified_lift.data.images import write_image
from unified_lift.data.masks import write_mask
from unified_lift.data.scene import load_frames
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError

IMAGES = {"colmap": "images/cam2/0001.png", "transforms": "images/0001.png", "messy_rooms": "color/1.png"}
IMAGES |= {"replica": "results/frame000175.jpg"}
MASKS = {"colmap": "object_mask/cam2/0001.png", "transforms": "object_mask/0001.png"}
POSES = {"colmap": "images.bin", "transforms": "transforms.json", "messy_rooms": "metadata.json", "replica": "traj.txt"}


def refused(read, root, pattern, **settings):
    with pytest.raises(UserError, match=pattern) as error:
        read(root, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", IMAGES)
def test_pose_without_image(name, dataset, read):
    root = dataset(name)
    (root / IMAGES[name]).unlink()
    told = "metadata.json: 12 positions.*11 images" if name == "messy_rooms" else f"{IMAGES[name]}: {POSES[name]}"
    refused(read, root, f"{told}.*restore", strict=True)


def spoil(root, paths, how):
    for path in paths:
        path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[: 40 if how == "cut" else 0])


@pytest.mark.parametrize("name", ["colmap", "transforms"])
@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
def test_photos_that_cannot_be_used_are_left_out_counted_and_named(name, how, dataset, read):
    root = dataset(name)
    whole = read(root)
    photos = sorted((root / "images").rglob("*.png"))
    spoil(root, photos[1:3], how)
    scene = read(root, eval=True, llffhold=4)
    names = {view.name for view in (*scene.train, *scene.test)}
    assert len(names) == len(whole.train) - 2
    note = next(note for note in scene.notes if "cannot be used" in note)
    assert note.startswith(f"2 of {len(whole.train)} photos cannot be used")
    assert photos[1].name in note
    assert photos[2].name in note
    assert "--strict" in note
    assert len(load_frames(DataSettings(source_path=root))) == len(names)
    spoil(root, photos[3:], how)
    refused(read, root, f"\\(1 of {len(whole.train)} photos can be used\\); ")
    spoil(root, photos[:1], how)
    refused(read, root, f"\\(none of {len(whole.train)} photos can be used\\); ")


@pytest.mark.parametrize("name", ["colmap", "transforms"])
def test_image_without_pose_is_left_out_and_named(name, dataset, read):
    root = dataset(name)
    write_image(root / "images" / "stray.png", np.zeros((24, 32, 3), np.uint8))
    notes = read(root).notes
    assert any("stray.png" in note and POSES[name] in note and "register" in note for note in notes)


@pytest.mark.parametrize("name", ["colmap", "transforms", "messy_rooms"])  # a JPEG does not tell of flipped bytes
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_corrupt_photo_is_named(name, damage, dataset, read):
    root = dataset(name)
    path = root / IMAGES[name]
    data = path.read_bytes()
    middle = len(data) // 2
    damaged = {
        "cut": data[:middle],
        "flipped": data[:middle] + bytes(255 - byte for byte in data[middle : middle + 40]) + data[middle + 40 :],
        "empty": b"",
        "text": b"not a picture",
    }[damage]
    path.write_bytes(damaged)
    refused(read, root, f"{re.escape(IMAGES[name])}.*not a readable image.*again", strict=True)
    if name != "messy_rooms":  # a benchmark is read whole or not at all
        scene = read(root)
        assert len(scene.train) == (8 if name == "colmap" else 9)
        told = f"1 of {len(scene.train) + 1} photos cannot be used: .*{re.escape(IMAGES[name])}: not a readable image"
        assert any(re.match(told, note) for note in scene.notes)


@pytest.mark.parametrize(
    ("name", "mask", "size", "what"),
    [
        ("colmap", MASKS["colmap"], 60, "image"),
        ("transforms", MASKS["transforms"], 60, "image"),
        ("messy_rooms", "detic_instance/3.npy", 200, "array.*again"),
    ],
)
def test_corrupt_mask_is_named(name, mask, size, what, dataset, read):
    root = dataset(name)
    (root / mask).write_bytes((root / mask).read_bytes()[:size])
    refused(read, root, f"{re.escape(mask)}.*not a readable {what}")


@pytest.mark.parametrize("name", MASKS)
def test_mask_of_another_shape_is_refused(name, dataset, read):
    root = dataset(name)
    write_mask(root / MASKS[name], np.ones((32, 32)))
    refused(read, root, f"{re.escape(MASKS[name])}: the mask is 32x32 but its image is 32x24.*remove it")


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("factor", [0.5, 2, 4])
def test_mask_of_another_size_but_the_same_shape_is_resampled(name, factor, dataset, read):
    root = dataset(name)
    write_mask(root / MASKS[name], np.full((int(24 * factor), int(32 * factor)), 777))
    view = next(view for view in read(root).train if view.name.endswith("0001") and "cam1" not in view.name)
    assert view.segments.shape == (24, 32)
    assert (view.segments == 777).all()


def test_nan_pose_in_json(dataset, read):
    root = dataset("messy_rooms")
    edit_json(root / "metadata.json", lambda data: data["camera"]["quaternions"][4].__setitem__(1, float("nan")))
    refused(read, root, r"metadata\.json: the pose of 4 is NaN.*correct")


@pytest.mark.parametrize("text", [False, True])
def test_nan_pose_in_colmap(text, dataset, read):
    root = dataset("colmap")
    edit_model(root, text=text, poison="pose")
    refused(read, root, r"images\.(bin|txt): the pose of cam1/a\.b\.png is NaN.*remove", strict=True)


@pytest.mark.parametrize("change", ["mirror", "shear", "slight shear", "shape", "words", "nan"])
def test_pose_that_is_not_rigid(change, dataset, read):
    root = dataset("transforms")

    def poison(data):
        matrix = np.array(data["frames"][2]["transform_matrix"])
        if change == "mirror":
            matrix[:, 0] *= -1
        elif change == "shear":
            matrix[0, 1] += 0.3
        elif change == "slight shear":
            matrix[:3, 0] *= 1.02  # one axis 2 % longer
        elif change == "nan":
            matrix[0, 3] = np.nan
        elif change == "shape":
            matrix = matrix[:2]
        data["frames"][2]["transform_matrix"] = "left" if change == "words" else matrix.tolist()

    edit_json(root / "transforms.json", poison)
    told = rf"transforms\.json: the pose of images/0007.* {'holds NaN' if change == 'nan' else 'is not'}"
    refused(read, root, told, strict=True)


@pytest.mark.parametrize("scale", [1, 2.5, 100])
@pytest.mark.parametrize("decimals", [2, 3, 6])
def test_poses_that_were_rounded_or_scaled_are_rotations_again(decimals, scale):
    for turn in Rotation.random(100, random_state=7).as_matrix():
        written = np.pad(np.round(scale * turn, decimals), ((0, 0), (0, 1)), constant_values=0.5)
        pose = rigid_pose(written, source=Path("transforms.json"), name="0009")
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(pose[:3, :3], turn, atol=10**-decimals)
        assert pose[:3, 3].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("quaternion", "translation"),
    [
        ([1e200, 0, 0, 0.5], [0, 0, 1]),
        ([1, 0, 0, 0], [0, 0, 1e30]),
        ([1, 0, 0, 0], [0, 0, 10**400]),
        ([1, 0, 0, "x"], [0, 0, 1]),
        ([1, 0, 0, []], [0, 0, 1]),
        (3, [0, 0, 1]),
        ([1, 0, 0, 0], None),
        ([0, 0, 0, 0], [0, 0, 1]),
    ],
    ids=str,
)
def test_poses_of_numbers_that_nobody_means_are_refused(quaternion, translation):
    with pytest.raises(UserError, match=r"^traj: the pose of a [^\n]*$"):
        quaternion_pose(quaternion, translation, source=Path("traj"), name="a")


def edit_model(root, *, text=False, poison):
    """Rewrite the COLMAP model with one thing wrong."""
    folder = root / "sparse" / "0"
    cameras, images, points = read_model(folder)
    if poison in ("pose", "name"):
        key = next(key for key, image in images.items() if image.name == "cam1/a.b.png")
        change = {"name": "a\0b.png"} if poison == "name" else {"tvec": (0.0, float("nan"), 1.0)}
        images[key] = dataclasses.replace(images[key], **change)
    elif poison == "points":
        points = dataclasses.replace(points, positions=np.full_like(points.positions, np.nan))
    elif poison == "images":
        images = {}
    elif poison == "camera":
        del cameras[7]
    else:
        kinds = {"focal": ("PINHOLE", (0.0, 1.0, 1.0, 1.0)), "model": ("FOV", (1.0, 1.0, 1.0, 1.0, 0.5))}
        cameras[7] = dataclasses.replace(cameras[7], model=kinds[poison][0], params=kinds[poison][1])
    for path in folder.iterdir():
        path.unlink()
    write_model(folder, cameras, images, points, text=text)


@pytest.mark.parametrize(
    ("poison", "pattern"),
    [
        ("name", r"images\.txt has a pose for this image but the file is missing"),
        ("camera", r"images\.bin: .* uses camera 7, which is not in cameras"),
        ("focal", "PINHOLE camera holds NaN.*not positive"),
        ("images", r"images\.bin: registers no image.*COLMAP"),
        ("model", "camera model FOV is not supported; run colmap image_undistorter"),
    ],
)
def test_broken_colmap_models(poison, pattern, dataset, read):
    root = dataset("colmap")
    edit_model(root, poison=poison, text=poison == "name")
    refused(read, root, pattern, strict=True)


def test_points_of_nan_are_as_good_as_none(dataset, read):
    root = dataset("colmap")
    edit_model(root, poison="points")
    assert "own cloud holds 0 usable points, " in read(root).notes[-1]
    assert len(read(root, random_init=True).points.positions) == 50


@pytest.mark.parametrize("table", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_cut_binary_tables_are_named(table, share, dataset, read):
    root = dataset("colmap")
    path = root / "sparse" / "0" / f"{table}.bin"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(read, root, rf"{table}\.bin: cut short.*again")


@pytest.mark.parametrize(
    ("table", "line"), [("cameras", "7 PINHOLE 32"), ("images", "4 1 0 0"), ("points3D", "9 1 2 x")]
)
def test_malformed_text_lines_are_quoted(table, line, dataset, read):
    root = dataset("colmap")
    (root / "sparse").rename(root / "binary")
    (root / "sparse_text").rename(root / "sparse")
    path = root / "sparse" / "0" / f"{table}.txt"
    path.write_text(path.read_text() + line + "\n")
    refused(read, root, rf"{table}\.txt: cannot read the line '{line}'")


def test_half_a_colmap_model_and_a_missing_image_folder_are_named(dataset, read):
    root = dataset("colmap")
    refused(read, root, "images_4: no such image folder; correct -i", images="images_4")
    (root / "sparse" / "0" / "images.bin").unlink()
    refused(read, root, r"images\.bin: neither.*images\.txt")


def test_image_of_another_shape_than_its_camera(dataset, read):
    root = dataset("colmap")
    write_image(root / IMAGES["colmap"], np.zeros((32, 32, 3), np.uint8))
    refused(read, root, r"cam2/0001\.png: the image is 32x32 but images\.bin says 32x24", strict=True)
    assert "cam2/0001" not in {view.name for view in read(root).train}


def test_two_views_may_not_share_a_mask(dataset, read):
    root = dataset("colmap")
    write_image(root / "images" / "cam2" / "a.b.png", np.zeros((24, 32, 3), np.uint8))
    mask = root / "object_mask"
    (mask / "cam1" / "0001.png").rename(mask / "0001.png")
    (mask / "cam2" / "0001.png").unlink()
    refused(read, root, r"object_mask/0001\.png: serves both cam1/0001 and cam2/0001.*sub-folders")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]"])
def test_transforms_that_are_no_json_object(text, dataset, read):
    root = dataset("transforms")
    (root / "transforms.json").write_text(text)
    refused(read, root, r"transforms\.json: ")


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"frames": []}, "lists no frames"),
        ({"frames": [{"file_path": 3}]}, "frame 0 has no file_path"),
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR is not supported.*; undistort"),
        ({"k1": "wide"}, "k1 is 'wide', not a finite number"),
        ({"fl_x": -3.0, "fl_y": -3.0}, "no positive focal length"),
        ({"w": 0}, "image size 0x24 is not positive"),
        ({"ply_file_path": "gone.ply"}, r"gone\.ply: no such file"),
        ({"zero_id": "void"}, "zero_id is 'void'; write segment or ignore"),
        ({"test_filenames": ["images/9999.png"]}, "lists images/9999.png, which is no photo with a pose"),
        ({"test_filenames": ["images/0000.png"]}, "0000 is listed for training and for testing"),
    ],
)
def test_broken_transforms_fields(change, pattern, dataset, read):
    root = dataset("transforms")
    edit_json(root / "transforms.json", lambda data: data.update(change))
    refused(read, root, pattern, eval=True)


def test_named_mask_that_is_missing(dataset, read):
    root = dataset("transforms")
    (root / MASKS["transforms"]).unlink()
    refused(read, root, r"object_mask/0001\.png: object_mask_path of images/0001\.png is missing", strict=True)
    scene = read(root)
    assert any("object_mask_path of images/0001.png is missing" in note for note in scene.notes)
    assert [view.name for view in scene.train if view.segments is None] == ["0001"]


@pytest.mark.parametrize(
    "change", [{"transform_matrix": np.eye(4).tolist()}, {"fl_x": 50.0}, {"object_mask_path": "object_mask/0008.png"}]
)
def test_the_same_frame_twice_counts_once_and_with_two_meanings_is_refused(change, dataset, read):
    root = dataset("transforms")
    mask = {"object_mask_path": "object_mask/0009.png"}
    edit_json(root / "transforms.json", lambda data: data["frames"].append({**data["frames"][0], **mask}))
    refused(read, root, "image 0009 occurs twice", strict=True)
    assert any("1 photo is listed twice in transforms.json, with one pose: 0009" in note for note in read(root).notes)
    edit_json(root / "transforms.json", lambda data: data["frames"][-1].update(change))
    refused(read, root, "image 0009 occurs twice .*two poses, lenses or masks; remove one")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ({}, "holds no camera positions"),
        ({"camera": {"positions": []}}, "holds no camera positions"),
        ({"camera": 3}, "holds no camera positions"),
        ({"camera": {"positions": [[0, 0, 0]] * 12, "quaternions": [[1, 0, 0, 0]] * 12, "K": [[1, 2]]}}, "K is not a"),
    ],
)
def test_metadata_that_is_not_kubric(content, pattern, dataset, read):
    root = dataset("messy_rooms")
    (root / "metadata.json").write_text(json.dumps(content))
    refused(read, root, rf"metadata\.json: {pattern}")


def test_annotations_of_unequal_shape(dataset):
    root = dataset("messy_rooms")
    np.save(root / "semantic" / "2.npy", np.zeros((5, 5), np.int32))
    with pytest.raises(UserError, match=r"semantic/2\.npy: shape \(5, 5\) differs"):
        load_annotations(DataSettings(source_path=root), ["2"])


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"resolution": 0}, "--resolution 0"),
        ({"resolution": -2}, "--resolution -2"),
        ({"n_views": 0}, "--n_views 0"),
        ({"eval": True, "llffhold": 0}, "--llffhold 0"),
        ({"eval": True, "llffhold": 1}, "all 9 views are held out.*drop --eval"),
        ({"train_split": True}, "images_train: --train_split needs this folder"),
        ({"object_path": "masks"}, "masks: no such mask folder; correct --object_path"),
        ({"random_init": True, "num_random_points": 2}, "--num_random_points 2"),
    ],
)
def test_flags_out_of_range_are_named(settings, pattern, dataset, read):
    refused(read, dataset("colmap"), pattern, **settings)
