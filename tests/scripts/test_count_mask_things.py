"""Things in masks, counted by what views show in common."""

import json

import count_mask_things as script
import numpy as np
import pytest

from tests.saved_model import save_model


def test_small_segments_and_no_segment_have_no_number():
    numbered, found = script.numbered_from(np.array([[0, 7, 7], [7, 3, 9], [9, 9, 9]]), first=5, min_pixels=2)
    assert numbered.tolist() == [[-1, 5, 5], [5, -1, 6], [6, 6, 6]]
    assert found == 2


def test_pairs_agree_where_they_share_more_than_half_of_what_both_cover():
    mine = np.array([0, 0, 0, 0, 1, 1, 1, -1])
    theirs = np.array([4, 4, 4, 5, 5, 5, -1, 5])  # 0 and 4: 3 of 4; 0 and 5: 1 of 7, too few; 1 and 5: 2 of 5
    assert script.overlapping(mine, theirs, fewest=2) == [(0, 4, True), (1, 5, False)]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ({(0, 1): [2, 2], (1, 2): [1, 2]}, [[0, 1], [2]]),  # half of the comparisons are not most
        # 2 shows both things and agrees most with 0: the things 0 and 1, of which nothing agrees, stay apart.
        ({(0, 2): [3, 3], (1, 2): [2, 3], (0, 1): [0, 1]}, [[0, 2], [1]]),
        ({(0, 2): [3, 3], (1, 2): [3, 3], (0, 1): [2, 3]}, [[0, 1, 2]]),
        ({}, [[0], [1], [2]]),
    ],
)
def test_clusters_are_joined_while_most_comparisons_agree(pairs, expected):
    assert sorted(sorted(cluster) for cluster in script.clusters(pairs, 3)) == expected


def test_things_are_seen_by_three_views_and_a_share_of_those_that_show_them():
    view_of, showing = np.array([0, 1, 2, 0, 1, 2, 3, 4]), np.array([3, 3, 3, 9, 9, 9, 3, 3])
    found = [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [script.things(found, view_of, showing, share) for share in (0.2, 0.5)] == [2, 1]


def test_the_miniature_has_its_coins_and_floor(tmp_path, capsys):
    model = save_model(tmp_path)
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    out = tmp_path / "found.json"
    flags = ["-m", str(model), "--stride", "1", "--min_pixels", "4", "--json", str(out)]
    assert script.main(flags) == 0
    counts = json.loads(out.read_text())
    assert (counts["seen in 25%"], counts["seen in 50%"]) == (3, 3)
    assert str(counts["seen in 50%"]) in capsys.readouterr().out
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    with pytest.raises(SystemExit):
        script.main([*flags, "--object_path", "nowhere"])
    assert "nowhere" in capsys.readouterr().err
