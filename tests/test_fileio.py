"""Folders are written whole or not at all."""

from pathlib import Path

import pytest

from unified_lift.fileio import replacing_folder, write_json


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "model"
    for name in ("same/a.txt", "gone/b.txt", "chkpnt7.pth", "mine.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    return folder


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    write_json(tmp_path / "a.json", {"mean": float("nan"), "box": [float("-inf"), 1.5]}, indent=None)
    assert (tmp_path / "a.json").read_text() == '{"mean": null, "box": [null, 1.5]}'


def write(folder):
    with replacing_folder(folder, outdated=("gone", "chkpnt*.pth", "absent")) as scratch:
        for name in ("same/a.txt", "deep/er/c.txt"):
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_text("new")


def test_new_files_come_outdated_ones_go_and_others_stay(old):
    write(old)
    assert contents(old) == {"same/a.txt": "new", "deep/er/c.txt": "new", "mine.txt": "old"}
    assert list(old.parent.iterdir()) == [old]
    write(old.parent / "fresh" / "model")
    assert set(contents(old.parent / "fresh" / "model")) == {"same/a.txt", "deep/er/c.txt"}


def test_a_move_that_fails_half_way_is_undone(old, monkeypatch):
    before, rename = contents(old), Path.rename

    def failing(self, target):
        if "deep" in str(target):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"):
        write(old)
    assert contents(old) == before
    assert list(old.parent.iterdir()) == [old]


def test_a_folder_of_the_user_that_looks_like_a_scratch_folder_is_left_alone(old):
    (old.parent / "model.partial").mkdir()
    write(old)
    with pytest.raises(KeyboardInterrupt), replacing_folder(old):
        raise KeyboardInterrupt
    assert sorted(path.name for path in old.parent.iterdir()) == ["model", "model.partial"]
