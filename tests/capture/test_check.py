"""What check-data says of sound scenes, and that it names every damage of a broken one, not only the first."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.fixtures import edit_json, write_dataset
from tests.data.fixtures.colmap_model import read_model, write_model
from unified_lift.capture.check import ANNOTATION_FOLDERS, check_lines, check_scene
from unified_lift.data import DATASETS, load_scene
from unified_lift.data.images import write_image
from unified_lift.data.masks import write_mask
from unified_lift.data.points import hardly_seen, in_pictures
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.ops.cameras import unproject


@pytest.fixture
def dataset(tmp_path):
    """Return a function: dataset name -> folder of its fixture."""
    return lambda name: write_dataset(name, tmp_path / name)


def checked(root, **settings):
    return check_scene(DataSettings(source_path=root, **settings))


def problems(check):
    return [issue.text for issue in check.issues.errors]


def notes(check):
    return [issue.text for issue in check.issues if issue.severity == "note"]


@pytest.mark.parametrize("name", DATASETS)
def test_every_fixture_is_fine_and_its_numbers_are_those_of_the_loaded_scene(name, dataset):
    root = dataset(name)
    for path in (path for folder in ANNOTATION_FOLDERS for path in (root / folder).rglob("*.png")):
        path.write_bytes(b"never opened")
    check = checked(root)
    assert check.facts["fine"], check.issues
    scene = load_scene(DataSettings(source_path=root, eval=True, num_random_points=50))
    facts = check.facts
    assert facts["layout"] == name
    assert facts["views"]["posed"] == len(scene.train) + len(scene.test)
    assert facts["views"]["sizes"] == {"32x24": facts["views"]["posed"]}
    assert facts["split"] == {"train": len(scene.train), "test_with_eval": len(scene.test)}
    assert facts["radius"] == pytest.approx(scene.radius, abs=1e-3)
    assert facts["zero_id"] == scene.zero_id
    assert sum(facts["truth"].values()) > 0
    assert check_lines(check)[-1] == "fine: this scene can be trained"
    json.dumps(check.facts)


def test_numbers_of_masks_by_hand(dataset):
    root = dataset("transforms")
    for n in range(10):
        ids = np.zeros((24, 32), np.uint16)
        if n != 9:
            ids[:12] = 1 + np.arange(32) // 8 if n < 8 else 700  # four segments; in view 8 one
        write_mask(root / "object_mask" / f"{n:04d}.png", ids)
    masks = checked(root).facts["masks"]
    assert masks["segments_per_view"] == {"least": 0, "median": 4.0, "most": 4}
    assert masks["largest_id"] == 700
    assert masks["share_of_id_0"] == 0.55  # nine masks half empty, one empty
    assert masks["all_black"] == 1
    assert masks["kinds"] == {"16-bit": 10}
    assert masks["views_without"] == []


def test_points_of_the_scene_are_counted_and_made_ones_are_not(dataset):
    assert checked(dataset("colmap")).facts["points"]["of_the_scene"] == 300
    check = checked(dataset("messy_rooms"))
    assert check.facts["points"] == {"of_the_scene": 0}
    assert any("training makes them from the photos" in line for line in check_lines(check))


def test_which_points_are_in_a_picture_by_hand_and_when_they_are_hardly_seen(scene):
    camera = scene.train[0].camera
    inside, beside, behind = [3.0, 4.0], [camera.width + 5.0, 4.0], [3.0, 4.0]
    positions = unproject(np.array([inside, beside, behind]), np.array([2.0, 2.0, -2.0]), camera)
    assert in_pictures(positions.astype(np.float32), [camera, camera]).tolist() == [[True, False, False]] * 2
    assert in_pictures(np.zeros((25_000, 3), np.float32), [camera]).shape == (1, 12_500)
    shown, one = np.eye(3, 100, dtype=bool), np.arange(100) < 1
    assert hardly_seen(np.array([shown[0], ~one, 0 * one > 0, ~one]), "it") is None  # one of four is blind
    blind = hardly_seen(np.array([~one, 0 * one > 0, 0 * one > 0]), "it")
    assert blind == "the cameras hardly see it (33.0 % of them in a view), 2 of 3 views show none"
    assert hardly_seen(shown, "it") == "the cameras hardly see it (1.0 % of them in a view)"


def test_every_damage_of_a_colmap_scene_is_listed(dataset):
    root = dataset("colmap")
    model = root / "sparse/0"
    cameras, images, points = read_model(model)
    by_name = {image.name: key for key, image in images.items()}
    broken = {by_name["cam2/0000.png"]: {"tvec": (np.nan, 0, 0)}, by_name["cam2/0005.png"]: {"qvec": (0, 0, 0, 0)}}
    for key, change in broken.items():
        images[key] = type(images[key])(**{**vars(images[key]), **change})
    write_model(model, cameras, images, points)
    (root / "images/cam2/0001.png").unlink()
    (root / "images/cam2/0002.png").write_bytes(b"no picture")
    write_image(root / "images/cam1/a.b.png", np.zeros((32, 32, 3), np.uint8))
    (root / "object_mask/cam2/0003.png").write_bytes(b"no mask")
    write_mask(root / "object_mask/cam2/0004.png", np.eye(30))
    (root / "object_mask/cam1/0001.png").unlink()
    check = checked(root, strict=True)
    found = "\n".join(problems(check))
    for words in (
        "pose of cam2/0000.png is NaN",
        "pose of cam2/0005.png is NaN, infinite or a zero quaternion",
        "cam2/0001.png: images.bin has a pose for this photo but the file is missing",
        "cam2/0002.png: not a readable image",
        "a.b.png: 32x32 is another shape than the camera's 32x24",
        "object_mask/cam2/0003.png: not a readable image",
        "object_mask/cam2/0004.png: 30x30 is another shape",
    ):
        assert words in found
    assert len(problems(check)) == 7
    assert notes(check) == ["1 of 7 views have no mask: cam1/0001"]
    assert all(issue.fix for issue in check.issues)
    assert check_lines(check)[-1].startswith("7 problems; split and points are looked at once these are repaired")


def test_every_broken_frame_of_a_transforms_file_is_listed(dataset):
    root = dataset("transforms")

    def damage(data):
        frames = {frame["file_path"].removesuffix(".png"): frame for frame in data["frames"]}
        frames["images/0001"]["transform_matrix"][0][3] = float("nan")
        frames["images/0002"]["transform_matrix"] = [[1, 2], [3, 4]]
        frames["images/0005"]["fl_x"] = -1

    edit_json(root / "transforms.json", damage)
    (root / "images/0006.png").unlink()
    (root / "object_mask/0007.png").unlink()
    found = problems(checked(root, strict=True))
    assert len(found) == 5
    for words in ("0001.png holds NaN", "0002.png is not a 3x4", "no positive focal", "0006.png", "0007.png is miss"):
        assert any(words in line for line in found), words


def test_every_bad_pose_of_messy_rooms_and_replica_is_listed(dataset):
    root = dataset("messy_rooms")

    def damage(data):
        data["camera"]["positions"][2][0] = float("nan")
        data["camera"]["quaternions"][4] = [0, 0, 0, 0]

    edit_json(root / "metadata.json", damage)
    assert [line.split("the pose of ")[1][:2] for line in problems(checked(root))] == ["2 ", "4 "]
    root = dataset("replica")
    lines = (root / "traj.txt").read_text().splitlines()
    for n in (25, 200):
        lines[n] = " ".join(["nan", *lines[n].split()[1:]])
    (root / "traj.txt").write_text("\n".join(lines))
    assert [line.split("frame")[1][:6] for line in problems(checked(root))] == ["000025", "000200"]


def test_a_cut_model_file_is_one_problem_and_the_truth_is_still_counted(dataset):
    root = dataset("colmap")
    path = root / "sparse/0/images.bin"
    path.write_bytes(path.read_bytes()[:100])
    check = checked(root)
    assert len(problems(check)) == 1
    assert "images.bin: cut short" in problems(check)[0]
    assert check.facts["truth"] == {"annotations/gt_instance": 9}
    assert "1 problem;" in check_lines(check)[-1]


def test_what_only_loading_shows_is_a_problem_too(dataset):
    root = dataset("transforms")
    (root / "points3D.ply").write_bytes(b"ply\n")
    assert ["points3D.ply" in line for line in problems(checked(root))] == [True]


def test_a_scene_without_masks_is_fine_for_colour_and_says_how_to_make_them(dataset):
    root = dataset("colmap")
    shutil.rmtree(root / "object_mask")
    check = checked(root)
    assert check.facts["fine"]
    assert notes(check) == ["no masks: only colour can be trained"]
    assert check_lines(check)[-1] == "fine: this scene can be trained (colour only)"
    assert any("unified-lift masks" in line for line in check_lines(check))


def test_masks_under_other_names_are_a_problem(dataset):
    root = dataset("colmap")
    for path in list((root / "object_mask").rglob("*.png")):
        path.rename(path.with_name(f"x{path.name}"))
    (found,) = problems(checked(root))
    assert "none of its 9 files is the mask of a photo (cam1/x0001.png, " in found


def test_black_masks_are_a_note_for_some_views_and_a_problem_for_all(dataset):
    root = dataset("transforms")
    write_mask(root / "object_mask/0003.png", np.zeros((24, 32)))
    assert notes(checked(root)) == ["0003.png: all black, trains colour only"]
    for n in range(10):
        write_mask(root / f"object_mask/{n:04d}.png", np.zeros((24, 32)))
    assert problems(checked(root)) == ["all masks are black: nothing is labelled"]


def test_odd_masks_are_noted(dataset):
    root = dataset("transforms")
    Image.fromarray(np.full((24, 32), 255, np.uint8)).save(root / "object_mask/0000.png")
    write_mask(root / "object_mask/0001.png", np.arange(24 * 32).reshape(24, 32))
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(root / "object_mask/0001.jpg")
    check = checked(root)
    assert check.facts["fine"]
    assert notes(check) == [
        "0000.png: ids reach 255",
        "0001.png: more than 300 segments",
        "0000.png: one segment fills the picture",
        f"{root}/object_mask: 0001.jpg belongs to no view",
    ]


def test_photos_without_a_pose_are_noted(dataset):
    root = dataset("colmap")
    write_image(root / "images/stray.png", np.zeros((24, 32, 3), np.uint8))
    assert any("stray.png" in line and "no pose" in line for line in notes(checked(root)))


def five_views(data):
    for split in ("train", "val", "test"):
        del data[f"{split}_filenames"]
    del data["frames"][5:]


def one_lost(data):
    data["frames"][0]["transform_matrix"][0][3] = 1e4


def standing_still(data):
    for frame in data["frames"]:
        for row in range(3):
            frame["transform_matrix"][row][3] = 1.0


def opencv_axes(data):  # the usual mistake: y and z of the camera the other way round
    for frame in data["frames"]:
        frame["transform_matrix"] = (np.array(frame["transform_matrix"]) * [1, -1, -1, 1]).tolist()


@pytest.mark.parametrize(
    ("damage", "severity", "words"),
    [
        (five_views, "note", "only 5 views"),
        (one_lost, "note", "0009 is far from all others"),
        (standing_still, "error", "all cameras are at one point: no depth can be seen"),
        (opencv_axes, "error", "the cameras hardly see the scene's points (0.0 % of them in a view)"),
    ],
)
def test_odd_cameras_are_named(damage, severity, words, dataset):
    root = dataset("transforms")
    edit_json(root / "transforms.json", damage)
    issues = checked(root).issues
    assert any(words in issue.text for issue in issues if issue.severity == severity)
    assert len([issue for issue in issues if issue.severity == "error"]) == (severity == "error")


def test_a_split_that_cannot_be_is_noted_and_training_without_it_is_fine(dataset):
    check = checked(dataset("colmap"), llffhold=1)
    assert check.facts["fine"]
    assert check.facts["split"] == {"train": 9, "test_with_eval": 0}
    assert any("with --eval: " in line and "all 9 views are held out" in line for line in notes(check))


def test_a_folder_of_photos_is_no_scene_and_sfm_is_named(tmp_path):
    write_image(tmp_path / "photos/a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"fits no known layout.*unified-lift sfm .*photos -s SCENE"):
        checked(tmp_path / "photos")
    with pytest.raises(UserError, match="no such scene folder"):
        checked(tmp_path / "gone")


def test_a_wrong_mask_folder_flag_is_the_users_to_correct(dataset):
    with pytest.raises(UserError, match="correct --object_path"):
        checked(dataset("colmap"), object_path="masks")
