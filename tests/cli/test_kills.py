"""A few of the kills of tests/kills.py: a training that was ended at random moments ends like an undisturbed one."""

from tests.folders import contents
from tests.kills import Kills


def test_trainings_that_are_killed_and_go_on_end_where_an_undisturbed_one_does(tmp_path):
    trial = Kills(tmp_path / "kills", seed=3)
    kills = []
    for _ in range(4):  # on a machine that was busy at first, all may be through before they are killed
        trainings = list(trial.trainings(4))
        assert [wrong for _, wrong in trainings if wrong] == []
        kills += [kill for found, _ in trainings for kill in found]
        if any(kill.status for kill in kills):
            break
    assert any(kill.status for kill in kills)
    model, table = tmp_path / "kills/model", "point_cloud/iteration_60/segmentation.npz"  # the comparison sees a byte
    data = bytearray((model / table).read_bytes())
    data[-100] ^= 1
    (model / table).write_bytes(data)
    assert contents(model).keys() == trial.whole.keys()
    assert table in trial.differences(model)
