"""Which ids mean "in no mask": decided from all masks of a scene, or as the user says."""

import numpy as np
import pytest
import torch
from PIL import Image

from unified_lift.data.masks import read_stored_mask
from unified_lift.data.void import telling_ids, void_ids, void_to_zero
from unified_lift.errors import UserError


def decided(tmp_path, *maps, wanted="auto"):
    """Return the void ids of masks and what is said; each is one row of ids."""
    told = []
    for n, values in enumerate(maps):
        path = tmp_path / f"{n}.npy"
        np.save(path, np.atleast_2d(values))
        told.append(telling_ids(path, read_stored_mask(path)))
    return void_ids(told, wanted)


U8, U16, U32, I16 = np.uint8, np.uint16, np.uint32, np.int16


@pytest.mark.parametrize(
    ("maps", "void"),
    [
        ([[0, 1, 2]], set()),
        ([[-1, 0, 1], [0, 1, 2]], {-1}),
        ([[-9999, 0, 1], [0, 1, 2]], {-9999}),
        ([[np.nan, 0, 1]], {-1}),
        ([np.array([0, 1, 2], U32) - 1], {-1}),
        ([np.array([-1, 4], I16)], {-1}),
        ([np.array([0, 1, 2, 255], U8)], {255}),
        ([np.array([3, 255], U8), np.array([4, 255], U8)], {255}),  # counted over all masks
        ([np.array([0, 1, 2, 65535], U16)], {65535}),
        ([[0, 1, 2, 255]], {255}),
        ([np.array([0, 255], U8)], set()),  # one object in black and white
        ([np.array([0, 85, 170, 255], U8)], set()),  # objects in shades of grey
        ([np.arange(256).astype(U8)], set()),  # as many objects as fit
        ([np.array([0, 1, 2, 255], U8), [0, 1, 256]], set()),  # 255 is not the largest
        ([np.array([0, 1, 254, 255], U8)], set()),
    ],
)
def test_what_the_masks_tell(tmp_path, maps, void):
    assert decided(tmp_path, *maps)[0] == void


def test_what_was_decided_is_said_where_there_was_something_to_decide(tmp_path):
    assert decided(tmp_path, [0, 1, 2])[1] == ""
    assert decided(tmp_path, [0, 255])[1] == ""
    assert "id -1 are in no mask, and 0 is a segment like others (--void_id auto)" in decided(tmp_path, [-1, 2])[1]
    assert "id 255 of the masks is a segment like others; --void_id 255" in decided(tmp_path, [9, 254, 255])[1]
    assert decided(tmp_path, [0, 255], wanted="255") == ({255}, decided(tmp_path, [0, 255], wanted="255")[1])
    assert "id 0, 255 are in no mask (--void_id 0,255)" in decided(tmp_path, [0, 255], wanted="0,255")[1]
    assert decided(tmp_path, [0, 1, 255], wanted="none") == (set(), "masks have no void id (--void_id none)")
    assert void_ids([], "255") == (set(), "")


@pytest.mark.parametrize(
    ("maps", "wanted", "message"),
    [
        ([[-2, -1, 0]], "auto", r"0\.npy: .*received -2 .*--void_id=-2,-1"),
        ([[0, 1], [-1, 0]], "none", r"1\.npy: .*received -1 \(--void_id none\).*--void_id=-1"),
        ([[-1, 0]], "255", "received -1"),
        ([[0, 1]], "minus one", "choose auto, none or an id"),
        ([[0, 1]], "99999999999", "choose auto, none or an id"),
    ],
)
def test_negative_ids_without_a_meaning_and_other_words_are_refused(tmp_path, maps, wanted, message):
    with pytest.raises(UserError, match=message):
        decided(tmp_path, *maps, wanted=wanted)


def test_void_becomes_zero_and_no_object_is_lost():
    segments = torch.tensor([[-1, 0, 3], [255, 1, 0]], dtype=torch.int32)
    void_to_zero(segments, {-1, 255})
    assert segments.tolist() == [[0, 1, 4], [0, 2, 1]]


@pytest.mark.parametrize("data_device", ["cpu", "disk"])
def test_a_scene_with_minus_one_keeps_object_zero_and_loses_views_without_any(dataset, tmp_path, data_device):
    from unified_lift.data import load_scene
    from unified_lift.data.cache import DataCache
    from unified_lift.data.settings import DataSettings

    root = dataset("colmap")
    for n, path in enumerate(sorted((root / "object_mask").rglob("*.png"))):
        ids = np.array(Image.open(path)).astype(np.int32)
        ids = np.searchsorted(np.unique(ids), ids) - 1  # 0 = floor -> -1, the first coin -> 0
        ids[:] = {7: 0, 8: -1}.get(n, ids)  # one view of the first coin alone, one of nothing
        np.save(path.with_suffix(".npy"), ids)
        path.unlink()
    cache = DataCache(data_device, device=torch.device("cpu"))
    scene = cache.cached(load_scene(DataSettings(source_path=root, num_random_points=50), cache=cache))
    assert (scene.zero_id, scene.void_ids) == ("ignore", (-1,))
    assert len(scene.labelled) == 8
    for view in scene.labelled:
        ids = np.load((root / "object_mask" / view.name).with_name(view.name.split("/")[1] + ".npy"))
        np.testing.assert_array_equal(view.segments.numpy(), ids + 1)
    assert any("id -1 are in no mask" in note for note in scene.notes)
