import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.fixtures.floor import floor_photos
from unified_lift.data import DATASETS, load_annotations, load_prompt_masks
from unified_lift.data.lerf_mask import prompt_files
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError

LONG = "red coin with a very long name"


def names(views):
    return [view.name for view in views]


def masks_of(root, *views, **settings):
    return load_prompt_masks(DataSettings(source_path=root, **settings), views)


@pytest.mark.parametrize("missing", ["images_train", "test_mask", "sparse"])
def test_without_one_of_its_folders_it_is_another_scene(missing, dataset):
    root = dataset("lerf_mask")
    shutil.rmtree(root / missing)
    assert not DATASETS["lerf_mask"].detect(root)


class TestSplit:
    CAPTURES = [f"frame_{n:05d}" for n in range(1, 9)]
    TESTS = ["test_0", "test_1", "test_2"]

    def test_views_not_listed_for_training_are_held_out_and_never_train(self, dataset, read):
        root = dataset("lerf_mask")
        for train_split in (False, True):
            scene = read(root, eval=True, train_split=train_split)
            assert (names(scene.train), names(scene.test)) == (self.CAPTURES, self.TESTS)
        scene = read(root)
        assert (names(scene.train), scene.test) == (self.CAPTURES, ())

    def test_the_list_decides_not_the_name(self, dataset, read):
        root = dataset("lerf_mask")
        (root / "images_train" / "frame_00003.jpg").unlink()
        scene = read(root, eval=True)
        assert names(scene.test) == ["frame_00003", *self.TESTS]


def test_input_masks_are_tracked_8_bit_ids_of_which_zero_is_unlabelled_and_black_ones_are_no_labels(dataset, read):
    root = dataset("lerf_mask")
    scene = read(root, eval=True)
    assert scene.zero_id == "ignore"
    assert all(view.segments is None for view in scene.test)
    seen = [set(view.segments.unique().tolist()) for view in scene.train]
    assert all({0, 50} <= ids <= {0, 7, 50, 51} for ids in seen)
    assert Image.open(root / "object_mask" / "frame_00001.png").mode == "L"


class TestPromptMasks:
    def test_views_and_prompts_are_those_with_files(self, dataset):
        found = masks_of(dataset("lerf_mask"), "test_0", "test_1", "test_2", "frame_00001", "unknown")
        assert {view: set(prompts) for view, prompts in found.items()} == {
            "test_0": {LONG, "blue coin"},
            "test_2": {LONG},
        }

    def test_foreground_lies_strictly_above_128(self, dataset, read):
        # The mask's first coin pixel has grey value 129 and its last background pixel 128: both as the world has it.
        root = dataset("lerf_mask")
        grey = np.asarray(Image.open(root / "test_mask" / "0" / f"{LONG}.png"))
        assert {128, 129} <= set(np.unique(grey))
        view = read(root, eval=True).test[0]
        found = masks_of(root, "test_0", resolution=2)["test_0"]  # which changes nothing
        ids = floor_photos([view.camera])[0].ids
        assert found[LONG].dtype == bool
        np.testing.assert_array_equal(found[LONG], ids == 300)
        np.testing.assert_array_equal(found["blue coin"], ids == 301)

    def test_the_prompt_ends_at_the_first_dot(self, dataset):
        root = dataset("lerf_mask")
        folder = root / "test_mask" / "2"
        (folder / f"{LONG}.png").rename(folder / "tea in a glass.v2.png")
        assert set(masks_of(root, "test_2")["test_2"]) == {"tea in a glass"}

    def test_two_files_of_one_prompt_are_refused(self, dataset):
        folder = dataset("lerf_mask") / "test_mask" / "0"
        shutil.copy(folder / "blue coin.png", folder / "blue coin.old.png")
        with pytest.raises(UserError, match=r"blue coin\.png: blue coin\.old\.png is a mask of the same prompt"):
            prompt_files(folder)

    def test_files_that_are_no_pictures_or_hidden_are_no_prompts(self, dataset):
        root = dataset("lerf_mask")
        (root / "test_mask" / "2" / "notes.txt").write_text("nothing")
        (root / "test_mask" / "2" / "._blue coin.png").write_bytes(b"resource fork")
        (root / "test_mask" / ".cache").mkdir()
        assert set(masks_of(root, "test_2")["test_2"]) == {LONG}

    @pytest.mark.parametrize(
        ("name", "message"), [("3", "there is no test view 3 .*test_0, test_1, test_2"), ("two", ".*rename it")]
    )
    def test_folder_without_its_test_view_is_named(self, name, message, dataset):
        root = dataset("lerf_mask")
        (root / "test_mask" / "2").rename(root / "test_mask" / name)
        with pytest.raises(UserError, match=f"test_mask/{name}: {message}"):
            masks_of(root, "test_0")

    def test_unreadable_mask_and_one_of_another_shape_than_its_photo_are_named(self, dataset):
        root = dataset("lerf_mask")
        Image.new("L", (24, 32)).save(root / "test_mask" / "0" / "blue coin.png")
        with pytest.raises(UserError, match=r"blue coin\.png: the mask is 24x32 but the photo of test_0 is 32x24"):
            masks_of(root, "test_0")
        (root / "test_mask" / "0" / "blue coin.png").write_bytes(b"not a picture")
        with pytest.raises(UserError, match=r"blue coin\.png: not a readable image"):
            masks_of(root, "test_0")

    def test_colour_masks_count_by_their_brightest_channel(self, dataset):
        root = dataset("lerf_mask")
        picture = np.zeros((24, 32, 3), np.uint8)
        picture[3, 4] = (0, 200, 0)
        Image.fromarray(picture).save(root / "test_mask" / "2" / f"{LONG}.png")
        assert np.argwhere(masks_of(root, "test_2")["test_2"][LONG]).tolist() == [[3, 4]]


def test_there_is_no_map_of_all_objects_and_other_readers_have_no_prompts(dataset):
    assert load_annotations(DataSettings(source_path=dataset("lerf_mask")), ["test_0", "frame_00001"]) == {}
    assert masks_of(dataset("colmap"), "cam1/0001") == {}
