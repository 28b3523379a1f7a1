"""What is written tells nobody whose it was and where, and what was moved is found again."""

import json
import os
import platform
import shutil
import socket
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.cli.test_train import SHORT
from tests.data.fixtures import write_dataset
from tests.saved_model import save_model
from unified_lift.cli.main import main
from unified_lift.editing.formats import FORMATS
from unified_lift.modelfolder.inference import load_model, views_of
from unified_lift.modelfolder.outputs import read_run_settings

MARKS = ("MARKED_HOME", "MARKED_USER", "MARKED_HOST")
TENSORBOARD = ["--logger", "tensorboard"]


def mark(patch, root):
    """Make `root` the home folder, and give user and machine names that are easy to find."""
    for name, value in (("HOME", str(root)), *((name, "MARKED_USER") for name in ("USER", "LOGNAME", "USERNAME"))):
        patch.setenv(name, value)
    patch.setattr(socket, "gethostname", lambda: "MARKED_HOST.lab")
    patch.setattr(platform, "node", lambda: "MARKED_HOST.lab")


def unified_lift(patch, *words):
    """Run a command as its program does."""
    words = list(map(str, words))
    patch.setattr("sys.argv", [os.environ["HOME"] + "/bin/unified-lift", *words])
    assert main(words) == 0


def everything(patch, home, *flags):
    """Make files with the commands that write settings or facts, below `home`, all of whose paths are absolute."""
    scene, out = home / "data/desk", home / "out"
    scene.parent.mkdir(parents=True)
    write_dataset("transforms", scene)
    shutil.copytree(scene / "object_mask", home / "data/masks")
    (scene / "images" / "extra.png").write_bytes((next(scene.rglob("*.png"))).read_bytes())  # which a note tells
    (home / "my.yaml").write_text("seed: 3\n")
    train = ["train", "-s", scene, "-m", out / "m", "--eval", *SHORT, *TENSORBOARD, "--checkpoint_iterations", 5]
    unified_lift(patch, *train, "--preset", home / "my.yaml", "--object_path", home / "data/masks", *flags)
    unified_lift(patch, "eval", "-m", out / "m", "--quiet", *flags)
    unified_lift(patch, "edit", "-m", out / "m", "--rename", "0=floor", "--out", out / "edited", *flags)
    ply = next(out.glob("m/point_cloud/*/point_cloud.ply"))
    unified_lift(patch, "import-edit", "-m", out / "m", "--ply", ply, "--out", out / "imported", *flags)
    return scene, out


def found_in(folder, words):
    """Yield file and word wherever a name or a byte of a file below a folder, unpacked if it is packed, holds one."""
    for path in sorted(folder.rglob("*")):
        contents = [str(path.relative_to(folder)).encode()]
        if path.is_file():
            contents.append(path.read_bytes())
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    contents += [name.encode() + archive.read(name) for name in archive.namelist()]
        yield from ((str(path.relative_to(folder)), word) for word in words for c in contents if word.encode() in c)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home folder with all that the commands write; it may be copied, not changed."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("made") / "MARKED_HOME"
        mark(patch, home)
        patch.chdir(home.parent)  # wherever the tests are run from
        everything(patch, home)
        unified_lift(patch, "train", "-m", home / "out/m", "--resume", "--levels", "part=object_mask", "--quiet")
        unified_lift(patch, "render", "-m", home / "out/m", "--quiet", "--skip_train")
        unified_lift(patch, "export", "-m", home / "out/m", "--format", ",".join(FORMATS), "--quiet")
        masks = ["masks", "-s", home / "data/desk", "--provider", "regions", "--out", "made", "--quiet", "--jobs", 1]
        unified_lift(patch, *masks)
    return home


def test_no_byte_of_any_file_tells_home_user_machine_or_an_absolute_path(made):
    assert [*found_in(made, [*MARKS, str(made.parent)])] == []
    names = {path.name.partition(".out.")[0] for path in (made / "out").rglob("*") if path.is_file()}
    needed = {"config.yaml", "cfg_args", "manifest.json", "report.html", "chkpnt5.pth", "events"}
    assert needed | {"evaluation.json", "scene.html", "edits.yaml"} <= names
    manifest = json.loads((made / "out/m/manifest.json").read_text())
    assert manifest["command"] == "unified-lift train -m ~/out/m --resume --levels part=object_mask --quiet"
    assert any(note.startswith("$HOMENAME/data/desk/images: extra") for note in manifest["notes"])
    config = yaml.safe_load((made / "out/m/config.yaml").read_text())
    assert (config["model_path"], config["data"]["source_path"]) == (".", "../../data/desk")
    assert (config["data"]["object_path"], config["preset"]) == ("../masks", "../../my.yaml")
    assert "source_path='../../../../data/desk'" in (made / "out/m/levels/part/cfg_args").read_text()


def test_full_provenance_is_written_if_it_is_asked_for(tmp_path, monkeypatch):
    home = tmp_path / "MARKED_HOME"
    mark(monkeypatch, home)
    scene, out = everything(monkeypatch, home, "--provenance", "full")
    with_home = {file for file, word in found_in(out, [str(home)])}
    files = ("config.yaml", "cfg_args", "manifest.json", "report.html", "chkpnt5.pth", "evaluation.json")
    assert {f"m/{name}" for name in files[:5]} | {"edited/config.yaml", "imported/manifest.json"} <= with_home
    assert len([*(out / "m/tb").glob("*MARKED_HOST*")]) == 1
    assert json.loads((out / "m/manifest.json").read_text())["host"] == "MARKED_HOST.lab"
    unified_lift(monkeypatch, "eval", "-m", out / "m", "--quiet", "--provenance", "relative")
    assert "report.html" not in {file for file, _ in found_in(out / "m", MARKS)}
    unified_lift(monkeypatch, "train", "-m", out / "m", "--resume", "--quiet", "--provenance", "relative")
    assert views_of(load_model(out / "m")).name == scene.name
    assert [
        word for file, word in found_in(out / "m", MARKS) if file in ("config.yaml", "cfg_args", "manifest.json")
    ] == []


def views(model):
    return len(views_of(load_model(model)).train)


def test_model_and_scene_that_were_moved_together_find_each_other_from_anywhere(made, tmp_path, monkeypatch):
    there = tmp_path / "elsewhere/deep"
    shutil.copytree(made, there)
    monkeypatch.chdir(tmp_path)
    expected = views(made / "out/m")
    for name in ("m", "m/levels/part", "edited", "imported"):
        assert views(there / "out" / name) == expected
        assert read_run_settings(there / "out" / name).data.source_path == there / "data/desk"
    (tmp_path / "link").symlink_to(there / "out/m")
    assert views(Path("link")) == expected
    monkeypatch.chdir(there / "out/m")
    assert views(Path()) == views(Path("../m")) == expected
    monkeypatch.chdir(there.parent)
    unified_lift(monkeypatch, "eval", "-m", "deep/out/m", "--quiet")
    # Resumed with and without the flags of the first call, which named the same places by other words.
    (there / "my.yaml").write_text("seed: 3\n")
    for flags in ([], ["-s", "deep/data/desk", "--preset", "deep/my.yaml", "--object_path", str(there / "data/masks")]):
        unified_lift(monkeypatch, "train", "-m", "deep/out/m", "--resume", *flags, "--quiet")
    assert [*found_in(there, MARKS)] == []
    # An earlier run lies a folder deeper while the new one is not done.
    shutil.copytree("deep/out/edited", "deep/out/m/replaced")
    assert views(Path("deep/out/m/replaced")) == expected


def test_a_splat_to_start_from_is_the_same_by_any_name_and_from_any_folder(tmp_path, monkeypatch):
    write_dataset("transforms", tmp_path / "scene")
    monkeypatch.chdir(save_model(tmp_path / "other") / "point_cloud/iteration_40")
    model, ply = tmp_path / "m", "point_cloud.ply"
    words = ["train", "-s", tmp_path / "scene", "-m", model, *SHORT, "--iterations", 0, "--init_ply"]
    unified_lift(monkeypatch, *words, ply)
    config = yaml.safe_load((model / "config.yaml").read_text())
    assert config["init_ply"] == "../other/model/point_cloud/iteration_40/point_cloud.ply"
    place = Path(ply).absolute()
    monkeypatch.chdir(tmp_path)
    for given in ([], ["--init_ply", place], ["--init_ply", os.path.relpath(place)]):
        unified_lift(monkeypatch, "train", "-m", model, "--resume", "--quiet", *given)
    assert views(model) > 0


@pytest.mark.parametrize("is_absolute", [True, False])
def test_models_of_older_versions_are_opened(tmp_path, monkeypatch, is_absolute):
    monkeypatch.chdir(tmp_path)
    model = save_model(tmp_path)
    config = yaml.safe_load((model / "config.yaml").read_text())
    places = (str(model), str(tmp_path / "scene")) if is_absolute else ("model", "scene")
    config["model_path"], config["data"]["source_path"] = places
    del config["run"]["provenance"]
    (model / "config.yaml").write_text(yaml.safe_dump(config))
    (model / "manifest.json").write_text(json.dumps({"command": f"train.py -s {tmp_path}/scene", "notes": []}))
    expected = views(Path("model"))
    unified_lift(monkeypatch, "eval", "-m", model, "--quiet")
    assert str(tmp_path) not in (model / "report.html").read_text()
    unified_lift(monkeypatch, "edit", "-m", model, "--remove", 1, "--out", "edited")
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert views(tmp_path / "edited") == expected  # in the words of today
    if is_absolute:
        assert views(model) == expected
    else:
        with pytest.raises(Exception, match="is not there; give its place with -s"):
            views(model)
