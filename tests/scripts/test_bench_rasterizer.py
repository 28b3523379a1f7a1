"""The benchmark runs anywhere, says what its figures depend on, and has no ratio for what renders something else."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import diff_gaussian_rasterization as dgr
import numpy as np
import pytest
import torch

from tests.rasterizer import fake_gsplat
from tests.saved_model import floor_gaussians
from unified_lift.model.ply import write_gaussians
from unified_lift.types import Camera

FACTS = ("gaussians", "visible", "pairs", "blends_per_pixel", "channels", "width", "height")


@pytest.fixture
def bench():
    import bench_rasterizer

    return bench_rasterizer


@pytest.fixture
def gsplat(monkeypatch):
    """A stand-in for the package that runs on a CPU."""
    module = fake_gsplat.module()
    monkeypatch.setitem(sys.modules, "gsplat", module)
    return module


def tiny(bench, dim=16, degree=None):
    small = {"num": 60, "width": 40, "height": 24, "size": 5e-4, "views": 2}
    return bench.random_scene(replace(bench.CASES["1M_rgb"], dim=dim, degree=degree, **small), torch.device("cpu"))


def run(bench, scene, *baselines):
    return bench.run_case("tiny", scene, list(baselines), threads=1, rounds=2, warmup=2)


def test_quick_run_prints_a_table_and_writes_all_figures(tmp_path):
    path = tmp_path / "bench.json"
    command = [sys.executable, "scripts/bench_rasterizer.py", "--quick", "--device", "cpu", "--threads", "1"]
    command += ["--json", str(path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:3] == ["case", "what", "backend"]
    report = json.loads(path.read_text())
    assert report["machine"]["torch"] == torch.__version__
    rows = report["results"]
    assert {(r["case"], r["what"], r["backend"]) for r in rows} == {
        (case, what, name)
        for case in ("500_48x32_rgb", "500_48x32_rgb16")
        for what in ("forward", "both")
        for name in ("ours", "reference")
    }
    for row in rows:
        assert all(row[fact] > 0 for fact in FACTS)
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert row["rounds"] == 3
        assert row["agreement"]["agrees"]
        assert (row["backend"] == "ours") == (row["ratio"] == 1)


@pytest.mark.parametrize(
    ("dim", "degree", "names"),
    [
        (0, None, {"gsplat", "gsplat packed"}),
        (16, None, {"gsplat", "gsplat packed", "gsplat 3+16"}),
        (0, 3, {"gsplat", "gsplat packed"}),
        (16, 3, {"gsplat", "gsplat packed", "gsplat 3+16"}),
    ],
)
def test_every_variant_of_gsplat_agrees_and_the_fastest_counts(dim, degree, names, bench, gsplat, capsys):
    rows = run(bench, tiny(bench, dim, degree), "gsplat")
    assert {r["backend"] for r in rows} == {"ours"} | names
    assert all(r["agreement"]["agrees"] for r in rows), rows
    assert all(r["pairs"] > 0 for r in rows)
    best = bench.best_of_gsplat(rows)
    assert [b["what"] for b in best] == ["forward", "both"]
    both = [r for r in rows if r["what"] == "both"]
    fastest = min((r for r in both if r["backend"] in names), key=lambda r: r["median_ms"])
    assert best[1]["backend"] == fastest["backend"]
    assert best[1]["ours_over_it"] == pytest.approx(both[0]["median_ms"] / fastest["median_ms"])
    assert "both: ours / best of gsplat" in capsys.readouterr().out


def test_what_renders_something_else_gets_no_ratio(bench, gsplat, monkeypatch, capsys):
    rasterization = gsplat.rasterization

    def brighter(*args, **options):
        image, *rest = rasterization(*args, **options)
        return (1.01 * image, *rest)

    monkeypatch.setattr(gsplat, "rasterization", brighter)
    rows = run(bench, tiny(bench, 0), "gsplat")
    assert [r["ratio"] for r in rows if r["backend"] != "ours"] == [None] * 4
    assert bench.best_of_gsplat(rows) == []
    text = capsys.readouterr().out
    assert "gsplat packed renders something else, so it has no ratio" in text
    assert "differs" in text


def outcome(bench, maps, **gradients):
    return bench.Outcome((maps,), 1, gradients)


def test_a_few_cut_pixels_are_counted_and_allowed(bench):
    g = torch.Generator().manual_seed(0)
    maps, slope = torch.rand(1, 100, 100, 3, generator=g), torch.randn(50, generator=g)
    ours = outcome(bench, maps, means=slope)
    changed = maps.clone()
    changed[0, :2, :7, 1] += 0.004  # 14 pixels
    changed[0, 50, 50] += 0.0005
    facts = bench.compare(ours, outcome(bench, changed, means=slope))
    assert facts["agrees"]
    assert facts["cut_pixels"] == 14
    assert facts["image_error"] == pytest.approx(0.0005, abs=1e-6)
    assert facts["cut_error"] == pytest.approx(0.004, abs=1e-6)
    changed[0, 2, :7, 1] += 0.004  # 21 of 10,000 are more than 0.2 %
    assert not bench.compare(ours, outcome(bench, changed, means=slope))["agrees"]
    far = maps.clone()
    far[0, 0, 0, 0] += 0.03
    assert not bench.compare(ours, outcome(bench, far, means=slope))["agrees"]


def test_a_turned_gradient_is_named(bench):
    maps, slope = torch.rand(1, 8, 8, 3), torch.eye(2)[0]
    ours = outcome(bench, maps, means=slope, quats=slope)
    turned = torch.tensor([1.0, 0.02])  # cosine 0.9998
    facts = bench.compare(ours, outcome(bench, maps, means=slope, quats=turned))
    assert (facts["agrees"], facts["least_cosine_of"]) == (False, "quats")
    assert facts["least_cosine"] == pytest.approx(0.9998, abs=1e-5)
    assert bench.compare(ours, outcome(bench, maps, means=slope, quats=3 * slope))["agrees"]


def test_black_maps_say_nothing(bench):
    black = outcome(bench, torch.zeros(1, 4, 4, 3), means=torch.ones(3))
    assert not bench.compare(black, black)["agrees"]


def test_pictures_that_are_only_alike_need_a_correlation(bench):
    maps = torch.rand(1, 30, 30, 3)
    noisy = maps + 0.1 * torch.randn_like(maps)
    ours = outcome(bench, maps)
    assert bench.correlate(ours, outcome(bench, noisy))["agrees"]
    assert not bench.correlate(ours, outcome(bench, torch.rand(1, 30, 30, 3)))["agrees"]


def test_percentiles_are_those_of_the_sorted_times(bench):
    figures = bench.spread([float(t) for t in range(100, 0, -1)], [3.0, 1.0, 2.0])
    assert (figures["median_ms"], figures["p10_ms"], figures["p90_ms"], figures["min_ms"]) == (50.5, 11, 90, 1)
    assert (figures["wall_ms"], figures["rounds"]) == (2.0, 100)


def test_a_trained_scene_is_seen_as_by_the_renderer(bench, tmp_path):
    gaussians = floor_gaussians()
    pose = np.eye(4)
    pose[:3, 3] = [0.1, 0.2, 4.0]
    camera = Camera(cam_from_world=pose, fx=50.0, fy=52.0, cx=20.0, cy=12.0, width=40, height=24)
    write_gaussians(tmp_path / "a.ply", gaussians)
    entry = {
        "width": 40, "height": 24, "fx": 50.0, "fy": 52.0,
        "position": camera.position.tolist(), "rotation": pose[:3, :3].T.tolist(),
    }  # fmt: skip
    (tmp_path / "cameras.json").write_text(json.dumps([entry, entry | {"width": 80}] + [entry] * 30))
    scene = bench.trained_scene(tmp_path / "a.ply", tmp_path / "cameras.json", 4, torch.device("cpu"))
    assert (scene.num_views, scene.width, scene.height, scene.dim) == (8, 40, 24, 4)
    assert torch.allclose(scene.viewmats[3], torch.from_numpy(pose).float(), atol=1e-6)
    assert torch.equal(scene.Ks[0], torch.tensor([[50.0, 0, 20], [0, 52, 12], [0, 0, 1]]))
    rows = run(bench, scene, "reference")
    assert all(r["agreement"]["agrees"] for r in rows), rows
    assert rows[0]["sh_degree"] == gaussians.sh_degree


def test_the_case_with_six_million_pairs_has_six_tiles_per_gaussian(bench):
    case = replace(bench.CASES["1M_6M_pairs_rgb"], views=1)
    few = replace(case, num=10_000, size=case.size / 10)  # the same Gaussians, fewer of them
    scene = bench.random_scene(few, torch.device("cpu"))
    geometry = (scene.means, scene.quats, scene.scales, scene.opacities)
    pairs = dgr.rasterize(*geometry, scene.colors, None, *scene.camera(0), 1296, 840).meta.num_pairs
    assert 5.5 < pairs / 10_000 < 6.5


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--device", "cpu", "--peers", "gsplat"], "--peers gsplat"),
        (["--ply", "a.ply"], "--ply and --cameras go together"),
        (["--rounds", "0"], "--rounds, --warmup and --threads start at 1"),
        (["--cases", "1M_rgb15"], "invalid choice: '1M_rgb15'"),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(argv, message, bench, capsys):
    with pytest.raises(SystemExit):
        bench.parse(argv)
    assert message in capsys.readouterr().err
