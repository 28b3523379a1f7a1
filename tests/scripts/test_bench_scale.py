"""The benchmark of growing scenes finds what it makes up, and goes on where it ended."""

import json

import bench_scale


def test_sizes_that_are_done_are_not_run_again(tmp_path, capsys, monkeypatch):
    ran = []
    monkeypatch.setattr(bench_scale.subprocess, "run", lambda command, **_: ran.append(command[3:5]) or _Done())
    path = tmp_path / "out" / "scale.jsonl"
    for sizes in (["3"], ["3", "20"]):
        assert bench_scale.main(["--objects", *sizes, "--json", str(path)]) == 0
    assert ran == [["objects", "3"], ["objects", "20"]]
    assert [json.loads(line)["size"] for line in path.read_text().splitlines()] == [3, 20]
    assert capsys.readouterr().out.splitlines()[-3:] == ["|---|---|---|", "| 3 | cpu | 9 |", "| 20 | cpu | 9 |"]


class _Done:
    stdout = json.dumps({"found": 9})


def test_objects_of_a_small_building_are_found(capsys):
    assert bench_scale.main(["--one", "objects", "14"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["found"], found["views"], found["mIoU"]) == (14, 8, 1.0)
    assert found["peak MiB"] > 0
