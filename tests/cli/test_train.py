import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.data.fixtures import write_dataset
from unified_lift import api
from unified_lift.cli.main import main
from unified_lift.cli.train import parse
from unified_lift.errors import UserError
from unified_lift.methods import METHODS
from unified_lift.modelfolder.checkpoint import checkpoints, load_checkpoint
from unified_lift.modelfolder.settings import TrainSettings, with_preset
from unified_lift.settings.yaml import PRESET_DIR, differences

ROOT = Path(__file__).parents[2]
SHORT = [
    "--iterations", "12", "--lift-iterations", "10", "--densify-from-iter", "2", "--densification-interval", "4",
    "--codebook-min-members", "1", "--codebook-min-pixels", "1", "--codebook-min-consistency", "0",
    "--codebook-min-support", "0", "--sharpen-steps", "4",
    "--logger", "none", "--quiet",
]  # fmt: skip


@pytest.fixture
def miniature(tmp_path):
    root = tmp_path / "scene"
    write_dataset("transforms", root)
    return root


def settings_of(*argv):
    return parse(["-s", "scene", "-m", "model", *argv]).settings


def test_precedence_is_defaults_preset_config_command_line(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("method:\n  num_codes: 300\n  max_uncertainty: 0.7\n")
    assert settings_of().method.num_codes == 0
    assert settings_of("--preset", "released").method.num_codes == 256
    assert settings_of("--preset", "released", "--config", str(config)).method.num_codes == 300
    chosen = settings_of("--preset", "released", "--config", str(config), "--num_classes", "7").method
    assert (chosen.num_codes, chosen.max_uncertainty, chosen.weight_class) == (7, 0.7, 1e-4)
    assert settings_of("--preset", "released", "--schedule", "staged").schedule == "staged"


def test_table_4_is_five_presets_of_one_schedule():
    rows = sorted((PRESET_DIR / "ablation").glob("*.yaml"))
    baseline, *found = [settings_of("--preset", str(row)) for row in rows]
    assert baseline.method_name == "panoptic_lifting_gs"
    assert [(s.method.concentration, s.method.area_aware, s.method.label_filter) for s in found] == [
        (False, False, False), (True, False, False), (True, True, False), (True, True, True),
    ]  # fmt: skip
    assert {s.schedule for s in (baseline, *found)} == {"staged"}
    whole = settings_of("--preset", "released_staged")
    assert differences(whole, found[-1]) == {"preset": ("released_staged", str(rows[-1]))}


def test_released_staged_differs_from_released_in_the_schedule_alone():
    found = differences(settings_of("--preset", "released"), settings_of("--preset", "released_staged"))
    assert set(found) == {"preset", "schedule", "lift.lift_iterations", "lift.lift_pixels"}


def test_a_preset_extends_another_and_a_circle_is_an_error(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("extends: released\nmethod:\n  num_codes: 9\n")
    second.write_text(f"extends: {first}\nschedule: staged\n")
    settings = settings_of("--preset", str(second))
    assert (settings.method.num_codes, settings.method.weight_class, settings.schedule) == (9, 1e-4, "staged")
    assert settings.preset == str(second)
    first.write_text(f"extends: {second}\n")
    with pytest.raises(UserError, match="extends itself"):
        settings_of("--preset", str(second))
    first.write_text("extends: relased\n")
    with pytest.raises(UserError, match=r"first.yaml: extends relased: no such preset"):
        settings_of("--preset", str(second))


def test_a_method_brings_its_settings_and_its_preset():
    settings = settings_of("--method", "gaussian_grouping", "--lift_iterations", "7")
    assert (settings.method_name, settings.preset, settings.lift.lift_iterations) == (
        "gaussian_grouping", "gaussian_grouping", 7,
    )  # fmt: skip
    assert type(settings.method) is METHODS["gaussian_grouping"].settings
    assert settings_of("--preset", "gaussian_grouping").method == settings.method
    with pytest.raises(SystemExit) as caught:  # a flag of another method
        settings_of("--method", "gaussian_grouping", "--codebook_lr", "1e-3")
    assert caught.value.code == 2
    with pytest.raises(UserError, match="contradicts method_name gaussian_grouping"):
        settings_of("--method", "unified_lift", "--preset", "gaussian_grouping")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_a_preset_of_its_name(name):
    assert settings_of("--method", name).method_name == name


def test_unified_lift_json_is_read(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"num_classes": 256, "densify_until_iter": 10000, "reg3d_interval": 5}))
    settings = settings_of("--config_file", str(path))
    assert (settings.method.num_codes, settings.density.densify_until_iter) == (256, 10000)


@pytest.mark.parametrize("path", sorted(PRESET_DIR.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_loads(path):
    name = str(path.relative_to(PRESET_DIR).with_suffix(""))
    assert with_preset(TrainSettings(), name).preset == name


def test_parity_presets_hold_the_published_numbers():
    released, paper = (with_preset(TrainSettings(), name) for name in ("released", "paper"))
    assert (released.method.weight_class, released.method.weight_concentration) == (1e-4, 1.0)
    assert (paper.method.weight_class, paper.method.weight_concentration) == (1e-3, 0.1)
    for preset in (released, paper):
        assert preset.schedule == "joint"
        assert (preset.method.num_codes, preset.method.feature_dim) == (256, 16)
        assert preset.method.zero_id == "segment"
        assert preset.geometry.iterations == 30_000
    assert released.density.densify_until_iter == 10_000


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "no scene given"),
        (["train", "-s", "nowhere"], "no model folder given"),
        (["train", "-s", "nowhere", "-m", "out"], "nowhere"),
        (["train", "-s", "x", "-m", "y", "--preset", "relased"], "no such preset; there are"),
        (["train", "-s", "x", "-m", "y", "--method", "gaga2"], "--method gaga2: no such method; there are"),
        (["train", "-s", "x", "-m", "y", "--feature_dim", "0"], "--feature_dim must be at least 1"),
        (["train", "-s", "x", "-m", "y", "--num_codes", "-1"], "--num_codes must be at least 0"),
        (["train", "-s", "x", "-m", "y", "--temperature", "-1"], "--temperature must be at least 0"),
        (["train", "-s", "x", "-m", "y", "--config", "none.yaml"], "none.yaml: no such settings file"),
        (["train", "-s", "x", "-m", "y", "--iterations", "0"], "--iterations must be at least 1"),
        (["train", "-s", "x", "-m", "y", "--sh_degree", "4"], "--sh_degree goes up to 3"),
        (["train", "-s", "x", "-m", "y", "--checkpoint_minutes", "-1"], "--checkpoint_minutes must be at least 0"),
        (["train", "-s", "x", "-m", "y", "--resume"], "no chkpnt<N>.pth there to resume from"),
        (["train", "-s", "x", "-m", "y", "--start_checkpoint", "gone.pth"], "gone.pth: no such checkpoint"),
        (["tarin"], "no command 'tarin'"),
    ],
)
def test_bad_command_line_is_one_line_and_exit_code_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", ["unified_lift", "released", "paper"])
def test_every_preset_trains_the_miniature_and_refuses_to_overwrite(preset, miniature, tmp_path, capsys):
    model = tmp_path / "model"
    argv = ["train", "-s", str(miniature), "-m", str(model), "--eval", "--preset", preset, *SHORT]
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert "object codes" in printed.out
    assert re.search(r"photos and masks: .* free\), loaded in \d+\.\d s", printed.out + printed.err)
    manifest = json.loads((model / "manifest.json").read_text())
    assert manifest["num_gaussians"] > 0
    assert yaml.safe_load((model / "config.yaml").read_text())["preset"] == preset
    assert main(argv) == 2
    assert "already holds a run; --resume goes on with it, --overwrite replaces it" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0


def start_process(miniature, model):
    command = [sys.executable, "train.py", "-s", str(miniature), "-m", str(model), *SHORT, "--logger", "none"]
    command += ["--iterations", "100000", "--checkpoint-interval", "5", "--densify-until-iter", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not list(model.glob("chkpnt*.pth")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()
    return process


def test_a_run_that_diverges_ends_with_one_line_and_keeps_what_was_saved(miniature, tmp_path, capsys):
    model = tmp_path / "model"
    arguments = ["train", "-s", str(miniature), "-m", str(model), *SHORT, "--checkpoint_interval", "2"]
    assert main([*arguments, "--feature_lr", "1e38"]) == 1
    error = capsys.readouterr().err
    assert "not finite" in error
    assert "lower rates" in error
    assert "Traceback" not in error
    found = checkpoints(model)
    assert max(found) >= 12  # the whole geometry
    assert load_checkpoint(found[max(found)])["total_steps"] == max(found)


def test_ctrl_c_leaves_a_resumable_run(miniature, tmp_path, capsys):
    model = tmp_path / "model"
    process = start_process(miniature, model)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"go on with: train.py -m {model} --resume" in out
    assert "Traceback" not in err
    done = max(int(p.stem.removeprefix("chkpnt")) for p in model.glob("chkpnt*.pth"))
    assert main(["train", "-m", str(model), "--resume", "--iterations", str(done + 3)]) == 0


def test_kill_at_any_moment_leaves_a_whole_checkpoint(miniature, tmp_path):
    """Each run goes on where the last was killed; with a checkpoint as often as the disk takes them."""
    model = tmp_path / "model"
    start_process(miniature, model).kill()
    for delay_s in (0.3, 0.7, 1.1):
        before = max(checkpoints(model))
        command = [sys.executable, "train.py", "-m", str(model), "--resume", "--checkpoint-minutes", "0.00001"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + 90
        while max(checkpoints(model)) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay_s / 10)
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        found = checkpoints(model)
        assert max(found) > before
        assert all(load_checkpoint(path)["total_steps"] == total for total, path in found.items())


@pytest.mark.parametrize("words", [("--resume", "auto"), ("--resume=auto",), ("--resume-auto",)])
def test_one_command_starts_or_goes_on_whatever_the_folder_holds(words, miniature, tmp_path, capsys):
    model = tmp_path / "model"
    command = ["train", "-s", str(miniature), "-m", str(model), *SHORT, "--logger", "none", *words]
    assert main(command) == 0
    done = {p.name: p.read_bytes() for p in (model / "point_cloud").rglob("*") if p.is_file()}
    (last,) = [path for total, path in checkpoints(model).items() if total == max(checkpoints(model))]
    assert main(command) == 0  # of a run that is done: nothing changes
    assert {p.name: p.read_bytes() for p in (model / "point_cloud").rglob("*") if p.is_file()} == done
    for path in set(model.glob("chkpnt*.pth")) - {last}:
        path.unlink()
    last.unlink()
    assert main(command) == 2  # results, but nothing to go on from: they are not replaced unasked
    assert "none of its checkpoints is left to go on from, --overwrite replaces it" in capsys.readouterr().err
    shutil.rmtree(model / "point_cloud")
    assert (model / "config.yaml").exists()  # as of a run that was killed before its first checkpoint
    assert main(["train", "-s", str(miniature), "-m", str(model), *SHORT, "--resume"]) == 2
    assert "leave --resume out to start, or say --resume auto" in capsys.readouterr().err
    assert main(command) == 0
    assert {p.name: p.read_bytes() for p in (model / "point_cloud").rglob("*") if p.is_file()} == done
    shutil.rmtree(model / "point_cloud")
    for path in model.glob("chkpnt*.pth"):
        path.unlink()
    assert main([word for word in command if word not in words]) == 0  # and so without the flag


def test_of_two_trainings_at_once_one_runs_and_one_is_refused(miniature, tmp_path, capsys):
    model = tmp_path / "model"
    process = start_process(miniature, model)
    for command in (
        ["train", "-s", str(miniature), "-m", str(model), *SHORT, "--overwrite"],
        ["train", "-m", str(model), "--resume"],
    ):
        assert main(command) == 2
        assert f"training (process {process.pid}) is at work there" in capsys.readouterr().err
    process.kill()
    process.communicate()
    assert main(["train", "-s", str(miniature), "-m", str(model), *SHORT, "--overwrite", "--logger", "none"]) == 0


def test_photos_from_disk_train_the_same_model_and_the_run_says_where_they_are(miniature, tmp_path, capsys):
    for place in ("cpu", "disk"):
        model = tmp_path / place
        assert main(["train", "-s", str(miniature), "-m", str(model), "--data_device", place, *SHORT]) == 0
        out = capsys.readouterr().out
        assert f"photos and masks: 0.00 GiB {'on disk, decoded' if place == 'disk' else 'in main memory ('}" in out
        assert json.loads((model / "manifest.json").read_text())["data"]["kept_on"] == place
    files = [tmp_path / p / "point_cloud/iteration_12/point_cloud_objects.ply" for p in ("cpu", "disk")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert {path.name for path in (tmp_path / "cpu").iterdir()} == {path.name for path in (tmp_path / "disk").iterdir()}


def test_profile_shows_where_the_time_of_a_step_goes(miniature, tmp_path, capsys):
    model = tmp_path / "model"
    steps = ["--iterations", "40", "--lift_iterations", "32"]  # a window is an eighth: 5 and 4 steps
    assert main(["train", "-s", str(miniature), "-m", str(model), *SHORT, *steps, "--profile"]) == 0
    profile = json.loads((model / "profile.json").read_text())
    assert {stage: [window["steps"] for window in found] for stage, found in profile.items()} == {
        "geometry": [[11, 15], [31, 35]],
        "lift": [[9, 12], [25, 28]],
    }
    phases = {"between steps", "view", "forward", "losses", "backward", "update", "wait at the end"}
    for stage, found in profile.items():
        for window in found:
            assert set(window["host_ms"]) == phases | ({"density"} if stage == "geometry" else set())
            assert sum(window["host_ms"].values()) == pytest.approx(window["wall_ms"])
            assert window["gaussians"] > 0
            assert "kernels" not in window  # no GPU here
    out = capsys.readouterr().out
    assert f"geometry, steps 11 to 15 ({profile['geometry'][0]['gaussians']} gaussians, 0 codes): " in out
    assert "ms  density" in out
    assert main(["train", "-s", str(miniature), "-m", str(model), *SHORT, "--overwrite"]) == 0
    assert not (model / "profile.json").exists()


def test_model_folder_of_another_trainer_is_not_touched(miniature, tmp_path, capsys):
    foreign = tmp_path / "model" / "point_cloud" / "iteration_30000" / "point_cloud.ply"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("precious")
    assert main(["train", "-s", str(miniature), "-m", str(tmp_path / "model"), *SHORT]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert foreign.read_text() == "precious"


def test_masks_of_no_photo_stop_training_as_check_data_does_and_none_or_stop_gaps_are_named_at_the_end(
    miniature, tmp_path, capsys
):
    described = json.loads((miniature / "transforms.json").read_text())
    for frame in described["frames"]:
        del frame["object_mask_path"]
    (miniature / "transforms.json").write_text(json.dumps(described))
    for path in (miniature / "object_mask").glob("*.png"):
        path.rename(path.with_suffix(".jpg"))
    argv = ["train", "-s", str(miniature), "-m", str(tmp_path / "model"), *SHORT]
    assert main(argv) == 2
    assert "none of its 10 files is the mask of a photo (0000.jpg, " in capsys.readouterr().err
    assert main(["check-data", "-s", str(miniature), "--quiet"]) == 1
    assert "none of its 10 files is the mask of a photo (0000.jpg, " in capsys.readouterr().out
    assert main([*argv, "--object_path", "none"]) == 0
    assert "no training view has a mask" in capsys.readouterr().out.splitlines()[-2]
    for path in (miniature / "object_mask").glob("*.jpg"):
        path.rename(path.with_suffix(".png"))
    (miniature / "object_mask" / "masks.json").write_text('{"settings": {"provider": "regions"}}')
    assert main([*argv, "--overwrite"]) == 0
    assert "stop-gap for trying the commands" in capsys.readouterr().out


def test_training_ends_with_quality_folder_and_the_next_command(miniature, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for model, flags, door in ((tmp_path / "a", ["--eval"], "eval"), (tmp_path / "b c", [], "render")):
        assert main(["train", "-s", str(miniature), "-m", str(model), *SHORT, *flags]) == 0
        *_, quality, folder, following = capsys.readouterr().out.splitlines()
        log = map(json.loads, (model / "metrics.jsonl").read_text().splitlines())
        scored = [f"held-out views: PSNR {line['psnr']:.2f} dB after 12 iterations" for line in log if "psnr" in line]
        assert (len(scored), quality in scored) == (len(flags), bool(flags))
        assert folder.startswith(f"{model.name}: ")
        name = "a" if flags else "'b c'"
        assert following.startswith(f"next: unified-lift {door} -m {name}  (")


def test_a_gpu_gets_what_it_has_the_time_for_unless_a_cpu_trains(tmp_path, monkeypatch):
    own = tmp_path / "own.yaml"
    own.write_text("extends: unified_lift\ncooldown: 0.1\n")
    monkeypatch.setattr("unified_lift.device.backend_info", lambda: {"cuda": "cuda", "gsplat": "no"})
    for there, words, strategy, cooldown in (
        (True, "", "mcmc", 0.3),
        (True, "--device cpu", "default", 0.0),
        (True, f"--preset {own}", "mcmc", 0.1),
        (True, "--preset released", "default", 0.0),
        (False, "", "default", 0.0),
    ):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        settings = parse(["-s", "x", "-m", str(tmp_path / "y"), *words.split()]).settings
        assert (settings.strategy, settings.geometry.cooldown) == (strategy, cooldown)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for text, strategy in (("run: {device: cpu}", "default"), ("device: cpu", "default"), ("seed: 3", "mcmc")):
        own.write_text(text)
        assert parse(["-s", "x", "-m", str(tmp_path / "y"), "--config", str(own)]).settings.strategy == strategy
    seen = []
    monkeypatch.setattr(api, "run", seen.append)
    monkeypatch.setattr(api.inference, "load_model", lambda *_: None)
    for given in ({}, {"device": "cpu"}, {"densify_until_iter": 9}):
        api.train_scene("x", tmp_path / "y", **given)
    assert [settings.strategy for settings in seen] == ["mcmc", "default", "default"]
    own.write_text("on_gpu: 3\n")
    with pytest.raises(UserError, match="own.yaml: on_gpu is a group"):
        parse(["-s", "x", "-m", str(tmp_path / "y"), "--preset", str(own)])


def test_a_flag_of_another_strategy_chooses_it_and_says_so(tmp_path, capsys):
    words = ["-s", "x", "-m", str(tmp_path / "y")]
    assert parse([*words, "--strategy", "mcmc", "--noise", "3"]).settings.strategy == "mcmc"
    found = parse([*words, "--relocate_until_iter", "9"]).settings
    assert (found.strategy, found.density.relocate_until_iter) == ("mcmc", 9)
    assert "note: --strategy mcmc, whose settings are given; the preset has default" in capsys.readouterr().err
    config = tmp_path / "3dgs.yaml"
    config.write_text("relocate_until_iter: 9\n")
    assert parse([*words, "--config", str(config)]).settings.strategy == "mcmc"
    config.write_text("densify_until_iter: 7\n")
    with pytest.raises(UserError, match="--strategy mcmc: contradicts strategy default of the settings"):
        parse([*words, "--strategy", "mcmc", "--config", str(config)])
    with pytest.raises(SystemExit):
        parse([*words, "--relocate_until_iter", "9", "--densify_until_iter", "9"])  # no strategy has both
