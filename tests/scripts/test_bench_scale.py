"""The benchmark of growing scenes finds what it makes up, goes on where it ended, and draws what it holds."""

import json
import subprocess

import bench_scale
import pytest
from scale_sweeps import Setup, measured


def test_sizes_that_are_done_are_not_run_again(tmp_path, capsys, monkeypatch):
    """Nor is a file lost whose last line was torn; a size that fails is told, and the others go on."""
    ran = []

    def run(command, **_):
        ran.append(command[3:6])
        failed = command[4] == "5"
        return subprocess.CompletedProcess(command, int(failed), json.dumps({"found": 9}), "Traceback\nOutOfMemory: x")

    monkeypatch.setattr(bench_scale.subprocess, "run", run)
    path = tmp_path / "out" / "scale.jsonl"
    assert bench_scale.main(["--objects", "3", "--json", str(path)]) == 0
    with path.open("a") as file:
        file.write('{"sweep": "obj')
    assert bench_scale.main(["--objects", "3", "5", "2e1", "--gaussians", "7", "--json", str(path)]) == 1
    assert ran == [["objects", "3", "0"], ["objects", "5", "0"], ["objects", "20", "0"], ["gaussians", "7", "640"]]
    assert [json.loads(line)["size"] for line in path.read_text().splitlines()] == [3, 20, 7]
    out, err = capsys.readouterr()
    assert "|---|---|---|\n| 3 | cpu | 9 |\n| 20 | cpu | 9 |\n" in out
    assert err == "--objects 5: failed (1): OutOfMemory: x\n"
    path.write_text("torn\n" + path.read_text())
    with pytest.raises(SystemExit, match="line 1 is no JSON"):
        bench_scale.main(["--objects", "3", "--json", str(path)])


def test_objects_of_a_small_building_are_found(capsys):
    assert bench_scale.main(["--one", "objects", "14", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["found"], found["views"], found["mIoU"]) == (14, 8, 1.0)
    assert found["peak MiB"] >= found["finish MiB"] > 0


def test_all_parts_of_a_small_house_are_measured():
    found = measured("gaussians", Setup(8_000, "cpu", 96))
    assert (found["Gaussians"], found["views"], found["pixels"]) == (8_000, 16, 96 * 72)
    assert found["found"] == 49  # 48 balls and the floor
    assert found["mIoU"] > 0.9
    assert {"geometry MiB", "lift MiB", "finish MiB", "files MiB", "write s", "read s"} < set(found)
    assert min(found[name] for name in ("geometry ms/step", "render ms/view", "lift ms/step", "refine ms/step")) > 0


def test_photos_are_read_until_the_first_step():
    found = measured("photos", Setup(21, "cpu"))
    assert found["first step s"] > 0
    assert 0 < found["read GiB"] < 0.2


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_has_a_curve_for_each_part(tmp_path, suffix):
    lines = [
        {"sweep": "objects", "device": "cpu", "size": size, "codebook s": 0.1 * size, "refine ms/step": 5.0}
        | {"peak MiB": 300, "found": size, "scores s": 0.0}
        for size in (100, 10)
    ]
    left, right = bench_scale.scale_figure(lines).axes
    curves = {line.get_label(): [list(line.get_xdata()), list(line.get_ydata())] for line in left.get_lines()}
    assert curves == {"codebook": [[10, 100], [1, 10]], "refine, a step": [[10, 100], [0.005, 0.005]]}
    assert [line.get_label() for line in right.get_lines()] == ["peak"]
    assert (left.get_xlabel(), left.get_xscale(), right.get_yscale()) == ("objects", "log", "log")
    path, picture = tmp_path / "scale.jsonl", tmp_path / f"scale.{suffix}"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert bench_scale.main(["--json", str(path), "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 5_000
