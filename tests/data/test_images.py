import numpy as np
import pytest
from PIL import Image

from unified_lift.data.images import parallel_map, read_image, resize_image, target_size, write_image


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
