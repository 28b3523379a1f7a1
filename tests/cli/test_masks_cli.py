"""unified-lift masks, run as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests.data.fixtures import write_dataset
from unified_lift.capture.mask_generators import GENERATORS
from unified_lift.capture.mask_generators.regions import RegionSettings
from unified_lift.capture.mask_runs import MaskJob, caution, changes, contact_sheet, make_masks
from unified_lift.capture.masks import FilterSettings, GeneratorEntry, Proposal
from unified_lift.cli.main import main
from unified_lift.data import DATASETS, load_scene
from unified_lift.data.images import read_image, write_image
from unified_lift.data.masks import read_mask, write_mask
from unified_lift.data.scene import load_frames
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.evaluation.pictures import object_colors


@pytest.fixture
def scene(tmp_path):
    """The COLMAP miniature (9 photos of 32x24 in two sub-folders, one name with a dot, one with a space)."""
    root = tmp_path / "scene"
    write_dataset("colmap", root)
    return root


def masks(root, *argv):
    small = ["--min-area", "4", "--scale", "0.5", "--jobs", "1", "--quiet"]
    return main(["masks", "-s", str(root), "--provider", "regions", *small, *map(str, argv)])


def record(folder):
    return json.loads((folder / "masks.json").read_text())


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*.png")}


def make(root, folder, provider="regions", *, processes=1):
    job = MaskJob(
        provider=provider, settings=RegionSettings(), filter=FilterSettings(min_area=0), device=torch.device("cpu")
    )
    make_masks(job, frames_of(root), {"whole": folder}, overwrite=False, processes=processes, quiet=True)


def frames_of(root):
    return load_frames(DataSettings(source_path=root))


def test_help_shows_an_example_and_the_flags_of_the_provider(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["masks", "--provider", "sam", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "Example: unified-lift masks -s data/desk --provider regions" in text
    assert "--points-per-side" in text
    assert "--scale" not in text
    with pytest.raises(SystemExit) as stop:
        main(["masks", "-s", "scene", "--provider", "magic"])
    assert stop.value.code == 2
    assert "regions" in capsys.readouterr().err  # the known ones are listed


def test_every_photo_gets_a_mask_that_the_reader_finds(scene, capsys):
    assert masks(scene, "--overwrite") == 0
    frames = frames_of(scene)
    assert {frame.name for frame in frames} >= {"cam1/a.b", "cam1/with space", "cam2/0000"}
    found = record(scene / "object_mask")
    assert set(found["views"]) == {frame.name for frame in frames}
    assert found["settings"].items() >= {"provider": "regions", "scale": 0.5, "min_area": 4}.items()
    assert found["versions"].keys() >= {"unified_lift", "opencv"}
    assert found["counts"]["ids"] == sum(view["ids"] for view in found["views"].values()) > 9
    for frame in frames:
        assert frame.mask.path == scene / "object_mask" / f"{frame.name}.png"
        ids, view = read_mask(frame.mask.path), found["views"][frame.name]
        assert (list(ids.shape[::-1]), int(ids.max())) == (view["size"], view["ids"])
    loaded = load_scene(DataSettings(source_path=scene, num_random_points=4))
    assert all(view.segments is not None for view in loaded.train)
    assert read_image(scene / "object_mask_preview.png").std() > 0
    assert "9 masks (whole)" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_scenes_of_every_layout_get_masks(name, tmp_path, capsys):
    root = tmp_path / name
    write_dataset(name, root)
    assert masks(root, "--out", "mine") == 0
    assert set(record(root / "mine")["views"]) == {frame.name for frame in frames_of(root)}
    assert "--object_path mine" in capsys.readouterr().out
    loaded = load_scene(DataSettings(source_path=root, object_path="mine", random_init=True, num_random_points=4))
    assert all(view.segments is not None for view in loaded.train)


def test_what_is_there_is_not_made_again_and_what_is_missing_is(scene, capsys):
    folder = scene / "mine"
    assert masks(scene, "--out", "mine") == 0
    first, before = snapshot(folder), record(folder)
    lost = folder / "cam2/0003.png"
    lost.unlink()
    write_image(scene / "images/cam2/0001.png", np.full((24, 32, 3), 90, dtype=np.uint8))  # another photo
    kept = folder / "cam2/0004.png"
    write_mask(kept, np.full((24, 32), 7))  # would be lost if it were made again
    capsys.readouterr()
    assert masks(scene, "--out", "mine") == 0
    assert "7 of 9 photos have their masks already" in capsys.readouterr().out
    assert lost.read_bytes() == first[lost]
    assert (read_mask(kept) == 7).all()
    assert (read_mask(folder / "cam2/0001.png") == 1).all()
    after = record(folder)
    assert after["views"]["cam2/0001"]["ids"] == 1
    assert [name for name, view in after["views"].items() if view != before["views"][name]] == ["cam2/0001"]


def test_other_settings_do_not_mix(scene, capsys):
    assert masks(scene, "--out", "mine") == 0
    before = snapshot(scene / "mine")
    assert masks(scene, "--out", "mine", "--rule", "small_on_top") == 2
    error = capsys.readouterr().err
    assert "rule score_on_top there, small_on_top now" in error
    assert "--overwrite" in error
    assert snapshot(scene / "mine") == before
    assert masks(scene, "--out", "mine", "--rule", "small_on_top", "--overwrite") == 0
    assert record(scene / "mine")["settings"]["rule"] == "small_on_top"


def test_masks_of_unknown_origin_are_not_replaced_unasked(scene, capsys):
    before = snapshot(scene / "object_mask")
    assert masks(scene) == 2
    assert "no masks.json" in capsys.readouterr().err
    assert snapshot(scene / "object_mask") == before


def test_changed_settings_are_told_in_a_few_words():
    now = {"provider": "sam", "rule": "a", "min_area": 100, "weights": "x.pth (3 bytes)", "score": 0.5}
    assert changes({**now, "provider": "regions", "scale": 2}, now) == ["provider regions there, sam now"]
    assert changes({**now, "min_area": 9}, now) == ["min_area 9 there, 100 now"]
    older = {"provider": "sam", "weights": "x.pth (3 bytes)", "size": [1] * 999}
    told = changes(older, now)
    assert told[:2] == ["rule unset there, a now", "min_area unset there, 100 now"]
    assert told[3:] == ["1 more"]
    assert max(map(len, told)) < 80


def test_stop_gap_masks_are_called_so_by_their_record(scene, tmp_path, capsys):
    assert masks(scene, "--out", "mine") == 0
    assert "stop-gap for trying the commands" in capsys.readouterr().out
    assert "stop-gap" in caution(scene / "mine")
    assert caution(tmp_path) == ""
    for content in (
        "{",
        "[]",
        "{}",
        '{"settings": []}',
        '{"settings": {"provider": []}}',
        '{"settings": {"provider": "sam"}}',
    ):
        (tmp_path / "masks.json").write_text(content)
        assert caution(tmp_path) == ""


def test_a_few_evenly_spread_photos_first_and_then_the_others(scene, capsys):
    names = [frame.name for frame in frames_of(scene)]
    assert masks(scene, "--out", "mine", "--limit", 3) == 0
    assert list(record(scene / "mine")["views"]) == sorted([names[0], names[4], names[8]])
    first = snapshot(scene / "mine")
    # The sheet: a row of three, photo and mask of 32 x 24 side by side, 6 pixels between.
    assert read_image(scene / "mine_preview.png").shape == (24 + 12, 3 * 70 + 6, 3)
    assert "the other 6 of 9 photos get theirs without --limit" in capsys.readouterr().out
    assert masks(scene, "--out", "mine") == 0
    out = capsys.readouterr().out
    assert "3 of 9 photos have their masks already" in out
    assert "without --limit" not in out
    assert len(record(scene / "mine")["views"]) == 9
    assert {path: path.read_bytes() for path in first} == first
    assert masks(scene, "--out", "mine", "--limit", 99) == 0
    assert "9 masks" in capsys.readouterr().out


def test_all_granularities_go_to_folders_of_their_own(scene):
    assert masks(scene, "--out", "mine", "--granularity", "all") == 0
    counts = []
    for granularity in ("whole", "part", "subpart"):
        found = record(scene / f"mine_{granularity}")
        assert found["settings"]["granularity"] == granularity
        counts.append(found["counts"]["ids"])
    assert counts[0] < counts[1] < counts[2]
    assert not (scene / "mine").exists()


def test_wrong_folders_and_values_and_missing_packages_are_named(scene, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    for root, argv, words in (
        (tmp_path / "nowhere", [], "no such scene folder"),
        (tmp_path, [], "fits no known layout"),
        (scene, ["-i", "photos"], "no such image folder"),
        (scene, ["--out", "images"], "give the masks a folder without photos"),
        (scene, ["--out", "new", "--scale", "0"], "--scale must be at least"),
        (scene, ["--out", "new", "--min-score", "2"], "--min_score goes up to 1"),
        (scene, ["--out", "new", "--jobs", "-1"], "--jobs must be at least 0"),
        (scene, ["--out", "new", "--limit", "-1"], "--limit must be at least 0"),
    ):
        assert masks(root, *argv) == 2
        assert words in capsys.readouterr().err
    assert main(["masks", "-s", str(scene), "--provider", "sam", "--out", "new", "--weights", "sam.pth"]) == 2
    assert 'pip install "unified-lift[masks]"' in capsys.readouterr().err
    assert not (scene / "new").exists()


def test_a_broken_photo_is_named_and_finished_masks_stay(scene, capsys):
    photo = scene / "images/cam2/0002.png"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:200])
    assert masks(scene, "--out", "mine") == 2
    assert "0002.png: not a readable image" in capsys.readouterr().err
    finished = ["cam1/0001", "cam1/a.b", "cam1/with space", "cam2/0000", "cam2/0001"]
    assert sorted(record(scene / "mine")["views"]) == finished
    photo.write_bytes(whole)
    assert masks(scene, "--out", "mine") == 0
    assert "5 of 9 photos have their masks already" in capsys.readouterr().out


def test_photos_that_cannot_be_used_are_named_and_the_others_get_masks(scene, capsys):
    (scene / "images/cam2/0002.png").unlink()
    (scene / "images/cam2/0003.png").write_bytes(b"no photo")
    assert masks(scene, "--out", "mine") == 0
    out = capsys.readouterr().out
    assert (
        "note: 1 of 9 photos cannot be used, images.bin has a pose for them but the files are missing: 0002.png" in out
    )
    assert "note: 1 of 9 photos cannot be used: " in out
    assert len(record(scene / "mine")["views"]) == 7


class Dots:
    """Every pixel is a proposal of its own; the user interrupts after `photos`."""

    facts = {"made_of": "dots"}

    def __init__(self, photos):
        self.left = photos

    def propose(self, image, granularities):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        height, width = image.shape[:2]
        masks = np.eye(height * width, dtype=bool).reshape(-1, height, width)
        return [Proposal(mask=mask, score=0.9) for mask in masks]


@pytest.fixture
def dots(monkeypatch):
    def install(photos):
        entry = GeneratorEntry(name="dots", settings=RegionSettings, load=lambda *_: Dots(photos))
        monkeypatch.setitem(GENERATORS, "dots", entry)

    return install


def test_ids_above_255_are_kept(scene, dots):
    dots(9)
    make(scene, scene / "mine", "dots")
    ids = read_mask(scene / "mine/cam2/0000.png")
    np.testing.assert_array_equal(ids.ravel(), np.arange(1, 32 * 24 + 1))
    assert record(scene / "mine")["counts"]["most_ids_in_a_view"] == 768


def test_an_interruption_keeps_finished_masks_and_their_record(scene, dots, capsys):
    dots(2)
    with pytest.raises(KeyboardInterrupt):
        make(scene, scene / "mine", "dots")
    done = {path.relative_to(scene / "mine").with_suffix("").as_posix() for path in snapshot(scene / "mine")}
    assert done == set(record(scene / "mine")["views"]) == {frame.name for frame in frames_of(scene)[:2]}
    dots(7)  # enough for what is left
    make(scene, scene / "mine", "dots")
    assert "2 of 9 photos have their masks already" in capsys.readouterr().out


def test_processes_name_a_broken_photo_and_make_the_same_masks_as_one(scene, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    make(scene, one)
    photo = scene / "images/cam2/0005.png"  # the last
    whole = photo.read_bytes()
    photo.write_bytes(whole[:200])
    with pytest.raises(UserError, match="0005.png: not a readable image"):
        make(scene, two, processes=2)
    assert set(record(two)["views"]) == {frame.name for frame in frames_of(scene)} - {"cam2/0005"}
    photo.write_bytes(whole)
    make(scene, two)
    assert record(one) == record(two)
    assert [*snapshot(one).values()] == [*snapshot(two).values()]


def test_ctrl_c_ends_all_processes_and_leaves_a_state_to_go_on_from(scene):
    photo = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)  # half a second of work each
    for frame in frames_of(scene):
        write_image(frame.image_path, photo)
    argv = [sys.executable, "-m", "unified_lift", "masks", "-s", str(scene), "--provider", "regions", "--jobs", "2"]
    process = subprocess.Popen(
        [*argv, "--out", "mine"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not snapshot(scene / "mine") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to parent and workers alike
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in error
    assert "Traceback" not in error
    assert not list((scene / "mine").rglob("*.partial"))
    finished = record(scene / "mine")["views"]
    assert len(finished) < 9
    for name, view in finished.items():
        assert read_mask(scene / "mine" / f"{name}.png").max() == view["ids"]


def test_the_contact_sheet_shows_photos_beside_their_ids():
    image, ids = np.full((40, 60, 3), 100, dtype=np.uint8), np.full((40, 60), 300, dtype=np.int32)
    sheet = contact_sheet([(image, ids)] * 4)
    assert sheet.shape == (2 * 46 + 6, 3 * 126 + 6, 3)
    assert (sheet == 100).all(axis=-1).sum() == 4 * 40 * 60
    assert (sheet[6:46, 6:66] == 100).all()
    assert (sheet[6:46, 66:126] == np.rint(0.25 * 100 + 0.75 * object_colors(np.array(300)))).all()
    large = np.zeros((900, 1200, 3), np.uint8)
    assert contact_sheet([(large, large[..., 0].astype(np.int32))]).shape == (240 + 12, 640 + 12, 3)
