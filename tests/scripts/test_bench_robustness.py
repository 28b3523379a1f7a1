"""The noise sweep: what a level changes, what is run once, what survives a failure or Ctrl-C, tables and figure."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unified_lift.data import load_scene
from unified_lift.data.settings import DataSettings
from unified_lift.methods import METHODS
from unified_lift.synthetic.scene import SyntheticSettings, build_cameras, synthetic_room, write_synthetic

TINY = SyntheticSettings(num_objects=3, num_views=10, width=32, height=24, num_points=300)  # 8 training views


@pytest.fixture
def script(monkeypatch):
    import bench_robustness

    monkeypatch.setattr(bench_robustness, "BASE", TINY)
    monkeypatch.setattr(bench_robustness, "KINDS", {"drop": (0, 0.5), "views": (8, 3)})
    return bench_robustness


class FakeWorker:
    """Leaves the files that training and scoring would leave, and remembers what it was asked."""

    steps = ()
    broken = ""

    def __init__(self, environment):
        assert environment["OMP_NUM_THREADS"] == "1"

    def execute(self, step, log):
        type(self).steps.append(step)
        if self.broken and self.broken in " ".join(step):
            log.write_text("first\nout of luck\n")
            return 1
        model = Path(step[step.index("-m") + 1])
        if step[0] == "eval":
            (model / "results.json").write_text(json.dumps({"ours_0": {"PQ_scene": 0.5, "mIoU": 0.25, "PSNR": 30.0}}))
            return 0
        iterations = step[step.index("--iterations") + 1]
        folder = model / "point_cloud" / f"iteration_{iterations}"
        folder.mkdir(parents=True)
        (folder / "point_cloud.ply").touch()
        (model / "manifest.json").write_text(json.dumps({"seconds": {"lift": 1.5}}))
        return 0

    def signal(self, number):
        pass

    def close(self):
        pass


@pytest.fixture
def fake(script, monkeypatch):
    monkeypatch.setattr(FakeWorker, "steps", [])
    monkeypatch.setattr(script, "Worker", FakeWorker)
    return FakeWorker


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lines(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_levels_are_settings_and_start_at_the_least_noise():
    import bench_robustness as unpatched

    assert set(unpatched.AXES) == set(unpatched.KINDS)
    for kind, levels in unpatched.KINDS.items():
        assert len(set(levels)) == len(levels)
        if kind == "views":
            assert levels[0] == unpatched.BASE.num_train
            assert list(levels) == sorted(levels, reverse=True)
        else:
            assert levels[0] == 0
            assert list(levels) == sorted(levels)
            for level in levels:
                assert getattr(replace(unpatched.BASE, **{kind: level}), kind) == level


def test_there_is_a_row_for_every_method_and_the_released_recipe(script):
    assert set(script.ROWS) == {*METHODS, "released"}
    assert next(iter(script.ROWS)) == script.DEFAULT_METHOD == "unified_lift"


@pytest.mark.parametrize(
    ("method", "most", "steps"),
    [
        ("unified_lift", None, 600),
        ("gaga", None, 2000),  # its preset: 4,000
        ("released", None, 2000),  # its preset: 5,000
        ("gaga", 50, 50),
        ("unified_lift", 1000, 600),
    ],
)
def test_lift_steps_are_limited(script, method, most, steps):
    assert script.lift_steps(method, most) == steps


def test_noise_changes_masks_and_nothing_else(script, tmp_path):
    script.write_room(tmp_path / "clean", "drop", 0, 1)
    script.write_room(tmp_path / "noisy", "drop", 0.5, 1)
    for folder in ("images", "annotations/gt_instance"):
        assert files(tmp_path / "clean" / folder) == files(tmp_path / "noisy" / folder)
    for name in ("transforms.json", "points3D.ply"):
        assert (tmp_path / "clean" / name).read_bytes() == (tmp_path / "noisy" / name).read_bytes()
    assert files(tmp_path / "clean" / "object_mask") != files(tmp_path / "noisy" / "object_mask")


def test_fewer_views_are_the_first_ones_with_the_same_held_out(script, tmp_path):
    scenes = {}
    for count in (8, 3):
        script.write_room(tmp_path / str(count), "views", count, 1)
        scenes[count] = load_scene(DataSettings(source_path=tmp_path / str(count), eval=True))
    names = {count: [view.name for view in scene.train] for count, scene in scenes.items()}
    assert names[8] == sorted(names[8])
    assert names[3] == names[8][:3]
    assert [view.name for view in scenes[3].test] == [view.name for view in scenes[8].test]
    assert len(scenes[3].test) == 2


def test_initial_points_of_fewer_views_come_from_these_alone(script, tmp_path):
    settings = replace(TINY, seed=1)
    for count in (TINY.num_train, 1):
        write_synthetic(tmp_path / str(count), settings)
    whole = load_scene(DataSettings(source_path=tmp_path / "8", eval=True)).points
    script.keep_training_views(tmp_path / "8", settings, TINY.num_train)
    again = load_scene(DataSettings(source_path=tmp_path / "8", eval=True)).points
    assert np.array_equal(again.positions, whole.positions)
    assert np.array_equal(again.colors, whole.colors)

    script.keep_training_views(tmp_path / "1", settings, 1)
    camera = build_cameras(synthetic_room(settings), settings)[0]

    def seen(points):
        x, y, z = (points @ camera.cam_from_world[:3, :3].T + camera.cam_from_world[:3, 3]).T
        column, row = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
        return (z > 0) & (column > 0) & (column < camera.width) & (row > 0) & (row < camera.height)

    kept = load_scene(DataSettings(source_path=tmp_path / "1", eval=True)).points
    assert len(kept.positions) == TINY.num_points
    assert seen(kept.positions).all()
    assert not seen(whole.positions).all()


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_geometry_is_trained_once_for_each_seed_and_number_of_views(script, fake, tmp_path, jobs):
    command = ["--out", str(tmp_path), "--seeds", "0", "1", "--methods", "gaga", "released"]
    assert script.main([*command, "--jobs", jobs]) == 0
    geometry = [step for step in fake.steps if step[0] == "train" and "--init_ply" not in step]
    lifts = [step for step in fake.steps if "--init_ply" in step]
    assert len(geometry) == 2 * 2  # 2 seeds, 8 and 3 views
    assert len(lifts) == len(lines(tmp_path)) == 2 * 4 * 2
    for step in lifts:
        assert Path(step[step.index("--init_ply") + 1]).is_file()
        seed, room = step[step.index("--seed") + 1], Path(step[step.index("-s") + 1]).name
        views = 3 if room.startswith("views_3") else 8
        assert f"geometry/seed{seed}_{views}views_1600/" in step[step.index("--init_ply") + 1]
        assert room.endswith(f"_seed{seed}")
    assert not list(tmp_path.glob("models/*"))
    assert not list(tmp_path.rglob("*.partial"))


def test_what_is_done_is_not_run_again_unless_steps_change(script, fake, tmp_path):
    command = ["--out", str(tmp_path), "--seeds", "0", "--methods", "unified_lift", "--kinds", "drop"]
    assert script.main(command) == 0
    first = len(fake.steps)
    assert script.main(command) == 0
    assert len(fake.steps) == first
    assert script.main([*command, "--lift_iterations", "7"]) == 0
    repeated = fake.steps[first:]
    assert [step[0] for step in repeated] == ["train", "eval"] * 2
    assert all(step[step.index("--lift_iterations") + 1] == "7" for step in repeated if step[0] == "train")
    found = script.read_results(tmp_path / "results.jsonl")
    assert {result["lift_iterations"] for result in found.values()} == {7}


def test_a_failed_cell_is_told_and_tried_again_and_stops_no_other(script, fake, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fake, "broken", "drop_0_gaga")
    command = ["--out", str(tmp_path), "--seeds", "0", "--methods", "unified_lift", "gaga", "--kinds", "drop"]
    assert script.main(command) == 1
    assert len(lines(tmp_path)) == 3
    assert "drop_0_gaga_seed0: failed: train ended with 1: out of luck" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "logs").glob("drop*")] == ["drop_0_gaga_seed0.txt"]
    monkeypatch.setattr(fake, "broken", "")
    assert script.main(command) == 0
    assert len(lines(tmp_path)) == 4


def test_broken_geometry_is_tried_once_and_fails_what_rests_on_it(script, fake, tmp_path, monkeypatch):
    monkeypatch.setattr(fake, "broken", "_3views_")
    assert script.main(["--out", str(tmp_path), "--seeds", "0", "--methods", "unified_lift", "gaga"]) == 1
    assert sum("_3views_" in " ".join(step) for step in fake.steps) == 1
    assert {(line["kind"], line["level"]) for line in lines(tmp_path)} == {("drop", 0), ("drop", 0.5), ("views", 8)}


def test_after_ctrl_c_the_same_command_goes_on(script, fake, tmp_path, monkeypatch, capsys):
    keep = script.append_result

    def interrupt_after_one(path, result):
        keep(path, result)
        raise KeyboardInterrupt

    command = ["--out", str(tmp_path), "--seeds", "0", "--methods", "unified_lift", "gaga"]
    with monkeypatch.context() as patch:
        patch.setattr(script, "append_result", interrupt_after_one)
        assert script.main(command) == 130
    assert "goes on" in capsys.readouterr().err
    assert len(lines(tmp_path)) == 1
    assert (tmp_path / "robustness.md").exists()
    assert script.main(command) == 0
    found = [tuple(line[name] for name in script.Cell._fields) for line in lines(tmp_path)]
    assert len(found) == len(set(found)) == 8


def test_a_line_that_was_broken_off_is_no_result_and_spoils_no_other(script, tmp_path):
    path = tmp_path / "results.jsonl"
    cell = script.Cell("drop", 0.5, "gaga", 0)
    script.append_result(path, {**cell._asdict(), "PQ_scene": 0.25})
    with open(path, "a") as file:
        file.write('{"kind": "drop", "lev')
    script.append_result(path, {**cell._replace(seed=1)._asdict(), "PQ_scene": 0.75})
    script.append_result(path, {**cell._asdict(), "PQ_scene": 0.5})
    found = script.read_results(path)
    assert {key.seed: result["PQ_scene"] for key, result in found.items()} == {0: 0.5, 1: 0.75}


def some_results(script):
    scores = {
        ("drop", 0.5, "unified_lift"): [0.5, 0.75, 0.7],  # mean 0.65, half range 0.125
        ("drop", 0, "unified_lift"): [0.9, 0.9, 0.9],
        ("drop", 0, "gaga"): [0.25],
        ("views", 3, "gaga"): [0.125, 0.25, 0.375],
        ("views", 8, "gaga"): [0.5, 0.5, 0.5],
    }
    return {
        script.Cell(*place, seed): {"mIoU": score, "lift_iterations": 600}
        for place, values in scores.items()
        for seed, score in enumerate(values)
    }


def test_tables_by_hand(script):
    rows = [line for line in script.tables(some_results(script)).splitlines() if line.startswith("| ")]
    assert rows == [
        "| method | 0 | 0.5 |",
        "| `unified_lift` | 0.900 ± 0.000 | 0.650 ± 0.125 |",
        "| `gaga` | 0.250 (1) | - |",
        "| method | 8 | 3 |",
        "| `unified_lift` | - | - |",
        "| `gaga` | 0.500 ± 0.000 | 0.250 ± 0.125 |",
    ]


def test_figure_has_a_panel_for_each_kind_and_noise_grows_to_the_right(script):
    figure = script.figure(some_results(script))
    drop, views = figure.axes
    assert [drop.get_xlabel(), views.get_xlabel()] == [script.AXES["drop"], script.AXES["views"]]
    assert not drop.xaxis_inverted()
    assert views.xaxis_inverted()
    ours, gaga = (next(line for line in drop.lines if line.get_label() == name) for name in ("unified_lift", "gaga"))
    assert ours.get_xydata() == pytest.approx(np.array([[0, 0.9], [0.5, 0.65]]))
    assert ours.get_linewidth() > gaga.get_linewidth()
    assert ours.get_zorder() > gaga.get_zorder()
    band = drop.collections[0].get_paths()[0].vertices
    assert {round(float(y), 6) for x, y in band if x == 0.5} >= {0.5, 0.75}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["unified_lift", "gaga"]
    assert drop.get_legend() is None


def test_report_runs_nothing_and_says_when_there_is_nothing(script, fake, tmp_path, capsys):
    assert script.main(["--out", str(tmp_path), "--report"]) == 1
    assert "no results yet" in capsys.readouterr().err
    for cell, result in some_results(script).items():
        script.append_result(tmp_path / "results.jsonl", {**cell._asdict(), **result})
    assert script.main(["--out", str(tmp_path), "--report"]) == 0
    assert (tmp_path / "robustness.png").stat().st_size > 10_000
    assert "0.650 ± 0.125" in (tmp_path / "robustness.md").read_text()
    assert fake.steps == []


def test_a_room_is_trained_lifted_and_scored(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "BASE", replace(TINY, num_views=24, width=96, height=72, num_points=4000))
    monkeypatch.setattr(script, "KINDS", {"views": (12,)})
    command = ["--out", str(tmp_path), "--seeds", "0", "--methods", "unified_lift", "gaga"]
    assert script.main([*command, "--iterations", "200", "--lift_iterations", "100"]) == 0
    ours, gaga = lines(tmp_path)
    assert (ours["method"], gaga["method"]) == ("unified_lift", "gaga")
    for line in (ours, gaga):
        assert (line["kind"], line["level"], line["iterations"], line["lift_iterations"]) == ("views", 12, 200, 100)
        assert 0 < line["lift_seconds"] < line["seconds"]
    assert 0.3 < ours["mIoU"] <= 1
    assert 0 <= gaga["mIoU"] != ours["mIoU"]
    assert "| `gaga` |" in (tmp_path / "robustness.md").read_text()
    assert (tmp_path / "robustness.png").exists()
    assert not list((tmp_path / "logs").iterdir())
