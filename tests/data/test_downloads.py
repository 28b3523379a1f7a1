import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.fixtures import write_dataset
from tests.data.fixtures.replica import write_rgb
from unified_lift.data import downloads
from unified_lift.data.downloads import check_download
from unified_lift.data.lerf_mask import PROMPTS

SCRIPTS = Path(__file__).parents[2] / "scripts"
RELEASED_FRAMES = downloads.REPLICA_FRAMES
FIXTURE_FRAMES = {"nice_slam": 250, "semantic_nerf": 40, "vmap": 250}


def write_lerf_mask(root):
    """Write the three scenes; the first view with a folder has all prompts, the other one."""
    for scene, prompts in PROMPTS.items():
        write_dataset("lerf_mask", root / scene)
        for index, chosen in ((0, prompts.split(", ")), (2, prompts.split(", ")[:1])):
            folder = root / scene / "test_mask" / str(index)
            mask = (folder / "red coin with a very long name.png").read_bytes()
            shutil.rmtree(folder)
            folder.mkdir()
            for prompt in chosen:
                (folder / f"{prompt}.png").write_bytes(mask)


def write_replica(root):
    """Write eight rooms: seven of nice-slam, of which one is spelled with an underscore, and one of Semantic-NeRF."""
    write_dataset("replica", root / "room0")
    for name in ("room1", "room_2", "office0", "office1", "office2", "office3"):
        shutil.copytree(root / "room0", root / name)
    write_rgb(root / "office_4" / "Sequence_1", masks=root / "office_4" / "object_mask")


def write_messy_rooms(root):
    first, *others = downloads.MESSY_ROOMS_IDS
    write_dataset("messy_rooms", root / first)
    for name in others:
        shutil.copytree(root / first, root / name)


WRITERS = {"lerf_mask": write_lerf_mask, "replica": write_replica, "messy_rooms": write_messy_rooms}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    roots = {name: tmp_path_factory.mktemp("downloads") / name for name in WRITERS}
    for name, root in roots.items():
        WRITERS[name](root)
    return roots


@pytest.fixture
def download(written, tmp_path):
    """Return a function: dataset name -> a complete download that the test may damage."""
    return lambda name: Path(shutil.copytree(written[name], tmp_path / name))


@pytest.fixture(autouse=True)
def _short_walks(monkeypatch):
    monkeypatch.setattr(downloads, "REPLICA_FRAMES", FIXTURE_FRAMES)


def of(issues, severity):
    return [issue.text for issue in issues if issue.severity == severity]


@pytest.mark.parametrize("name", WRITERS)
class TestEveryDataset:
    def test_missing_scenes_are_named_with_where_to_get_them_and_a_whole_download_lacks_nothing(self, name, download):
        root = download(name)
        issues = check_download(name, root)
        assert of(issues, "error") == []
        assert len(of(issues, "ok")) >= 8
        scene = sorted(path.name for path in root.iterdir())[0]
        shutil.rmtree(root / scene)
        (lost,) = check_download(name, root).errors
        assert scene in lost.text
        assert "no such scene" in lost.text
        assert "fetch" in lost.fix

    def test_the_script_prints_it_and_tells_by_its_exit_code(self, name, download, monkeypatch, capsys):
        monkeypatch.syspath_prepend(str(SCRIPTS))
        script, root = importlib.import_module(f"prepare_{name}"), download(name)
        assert script.main([str(root)]) == 0
        assert capsys.readouterr().out.endswith("complete\n")
        shutil.rmtree(sorted(root.iterdir())[0])
        assert script.main([str(root)]) == 1
        assert {"missing", "->"} <= set(capsys.readouterr().out.split())
        assert script.main([str(root / "nowhere")]) == 2
        assert "nowhere: no such folder" in capsys.readouterr().err


def remove(*paths):
    def unlink(root):
        for path in paths:
            shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()

    return unlink


def damage(path):
    def cut(root):
        content = (root / path).read_bytes()
        (root / path).write_bytes(content[: len(content) // 2])

    return cut


def replace_mask(path, mask):
    return lambda root: Image.fromarray(mask).save(root / path)


def rename(path, name):
    return lambda root: (root / path).rename((root / path).with_name(name))


def save_array(array):
    return lambda root: np.save(root / f"{ROOM}/instance/7.npy", array)


TRUTH, ROOM = "annotations/gt_instance/frame000125.png", "large_corridor_500"


BROKEN = {
    ("lerf_mask", "ramen"): [
        (remove("ramen/images/frame_00003.jpg"), "ramen/images: frame_00003.jpg: images.bin has a pose for this photo"),
        (damage("ramen/images/frame_00003.jpg"), "frame_00003.jpg: not a readable image"),
        (remove("ramen/object_mask/frame_00003.png"), "ramen/object_mask: 1 of 8 views have no mask: frame_00003"),
        (damage("ramen/object_mask/frame_00003.png"), "frame_00003.png: not a readable image"),
        (
            replace_mask("ramen/object_mask/frame_00003.png", np.ones((32, 24), np.uint8)),
            "frame_00003.png: 24x32 is another shape than the camera's 32x24",
        ),
        (remove("ramen/sparse"), "ramen/sparse/0: no COLMAP model"),
        (remove("ramen/test_mask"), "ramen/test_mask: no such folder"),
        (remove("ramen/test_mask/0/egg.png"), "ramen/test_mask: no view has a readable mask of egg"),
        (damage("ramen/test_mask/2/chopsticks.png"), "2/chopsticks.png: not a readable image"),
        (rename("ramen/test_mask/2", "3"), "ramen/test_mask/3: there is no test view 3, only 3"),
        (rename("ramen/test_mask/2", "two"), "test_mask/two: is not named after the index"),
        (rename("ramen/test_mask/0/pork belly.png", "pork_belly.png"), "ramen/test_mask/0: pork_belly is no prompt of"),
        (
            remove("ramen/images_train/frame_00001.jpg", "ramen/images_train/frame_00002.jpg"),
            "ramen/images_train: leaves 5 test views (frame_00001, frame_00002, test_0, test_1, test_2)",
        ),
        (
            rename("ramen/images_train/frame_00001.jpg", "frame_99999.jpg"),
            "ramen/images_train: frame_99999 not registered in the COLMAP model",
        ),
        (
            lambda root: shutil.copy(root / "ramen/images/test_0.jpg", root / "ramen/images/extra.jpg"),
            "ramen/images: extra.jpg: no pose in images.bin",
        ),
    ],
    ("replica", "room1"): [
        (remove("room1/results/frame000050.jpg"), "room1/results: frame000050.jpg: traj.txt has a pose for this photo"),
        (
            lambda root: Image.new("RGB", (64, 48)).save(root / "room1/results/frame000050.jpg"),
            "room1/results: frame000050.jpg has another size",
        ),
        (remove("room1/traj.txt"), "room1: neither traj.txt and results/"),
        (
            lambda root: (root / "room1/traj.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1\n" * 200),
            "room1/traj.txt: 200 poses (nice_slam rendering), 250 are expected",
        ),
        (damage("room1/traj.txt"), "does not hold the 16 numbers"),
        (damage("room1/results/depth000050.png"), "depth000050.png: not a readable image"),
        (remove(f"room1/{TRUTH}"), "room1/annotations/gt_instance: 1 of 2 views have no mask: frame000125"),
        (damage(f"room1/{TRUTH}"), "frame000125.png: not a readable image"),
        (lambda root: (root / "room1/point_cloud.ply").write_text("no cloud"), "point_cloud.ply"),
    ],
    ("messy_rooms", ROOM): [
        (remove(f"{ROOM}/metadata.json"), f"{ROOM}: metadata.json and color/ are not both there"),
        (damage(f"{ROOM}/color/7.png"), "7.png: not a readable image"),
        (remove(f"{ROOM}/instance/7.npy"), f"{ROOM}/instance: no array of 7"),
        (remove(f"{ROOM}/semantic/7.npy"), f"{ROOM}/semantic: no array of 7"),
        (remove(f"{ROOM}/detic_instance/7.npy"), f"{ROOM}/detic_instance: no array of 7"),
        (damage(f"{ROOM}/detic_instance/7.npy"), "7.npy: not a readable array"),
        (lambda root: (root / f"{ROOM}/instance/7.npy").write_bytes(b""), "7.npy: not a readable array"),
        (save_array(np.zeros((24, 32), np.uint8)), f"{ROOM}/instance: 7.npy has 8 bits"),
        (save_array(np.zeros((32, 24), np.int32)), "7.npy: 24x32 is another shape than the camera's 32x24"),
        (save_array(np.zeros((24, 32))), "7.npy: float64 [24, 32] where whole numbers"),
    ],
}


@pytest.mark.parametrize(
    ("name", "scene", "break_it", "expected"), [(*key, *case) for key, cases in BROKEN.items() for case in cases]
)
def test_of_a_damaged_and_a_whole_scene_only_the_damaged_one_has_errors(
    name, scene, break_it, expected, written, tmp_path
):
    other = next(path.name for path in sorted(written[name].iterdir()) if path.name != scene)
    for folder in (scene, other):
        shutil.copytree(written[name] / folder, tmp_path / folder)
    break_it(tmp_path)
    lost = [what for what in of(check_download(name, tmp_path), "error") if "no such scene" not in what]
    assert any(expected in what for what in lost), lost
    assert all(scene in what for what in lost)


def test_lerf_mask_tells_of_masks_that_are_not_the_released_ones(download):
    root = download("lerf_mask")
    replace_mask("ramen/object_mask/frame_00001.png", np.full((24, 32), 300, np.uint16))(root)
    replace_mask("ramen/object_mask/frame_00002.png", np.zeros((24, 32), np.uint8))(root)
    issues = check_download("lerf_mask", root)
    assert of(issues, "error") == []
    assert of(issues, "note") == [
        "ramen/object_mask: frame_00002.png: all black, trains colour only",
        "ramen/object_mask: frame_00001.png: one segment fills the picture",
        "ramen/object_mask: frame_00001.png is not 8-bit",
    ]


def test_replica_says_how_to_make_what_no_download_has(download):
    root = download("replica")
    shutil.rmtree(root / "room1/annotations")
    shutil.rmtree(root / "room1/object_mask")
    truth, masks = check_download("replica", root).errors
    assert truth.text == "room1: no instance maps of the test views"
    assert "mesh_semantic.ply along traj.txt" in truth.fix
    assert "8 of 8 views have no mask: frame000025, frame000050" in masks.text
    assert "frame000150 and 3 more" in masks.text
    assert "SAM" in masks.fix


def test_replica_depth_is_welcome_not_required(download):
    root = download("replica")
    remove("room1/results/depth000050.png")(root)
    remove("room1/object_mask/frame000000.png")(root)  # of a held-out view: not needed
    issues = check_download("replica", root)
    assert of(issues, "error") == []
    assert "room0/results: 32x24 where 1200x680 is usual" in of(issues, "note")
    assert "room1/results: 7 of 8 training views have depth" in of(issues, "note")


def test_8_bit_instance_maps_of_a_release_are_damaged_and_own_ones_doubtful(download):
    root, small = download("replica"), np.ones((24, 32), np.uint8)
    replace_mask("office_4/Sequence_1/semantic_instance/semantic_instance_2.png", small)(root)
    replace_mask(f"room1/{TRUTH}", small)(root)
    issues = check_download("replica", root)
    (lost,) = of(issues, "error")
    assert lost.startswith("office_4/Sequence_1/semantic_instance: semantic_instance_2.png has 8 bits")
    assert any(
        what.startswith("room1/annotations/gt_instance: frame000125.png has 8 bits") for what in of(issues, "note")
    )


def test_replica_trajectories_have_the_released_lengths(download, monkeypatch):
    monkeypatch.setattr(downloads, "REPLICA_FRAMES", RELEASED_FRAMES)
    lost = of(check_download("replica", download("replica")), "error")
    assert len(lost) == 8
    assert "room0/traj.txt: 250 poses (nice_slam rendering), 2000 are expected" in lost
    assert "office_4/Sequence_1/traj_w_c.txt: 40 poses (semantic_nerf rendering), 900 are expected" in lost


def test_messy_rooms_split_and_visible_ids_are_told(download):
    root = download("messy_rooms")
    for n, ids in ((9, 25), (10, 12), (11, 3)):  # the test views; a 26-entry count needs ids 0..25
        np.save(root / f"old_room_25/instance/{n}.npy", np.arange(24 * 32, dtype=np.int32).reshape(24, 32) % (ids + 1))
        np.save(root / f"old_room_25/semantic/{n}.npy", np.ones((24, 32), np.int32))
    issues = check_download("messy_rooms", root)
    assert "old_room_25/metadata.json: 12 poses, 9 training and 3 test views" in of(issues, "ok")
    assert "old_room_25: 26 exact ids in the test views, background included" in of(issues, "ok")
    assert any(what.startswith("old_room_50: 4 exact ids") for what in of(issues, "note"))
    assert any("others report 454" in issue.fix for issue in issues)
