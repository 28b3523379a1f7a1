import gc
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unified_lift.data.images import parallel_map
from unified_lift.data.mask_formats.base import MaskFormat
from unified_lift.data.masks import find_mask, read_mask, read_stored_mask, same_aspect, write_mask
from unified_lift.errors import UserError

IDS = np.array([[0, 1, 2], [255, 256, 65535]], dtype=np.int32)


def assert_reads(path, expected):
    ids = read_mask(path)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected)


def test_written_masks_are_16_bit_and_return(tmp_path):
    write_mask(tmp_path / "deep" / "a.png", IDS)
    assert Image.open(tmp_path / "deep" / "a.png").mode.startswith("I;16")
    assert_reads(tmp_path / "deep" / "a.png", IDS)


def test_8_bit_grey_gives_the_value_and_palettes_the_index_not_the_colour(tmp_path):
    values = np.array([[0, 7], [128, 255]], np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert_reads(tmp_path / "a.png", values)
    image = Image.frombytes("P", (2, 2), values.tobytes())
    image.putpalette([9, 9, 9] * 256)  # every index looks the same
    image.save(tmp_path / "a.png")
    assert_reads(tmp_path / "a.png", values)
    grey_alpha = np.stack([values, np.full((2, 2), 255, np.uint8)], axis=-1)
    Image.fromarray(grey_alpha, "LA").save(tmp_path / "a.png")
    assert_reads(tmp_path / "a.png", values)


@pytest.mark.parametrize("alpha", [False, True])
def test_rgb_holds_24_bit_ids(tmp_path, alpha):
    ids = np.array([[0, 255], [70_000, 2**24 - 1]], np.int64)
    channels = [ids % 256, ids // 256 % 256, ids // 65536] + [np.full_like(ids, 17)] * alpha
    Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).save(tmp_path / "a.png")
    assert_reads(tmp_path / "a.png", ids)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.float32, bool])
def test_npy_of_any_number_type(tmp_path, dtype):
    values = np.array([[0, 1], [1, 0]]).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    assert_reads(tmp_path / "a.npy", values.astype(np.int32))


def test_npy_keeps_large_ids_and_drops_a_last_axis_of_one(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[[100_000], [3]]]))
    assert_reads(tmp_path / "a.npy", [[100_000, 3]])


def test_npz_by_known_key_or_single_array_and_omniseg_by_its_patch_indices(tmp_path):
    for arrays in ({"indices": IDS}, {"whatever": IDS}, {"correlation": np.eye(4, dtype=np.uint8), "indices": IDS}):
        np.savez(tmp_path / "a.npz", **arrays)
        assert_reads(tmp_path / "a.npz", IDS)
    np.savez(tmp_path / "a.npz", left=IDS, right=IDS)
    with pytest.raises(UserError, match="left.*right.*name the id map"):
        read_mask(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0, -1]]), "write unlabelled as 0"),
        (np.array([[0.5]]), "fractions"),
        (np.array([[np.inf]]), "infinity"),
        (np.array([[2, np.nan]]), "received -1..2"),
        (np.array([[2**40]]), r"2\^31"),
        (np.arange(30).reshape(2, 3, 5), r"\[2, 3, 5\]"),
        (np.linspace(0, 1, 30).reshape(2, 3, 5), "a stack of masks of 0 and 1"),
        (np.zeros((0, 3)), r"\[0, 3\]"),
        (np.array([["a"]]), "whole numbers"),
    ],
)
def test_arrays_that_are_no_id_map(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=rf"a\.npy.*{message}"):
        read_mask(tmp_path / "a.npy")


def test_pickled_arrays_are_never_executed(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"pickled list or object.*np\.stack"):
        read_mask(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_many_threads_read_arrays_while_the_collector_runs_python(tmp_path, suffix):
    path, ids = tmp_path / f"mask.{suffix}", np.arange(12).reshape(3, 4)
    np.save(path, ids) if suffix == "npy" else np.savez(path, ids=ids)

    def read_at_depth(depth):
        return read_at_depth(depth - 1) if depth else read_mask(path)

    def switch(phase, info):
        sum(range(50))

    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    gc.callbacks.append(switch)
    try:
        sys.setswitchinterval(1e-6)
        gc.set_threshold(10)
        read = parallel_map(read_at_depth, [number % 5 for number in range(1500)])
    finally:
        gc.callbacks.remove(switch)
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)
    assert all(np.array_equal(one, ids) for one in read)


def test_missing_and_unusable_files_are_named(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "a.jpg")
    Image.new("CMYK", (2, 2)).save(tmp_path / "a.tif")
    Image.new("L", (2, 2)).save(tmp_path / "c.png", "JPEG")
    messages = {
        "b.npy": "no such file",
        "b.png": "no such file",
        "a.tif": "mode CMYK",
        "a.jpg": "JPEG",
        "c.png": "JPEG",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            read_mask(tmp_path / name)


@pytest.mark.parametrize("ids", [np.array([[70_000]]), np.array([[-1]]), np.zeros(3)])
def test_ids_that_16_bits_cannot_hold_are_not_written(tmp_path, ids):
    with pytest.raises(ValueError, match="ids"):
        write_mask(tmp_path / "a.png", ids)


def test_full_relative_path_wins_over_the_stem(tmp_path):
    for name in ("cam1/0001.png", "0001.npy", "a.b.png", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_mask(tmp_path, "cam1/0001").path == tmp_path / "cam1" / "0001.png"
    assert find_mask(tmp_path, "cam2/0001").path == tmp_path / "0001.npy"
    assert find_mask(tmp_path, "a.b").path == tmp_path / "a.b.png"
    assert find_mask(tmp_path, "b") is None


def test_a_format_may_keep_the_masks_of_all_views_in_one_file(tmp_path):
    np.savez(tmp_path / "all.npz", one=IDS, two=IDS + 1)
    stack = MaskFormat(
        looks_for="all.npz",
        suffixes=(".npz",),
        read=lambda mask: (np.load(mask.path)[mask.part], "stack"),
        locate=lambda folder, name: (folder / "all.npz", name) if name in ("one", "two") else None,
    )
    found = stack.find(tmp_path, "two")
    assert found != stack.find(tmp_path, "one")
    assert stack.find(tmp_path, "three") is None
    ids, kind, *_ = read_stored_mask(found)
    np.testing.assert_array_equal(ids, IDS + 1)
    assert kind == "stack"


@settings(max_examples=200, deadline=None)
@given(st.integers(16, 4000), st.integers(16, 4000), st.integers(1, 8), st.booleans())
def test_rounded_copies_keep_the_aspect(width, height, factor, cut):
    small = (max(1, width // factor), max(1, height // factor))
    if not cut:
        small = (max(1, round(width / factor)), max(1, round(height / factor)))
    assert same_aspect((width, height), small)
    assert same_aspect(small, (width, height))


@pytest.mark.parametrize("other", [(480, 640), (640, 640), (320, 200), (640, 360), (640, 470)])
def test_other_shapes_are_told_apart(other):
    assert not same_aspect((640, 480), other)
