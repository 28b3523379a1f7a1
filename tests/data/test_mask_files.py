"""Masks as people bring them: under other names, as stacks, folders of masks, run lengths and polygons."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from unified_lift.data import load_scene
from unified_lift.data.mask_formats.base import painted
from unified_lift.data.mask_formats.coco import inside_polygon, run_lengths, unpacked
from unified_lift.data.masks import find_mask, find_masks, read_stored_mask
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError

IDS = np.zeros((6, 8), np.int32)
IDS[1:4, 1:5], IDS[2, 2:4], IDS[5] = 1, 2, 3
LAYERS = np.stack([(IDS == 1) | (IDS == 2), IDS == 2, IDS == 3])  # the second lies on the first


def grey(array):
    return Image.fromarray(np.asarray(array, np.uint8) * (255 if array.dtype == bool else 1))


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        grey(IDS).save(folder / name, "PNG")


def run_lengths_of(mask):
    flat = mask.T.ravel().astype(int)
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    return [0] * int(flat[0]) + np.diff(ends).tolist()


def packed(counts):
    """Return COCO's text, as the C code of pycocotools writes it."""
    text = ""
    for i, count in enumerate(counts):
        left = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits, left = left & 31, left >> 5
            more = left != -1 if bits & 16 else left != 0
            text += chr(bits + 32 * more + 48)
    return text


def rle(mask, *, pack):
    counts = run_lengths_of(mask)
    return {"size": list(mask.shape), "counts": packed(counts) if pack else counts}


@pytest.mark.parametrize(
    "name",
    [
        "{}.PNG",
        "{}.jpg.png",
        "{}.JPG.Png",
        "{}_mask.png",
        "{}.jpg_mask.png",
        "mask_{}.png",
        "{}_seg.tif",
        "sub/{}.png",
        "{}-instance.tiff",
        "{}.jpeg.npy",
    ],
)
def test_masks_are_found_under_the_usual_names_each_for_its_photo(tmp_path, name):
    views = ["0001", "0002", "img_12"]
    files = {view: tmp_path / name.format(view) for view in views}
    touch(tmp_path, *(name.format(view) for view in views))
    found = find_masks(tmp_path, views)
    assert {view: mask.path for view, mask in found.masks.items()} == files
    assert found.unused == []


def test_of_case_folders_and_words_the_nearer_name_wins_and_the_rest_is_named(tmp_path):
    touch(
        tmp_path,
        "a.png",
        "a_mask.png",
        "vis/b.png",
        "b_mask.PNG",
        "vis/c.png",
        "c-seg.tif",
        "d_mask.jpg",
        "notes.txt",
        "masks.json",
        ".c.png",
    )
    found = find_masks(tmp_path, ["a", "b", "c", "d"])
    assert {view: mask.path.name for view, mask in found.masks.items()} == {
        "a": "a.png",
        "b": "b_mask.PNG",
        "c": "c-seg.tif",
    }
    assert [path.name for path in found.unused] == ["a_mask.png", "d_mask.jpg", "b.png", "c.png"]
    (note,) = found.notes
    assert note.endswith(": 2 of 4 masks are found under another name (a word for masks): b is b_mask.PNG")


def test_two_masks_that_fit_equally_are_an_error_with_both(tmp_path):
    touch(tmp_path, "a_mask.png", "a_seg.png", "b_mask.png")
    with pytest.raises(UserError, match=r"the mask of a may be a_mask\.png, a_seg\.png"):
        find_masks(tmp_path, ["a", "b"])


def test_a_folder_of_which_nothing_is_used_stops_training_and_part_of_it_is_noted(dataset, read):
    root = dataset("colmap")
    for path in sorted((root / "object_mask").rglob("*.png")):
        Image.open(path).convert("L").save(path.with_suffix(".jpg"))
        path.unlink()
    settings = DataSettings(source_path=root, num_random_points=50)
    with pytest.raises(UserError, match=r"none of its 9 files .*cam1/0001\.jpg, .*JPEG.*--object_path none"):
        load_scene(settings, refuse_unused=True)
    assert read(root, object_path="none").labelled == ()
    touch(root / "object_mask", "cam1/0001.png")
    Image.new("L", (32, 24), 3).save(root / "object_mask/cam1/0001.png")
    scene = load_scene(settings, refuse_unused=True)
    assert [view.name for view in scene.labelled] == ["cam1/0001"]
    assert any("cam1/0001.jpg, cam1/a.b.jpg" in note and "belongs to no view" in note for note in scene.notes)


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (LAYERS, "npy masks"),
        (np.moveaxis(LAYERS, 0, 2), "npy masks"),  # Mask R-CNN
        (LAYERS[:, None], "npy masks"),  # SAM's predict_torch
        (LAYERS[None].astype(np.float32), "npy masks"),
        (LAYERS[..., None].astype(np.uint8) * 255, "npy masks"),
        (IDS[None], "npy"),
        (np.stack([IDS * 7, IDS - 1, IDS * 2, IDS]), "npy, coarsest of 4 levels"),  # LangSplat
    ],
)
def test_stacks_of_masks_are_painted_the_smallest_on_top(tmp_path, array, kind):
    np.save(tmp_path / "a.npy", array)
    stored = read_stored_mask(tmp_path / "a.npy", size=(8, 6))
    np.testing.assert_array_equal(stored.ids, IDS)
    assert (stored.kind, stored.lowest, stored.highest) == (kind, 0, 3)


def test_the_photo_tells_by_which_axis_masks_are_counted(tmp_path):
    masks = np.zeros((6, 6, 9), bool)
    masks[2, :, 4] = True
    np.save(tmp_path / "a.npy", masks)
    assert np.argwhere(read_stored_mask(tmp_path / "a.npy", size=(9, 6)).ids)[:, 1].tolist() == [4] * 6
    assert np.argwhere(read_stored_mask(tmp_path / "a.npy", size=(60, 60)).ids)[:, 0].tolist() == [2] * 6


def test_no_mask_at_all_is_a_map_of_zeros(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((0, 6, 8), bool))
    assert not read_stored_mask(tmp_path / "a.npy").ids.any()
    assert painted([], height=2, width=3).tolist() == [[0] * 3] * 2
    with pytest.raises(ValueError, match=r"mask 2 is \[2, 2\]"):
        painted([np.ones((2, 3), bool), np.ones((2, 2), bool)])


def write_tiff(path):
    grey(LAYERS[0]).save(path.with_suffix(".tif"), save_all=True, append_images=[grey(one) for one in LAYERS[1:]])


def write_amg(path):
    for n, layer in enumerate(LAYERS):
        path.mkdir(exist_ok=True)
        grey(layer).save(path / f"{n}.png")
    (path / "metadata.csv").write_text("id,area\n")


def write_sa1b(path):
    masks = [{"segmentation": rle(layer, pack=True), "area": 1} for layer in LAYERS]
    path.with_suffix(".json").write_text(json.dumps({"image": {"width": 8, "height": 6}, "annotations": masks}))


def write_rle(path):
    path.with_suffix(".json").write_text(json.dumps([{"segmentation": rle(layer, pack=False)} for layer in LAYERS]))


def write_coco(path):
    named = {4: "other", 7: path.name}
    images = [{"id": n, "file_name": f"x/{name}.JPG", "width": 8, "height": 6} for n, name in named.items()]
    masks = [{"image_id": 7, "segmentation": rle(layer, pack=layer[2, 2])} for layer in LAYERS]
    content = {"images": images, "annotations": [{"image_id": 4, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]}, *masks]}
    (path.parent / "instances_default.json").write_text("\ufeff" + json.dumps(content))


@pytest.mark.parametrize("write", [write_tiff, write_amg, write_sa1b, write_rle, write_coco])
def test_masks_of_other_programs_become_ids(tmp_path, write):
    write(tmp_path / "0001")
    found = find_masks(tmp_path, ["0001"])
    np.testing.assert_array_equal(read_stored_mask(found.masks["0001"], size=(8, 6)).ids, IDS)
    assert found.unused == []


def test_one_coco_file_may_be_the_mask_folder_and_its_other_views_have_none(tmp_path):
    write_coco(tmp_path / "0001")
    path = tmp_path / "instances_default.json"
    found = find_masks(path, ["cam/0001", "0002"])
    assert list(found.masks) == ["cam/0001"]
    assert find_mask(path, "OTHER").part == "other"
    assert set(np.unique(read_stored_mask(find_mask(path, "other")).ids)) == {1}


def test_polygons_of_coco_and_labelme(tmp_path):
    square = np.zeros((6, 8), bool)
    square[1:4, 1:5] = True
    labelme = {"shapes": [{"points": [[1, 1], [5, 1], [5, 4], [1, 4]]}], "imageWidth": 8, "imageHeight": 6}
    two_parts = [[1, 1, 3, 1, 3, 4, 1, 4], [3, 1, 5, 1, 5, 4, 3, 4]]
    of_photo = {"annotations": [{"segmentation": two_parts}], "image": {"width": 8, "height": 6}}
    for content in (labelme, of_photo):
        (tmp_path / "a.json").write_text(json.dumps(content))
        found = read_stored_mask(find_mask(tmp_path, "a"))
        assert found.kind == "polygon masks"
        np.testing.assert_array_equal(found.ids, square)


def test_a_polygon_has_the_pixels_whose_centres_it_holds_also_beyond_the_border():
    found = inside_polygon(np.array([[-2.0, -1.0], [3.5, 1.5], [1.0, 9.0]]), (4, 5))
    assert found.astype(int).tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]


def test_run_lengths_packed_or_not_are_those_of_any_mask():
    rng = np.random.default_rng(0)
    for share in (0.0, 1.0, 0.5, 0.02, 0.9):
        mask = rng.random((37, 801)) < share
        counts = run_lengths_of(mask)
        assert unpacked(packed(counts)).tolist() == counts
        np.testing.assert_array_equal(run_lengths(counts, mask.shape), mask)


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "{}",
        "[]",
        '[{"segmentation": {"size": [6, 8], "counts": [3]}}]',
        '[{"segmentation": {"size": [6, 8], "counts": "\\u007f"}}]',
        '[{"segmentation": {"size": [6, 8], "counts": "0P"}}]',
        '[{"segmentation": {"counts": [48]}}]',
        '{"annotations": [{"segmentation": [[0, 0, 8, 6]]}]}',
        '[{"segmentation": {"size": [-6, -8], "counts": [48]}}]',
    ],
)
def test_json_that_is_no_mask_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json: (no masks|not readable)"):
        read_stored_mask(find_mask(tmp_path, "a"))


def test_a_broken_coco_table_is_named(tmp_path):
    (tmp_path / "all.json").write_text('{"images": [{"id": 1}], "annotations": []}')
    with pytest.raises(UserError, match=r"all\.json: not COCO's images and annotations"):
        find_mask(tmp_path, "a")


def test_views_of_two_cameras_keep_their_own_folders_of_masks(dataset, read):
    root = dataset("colmap")
    expected = {view.name: view.segments for view in read(root).labelled}
    for path in sorted((root / "object_mask").rglob("*.png")):
        ids, folder = np.array(Image.open(path)), path.with_suffix("")
        folder.mkdir()
        for n, value in enumerate(np.unique(ids[ids > 0])):
            grey(ids == value).save(folder / f"{n}.png")
        path.unlink()
    views = read(root).labelled
    assert [view.name for view in views] == list(expected)
    assert any(
        "9 of 9 views have folders of masks in object_mask, made into one map of ids" in note
        for note in read(root).notes
    )
    for view in views:  # the same pixels in the same parts, whatever their numbers
        pairs = torch.unique(torch.stack([view.segments.flatten(), expected[view.name].flatten()]), dim=1)
        assert pairs.shape[1] == len(expected[view.name].unique())
    shutil.rmtree(root / "object_mask/cam1/0001")
    assert any("1 of 9 training views have no mask: cam1/0001" in note for note in read(root).notes)
