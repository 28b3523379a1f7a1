"""Photos and video frames on their way into a reconstruction."""

import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.fixtures.floor import floor_photos, orbit
from unified_lift.capture.frames import (
    is_video,
    list_photos,
    photo_name,
    sharpest,
    sharpness,
    write_photos,
    write_sharp_frames,
)
from unified_lift.data.images import read_image, write_image
from unified_lift.errors import UserError

LEFT_RED = np.zeros((60, 100, 3), np.uint8)
LEFT_RED[:, :50, 0] = 255


def prepared(tmp_path, name, *, max_size=200):
    source, target = tmp_path / "in", tmp_path / "out"
    write_photos(list_photos(source), source, target, max_size, lambda *_: None)
    return target / name


def write_video(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()


def test_exif_rotation_is_applied_and_the_focal_length_kept_but_not_the_place(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to stand upright
    exif[0x0110] = "Phone 7"
    exif[0x8769] = {0xA405: 28, 0x9003: "2024:01:01 10:00:00"}
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 0.0)}
    (tmp_path / "in").mkdir()
    Image.fromarray(LEFT_RED).save(tmp_path / "in/a.JPG", exif=exif, quality=95)
    path = prepared(tmp_path, "a.jpg")
    image = read_image(path)
    assert image.shape == (100, 60, 3)
    assert image[10, 30, 0] > 200  # what was left is on top
    assert image[90, 30, 0] < 50
    kept = Image.open(path).getexif()
    assert 0x0112 not in kept
    assert kept[0x0110] == "Phone 7"
    assert kept.get_ifd(0x8769) == {0xA405: 28}
    assert not kept.get_ifd(0x8825)


def test_the_longer_side_is_shrunk_to_max_size_small_photos_stay_and_jpegs_are_copied(tmp_path):
    write_image(tmp_path / "in/wide.png", np.zeros((60, 300, 3), np.uint8))
    write_image(tmp_path / "in/small.png", np.zeros((10, 20, 3), np.uint8))
    write_image(tmp_path / "in/sub/a.jpeg", LEFT_RED)
    assert read_image(prepared(tmp_path, "wide.jpg", max_size=100)).shape == (20, 100, 3)
    assert read_image(tmp_path / "out/small.jpg").shape == (10, 20, 3)
    assert (tmp_path / "out/sub/a.jpg").read_bytes() == (tmp_path / "in/sub/a.jpeg").read_bytes()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_every_kind_of_picture_becomes_8_bit_rgb(mode, tmp_path):
    (tmp_path / "in").mkdir()
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 204 * 257, np.uint16))
    else:
        image = Image.fromarray(np.full((8, 8, 3), 204, np.uint8)).convert(mode)
    image.save(tmp_path / "in" / ("a.jpg" if mode == "CMYK" else "a.png"))
    written = Image.open(prepared(tmp_path, "a.jpg"))
    assert written.mode == "RGB"
    assert np.abs(np.asarray(written).astype(int) - 204).max() <= 3


def test_photos_are_found_in_subfolders_sorted_and_without_hidden_files(tmp_path):
    for name in ("b/2.png", "a/1.JPG", "._a.jpg", ".trash/x.png", "notes.txt"):
        write_image(tmp_path / "x.png", LEFT_RED)
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x.png").rename(tmp_path / "in" / name)
    found = list_photos(tmp_path / "in")
    assert [photo_name(path, tmp_path / "in") for path in found] == ["a/1.jpg", "b/2.jpg"]


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["a.png", "a.jpg"], r"a\.png: has the same name as a\.jpg.*rename"),
        (["readme.md"], "holds no photos"),
        (["IMG_1.HEIC"], r"IMG_1\.HEIC: 1 HEIC photos.*pillow-heif, or export"),
    ],
)
def test_photos_that_cannot_be_used_are_named(names, pattern, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=pattern):
        list_photos(tmp_path)


def test_videos_are_told_from_folders(tmp_path):
    (tmp_path / "clip.MOV").write_bytes(b"")
    (tmp_path / "a.txt").write_text("")
    assert is_video(tmp_path / "clip.MOV")
    assert not is_video(tmp_path)
    for name, pattern in (("a.txt", "neither a folder of photos nor a video"), ("gone", "no such")):
        with pytest.raises(UserError, match=pattern):
            is_video(tmp_path / name)


def test_sharpness_of_one_black_pixel_by_hand():
    image = np.full((3, 3, 3), 100, np.uint8)
    image[1, 1] = 0
    # Borders are mirrored without repeating the edge: the centre sees 4 * 100; each of the four edge pixels sees the
    # centre twice, -2 * 100; corners see none. Mean (400 - 800) / 9, mean square (160000 + 4 * 40000) / 9.
    expected = 320000 / 9 - (400 / 9) ** 2
    assert sharpness(image) == pytest.approx(expected)


def test_the_sharpest_of_each_window_is_chosen():
    assert sharpest([1, 5, 2, 9, 3, 3, 0, 1, 2], count=3) == [1, 3, 8]
    assert sharpest([1, 2, 3], count=5) == [0, 1, 2]
    assert sharpest([7, 7, 7, 7], count=2) == [0, 2]


def test_sharp_frames_of_a_video_are_written_under_their_numbers(tmp_path):
    sharp = [view.image[..., ::-1] for view in floor_photos(orbit(12, width=64, height=48))]
    frames = [frame if n in (1, 6, 10) else cv2.GaussianBlur(frame, (0, 0), 3) for n, frame in enumerate(sharp)]
    write_video(tmp_path / "v.mp4", frames)
    seen = []
    count = write_sharp_frames(tmp_path / "v.mp4", tmp_path / "out", 3, 32, lambda *at: seen.append(at))
    assert count == 12
    names = ["frame_000001.jpg", "frame_000006.jpg", "frame_000010.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert seen[-1] == (24, 24)
    assert [done for done, _ in seen] == list(range(1, 25))
    written = read_image(tmp_path / "out/frame_000006.jpg")
    assert written.shape == (24, 32, 3)
    expected = cv2.resize(sharp[6][..., ::-1], (32, 24), interpolation=cv2.INTER_AREA)
    assert np.abs(written.astype(float) - expected).mean() < 12  # two lossy codecs, colours in the right order


def test_damaged_files_are_named(tmp_path):
    write_image(tmp_path / "in/a.png", LEFT_RED)
    for name in ("in/a.png", "v.mp4"):
        (tmp_path / name).write_bytes(b"nothing to see")
    with pytest.raises(UserError, match=r"a\.png: not a readable image"):
        prepared(tmp_path, "a.jpg")
    with pytest.raises(UserError, match=r"v\.mp4: no frame.*H\.264"):
        write_sharp_frames(tmp_path / "v.mp4", tmp_path / "out", 3, 100, lambda *_: None)
