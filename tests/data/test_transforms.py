import json

import numpy as np
import pytest

from tests.data.fixtures import edit_json
from tests.data.fixtures.floor import floor_photos, orbit, world_from_cam_opengl
from unified_lift.data import transforms
from unified_lift.data.images import write_image
from unified_lift.data.masks import write_mask
from unified_lift.data.settings import DataSettings


def write_blender(root):
    """Write a NeRF-synthetic scene: RGBA photos, file paths without suffix, a field of view for intrinsics."""
    cameras = orbit(6, width=32, height=24)
    for split, chosen in (("train", range(4)), ("val", [5]), ("test", [4, 5])):
        frames = []
        for n in chosen:
            view = floor_photos([cameras[n]])[0]
            alpha = np.full((24, 32, 1), 255, np.uint8)
            alpha[:4] = 0
            write_image(root / split / f"r_{n}.png", np.concatenate([view.image, alpha], axis=2))
            pose = world_from_cam_opengl(cameras[n]).tolist()
            frames.append({"file_path": f"./{split}/r_{n}", "transform_matrix": pose})
        angle = 2 * np.arctan(0.5 * 32 / cameras[0].fx)
        (root / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    return cameras


def test_frames_are_sorted_and_split_lists_obeyed(dataset, read):
    scene = read(dataset("transforms"), eval=True)
    assert [view.name for view in scene.train] == [f"{n:04d}" for n in range(8)]
    assert [view.name for view in scene.test] == ["0008", "0009"]


def test_frame_intrinsics_win_over_the_file(dataset, read):
    root = dataset("transforms")
    edit_json(root / "transforms.json", lambda data: data.update(fl_x=99.0, fl_y=98.0, cx=3.0))
    views = {view.name: view.camera for view in read(root).train}
    assert (views["0004"].fx, views["0004"].fy, views["0004"].cx) == (99.0, 98.0, 3.0)
    assert views["0005"].fx == pytest.approx(1.1 * 32)  # its own fl_x and cx, the file's fl_y
    assert (views["0005"].fy, views["0005"].cx) == (98.0, 17.0)


def test_without_lists_every_eighth_is_held_out_and_a_val_list_stands_for_a_test_list(dataset, read):
    root = dataset("transforms")
    edit_json(root / "transforms.json", lambda data: data.pop("test_filenames"))
    assert [view.name for view in read(root, eval=True).test] == ["0008", "0009"]
    edit_json(root / "transforms.json", lambda data: [data.pop(f"{key}_filenames") for key in ("train", "val")])
    assert [view.name for view in read(root, eval=True).test] == ["0000", "0008"]
    assert [view.name for view in read(root, eval=True, llffhold=3).test] == ["0000", "0003", "0006", "0009"]


def test_frames_in_no_list_are_left_out_and_noted(dataset, read):
    root = dataset("transforms")
    edit_json(root / "transforms.json", lambda data: data.update(train_filenames=data["train_filenames"][:5]))
    scene = read(root, eval=True)
    assert (len(scene.train), len(scene.test)) == (5, 2)
    assert any("3 frames are in no split list" in note for note in scene.notes)
    assert len(read(root).train) == 10


def test_instant_ngp_fields_of_view_and_default_centre(dataset, read):
    root = dataset("transforms")

    def change(data):
        for key in ("fl_x", "fl_y", "cx", "cy", "w", "h", "camera_model"):
            del data[key]
        data["camera_angle_x"], data["aabb_scale"] = 2 * np.arctan(0.5), 16
        for frame in data["frames"]:
            frame.pop("fl_x", None), frame.pop("cx", None)

    edit_json(root / "transforms.json", change)
    camera = read(root).train[0].camera
    assert (camera.fx, camera.fy) == pytest.approx((32.0, 32.0))
    assert (camera.cx, camera.cy) == (16.0, 12.0)


def test_uniform_scale_in_a_pose_is_removed_and_3x4_is_enough(dataset, read):
    root = dataset("transforms")
    expected = read(root).train[0].camera.cam_from_world

    def change(data):
        for frame in data["frames"]:
            scaled = np.array(frame["transform_matrix"])[:3] * [2.5, 2.5, 2.5, 1]
            frame["transform_matrix"] = scaled.tolist()

    edit_json(root / "transforms.json", change)
    np.testing.assert_allclose(read(root).train[0].camera.cam_from_world, expected, atol=1e-12)


@pytest.mark.parametrize("change", [{"k1": 0.3}, {"camera_model": "OPENCV_FISHEYE"}, {"is_fisheye": True}])
def test_distorted_photos_are_undistorted_and_noted(change, dataset, read):
    root = dataset("transforms")
    edit_json(root / "transforms.json", lambda data: data.update(change))
    scene = read(root)
    assert any(note.startswith("10 of 10 views undistorted") for note in scene.notes)


def test_zero_id_says_whether_an_empty_mask_is_a_label(dataset, read):
    root = dataset("transforms")
    write_mask(root / "object_mask" / "0002.png", np.zeros((24, 32)))
    scene = read(root)
    assert (scene.zero_id, scene.train[2].segments) == ("ignore", None)
    edit_json(root / "transforms.json", lambda data: data.update(zero_id="segment"))
    scene = read(root)
    assert scene.zero_id == "segment"
    assert (scene.train[2].segments == 0).all()


def test_a_mask_folder_that_the_user_names_wins_over_the_masks_that_the_file_names(dataset, read):
    root = dataset("transforms")
    write_mask(root / "object_mask_net" / "0002.png", np.full((24, 32), 7))
    views = read(root, object_path="object_mask_net").train
    assert [view.name for view in views if view.segments is not None] == ["0002"]
    assert (views[2].segments == 7).all()


def test_a_named_cloud_wins_and_a_conventional_one_is_found(dataset, read):
    root = dataset("transforms")
    (root / "points3D.ply").rename(root / "cloud.ply")
    edit_json(root / "transforms.json", lambda data: data.update(ply_file_path="cloud.ply"))
    assert len(read(root).points.positions) == 400
    edit_json(root / "transforms.json", lambda data: data.pop("ply_file_path"))
    assert any("frusta" in note for note in read(root).notes)
    (root / "cloud.ply").rename(root / "points3d.ply")
    assert len(read(root).points.positions) == 400


def test_photos_outside_the_scene_folder_still_get_plain_names(dataset, read):
    root = dataset("transforms")
    (root / "inner").mkdir()
    for name in ("transforms.json", "points3D.ply", "object_mask"):
        (root / name).rename(root / "inner" / name)

    def change(data):
        for frame in data["frames"]:
            frame["file_path"] = "../" + frame["file_path"]
        for key in ("train_filenames", "val_filenames", "test_filenames"):
            data[key] = ["../" + path for path in data[key]]

    edit_json(root / "inner" / "transforms.json", change)
    assert [view.name for view in read(root / "inner", eval=True).test] == ["0008", "0009"]


def test_blender_files(tmp_path, read):
    cameras = write_blender(tmp_path)
    scene = read(tmp_path, eval=True)
    assert [view.name for view in scene.train] == [f"train/r_{n}" for n in range(4)]
    assert [view.name for view in scene.test] == ["test/r_4", "test/r_5"]
    camera = scene.test[0].camera
    assert camera.fx == pytest.approx(cameras[4].fx)
    assert (camera.cx, camera.cy) == (16.0, 12.0)
    np.testing.assert_allclose(camera.cam_from_world, cameras[4].cam_from_world, atol=1e-12)
    assert not scene.train[0].image[:4].any()  # transparent: composited over black
    assert scene.train[0].image[4:].any()
    assert len(read(tmp_path).train) == 6  # without eval the test frames train, as in 3D-GS
    (tmp_path / "transforms_test.json").unlink()
    scene = read(tmp_path, eval=True)
    assert ([view.name for view in scene.test], len(scene.train)) == (["r_0"], 3)


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_the_file_may_be_coded_as_editors_of_windows_do(coding, dataset, read):
    root = dataset("transforms")
    expected = [view.name for view in read(root).train]
    text = (root / "transforms.json").read_text()
    (root / "transforms.json").write_bytes(text.replace("\n", "\r\n").encode(coding))
    assert [view.name for view in read(root).train] == expected


@pytest.mark.parametrize(
    ("change", "model", "coefficients"),
    [
        ({"k1": 0.1, "k4": 0.3}, "brown", (0.1, 0, 0, 0, 0, 0.3)),
        ({"k1": 0.1, "k4": 0.3, "k6": 0.0, "camera_model": "SIMPLE_RADIAL"}, "brown", (0.1, 0, 0, 0, 0, 0.3)),
        ({"k1": 0.1, "k4": 0.3, "camera_model": "FULL_OPENCV"}, "perspective", (0.1, 0, 0, 0, 0, 0.3, 0, 0)),
        ({"k1": 0.1, "k4": 0.3, "k5": 0.2}, "perspective", (0.1, 0, 0, 0, 0, 0.3, 0.2, 0)),
        ({"k1": 0.1, "k4": 0.0}, "perspective", (0.1, 0, 0, 0, 0, 0, 0, 0)),
        ({"k4": 0.3, "camera_model": "OPENCV_FISHEYE"}, "fisheye", (0, 0, 0, 0.3)),
    ],
)
@pytest.mark.parametrize("per_frame", [False, True])
def test_k4_is_what_nerfstudio_means_by_it_unless_the_model_is_that_of_opencv(
    dataset, change, model, coefficients, per_frame
):
    root = dataset("transforms")

    def edit(data):
        for place in data["frames"] if per_frame else [data]:
            place.update(change)

    edit_json(root / "transforms.json", edit)
    described = transforms.describe(root, DataSettings(source_path=root))
    assert {(frame.lens.model, frame.lens.coefficients) for frame in described.frames} == {(model, coefficients)}
    assert any("k4 is read as nerfstudio means it" in note for note in described.notes) == (model == "brown")


@pytest.mark.parametrize("suffix", [".png", ".JPG"])
def test_smaller_copies_in_another_image_folder_are_read_where_it_is_chosen(suffix, dataset, read):
    root = dataset("transforms")
    expected = read(root, eval=True)
    for view in (*expected.train, *expected.test):
        write_image(root / "images_2" / f"{view.name}{suffix}", view.image.numpy()[::2, ::2])
    scene = read(root, eval=True, images="images_2")
    assert [view.name for view in scene.test] == [view.name for view in expected.test]
    for view, other in zip(scene.train, expected.train, strict=True):
        assert view.name == other.name
        assert view.image.shape == (12, 16, 3)
        assert view.camera.fx == other.camera.fx / 2
