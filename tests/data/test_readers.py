"""What every reader owes its callers, checked on the fixture of each by being listed in DATASETS."""

import builtins
import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFile

from tests.data.fixtures.floor import LANDMARK, LANDMARK_ID, floor_photos
from unified_lift.data import DATASETS, detect_reader, load_annotations, load_scene
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.ops.cameras import project

# LERF-Mask annotates prompts instead, has 8-bit tracked masks (black for test views), and never trains test views.
TRUTH_MAPS = [name for name in DATASETS if name != "lerf_mask"]


def mask_folder(name, root):
    if name == "transforms":  # a frame that names a mask must have it; one that names none may lack it
        text = (root / "transforms.json").read_text()
        (root / "transforms.json").write_text(text.replace("object_mask_path", "unused"))
    return root / ("detic_instance" if name == "messy_rooms" else "object_mask")


@pytest.mark.parametrize("name", DATASETS)
class TestEveryReader:
    def test_recognises_its_own_fixture(self, name, dataset):
        assert detect_reader(DataSettings(source_path=dataset(name))).name == name

    def test_views_have_matching_sizes_types_and_unique_names(self, name, dataset, read):
        scene = read(dataset(name), eval=True)
        assert scene.dataset == name
        assert len(scene.train) >= 5
        assert len(scene.test) >= 2
        names = [view.name for view in (*scene.train, *scene.test)]
        assert len(set(names)) == len(names)
        for view in (*scene.train, *scene.test):
            assert view.image.shape == (view.camera.height, view.camera.width, 3)
            assert view.image.dtype == torch.uint8
        for view in (*scene.train, *(scene.test if name in TRUTH_MAPS else ())):
            assert view.segments.shape == view.image.shape[:2]
            assert view.segments.dtype == torch.int32

    def test_points_are_finite_and_coloured(self, name, dataset, read):
        points = read(dataset(name)).points
        assert points.positions.dtype == np.float32
        assert points.colors.dtype == np.uint8
        assert points.positions.shape == points.colors.shape
        assert np.isfinite(points.positions).all()

    def test_resolution_scales_image_camera_and_mask_together(self, name, dataset, read):
        root = dataset(name)
        full, half = read(root), read(root, resolution=2)
        for a, b in zip(full.train, half.train, strict=True):
            assert b.image.shape == (12, 16, 3)
            assert b.segments.shape == (12, 16)
            assert b.camera.fx == pytest.approx(a.camera.fx / 2)
            assert b.camera.cy == pytest.approx(a.camera.cy / 2)
        assert any("32x24 to 16x12" in note for note in half.notes)

    def test_no_picture_is_decoded_twice_and_few_headers_are_read(self, name, dataset, read, monkeypatch):
        root, opened, decoded, begin, load = (
            dataset(name),
            Counter(),
            Counter(),
            builtins.open,
            ImageFile.ImageFile.load,
        )

        def counting_open(file, *args, **kwargs):
            opened[str(file)] += str(file).startswith(str(root))
            return begin(file, *args, **kwargs)

        def counting_load(image):
            decoded[image.filename] += bool(image.tile)
            return load(image)

        monkeypatch.setattr("builtins.open", counting_open)
        monkeypatch.setattr(ImageFile.ImageFile, "load", counting_load)
        views = [view.name for scene in [read(root, eval=True)] for view in (*scene.train, *scene.test)]
        assert sum(decoded.values()) >= len(views)
        assert max(decoded.values()) == (2 if name == "replica" else 1)  # whose points take their colours from photos
        assert max(count for file, count in opened.items() if Path(file).suffix in (".png", ".npy")) <= 3

    def test_random_init_replaces_the_points_and_depends_on_the_seed(self, name, dataset, read):
        root = dataset(name)
        first, again = (read(root, random_init=True, num_random_points=64).points for _ in range(2))
        other = read(root, random_init=True, num_random_points=64, points_seed=1).points
        assert first.positions.shape == (64, 3)
        np.testing.assert_array_equal(first.positions, again.positions)
        assert not np.array_equal(first.positions, other.positions)

    def test_a_missing_mask_leaves_the_view_unlabelled_and_is_noted(self, name, dataset, read):
        root = dataset(name)
        sorted(path for path in mask_folder(name, root).rglob("*") if path.is_file())[1].unlink()
        scene = read(root)
        unlabelled = [view.name for view in scene.train if view.segments is None]
        assert len(unlabelled) == 1
        assert any(unlabelled[0] in note and "no mask" in note for note in scene.notes)

    def test_no_mask_folder_means_no_labels(self, name, dataset, read):
        root = dataset(name)
        folder = mask_folder(name, root)
        folder.rename(root / "elsewhere")
        scene = read(root)
        assert all(view.segments is None for view in scene.train)
        assert any(folder.name in note for note in scene.notes)
        assert read(root, object_path="elsewhere").train[0].segments is not None

    def test_progress_counts_to_the_number_of_views_and_unknown_names_have_no_annotation(self, name, dataset):
        seen = []
        settings = DataSettings(source_path=dataset(name), num_random_points=50)
        count = len(load_scene(settings, progress=lambda done, total: seen.append((done, total))).train)
        assert seen == [(n, count) for n in range(1, count + 1)]
        assert load_annotations(settings, ["unknown"]) == {}


@pytest.mark.parametrize("name", TRUTH_MAPS)
class TestEveryReaderOfTruthMaps:
    def test_a_known_point_is_seen_at_its_pixel_with_its_id(self, name, dataset, read):
        root = dataset(name)
        scene = read(root, eval=True)
        views = (*scene.train, *scene.test)
        truth = load_annotations(DataSettings(source_path=root), [view.name for view in views])
        for view in views:
            pixels, depth = project(LANDMARK[None], view.camera)
            column, row = pixels[0].astype(int)
            assert depth[0] > 0
            assert truth[view.name][row, column] == LANDMARK_ID
            red, green, _ = view.image[row, column].tolist()
            assert red > green + 40  # the coin at the landmark is the red one

    def test_pixels_and_truth_agree_to_a_pixel(self, name, dataset, read):
        # A half-pixel slip or a flipped axis would move the coins' borders.
        root = dataset(name)
        scene = read(root)
        truth = load_annotations(DataSettings(source_path=root), [view.name for view in scene.train])
        for view in scene.train:
            np.testing.assert_array_equal(floor_photos([view.camera])[0].ids, truth[view.name])

    def test_ids_above_255_survive_and_are_local_to_views(self, name, dataset, read):
        root = dataset(name)
        scene, held = read(root), read(root, eval=True)
        assert (len(scene.train), scene.test) == (len(held.train) + len(held.test), ())  # all train without --eval
        maxima = [int(view.segments.max()) for view in scene.train]
        assert min(maxima) > 255
        assert len(set(maxima)) > 1


def test_annotations_are_not_part_of_a_scene(dataset, read):
    fields = {field.name for field in dataclasses.fields(read(dataset("colmap")))}
    assert fields == {"name", "dataset", "train", "test", "points", "frame", "zero_id", "void_ids", "kept_on", "notes"}


def test_a_folder_that_is_missing_or_fits_no_layout_is_named(tmp_path, read):
    with pytest.raises(UserError, match="nowhere.*no such scene folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"sparse/0/cameras.bin.*transforms.json") as error:
        read(tmp_path)
    assert "metadata.json" in str(error.value)
