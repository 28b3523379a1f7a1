"""A pair of each kind in tests/pairs.py would take long; the first two are trainings that start at once."""

from tests.pairs import Pairs


def test_of_two_commands_that_write_into_one_folder_at_once_one_runs_and_one_is_refused(tmp_path):
    found = list(Pairs(tmp_path / "pairs", seed=1).pairs(2))
    assert [wrong for _, wrong in found if wrong] == []
    assert len(found) == 2
