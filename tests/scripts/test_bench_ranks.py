"""The benchmark of several processes: each number of them is trained once, a table of all."""

import json
from functools import partial

import bench_ranks
import pytest

from tests import processes
from tests.cli.test_train import SHORT
from tests.data.fixtures import write_dataset
from unified_lift.cli.main import main


def test_every_number_of_processes_is_measured_once(tmp_path, monkeypatch, capsys):
    write_dataset("transforms", tmp_path / "scene")
    commands = []

    def done_with(command, log):
        """Do the command in forked processes, which have torch loaded."""
        commands.append(command)
        count = int(command[command.index("--nproc_per_node") + 1]) if "--nproc_per_node" in command else 1
        work = partial(main, command[command.index("unified_lift") + 1 :])
        codes = processes.finish(processes.start(work, count, tmp_path)) if count > 1 else [work()]
        assert codes == [0] * count, processes.said(tmp_path, count)
        return 2**20

    monkeypatch.setattr(bench_ranks, "done_with", done_with)
    argv = [str(tmp_path / "scene"), "--out", str(tmp_path / "out"), "--", *SHORT[:-1], "--log-interval", "2"]
    assert bench_ranks.main(argv) == 0
    assert len(commands) == 4  # two trainings, two scorings
    rows = [json.loads(line) for line in (tmp_path / "out" / "ranks.jsonl").read_text().splitlines()]
    assert [row["ranks"] for row in rows] == [1, 2]
    for row in rows:
        assert row["peak_GiB"] == 1
        assert min(row[name] for name in ("images_per_s", "pixels_per_s", "PSNR", "PQ", "seconds")) > 0
    assert json.loads((tmp_path / "out" / "2_0" / "manifest.json").read_text())["processes"] == 2
    shown = capsys.readouterr().out
    assert f"2 against 1: images_per_s x {rows[1]['images_per_s'] / rows[0]['images_per_s']:.3g}," in shown
    assert f"PSNR {rows[1]['PSNR'] - rows[0]['PSNR']:+.3g}," in shown
    assert bench_ranks.main(argv) == 0
    assert len(commands) == 4


def test_rates_are_those_behind_the_first_quarter():
    log = [{"stage": "lift", "step": step, "seconds_per_step": 1 / step} for step in (1, 2, 4, 5, 8)]
    assert bench_ranks.step_seconds(log, "lift") == pytest.approx(1 / 5)
    assert bench_ranks.step_seconds(log, "geometry") is None
