import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from unified_lift.data import images
from unified_lift.data import view as views
from unified_lift.data.images import image_size, parallel_map, read_image, resize_image, target_size, write_image
from unified_lift.errors import UserError


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((986, 728), 1, (986, 728)),
        ((987, 729), 2, (494, 364)),  # 493.5 and 364.5 to the nearest even, as Python rounds
        ((987, 729), 4, (247, 182)),
        ((987, 729), 8, (123, 91)),
        ((1600, 900), -1, (1600, 900)),
        ((1601, 900), -1, (1600, 899)),
        ((4946, 3286), -1, (1600, 1063)),
        ((987, 729), 500, (500, 369)),
        ((100, 50), 400, (400, 200)),
        ((3000, 10), 1, (3000, 10)),
        ((3, 3), 8, (1, 1)),
    ],
)
def test_resolution_rule(size, resolution, expected):
    assert target_size(*size, resolution) == expected


def test_alpha_is_dropped_or_composited_over_black(tmp_path):
    write_image(tmp_path / "a.png", np.array([[[200, 100, 50, 0], [200, 100, 50, 51], [200, 100, 50, 255]]], np.uint8))
    assert read_image(tmp_path / "a.png").tolist() == [[[200, 100, 50]] * 3]
    assert read_image(tmp_path / "a.png", alpha="background").tolist() == [[[0, 0, 0], [40, 20, 10], [200, 100, 50]]]


def test_grey_palette_and_16_bit_become_rgb(tmp_path):
    Image.fromarray(np.array([[0, 200]], np.uint8)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").tolist() == [[[0] * 3, [200] * 3]]
    Image.fromarray(np.array([[0, 257 * 9, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").tolist() == [[[0] * 3, [9] * 3, [255] * 3]]
    palette = Image.frombytes("P", (1, 1), b"\1")
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").tolist() == [[[10, 20, 30]]]


def test_rotation_in_the_metadata_is_not_applied(tmp_path):
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (4, 8, 3)


def test_shrinking_averages_and_growing_keeps_the_range():
    image = np.zeros((4, 4, 3), np.uint8)
    image[::2] = 200
    assert (resize_image(image, 2, 2) == 100).all()
    assert resize_image(image, 8, 8).max() <= 200
    assert resize_image(image, 4, 4) is image


def test_parallel_map_raises_the_first_error():
    with pytest.raises(ValueError, match="'item 0'"):
        parallel_map(int, [f"item {n}" for n in range(5)])


def solid(path, width, height):
    """Write a picture of one colour, which compresses well: many pixels in few bytes."""
    Image.new("RGB", (width, height), (120, 110, 100)).save(path)
    return path


def test_pictures_beyond_pillows_limits_are_pictures(tmp_path, monkeypatch):
    path = solid(tmp_path / "a.png", 40, 30)
    for limit in (100, 1000):  # Pillow warns beyond it and refuses twice as much
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert image_size(path) == (40, 30)
            assert read_image(path).shape == (30, 40, 3)
        assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(("width", "height"), [(60_000, 40_000), (100_000, 50_000)])
def test_a_file_that_lies_about_its_size_is_refused_before_it_is_decoded(width, height, tmp_path):
    content = solid(tmp_path / "a.png", 4, 3).read_bytes()
    header = content[12:16] + struct.pack(">II", width, height) + content[24:29]
    (tmp_path / "a.png").write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    for read in (image_size, read_image):
        with pytest.raises(UserError, match=rf"a\.png: not a readable image \(its \d+ bytes claim {width}x{height}"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("resolution", [-1, 8, 640, 1])
def test_a_large_photo_is_shrunk_at_once_to_the_size_in_use(resolution, dataset, read, monkeypatch):
    root = dataset("colmap")
    expected = read(root, resolution=resolution)
    for module in (images, views):
        monkeypatch.setattr(module, "LARGE", 32 * 24 - 1)
    found = read(root, resolution=resolution)
    for view, other in zip(found.train, expected.train, strict=True):
        assert view.image.shape == other.image.shape
        assert (view.image == other.image).all()
        assert (view.camera.fx, view.camera.cx) == pytest.approx((other.camera.fx, other.camera.cx))
        assert view.segments is None or view.segments.shape == other.segments.shape
