"""The benchmark runs anywhere, says what its figures depend on, and has no ratio for what renders something else."""

import json
import sys
from dataclasses import replace
from itertools import product

import bench_rasterizer as bench
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
def gsplat(monkeypatch):
    """A stand-in for the package that runs on a CPU."""
    module = fake_gsplat.module()
    monkeypatch.setitem(sys.modules, "gsplat", module)
    return module


def tiny(dim=16, degree=None):
    small = {"num": 60, "width": 40, "height": 24, "size": 5e-4, "views": 2}
    return bench.random_scene(replace(bench.CASES["1M_rgb"], dim=dim, degree=degree, **small), torch.device("cpu"))


def run(scene, *baselines):
    return bench.run_case("tiny", scene, list(baselines), threads=1, rounds=2, warmup=2)


def test_quick_run_prints_a_table_and_writes_all_figures(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert bench.main(["--quick", "--device", "cpu", "--threads", "1", "--json", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["case", "what", "backend"]
    report = json.loads(path.read_text())
    assert report["machine"]["torch"] == torch.__version__
    rows = report["results"]
    assert {(r["case"], r["what"], r["backend"]) for r in rows} == set(
        product(("500_48x32_rgb", "500_48x32_rgb16"), ("forward", "both"), ("ours", "reference"))
    )
    for row in rows:
        assert all(row[fact] > 0 for fact in FACTS)
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert row["rounds"] == 3
        assert row["agreement"]["agrees"]
        assert (row["backend"] == "ours") == (row["ratio"] == 1)


@pytest.mark.parametrize("degree", [None, 3])
@pytest.mark.parametrize(
    ("dim", "names"), [(0, {"gsplat", "gsplat packed"}), (16, {"gsplat", "gsplat packed", "gsplat 3+16"})]
)
def test_every_variant_of_gsplat_agrees_and_the_fastest_counts(dim, degree, names, gsplat, capsys):
    rows = run(tiny(dim, degree), "gsplat")
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


def test_what_renders_something_else_gets_no_ratio(gsplat, monkeypatch, capsys):
    rasterization = gsplat.rasterization

    def brighter(*args, **options):
        image, *rest = rasterization(*args, **options)
        return (1.01 * image, *rest)

    monkeypatch.setattr(gsplat, "rasterization", brighter)
    rows = run(tiny(0), "gsplat")
    assert [r["ratio"] for r in rows if r["backend"] != "ours"] == [None] * 4
    assert bench.best_of_gsplat(rows) == []
    text = capsys.readouterr().out
    assert "gsplat packed renders something else, so it has no ratio" in text
    assert "differs" in text


def verdict(maps, others, *, gradients=None, other_gradients=None):
    ours = bench.Outcome((maps,), 1, gradients or {"means": torch.ones(3)})
    return bench.compare(ours, bench.Outcome((others,), 1, other_gradients or ours.gradients))


def test_a_few_cut_pixels_are_counted_and_allowed():
    maps = torch.rand(1, 100, 100, 3, generator=torch.Generator().manual_seed(0))
    changed = maps.clone()
    changed[0, :2, :7, 1] += 0.004  # 14 pixels
    changed[0, 50, 50] += 0.0005
    facts = verdict(maps, changed)
    assert (facts["agrees"], facts["cut_pixels"]) == (True, 14)
    assert facts["image_error"] == pytest.approx(0.0005, abs=1e-6)
    assert facts["cut_error"] == pytest.approx(0.004, abs=1e-6)
    changed[0, 2, :7, 1] += 0.004  # 21 of 10,000 are more than 0.2 %
    assert not verdict(maps, changed)["agrees"]
    far = maps.clone()
    far[0, 0, 0, 0] += 0.03
    assert not verdict(maps, far)["agrees"]


def test_a_turned_gradient_is_named_and_black_maps_say_nothing():
    maps, slope = torch.rand(1, 8, 8, 3), torch.eye(2)[0]
    gradients = {"means": slope, "quats": slope}
    turned = torch.tensor([1.0, 0.02])  # cosine 0.9998
    facts = verdict(maps, maps, gradients=gradients, other_gradients=gradients | {"quats": turned})
    assert (facts["agrees"], facts["least_cosine_of"]) == (False, "quats")
    assert facts["least_cosine"] == pytest.approx(0.9998, abs=1e-5)
    assert verdict(maps, maps, gradients=gradients, other_gradients=gradients | {"quats": 3 * slope})["agrees"]
    assert not verdict(0 * maps, 0 * maps)["agrees"]


def test_pictures_that_are_only_alike_need_a_correlation():
    maps = torch.rand(1, 30, 30, 3)
    ours, alike, other = (
        bench.Outcome((m,), 1, {}) for m in (maps, maps + 0.1 * torch.randn_like(maps), torch.rand_like(maps))
    )
    assert bench.correlate(ours, alike)["agrees"]
    assert not bench.correlate(ours, other)["agrees"]


def test_percentiles_are_those_of_the_sorted_times():
    figures = bench.spread([float(t) for t in range(100, 0, -1)], [3.0, 1.0, 2.0])
    assert (figures["median_ms"], figures["p10_ms"], figures["p90_ms"], figures["min_ms"]) == (50.5, 11, 90, 1)
    assert (figures["wall_ms"], figures["rounds"]) == (2.0, 100)


def test_a_trained_scene_is_seen_as_by_the_renderer(tmp_path):
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
    rows = run(scene, "reference")
    assert all(r["agreement"]["agrees"] for r in rows), rows
    assert rows[0]["sh_degree"] == gaussians.sh_degree


def test_the_case_with_six_million_pairs_has_six_tiles_per_gaussian():
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
def test_what_cannot_run_is_said_before_anything_runs(argv, message, capsys):
    with pytest.raises(SystemExit):
        bench.parse(argv)
    assert message in capsys.readouterr().err
