import numpy as np
import pytest

from tests.data.fixtures import edit_json
from unified_lift.data import load_annotations
from unified_lift.data.messy_rooms import describe
from unified_lift.data.settings import DataSettings


def test_stems_sort_as_numbers_and_the_last_fifth_is_held_out(dataset, read):
    scene = read(dataset("messy_rooms"), eval=True)
    assert [view.name for view in scene.train] == [str(n) for n in range(9)]  # floor(0.8 x 12) = 9
    assert [view.name for view in scene.test] == ["9", "10", "11"]


def test_background_is_a_segment_even_where_no_object_is_seen(dataset, read):
    root = dataset("messy_rooms")
    np.save(root / "detic_instance" / "2.npy", np.zeros((24, 32), np.int32))
    scene = read(root)
    assert scene.zero_id == "segment"
    assert (scene.train[2].segments == 0).all()


def test_another_mask_folder_can_be_chosen(dataset, read):
    root = dataset("messy_rooms")
    scene = read(root, object_path="instance")
    assert scene.zero_id == "ignore"
    chosen = scene.train[0].segments
    np.testing.assert_array_equal(chosen, np.load(root / "instance" / "0.npy"))


def test_truth_is_the_instance_where_semantics_say_object(dataset):
    root = dataset("messy_rooms")
    semantic = np.load(root / "semantic" / "4.npy")
    semantic[:, :16] = 0
    np.save(root / "semantic" / "4.npy", semantic)
    truth = load_annotations(DataSettings(source_path=root), ["4", "10"])
    assert set(truth) == {"4", "10"}
    assert not truth["4"][:, :16].any()
    right = np.load(root / "instance" / "4.npy")[:, 16:]
    np.testing.assert_array_equal(truth["4"][:, 16:], right)
    assert truth["4"].dtype == np.int32


def test_kubric_oracle(dataset):
    root = dataset("messy_rooms")

    def change(data):
        data["camera"]["K"] = [[1.09375, 0, -0.5], [0, -1.09375, -0.5], [0, 0, -1]]
        data["camera"]["positions"][0] = [1.0, -2.0, 3.0]
        data["camera"]["quaternions"][0] = [0.5, 0.5, 0.5, 0.5]

    edit_json(root / "metadata.json", change)
    frame = describe(root, DataSettings(source_path=root)).frames[0]
    lens = frame.lens.resized(512, 512)  # the oracle's size
    assert (lens.fx, lens.fy, lens.cx, lens.cy) == (560.0, 560.0, 256.0, 256.0)
    expected = [[0, 1, 0, 2], [0, 0, -1, 3], [-1, 0, 0, 1], [0, 0, 0, 1]]
    np.testing.assert_allclose(frame.cam_from_world, expected, atol=1e-12)


def test_focal_length_stands_in_for_a_missing_matrix(dataset, read):
    root = dataset("messy_rooms")
    expected = read(root).train[0].camera
    edit_json(root / "metadata.json", lambda data: data["camera"].pop("K"))
    edit_json(root / "metadata.json", lambda data: data["camera"].update(focal_length=35.2, sensor_width=32.0))
    camera = read(root).train[0].camera
    assert (camera.fx, camera.fy) == pytest.approx((1.1 * 32, 1.1 * 32))
    assert (camera.cx, camera.cy) == (expected.cx, expected.cy)
