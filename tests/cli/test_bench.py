"""unified-lift bench on a fixture dataset: whole grids in this process, and Ctrl-C with real ones."""

import csv
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from tests.cli.test_train import SHORT
from tests.data.fixtures import write_dataset
from unified_lift.bench import tables
from unified_lift.bench.run import LocalPool, run_job
from unified_lift.bench.tables import KINDS
from unified_lift.cli.bench import bench_main
from unified_lift.cli.main import main
from unified_lift.synthetic.scene import SyntheticSettings

ROOT = Path(__file__).parents[2]
EXTRA = [*SHORT[2:-3], "--num_random_points=50", "--max_gaussians=60"]  # the benchmark sets the first and the last
FILES = {"commands.txt", "report.html", "results.csv", "summary.json", "table.md", "table.tex"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "tiny").mkdir()
    write_dataset("messy_rooms", root / "tiny")
    return root


class InProcess(LocalPool):
    """Runs the commands one by one in this process, which has imported everything already."""

    def __init__(self):
        super().__init__(1)

    def submit(self, job):
        future = Future()
        future.set_result(run_job(job, self.execute))
        return future

    def execute(self, command, log):
        with open(log, "a") as file, redirect_stdout(file), redirect_stderr(file):
            return main(command)


def bench(data, out, *argv, extra=EXTRA, iterations=12):
    return [
        "--table", "3", "--data", str(data), "--out", str(out), "--scenes", "tiny", "--seeds", "0",
        "--iterations", str(iterations), "--device", "cpu", *argv, "--", *extra,
    ]  # fmt: skip


def rows(out, by="method"):
    with (out / "results.csv").open() as file:
        return {row[by]: row for row in csv.DictReader(file)}


def test_a_grid_runs_to_its_tables_goes_on_after_a_failure_and_is_not_run_twice(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, broken = tmp_path / "out", tmp_path / "broken.yaml"
    broken.write_text("method:\n  no_such_setting: 1\n")
    argv = bench(data, out, "--methods", str(broken), "unified_lift")
    assert bench_main(argv, InProcess()) == 1
    text = capsys.readouterr().out
    assert "2 of 3 done, 1 failed" in text
    assert "unknown setting 'no_such_setting'" in text
    assert {name: row["state"] for name, row in rows(out).items()} == {"broken": "failed", "unified_lift": "done"}
    assert FILES <= {path.name for path in out.iterdir()}
    model, row = out / "detic_instance/tiny/unified_lift/seed0", rows(out)["unified_lift"]
    scores = json.loads((model / "results.json").read_text())["ours_0"]
    assert float(row["PQ_scene"]) == scores["PQ_scene"]
    assert float(row["geometry_s"]) > 0
    assert f"{100 * scores['PQ_scene']:.1f}" in (out / "table.md").read_text()
    assert "<figcaption>ground truth</figcaption>" in (out / "report.html").read_text()
    logged = (model / "log.txt").read_text()
    assert "object codes" in logged
    assert "PQ_scene" in logged
    # The commands in commands.txt make the same model by hand.
    saved = model / "point_cloud/iteration_0/point_cloud_objects.ply"
    made = saved.read_bytes()
    lines = [shlex.split(line) for line in (out / "commands.txt").read_text().splitlines()]
    (by_hand,) = [line[3:] for line in lines if line[3:4] == ["train"] and Path(line[7]).resolve() == model.resolve()]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in files if any(str(each).encode() in path.read_bytes() for each in (tmp_path, data))]
    assert main(by_hand) == 0
    assert saved.read_bytes() == made
    # A report without the flags of the run shows what was run all the same.
    listed = (out / "commands.txt").read_text()
    assert main(["bench", *argv[: argv.index("--")], "--report"]) == 1
    assert rows(out)["unified_lift"]["state"] == "done"
    assert "of 3 jobs were run with other flags than these" in capsys.readouterr().out
    assert (out / "commands.txt").read_text() == listed
    # Once more: only what failed is run, and with its settings repaired it is done.
    capsys.readouterr()
    broken.write_text("method:\n  feature_dim: 8\n")
    assert bench_main(argv, InProcess()) == 0
    started = [line for line in capsys.readouterr().out.splitlines() if line.startswith("start")]
    assert started == ["start  detic_instance/tiny/broken/seed0"]
    assert {row["state"] for row in rows(out).values()} == {"done"}


def test_ctrl_c_leaves_a_grid_that_the_same_command_finishes(data, tmp_path):
    out = tmp_path / "out"
    argv = bench(data, out, "--methods", "unified_lift", extra=[*EXTRA, "--log_interval=20"], iterations=300)
    command, geometry = [sys.executable, "-m", "unified_lift", "bench", *argv], out / "geometry/tiny/seed0"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not _has_begun(geometry) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=60)
    assert process.returncode == 130, (printed, error)
    assert "interrupted; the same command goes on" in printed
    assert "Traceback" not in printed + error
    assert json.loads((geometry / "cell.json").read_text())["status"] == "interrupted"
    (saved,) = geometry.glob("chkpnt*.pth")
    assert 0 < int(saved.stem.removeprefix("chkpnt")) < 300
    assert bench_main(argv, InProcess()) == 0
    started = [line for line in (geometry / "log.txt").read_text().splitlines() if line.startswith("$")]
    assert ["--resume" in line for line in started] == [False, True]
    steps = [json.loads(line)["step"] for line in (geometry / "metrics.jsonl").read_text().splitlines()]
    assert 20 in steps
    assert max(steps) == 300
    assert rows(out)["unified_lift"]["state"] == "done"


def _has_begun(geometry):
    log = geometry / "metrics.jsonl"
    return log.exists() and log.stat().st_size > 0


def test_mask_sets_are_taken_by_name_beside_what_is_there(data, tmp_path, capsys):
    out, scenes = tmp_path / "out", tmp_path / "data"
    for folder in ("hall", "hall/object_mask_net", "tiny", "tiny/object_mask_net", "tiny/object_mask_edges"):
        shutil.copytree(data / "tiny/detic_instance" if "/" in folder else data / "tiny", scenes / folder)
    argv = bench(scenes, out, "--table", "rooms", "--methods", "unified_lift", "--scenes", "hall", "tiny")
    assert bench_main(argv, InProcess()) == 0
    assert capsys.readouterr().out.count("start") == 4
    assert bench_main(["--masks", "simulated", "net", "edges", *argv], InProcess()) == 0
    printed = capsys.readouterr().out
    assert "note: hall has no masks edges (object_mask_edges), its jobs are left out" in printed
    started = [line.split()[1] for line in printed.splitlines() if line.startswith("start")]
    assert started == [f"object_mask_{job}/unified_lift/seed0" for job in ("net/hall", "net/tiny", "edges/tiny")]
    config = (out / "object_mask_edges/tiny/unified_lift/seed0/config.yaml").read_text()
    assert re.search(r"object_path: object_mask_edges\b.* zero_id: ignore\b", config, re.DOTALL)
    columns = "tiny, simulated (detic_instance)", "hall, net (object_mask_net)", "tiny, edges (object_mask_edges)"
    for name in ("table.md", "table.tex", "report.html"):
        assert all(column in (out / name).read_text().replace(r"\_", "_") for column in columns)
    assert rows(out, by="masks")["edges (object_mask_edges)"]["scene"] == "tiny"


def test_a_report_can_be_written_of_what_is_there(data, tmp_path, capsys):
    assert main(["bench", *bench(data, tmp_path / "out", "--methods", "gaga", "--report")]) == 1
    assert "start" not in capsys.readouterr().out
    assert rows(tmp_path / "out")["gaga"]["state"] == "not run"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--scenes", "gone"], "no scene gone there; scripts/prepare_messy_rooms.py"),
        (["--methods", "gagga"], "--methods gagga: no such method"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--iterations", "0"], "--iterations must be at least 1"),
        (["--timeline", "5"], "--timeline: give numbers of iterations from 1 on, with --table presets"),
        (["--masks", "net"], "--masks: the masks of table 3 are fixed; --table rooms takes mask sets by name"),
        (["--slurm", "partition"], "--slurm partition: write KEY=VALUE"),
        (["--launcher", "submitit"], "pip install submitit"),
    ],
)
def test_wrong_arguments_are_one_line(data, tmp_path, changes, message, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["bench", *bench(data, tmp_path / "out", *changes)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("word", ["--seed", "--init_ply=a.ply", "geometry:--iterations=3", "-m", "gaga:--preset=x"])
def test_flags_that_would_undo_the_grid_are_refused(data, tmp_path, word, capsys):
    assert main(["bench", *bench(data, tmp_path / "out", extra=[word])]) == 2
    assert f"-- {word.replace('_', '-')}" in capsys.readouterr().err.replace("--model-path", "-m")


def test_without_pandas_there_is_one_line_before_anything_runs(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", *bench(data, tmp_path / "out")]) == 2
    assert "pip install 'unified-lift[bench]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_presets_are_scored_along_a_timeline_and_not_run_twice(data, tmp_path, capsys):
    argv = ["--table", "presets", "--data", str(data), "--out", str(tmp_path), "--methods", "released"]
    argv += ["--seeds", "0", "--timeline", "4", "8", "--device", "cpu", "--", "--num_random_points=50", *SHORT[2:-3]]
    assert bench_main(argv, InProcess()) == 0
    early, late = rows(tmp_path, by="iterations").values()
    assert (early["iterations"], late["iterations"]) == ("4", "8")
    assert early["PSNR"] != late["PSNR"]
    assert 0 < float(early["all_s"]) < float(late["all_s"])  # one run
    assert (tmp_path / "timeline.png").stat().st_size > 10_000
    capsys.readouterr()
    assert bench_main(argv, InProcess()) == 0
    assert "start" not in capsys.readouterr().out


def test_a_room_is_made_trained_lifted_and_scored(tmp_path, monkeypatch):
    small = SyntheticSettings(num_objects=3, num_views=8, width=40, height=30, num_points=300)
    monkeypatch.setattr(tables, "BASE", small)
    monkeypatch.setitem(KINDS, "drop", ("drop", (0.5,)))
    argv = ["--table", "robustness", "--out", str(tmp_path), "--kinds", "drop", "--methods", "gaga"]
    argv += ["--seeds", "0", "--iterations", "20", "--lift_iterations", "10", "--device", "cpu"]
    assert bench_main(argv, InProcess()) == 0
    row = rows(tmp_path)["gaga"]
    assert (row["kind"], float(row["amount"])) == ("drop", 0.5)
    assert 0 <= float(row["mIoU"]) <= 1
    assert (tmp_path / "robustness.png").stat().st_size > 10_000
    assert not list(tmp_path.glob("object_mask/*/gaga/seed0/point_cloud"))
