"""The step benchmark runs without a GPU, and counts floors and shares rightly."""

import json

import bench_step
import pytest


def test_quick_run_writes_geometry_and_lift(tmp_path, monkeypatch, capsys):
    path = tmp_path / "step.json"
    monkeypatch.setattr("sys.argv", ["bench_step.py", "--quick", "--device", "cpu", "--json", str(path)])
    assert bench_step.main() == 0
    written = json.loads(path.read_text())
    names = [result["step"] for result in written["results"]]
    assert names == ["geometry", "lift, 32 codes, weights kept", "lift, 32 codes, weights computed each step"]
    for result in written["results"]:
        assert result["wall_ms"] > 0
        assert result["gaussians"] == 500
    assert "copy" in capsys.readouterr().out


def test_floor_is_the_larger_of_bytes_and_operations():
    # 3000 MB at 3 TB/s: 1000 us; 6.7 GFLOP at 67 TFLOP/s: 100 us
    parts = [bench_step.Part("moves", "copy", 3000.0, 6.7), bench_step.Part("computes", "multiply", 3.0, 6.7)]
    kernels = [("copy_kernel", 2000.0, 1.0), ("multiply_kernel", 400.0, 2.0), ("stray", 100.0, 1.0)]
    moves, computes, rest, total = bench_step.against_floor(parts, kernels, 3e12, 67.0)
    assert (moves["floor_us"], moves["share_of_floor"]) == (pytest.approx(1000), pytest.approx(0.5))
    assert (computes["floor_us"], computes["share_of_floor"]) == (pytest.approx(100), pytest.approx(0.25))
    assert (rest["us"], rest["launches"]) == (100.0, 1.0)
    assert (total["us"], total["launches"]) == (2500.0, 4.0)
    assert total["share_of_floor"] == pytest.approx(1100 / 2500)
