import numpy as np
import pytest

from unified_lift.data.images import write_image
from unified_lift.data.settings import DataSettings, split_names, thin
from unified_lift.errors import UserError


@pytest.mark.parametrize(("count", "held"), [(1, 1), (8, 1), (9, 2), (100, 13), (177, 23), (300, 38)])
def test_llffhold_oracle(count, held, tmp_path):
    names = [f"{n:03d}" for n in range(count + 1)]
    test = split_names(names, tmp_path, DataSettings(eval=True))[1]
    assert len([name for name in test if name != names[-1]]) == held


@pytest.mark.parametrize(
    ("n_views", "expected"),
    # Half of 11 rounds to 6: evenly spaced, both ends included.
    [(100, list(range(11))), (50, [0, 2, 4, 6, 8, 10]), (3, [0, 5, 10]), (1, [0]), (500, list(range(11)))],
)
def test_thinning(n_views, expected):
    assert thin(11, n_views) == expected


@pytest.mark.parametrize("count", [2, 3, 10, 57, 333])
@pytest.mark.parametrize("n_views", [2, 7, 49, 50, 51, 99])
def test_thinning_never_repeats_a_view(count, n_views):
    kept = thin(count, n_views)
    assert len(set(kept)) == len(kept)
    assert kept[-1] == count - 1 or len(kept) == 1


NAMES = ["cam1/0001", "cam1/a.b", "cam2/0001", "x", "y"]


def test_train_split_matches_relative_names_and_stems(tmp_path):
    for name in ("a.b.jpg", "cam2/0001.png", "x.png"):
        write_image(tmp_path / "images_train" / name, np.zeros((2, 2, 3), np.uint8))
    train, test = split_names(NAMES, tmp_path, DataSettings(train_split=True, eval=True))
    assert train == ["cam1/a.b", "cam2/0001", "x"]
    assert test == ["cam1/0001", "y"]
    train, test = split_names(NAMES, tmp_path, DataSettings(train_split=True))
    assert (train, test) == (["cam1/a.b", "cam2/0001", "x"], [])


def test_own_list_decides_only_with_eval(tmp_path):
    assert split_names(NAMES, tmp_path, DataSettings(eval=True), held_out=["x", "y"]) == (NAMES[:3], ["x", "y"])
    assert split_names(NAMES, tmp_path, DataSettings(), held_out=["x", "y"]) == (NAMES, [])
    assert split_names(NAMES, tmp_path, DataSettings(eval=True)) == (NAMES[1:], NAMES[:1])
    assert split_names(NAMES, tmp_path, DataSettings(eval=True, llffhold=2)) == (NAMES[1::2], NAMES[::2])


def test_two_lists_at_once_are_refused(tmp_path):
    with pytest.raises(UserError, match="own list.*drop --train_split"):
        split_names(NAMES, tmp_path, DataSettings(train_split=True, eval=True), held_out=["x"])


def test_thinning_leaves_the_test_views_alone(tmp_path):
    train, test = split_names([f"{n:02d}" for n in range(16)], tmp_path, DataSettings(eval=True, n_views=50))
    assert len(train) == 7
    assert test == ["00", "08"]
