"""The training benchmark: figures of every cell, work that is not done twice, quality over time."""

import json

import pytest

from tests.cli.test_train import SHORT
from tests.data.fixtures import write_dataset

RANDOM_POINTS = ("--random_init", "--num_random_points=200")


@pytest.fixture
def scene(tmp_path):
    write_dataset("messy_rooms", tmp_path / "tiny")
    return tmp_path / "tiny"


def run(scene, out, *arguments, given=()):
    import bench_train

    return bench_train.main(["-s", str(scene), "-o", str(out), *arguments, "--", *RANDOM_POINTS, *SHORT, *given])


def test_every_cell_is_trained_once_and_listed(scene, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(scene, out, "--seeds", "0", "1") == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert len(table) == 1
    assert table[0].startswith("| tiny | `unified_lift` | 2 | ")
    (row,) = json.loads((out / "bench_train.json").read_text())["results"]
    first, second = row["cells"]
    for cell in (first, second):
        assert 3 < cell["PSNR"] < 60
        assert cell["all"] > cell["geometry"] + cell["lift"] > 0
    assert first["PSNR"] != second["PSNR"]
    before = (out / "tiny" / "unified_lift_0" / "results.json").stat().st_mtime_ns
    assert run(scene, out, "--seeds", "0", "1") == 0
    assert (out / "tiny" / "unified_lift_0" / "results.json").stat().st_mtime_ns == before


def test_quality_over_time_goes_on_where_a_joint_run_stood(scene, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ("--presets", "unified_lift", "released", "--seeds", "0", "--timeline", "4", "8")
    assert run(scene, out, *arguments) == 0
    curves = json.loads((out / "timeline.json").read_text())["curves"]
    assert [[p["iterations"] for p in points] for points in curves.values()] == [[4, 8], [4, 8]]
    for early, late in curves.values():
        assert late["PSNR"] != early["PSNR"]
    joint = curves["released"]
    assert joint[1]["seconds"] > joint[0]["seconds"]  # of one run
    assert sorted(p.name for p in (out / "tiny").iterdir()) == [
        "timeline_released", "timeline_unified_lift_4", "timeline_unified_lift_8",
    ]  # fmt: skip
    assert (out / "timeline.png").stat().st_size > 10_000


def test_words_for_one_preset_reach_that_preset_only():
    import bench_train

    assert bench_train.for_preset("released:--iterations=5", "released") == "--iterations=5"
    assert bench_train.for_preset("released:--iterations=5", "paper") is None
    assert bench_train.for_preset("--config=a:b.yaml", "paper") == "--config=a:b.yaml"
