"""unified-lift doctor: what it says of this machine, of broken ones, and of a scene."""

import re

import pytest
import torch

from tests.data.fixtures import write_dataset
from unified_lift import doctor
from unified_lift.cli.main import main
from unified_lift.data import load_scene
from unified_lift.data.cache import scene_bytes
from unified_lift.data.scene import expected_bytes
from unified_lift.data.settings import DataSettings

HEALTHY = {"implementation": "cpu", "isa": "avx2", "threads": 1, "reason": "compiled kernels are loaded"}
HEALTHY |= {"cuda": "cuda", "gsplat": "gsplat"}


def examined(capsys, *argv):
    code = main(["doctor", *argv])
    lines = capsys.readouterr().out.splitlines()
    found = {}
    for line in lines[:-1]:
        state, topic, text = re.match(r"(ok|note|BROKEN) +(\S+(?: \S+)?)  +(.*)", line).groups()
        found[topic] = (state, text)
    return code, found, lines[-1]


@pytest.fixture
def scene_dir(tmp_path):
    (tmp_path / "scene").mkdir()
    write_dataset("transforms", tmp_path / "scene")
    return tmp_path / "scene"


def test_a_machine_that_trains_is_told_what_it_has(capsys):
    code, found, verdict = examined(capsys)
    assert (code, verdict) == (0, "training can run")
    assert torch.__version__ in found["device"][1]
    assert found["render"][0] == found["simple_knn"][0] == found["packages"][0] == "ok"
    assert {"rasterizer cpu", "rasterizer cuda", "rasterizer gsplat", "disk", "memory"} <= set(found)
    assert set(doctor.OPTIONAL) <= set(found)


def test_what_is_built_is_ok_and_what_is_not_comes_with_the_reason(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "backend_info", lambda: HEALTHY)
    _, found, _ = examined(capsys)
    assert found["rasterizer cpu"] == ("ok", "cpu (avx2): compiled kernels are loaded")
    assert found["rasterizer cuda"] == found["rasterizer gsplat"] == ("ok", "built")
    missing = {"implementation": "reference", "reason": "no g++ was found", "cuda": "no nvcc was found"}
    monkeypatch.setattr(doctor, "backend_info", lambda: HEALTHY | missing)
    code, found, _ = examined(capsys)
    assert code == 0  # slow, but it trains
    assert found["rasterizer cpu"] == ("note", "reference (avx2): no g++ was found; this is very slow")
    assert found["rasterizer cuda"] == ("note", "no nvcc was found")


def test_a_rasterizer_that_draws_wrong_or_fails_is_broken(capsys, monkeypatch):
    real = doctor.render

    def black(gaussians, camera):
        out = real(gaussians, camera)
        object.__setattr__(out, "image", out.image * 0)
        return out

    monkeypatch.setattr(doctor, "render", black)
    code, found, verdict = examined(capsys)
    assert (code, verdict) == (1, "training cannot run: render")
    assert found["render"][0] == "BROKEN"
    assert "a red Gaussian came out as [0.0, 0.0, 0.0]" in found["render"][1]

    def fails(gaussians, camera):
        raise OSError("undefined symbol")

    monkeypatch.setattr(doctor, "render", fails)
    code, found, _ = examined(capsys)
    assert code == 1
    assert "OSError: undefined symbol; reinstall" in found["render"][1]


def test_wrong_neighbours_and_missing_packages_are_broken(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "distCUDA2", lambda points: torch.zeros(4))
    monkeypatch.setattr(doctor, "NEEDED", (*doctor.NEEDED, "no_such_module"))
    code, found, verdict = examined(capsys)
    assert (code, verdict) == (1, "training cannot run: simple_knn, packages")
    assert "missing: no_such_module; pip install" in found["packages"][1]


def test_optional_packages_are_there_with_version_or_missing_with_the_line_that_installs_them(capsys, monkeypatch):
    entries = {
        "yaml": ("reading", "pip install pyyaml"),
        "no_such_module": ("dreaming", 'pip install "unified-lift[dream]"'),
    }
    monkeypatch.setattr(doctor, "OPTIONAL", entries)
    code, found, _ = examined(capsys)
    assert code == 0
    assert re.fullmatch(r"\d+\.\d+.* \(reading\)", found["yaml"][1])
    assert found["no_such_module"] == ("note", 'not installed (dreaming); pip install "unified-lift[dream]"')


def test_an_installed_package_that_does_not_work_is_told_as_such(capsys, monkeypatch, tmp_path):
    def finds_nothing():
        raise RuntimeError("0 masks\nmore lines")

    (tmp_path / "broken_package.py").write_text("raise OSError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "OPTIONAL", {"broken_package": ("one", "pip a"), "yaml": ("two", "pip b")})
    found = {one.topic: one for one in doctor.examine(tmp_path, trials={"yaml": finds_nothing})}
    assert found["broken_package"].state == found["yaml"].state == "note"
    assert found["broken_package"].text.endswith("does not work (one): OSError: undefined symbol; pip a")
    assert found["yaml"].text.endswith("does not work (two): RuntimeError: 0 masks; pip b")


def test_a_scene_is_told_what_its_pixels_need_without_decoding_one(capsys, scene_dir, monkeypatch):
    scene = load_scene(DataSettings(source_path=scene_dir))
    gigabytes = scene_bytes(scene) / 2**30
    assert expected_bytes(DataSettings(source_path=scene_dir)) == scene_bytes(scene)
    monkeypatch.setattr("unified_lift.data.scene.load_view", None)  # calling it would fail
    code, found, _ = examined(capsys, "-s", str(scene_dir))
    assert code == 0
    assert found["scene"][1].startswith(f"photos and masks: {gigabytes:.2f} GiB in main memory")
    # 3 + 4 + 3 + 1 + 48 + 16 numbers of 4 bytes, four times: 1,200 bytes a Gaussian
    assert f"{1200 * 10**6 / 2**30:.2f} GiB a million" in found["Gaussians"][1]


def test_how_many_gaussians_fit_is_half_of_what_the_photos_leave(capsys, scene_dir, monkeypatch):
    needed = expected_bytes(DataSettings(source_path=scene_dir))
    monkeypatch.setattr(doctor, "free_bytes", lambda *_: {"cpu": 2 * 1200 * 5000 + needed})
    _, found, _ = examined(capsys, "-s", str(scene_dir))
    assert "about 5,000 fit" in found["Gaussians"][1]


def test_a_scene_that_is_none_is_broken_and_a_large_one_stays_on_disk(capsys, scene_dir, monkeypatch, tmp_path):
    code, found, verdict = examined(capsys, "-s", str(tmp_path / "none"))
    assert (code, verdict) == (1, "training cannot run: scene")
    assert "no such scene folder" in found["scene"][1]
    monkeypatch.setattr(doctor, "free_bytes", lambda *_: {"cpu": 10})
    code, found, _ = examined(capsys, "-s", str(scene_dir))
    assert code == 0
    assert "GiB on disk, decoded when they are used" in found["scene"][1]


def test_a_nearly_full_disk_is_noted(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**30})())
    code, found, _ = examined(capsys, "-m", str(tmp_path / "not/there/yet"))
    assert code == 0
    assert found["disk"][0] == "note"
    assert "1.0 GiB free" in found["disk"][1]
