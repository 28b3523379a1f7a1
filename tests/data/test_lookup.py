"""Which file a name means: as written, else by what is left of it on another machine; what is unclear is listed."""

import os
import re

import numpy as np
import pytest

from tests.data.fixtures import edit_json
from tests.data.fixtures.colmap_model import read_model, write_model
from unified_lift.data.lookup import match_names
from unified_lift.errors import UserError


def in_page(text, page):
    return os.fsdecode(text.encode(page))


@pytest.mark.parametrize(
    ("wanted", "present", "how"),
    [
        ("a/0001.png", "a/0001.png", ""),
        ("cam0\\0001.png", "cam0/0001.png", "separators or accents"),
        ("./a/./0001.png", "a/0001.png", "separators or accents"),
        ("Käfer.jpg", "Ka\u0308fer.jpg", "separators or accents"),
        ("IMG_0001.jpg", "IMG_0001.JPG", "case"),
        ("Front/img.JPG", "front/IMG.jpg", "case"),
        ("0001.jpg", "0001.tif", "suffix"),
        ("DSC1.NEF", "dsc1.jpeg", "suffix"),
        ("a.b", "a.b.png", "suffix"),
        (in_page("照片1.png", "gbk"), "照片1.png", "encoding"),
        (in_page("前1.png", "gbk"), "前1.jpg", "encoding"),  # bytes that happen to be UTF-8
        ("図.png", in_page("図.png", "shift_jis"), "encoding"),
        ("cam0/0001.jpg", "cam0_0001.png", "joined"),
        ("cam0-0001.jpg", "cam0/0001.jpg", "joined"),
        ("C:/Users/me/scan/images/0001.png", "images/0001.png", "another folder"),
        ("..\\..\\scan\\images\\0001.png", "images/0001.JPG", "another folder"),
        ("cam0/0001.png", "0001.png", "another folder"),
        ("0001.png", "deep/er/0001.png", "another folder"),
    ],
)
def test_each_way_in_which_a_name_may_differ(wanted, present, how):
    others = ["other/1234.png", "mask/0002.png"]
    matching = match_names([wanted], [*others, present])
    assert matching.found[wanted].present == present
    assert how in matching.found[wanted].how
    assert (how == "") == (matching.found[wanted].how == "")
    assert not matching.unclear


def test_the_longest_common_end_of_the_path_decides():
    present = ["images/0001.png", "object_mask/0001.png", "depth/0001.png"]
    assert match_names(["/home/me/x/images/0001.png"], present).found.popitem()[1].present == "images/0001.png"


@pytest.mark.parametrize(
    ("wanted", "present", "unclear"),
    [
        (["a/1.png"], ["b/1.png", "c/1.png"], {"a/1.png": ["b/1.png", "c/1.png"]}),
        (["a/1.png", "b/1.png"], ["1.png"], {"a/1.png": ["1.png"], "b/1.png": ["1.png"]}),
        (["1.jpg"], ["1.png", "1.tif"], {"1.jpg": ["1.png", "1.tif"]}),
        (["i.JPG"], ["I.jpg", "I.Jpg"], {"i.JPG": ["I.jpg", "I.Jpg"]}),
    ],
)
def test_what_could_be_several_or_is_meant_twice_is_unclear(wanted, present, unclear):
    assert match_names(wanted, present) == ({}, unclear)


@pytest.mark.parametrize(
    ("wanted", "present"),
    [
        (["a/1.png", "b/1.png"], ["b/1.png"]),  # meant exactly by the other
        (["a/1.png", "a/2.png"], ["a/1.png", "c/2.png"]),  # one photo of a folder that is there was deleted
        (["1.png", "2.png"], ["1.png", "x.png"]),
        (["a.1", "a.2"], ["a.1", "a.png"]),  # a number after a point is no suffix
    ],
)
def test_a_name_that_is_missing_takes_no_other_photo(wanted, present):
    matching = match_names(wanted, present)
    assert len(matching.found) == 1
    assert not matching.unclear


def test_spellings_of_one_name_mean_one_file():
    found = match_names(["images/1.png", ".\\images\\1.png", "Images/1.PNG"], ["images/1.png"]).found
    assert len(found) == 3
    found |= match_names(
        ["./images/1.png", ".\\images\\1.png", "C:\\images\\2.png", "C:/images/2.png"], ["images/1.png"]
    ).found
    assert len(found) == 4
    assert {match.present for match in found.values()} == {"images/1.png"}


def rename_photos(root, new_name):
    for path in sorted((root / "images").rglob("*.png")):
        target = root / "images" / new_name(path.relative_to(root / "images").as_posix())
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


@pytest.mark.parametrize(
    ("new_name", "how"),
    [
        (lambda name: name.replace(".png", ".PNG"), "upper and lower case"),
        (lambda name: name.upper(), "upper and lower case"),
        (lambda name: name.replace(".png", ".tif"), "another suffix"),
        (lambda name: name.replace("/", "_"), "folders joined into the name"),
        (lambda name: f"all/{name}", "another folder"),
    ],
)
@pytest.mark.parametrize("name", ["colmap", "transforms"])
def test_photos_under_other_names_are_read_and_that_is_said(name, new_name, how, dataset, read):
    root = dataset(name)
    expected = read(root)
    rename_photos(root, new_name)
    if name == "transforms" and how == "folders joined into the name":
        return  # its names have no folder below images/
    scene = read(root)
    assert [view.name.rpartition("/")[2].lower() for view in scene.train] == [
        view.name.rpartition("/")[2].lower() for view in expected.train
    ]
    for view, other in zip(scene.train, expected.train, strict=True):
        assert (view.image == other.image).all()
    assert any("are found under another name" in note and how in note for note in scene.notes)


def test_a_model_written_on_windows_is_read(dataset, read):
    root = dataset("colmap")
    cameras, images, points = read_model(root / "sparse/0")
    for key, image in images.items():
        images[key] = type(image)(**{**vars(image), "name": image.name.replace("/", "\\")})
    expected = [view.name for view in read(root).train]
    write_model(root / "sparse/0", cameras, images, points)
    assert [view.name for view in read(root).train] == expected


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("prefix", ["C:\\scan\\", "C:/scan/", "/home/me/", "..\\"])
def test_paths_of_another_machine_are_read_by_their_ends(prefix, lists, dataset, read):
    root = dataset("transforms")
    expected = read(root, eval=True)

    def moved(data):
        for frame in data["frames"]:
            for key in ("file_path", "object_mask_path"):
                frame[key] = prefix + frame[key]
        data["ply_file_path"] = prefix + data["ply_file_path"]
        for split in ("train", "val", "test") if lists else ():
            data[f"{split}_filenames"] = [prefix + path for path in data[f"{split}_filenames"]]

    edit_json(root / "transforms.json", moved)
    scene = read(root, eval=True)
    for part in ("train", "test"):
        assert [view.name for view in getattr(scene, part)] == [view.name for view in getattr(expected, part)]
        assert all(view.segments is not None for view in getattr(scene, part))
    np.testing.assert_array_equal(scene.points.positions, expected.points.positions)
    assert any("11 other files of transforms.json are found by the ends" in note for note in scene.notes)


def test_a_path_without_suffix_is_the_png_where_there_are_others_too(dataset, read):
    root = dataset("transforms")  # two of its paths have no suffix
    expected = read(root)
    for path in (root / "images").glob("*.png"):
        path.with_suffix(".jpg").write_bytes(b"another")
    scene = read(root)
    assert all((view.image == other.image).all() for view, other in zip(scene.train, expected.train, strict=True))
    assert not any("under another name" in note for note in scene.notes)


@pytest.mark.parametrize("name", ["colmap", "transforms"])
def test_photos_that_are_unclear_are_refused_with_all_they_could_be(name, dataset, read):
    root = dataset(name)
    photo = next((root / "images").rglob("0002.png"))
    there = photo.relative_to(root / "images" if name == "colmap" else root).with_suffix("")
    for suffix in (".jpg", ".tif"):
        photo.with_suffix(suffix).write_bytes(photo.read_bytes())
    photo.unlink()
    with pytest.raises(UserError, match=re.escape(f"{there}.png may be {there}.jpg, {there}.tif")) as error:
        read(root)
    assert "\n" not in str(error.value)
