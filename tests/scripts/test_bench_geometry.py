"""The benchmark of geometry: cells that are trained once, a table of all."""

import json
from pathlib import Path

import bench_geometry

from tests.data.fixtures.transforms import write


def call(tmp_path, *words):
    scene = tmp_path / "scene"
    if not scene.exists():
        scene.mkdir()
        write(scene)
    argv = [str(scene), "--out", str(tmp_path / "out"), "--iterations", "6", "--seeds", "0", "--timeline", "3"]
    return bench_geometry.main([*argv, "--data", "--random_init --num_random_points 60", *words])


def test_every_contender_is_trained_once_and_scored_on_its_way(tmp_path, capsys):
    words = (
        "--contenders",
        "ours:",
        "few:--strategy mcmc --relocation_interval 2 --relocate_from_iter 0",
        "--cap",
        "80",
    )
    assert call(tmp_path, *words) == 0
    cells = {path.parts[-3]: path for path in Path(tmp_path / "out").rglob("cell.json")}
    assert set(cells) == {"ours", "few"}
    few = json.loads(cells["few"].read_text())
    assert [row["iteration"] for row in few["rows"]] == [3, 6]
    assert few["rows"][-1]["num_gaussians"] == 80  # the cap
    assert all(0 < row["SSIM"] < 1 and row["PSNR"] > 3 for row in few["rows"])
    assert few["rows"][0]["seconds"] < few["rows"][1]["seconds"]
    table = capsys.readouterr().out
    assert "| scene | 6 | few (of 6) | 1 |" in table
    before = {path: path.stat().st_mtime_ns for path in cells.values()}
    assert call(tmp_path, *words) == 0
    assert {path: path.stat().st_mtime_ns for path in cells.values()} == before


def test_a_training_that_fails_is_told_and_the_others_go_on(tmp_path, capsys):
    assert call(tmp_path, "--contenders", "bad:--strategy none", "ours:") == 1
    out = capsys.readouterr().out
    assert "bad/seed0: failed" in out
    assert "ours (of 6)" in out
    assert "no such density strategy" in next(Path(tmp_path / "out").rglob("bad/seed0/log.txt")).read_text()
