"""How paths are written into files, and found again."""

import re
import socket
from pathlib import Path

import pytest

from unified_lift.provenance import comparable, found, near, told, told_command, told_text, told_tree


@pytest.fixture(autouse=True)
def ann(monkeypatch):
    """The user is ann, whose home is /home/ann, on the machine box7.lab."""
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("LOGNAME", "ann")
    monkeypatch.setattr(socket, "gethostname", lambda: "box7.lab")


@pytest.mark.parametrize(
    ("path", "base", "text"),
    [
        ("/home/ann/data/desk", "/home/ann/out/m", "../../data/desk"),
        ("/home/ann/data/desk", "/scratch/m", "~/data/desk"),
        ("/home/ann", "/scratch/m", "~"),
        ("/home/anna/desk", "/scratch/m", "../../home/anna/desk"),  # another user
        ("/data/desk", "/data/out/m", "../../desk"),
        ("/data/desk", "/home/ann/m", "../../../data/desk"),
        ("/data/out/m/a.ply", "/data/out/m", "a.ply"),
        ("/data/out/m", "/data/out/m", "."),
        ("/scratch/ann/desk", "/data/m", "../../scratch/$USER/desk"),
        ("/scratch/x-ann_2/annex", "/scratch/m", "../x-$USER_2/annex"),
        ("/net/box7.lab/desk", "/data/m", "../../net/$HOSTNAME/desk"),
        ("/net/box7/desk", "/data/m", "../../net/$HOST/desk"),
        ("/data/box7", "/data/m", "../box7"),  # a scene that is called like the machine
    ],
)
def test_a_path_is_written_without_home_user_and_machine_and_found_again(path, base, text):
    assert told(Path(path), Path(base)) == text
    assert found(text, Path(base)) == Path(path)
    assert told(Path(path), Path(base), "full") == path
    assert found(path, Path(base)) == Path(path)


def test_no_path_stays_none():
    assert told(Path(), Path("/data")) == ""
    assert found("", Path("/data")) == Path()


@pytest.mark.parametrize("home", ["/", "relative", ""])
def test_without_a_home_folder_of_its_own_paths_are_relative(monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    assert told(Path("/data/desk"), Path("/data/m")) == "../desk"
    assert told_text("/data/m/a/b", Path("/data/m")) == "a/b"


def test_links_are_followed_where_that_is_shorter(tmp_path):
    (tmp_path / "big/desk").mkdir(parents=True)
    (tmp_path / "big/m").mkdir()
    (tmp_path / "m").symlink_to(tmp_path / "big/m")
    assert told(tmp_path / "big/desk", tmp_path / "m") == "../desk"
    assert found("../desk", tmp_path / "m") == tmp_path / "big/desk"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert told(tmp_path / "circle", tmp_path) == "circle"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/data/images: 3 left out; see /data/m/log.txt.", "~/data/images: 3 left out; see log.txt."),
        ('File "/home/ann/a b.py", line 3', 'File "~/a b.py", line 3'),
        ("(/home/ann) --x=/home/ann/y,sam:/home/ann/z", "(~) --x=~/y,sam:~/z"),
        ("file:///home/ann/y and https://a.org/home/ann", "file://~/y and https://a.org/home/$USER"),
        ("60 px/s, 1/2, and/or, <out>/a/b, ../c/d, 5 /min, a // b, images/1.jpg", None),
        ("Namespace(source_path='/home/ann/x', model_path='/data/m')", "Namespace(source_path='~/x', model_path='.')"),
        ("ann/desk: ann left, ../ann/x, anna/y, box7/z", "$USER/desk: ann left, ../$USER/x, anna/y, box7/z"),
        ("/home/annex/a", "../../home/annex/a"),
        ("", None),
    ],
)  # fmt: skip
def test_absolute_paths_in_a_text_are_written_like_others(text, expected):
    written = told_text(text, Path("/data/m"))
    assert written == (text if expected is None else expected)
    assert told_text(text, Path("/data/m"), "full") == text
    assert told_tree({"a": [text, 3, None], "b": (text,)}, Path("/data/m")) == {"a": [written, 3, None], "b": [written]}


def test_words_of_a_command_stay_as_they_were_typed_but_for_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train.py", "-s", "/home/ann/my data", "--x=/home/ann/y", "-r", "2", "data/desk", "ann/desk", "anna"]
    assert told_command(words, tmp_path) == [
        "train.py", "-s", "~/my data", "--x=~/y", "-r", "2", "data/desk", "$USER/desk", "anna",
    ]  # fmt: skip
    assert told_command(words, tmp_path, "full") == words
    (tmp_path / "out").mkdir()
    assert told_command(["out/m", "./out", str(tmp_path / "x")], tmp_path / "out") == ["out/m", ".", "../x"]
    assert (near(tmp_path / "out"), near(Path("/elsewhere/m"))) == (tmp_path, Path("/elsewhere/m"))
    seen = [comparable(word) for word in ("/home/ann/a.yaml", "/mnt/a.yaml", "/opt/a.yaml", "a.yaml", "x:/home/ann/d")]
    assert (seen[0], *seen[3:]) == ("~/a.yaml", "a.yaml", "x:~/d")
    assert seen[1] != seen[2]
    assert all(re.fullmatch("<a.yaml [0-9a-f]{8}>", word) for word in seen[1:3])
    assert [*map(comparable, seen)] == seen


def test_of_a_folder_that_was_moved_alone_the_path_is_looked_for_above_it_and_above_the_working_folder(
    tmp_path, monkeypatch
):
    (tmp_path / "project/data/desk").mkdir(parents=True)
    (tmp_path / "project/sub").mkdir()
    assert found("../../data/desk", tmp_path / "project/deep/er/m") == tmp_path / "project/data/desk"
    elsewhere = tmp_path / "other/place/m"
    assert found("../../data/desk", elsewhere) == tmp_path / "other/data/desk"  # which messages name: it is not there
    monkeypatch.chdir(tmp_path / "project/sub")
    assert found("../../data/desk", elsewhere) == tmp_path / "project/data/desk"
    assert found("../../data/chair", elsewhere) == tmp_path / "other/data/chair"
