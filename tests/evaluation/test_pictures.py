"""Colours of ids, overlays, and files that are whole."""

import os

import cv2
import numpy as np
import pytest

from unified_lift.errors import UserError
from unified_lift.evaluation import pictures
from unified_lift.evaluation.plots import write_plots
from unified_lift.reading import as_text


def test_colors_of_ids_never_change_and_are_the_same_wherever_an_id_occurs():
    first = [list(pictures.BACKGROUND_COLOR), [240, 103, 76], [15, 94, 196], [38, 244, 180]]
    assert pictures.object_colors(np.arange(4)).tolist() == first
    assert pictures.object_colors(np.array([[3, 1], [3, 0]])).tolist() == [[first[3], first[1]], [first[3], first[0]]]


def test_many_objects_can_be_told_apart_and_only_zero_looks_like_the_background():
    assert not (pictures.object_colors(np.arange(1, 65_536)) == pictures.BACKGROUND_COLOR).all(axis=-1).any()
    colors = pictures.object_colors(np.arange(pictures.PALETTE_SIZE)).astype(int)
    assert len(np.unique(colors, axis=0)) == pictures.PALETTE_SIZE
    gap = np.abs(colors[:, None] - colors[None]).sum(axis=-1) + 1000 * np.eye(pictures.PALETTE_SIZE, dtype=int)
    assert gap[:16, :16].min() >= 80
    assert gap[:64, :64].min() >= 40


def test_borders_are_where_the_id_changes_to_the_right_or_below():
    ids = np.array([[1, 1, 2], [1, 1, 2], [3, 3, 3]])
    assert pictures.borders(ids).tolist() == [[False, True, False], [True, True, True], [False, False, False]]


def test_overlay_mixes_half_and_half_and_draws_borders_white():
    image = np.full((1, 3, 3), 100, dtype=np.uint8)
    mixed = pictures.overlay(image, np.array([[4, 4, 9]]))
    assert mixed[0, 0].tolist() == np.rint(50 + pictures.object_colors(np.array(4)) / 2).tolist()
    assert mixed[0, 1].tolist() == [255, 255, 255]


def test_true_objects_take_the_color_of_their_partner():
    ids = np.array([[0, 300], [7, 8]])
    colors = pictures.partner_colors(ids, {300: 2, 7: None, 0: 5})
    expected = [pictures.object_colors(np.array([5, 2])), [pictures.UNMATCHED_COLOR] * 2]
    assert colors.tolist() == np.array(expected).tolist()


def test_the_less_certain_the_brighter():
    picture = pictures.uncertainty_picture(np.linspace(1, 0, 20)[None]).astype(int).sum(axis=-1)[0]
    assert picture[0] < 10
    assert (np.diff(picture) > 0).all()


def test_depth_shows_empty_pixels_black_and_near_ones_red():
    depth = np.array([[1.0, 2.0, 4.0, 0.0]])
    picture = pictures.depth_picture(depth, np.array([[1.0, 1.0, 1.0, 0.0]]))
    assert picture[0, 0, 0] > picture[0, 0, 2]
    assert picture[0, 2, 2] > picture[0, 2, 0]
    assert picture[0, 3].tolist() == [0, 0, 0]
    assert pictures.depth_picture(depth * 0, depth * 0).max() == 0


@pytest.mark.parametrize(
    ("picture", "stored"),
    [
        (np.array([[0, 255, 256], [300, 40_000, 65_535]]), np.uint16),
        (np.arange(60, dtype=np.uint8).reshape(5, 4, 3), np.uint8),
        (np.array([[True, False]]), np.uint8),
    ],
)
def test_pictures_survive_the_file_and_masks_are_black_and_white(picture, stored, tmp_path):
    path = tmp_path / "cam 1" / "a.b.png"
    pictures.write_picture(path, picture)
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).dtype == stored
    assert (pictures.read_picture(path) == picture * (255 if picture.dtype == bool else 1)).all()
    assert list(path.parent.iterdir()) == [path]


def test_ids_below_zero_or_beyond_three_bytes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="received -1"):
        pictures.object_colors(np.array([-1, 2]))
    with pytest.raises(ValueError, match="must not be negative, received -1"):
        pictures.write_picture(tmp_path / "a.png", np.array([[0, -1]]))
    with pytest.raises(UserError, match="holds 16777215 at most, received 16777216; merge objects"):
        pictures.write_picture(tmp_path / "a.png", np.array([[0, 2**24]]))


@pytest.mark.parametrize("most", [9, 65_535, 65_536, 2**24 - 1])
def test_ids_of_any_size_are_read_as_they_were_written(tmp_path, most):
    ids = np.array([[0, 1, 300], [most - 1, most, 40_000 % most]])
    pictures.write_picture(tmp_path / "a.png", ids)
    found = pictures.read_ids(tmp_path / "a.png")
    assert found.dtype == np.int32
    assert found.tolist() == ids.tolist()


def test_missing_and_damaged_pictures_are_named(tmp_path):
    for content in (None, b"half a"):
        if content is not None:
            (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match="a.png: missing or damaged"):
            pictures.read_picture(tmp_path / "a.png")


def test_names_that_are_no_text_are_written_read_and_drawn(tmp_path):
    name = os.fsdecode(b"a\xea")
    pictures.write_picture(tmp_path / f"{name}.png", np.arange(6).reshape(2, 3))
    assert pictures.read_picture(tmp_path / f"{name}.png").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert as_text(name) == "a\\udcea"
    plots = write_plots(tmp_path, per_view={"PSNR": {name: 1.0}}, log_lines=[])
    assert plots["Scores"].is_file()
    for target in ("gone.png", "empty.png"):
        (tmp_path / "empty.png").touch()
        with pytest.raises(UserError, match="missing or damaged picture"):
            pictures.read_picture(tmp_path / target)
