"""How long a run is where nothing says so; what it says of it before it trains; and how it goes on."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests.scenes import circle_camera, tiny_scene
from tests.train.test_training import SHORT, StopAt, assert_same_state, final_state, settings_for
from unified_lift import api
from unified_lift.cli.bench import parse as parse_bench
from unified_lift.cli.train import parse
from unified_lift.density.base import StrategySettings
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.settings import TrainSettings, with_preset
from unified_lift.settings.yaml import PRESET_DIR, differences, merged
from unified_lift.train import schedule
from unified_lift.train.hooks import Interrupted
from unified_lift.train.lift import steps_of as lift_steps_of
from unified_lift.train.run import latest_checkpoint, run
from unified_lift.train.schedule import COSTS, Forecast, Photos, bound_of, chosen, cpu_schedule, full_grown

ROOM = Photos(80, 0.065536, 6_905, "256x256")


# Milliseconds of a step: 1 + 116 x megapixels + 0.000235 x Gaussians. room_25: 1 + 7.60 + 9.40 = 18.0, for which 2.5
# minutes have 8,330 steps; 5 / 8 of 80 views are 50 hundreds.
@pytest.mark.parametrize(
    ("photos", "asked", "expected"),
    [
        (ROOM, {}, (5_000, 40_000)),
        (ROOM, {"minutes": 0.9}, (2_900, 40_000)),  # 54 s / 18.0 ms = 2,999
        (ROOM, {"minutes": 0.0}, (2_000, 40_000)),
        (ROOM, {"most": 25_000, "minutes": 1.0}, (4_100, 25_000)),  # 60 s / 14.48 ms = 4,144
        (ROOM, {"own": 20_000}, (5_000, 20_000)),
        (ROOM, {"own": 10**6}, (5_000, 40_000)),
        (ROOM, {"most": 0, "own": 90_000}, (5_000, 90_000)),  # 150 s / 29.75 ms = 5,042
        (ROOM, {"most": 0}, (2_000, 0)),  # 343,000 in the end: 89.3 ms
        (Photos(12, 0.001728, 300, ""), {}, (3_000, 10_000)),
        (Photos(120, 0.147456, 15_000, ""), {}, (4_600, 60_000)),  # 150 s / 32.2 ms = 4,658
        (Photos(300, 1.7072, 0, ""), {}, (2_000, 60_000)),  # 213 ms
        (Photos(300, 0.03, 0, ""), {}, (7_000, 60_000)),
        (Photos(80, 0.065536, 100_000, ""), {}, (4_600, 100_000)),  # 150 s / 32.1 ms = 4,672
    ],
)
def test_a_cpu_takes_as_many_steps_as_fit_a_few_minutes(photos, asked, expected):
    assert cpu_schedule(photos, **({"minutes": 2.5} | asked)) == expected


def choice(device="cpu", *, earlier=None, **settings):
    found, line = chosen(merged(TrainSettings(), settings, origin="test"), ROOM, device, earlier=earlier)
    return found.geometry.iterations, found.density.max_gaussians, line


def test_what_is_asked_for_stays_and_nothing_is_said():
    for device in ("cpu", "cuda"):
        assert choice(device, iterations=30_000) == (30_000, 0, "")
        assert choice(device, iterations=0, max_gaussians=7) == (0, 7, "")


def test_the_device_chooses_the_rest_and_says_why():
    full = "--iterations 30000 for the full length"
    line = "length: 5,000 geometry iterations, at most 40,000 Gaussians: chosen for a CPU and 80 photos of 256x256; "
    assert choice() == (5_000, 40_000, line + full)
    assert choice(max_gaussians=30_000)[:2] == (5_000, 30_000)
    assert choice(cpu_gaussians=0)[:2] == (2_000, 0)
    line = "length: 30,000 geometry iterations: chosen for a GPU and 80 photos of 256x256; "
    assert choice("cuda") == (30_000, 0, line + "--iterations N for another number")
    assert choice("cuda", gpu_iterations=5_000, max_gaussians=9)[:2] == (5_000, 9)


@pytest.mark.parametrize(("views", "expected"), [(80, 12_000), (10, 3_000), (300, 30_000)])
def test_a_gpu_visits_each_photo_so_often_within_limits(views, expected):
    settings = merged(TrainSettings(), {"gpu_visits": 150}, origin="test")
    found, _ = chosen(settings, ROOM._replace(views=views), "cuda")
    assert found.geometry.iterations == expected


def test_a_bound_grows_with_the_root_of_all_pixels_whatever_says_how_long_it_is():
    assert bound_of(Photos(120, 0.147456, 15_000, ""), 80_000) == 337_000  # 80,000 x sqrt(17.69)
    assert bound_of(Photos(120, 0.147456, 400_000, ""), 80_000) == 400_000  # never fewer than at first
    assert bound_of(ROOM, 80_000, own=90_000) == 90_000
    assert bound_of(ROOM, 0) == 0
    for device in ("cpu", "cuda"):
        bound = choice(device, iterations=30_000, megapixel_gaussians=80_000)
        assert bound[:2] == (30_000, 183_000)
        assert "183,000 Gaussians: bound chosen for 80 photos" in bound[2]
        assert choice(device, iterations=0, megapixel_gaussians=80_000) == (0, 0, "")
    assert choice("cuda", megapixel_gaussians=80_000)[:2] == (30_000, 183_000)
    assert choice("cpu", megapixel_gaussians=80_000)[:2] == (5_000, 40_000)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_checkpoint_keeps_the_length_that_was_chosen_where_it_began(device):
    earlier = {"geometry": {"iterations": 4_100}, "density": {"max_gaussians": 25_000}}
    assert choice(device, earlier=earlier)[:2] == (4_100, 25_000)


def test_a_strategy_without_a_bound_gets_none():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(StrategySettings):
        rate: float = 1.0

    found, line = chosen(dataclasses.replace(TrainSettings(), density=Own()), ROOM, "cpu")
    assert (found.geometry.iterations, found.density) == (5_000, Own())
    assert "Gaussians" not in line


PARITY = "released paper released_staged contrastive_lift_gs gaga gaussian_grouping omniseg3d_gs panoptic_lifting_gs"


@pytest.mark.parametrize("name", [*PARITY.split(), *(f"ablation/{p.stem}" for p in PRESET_DIR.glob("ablation/*.yaml"))])
def test_presets_to_compare_with_have_the_full_length_on_every_device(name):
    settings = with_preset(TrainSettings(), name)
    assert settings.geometry.iterations == 30_000
    assert chosen(settings, ROOM, "cpu") == (settings, "")


@pytest.mark.parametrize(
    ("words", "content", "expected"),
    [
        ("", "", (-1, 0)),
        ("--max_gaussians 0", "", (0, 0)),  # no bound: goes before the chosen one as well
        ("--max-gaussians=90000", "", (0, 90_000)),
        ("", "max_gaussians: 0", (0, 0)),
        ("", "density: {max_gaussians: 70}", (0, 70)),
        ("--cpu_gaussians 50 --max_gaussians 60", "", (50, 60)),
    ],
)
def test_a_bound_that_the_user_gives_goes_before_the_chosen_one(tmp_path, words, content, expected):
    config = tmp_path / "my.yaml"
    config.write_text(content)
    argv = ["-s", "x", "-m", str(tmp_path / "y"), "--config", str(config), *words.split()]
    settings = parse(argv).settings
    assert settings.geometry.iterations == -1
    assert (settings.geometry.cpu_gaussians, settings.density.max_gaussians) == expected


@pytest.mark.parametrize("given", [{"max_gaussians": 0}, {"density": {"max_gaussians": 0}}])
def test_a_bound_given_in_python_goes_before_the_chosen_one_too(tmp_path, monkeypatch, given):
    seen = []
    monkeypatch.setattr(api, "run", seen.append)
    monkeypatch.setattr(api.inference, "load_model", lambda *_: None)
    api.train_scene("x", tmp_path / "y", **given)
    api.train_scene("x", tmp_path / "y")
    assert [s.geometry.cpu_gaussians for s in seen] == [0, -1]


@pytest.mark.parametrize(("table", "iterations"), [("3", 30_000), ("rooms", 30_000), ("presets", None)])
def test_a_bench_has_the_full_length_on_every_device(tmp_path, table, iterations):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "transforms.json").write_text("{}")
    argv = ["--table", table, "--data", str(tmp_path), "--out", str(tmp_path / "o"), "--scenes", "a"]
    assert parse_bench(argv)[0].iterations == iterations


@pytest.fixture
def short(monkeypatch):
    """As if 24 steps and 150 Gaussians were what a CPU has the time for."""
    monkeypatch.setattr(schedule, "cpu_schedule", lambda photos, **_: (24, 150))


def without_length(path, **changes):
    settings = settings_for(path, **changes)
    return dataclasses.replace(settings, geometry=dataclasses.replace(settings.geometry, iterations=-1))


def test_the_chosen_length_is_what_everything_holds_and_what_a_resumed_run_takes(tmp_path, short, monkeypatch, capsys):
    scene = tiny_scene()
    asked = merged(settings_for(tmp_path / "asked"), {"max_gaussians": 150}, origin="test")
    run(asked, scene)
    assert "length:" not in capsys.readouterr().out
    state = run(without_length(tmp_path / "chosen"), scene)
    said = capsys.readouterr()
    assert "length: 24 geometry iterations, at most 150 Gaussians: chosen for a CPU and 6 photos of 24x20" in said.out
    assert said.out.index("length: 24") < said.out.index("forecast: about ")
    assert state.settings.geometry.iterations == 24
    stored = yaml.safe_load((tmp_path / "chosen" / "config.yaml").read_text())
    assert (stored["geometry"]["iterations"], stored["density"]["max_gaussians"]) == (24, 150)
    assert outputs.saved_iterations(tmp_path / "chosen") == [24]
    assert state.manifest["iteration"] == 24

    with pytest.raises(Interrupted):
        run(without_length(tmp_path / "halves"), scene, hooks=[StopAt(11)])
    left = latest_checkpoint(outputs.read_run_settings(tmp_path / "halves"))  # as --resume does
    monkeypatch.setattr(schedule, "cpu_schedule", lambda photos, **_: (99, 99))  # the checkpoint's own numbers stay
    with pytest.raises(Interrupted):
        run(outputs.read_run_settings(tmp_path / "halves"), scene, resume_from=left, hooks=[StopAt(15)])
    again = without_length(tmp_path / "halves")  # as --start_checkpoint, or --iterations -1
    run(again, scene, resume_from=latest_checkpoint(again))
    for name in ("chosen", "halves"):
        assert_same_state(final_state(tmp_path / "asked", 44), final_state(tmp_path / name, 44))


def forecaster(scene, spent=2.0, **changes):
    settings = merged(TrainSettings(), SHORT | changes, origin="test")
    return Forecast(settings, scene, lambda: {"load": spent})


def stage_of(num_steps, *, count, name="geometry", first=0, device="cpu"):
    gaussians = type("G", (), {"device": torch.device(device), "__len__": lambda _: count})()
    known = {"first": first, "num_steps": num_steps, "num_gaussians": count}
    return SimpleNamespace(name=name, gaussians=gaussians, **known)


@pytest.mark.parametrize(("device", "waits", "said_after", "left"), [("cpu", 0, 13, 44), ("cuda", 2, 22, 39)])
def test_the_forecast_is_what_steps_of_that_speed_would_take(device, waits, said_after, left, monkeypatch, capsys):
    """100 steps of 0.5 s that no Gaussian is added in, after 2 s of loading: 52 s. Said 5 s behind the slow ones."""
    now, waited = [0.0], []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(0))
    monkeypatch.setattr(schedule.time, "perf_counter", lambda: now[0])
    scene = dataclasses.replace(tiny_scene(), train=[dataclasses.replace(v, segments=None) for v in tiny_scene().train])
    hook, stage = forecaster(scene, max_gaussians=120), stage_of(100, count=120, device=device)
    hook._spent = lambda: {"load": 2.0, "geometry": now[0]}
    hook.before_stage(stage)
    for step in range(100):
        now[0] += 0.5
        hook.after_step(stage, step, {})
        said = capsys.readouterr().out
        line = f"forecast: about 52 s in all; still geometry (100 iterations) {left} s\n"
        assert said == (line if step + 1 == said_after else "")
    assert len(waited) == waits


@pytest.mark.parametrize("most", [0, 4_000])
def test_growth_is_reckoned_with(most):
    """Against a loop over all steps: from 120 Gaussians on to the bound in a fifth of the steps, or in half of them."""
    hook, stage, steps = forecaster(tiny_scene(), max_gaussians=most), stage_of(1_000, count=120), 1_000
    hook.before_stage(stage)
    until, grown = (200, most) if most else (500, full_grown(hook._photos))
    slow = 0.0
    for step in range(steps):
        share = min(1.0, max(0.0, (step - 3) / (until - 3)))
        slow += COSTS["cpu"].geometry(480e-6, 120 + share * (grown - 120))
    geometry, lift, labels = hook.parts(stage)
    assert geometry.cost(0, steps) == pytest.approx(slow, rel=0.01)
    # 20 lift steps of 200 pixels, two rounds of weights for 6 views; 4 refinement steps of 16,384 pixels.
    assert lift.cost(0, 20) == pytest.approx(20 * 12 * 200 / 8_192 + 12 * 520 * 480e-6)
    assert lift.cost(0, 20) == pytest.approx(lift.cost(0, 8) + lift.cost(8, 20))
    assert labels.cost(0, 4) == pytest.approx(4 * 32 + 6 * 600 * 480e-6)
    assert [part.name for part in hook.parts(stage_of(20, count=120, name="lift"))] == [lift.name, labels.name]
    unlifted = forecaster(tiny_scene(), lift={"lift_iterations": 0})
    unlifted.before_stage(stage)
    assert len(unlifted.parts(stage)) == 1


@pytest.mark.parametrize(("device", "expected"), [("cpu", (4_100, 40_000)), ("cuda", (3_360, 0))])
def test_fast_is_ours_with_shorter_stages(device, expected):
    ours, fast = (with_preset(TrainSettings(), name, device=device) for name in ("unified_lift", "fast"))
    of = {name.split(".")[0] for name in differences(ours, fast)}
    assert of <= {"preset", "strategy", "geometry", "density", "lift", "refine"}
    found, _ = chosen(fast, ROOM, device)
    assert (found.geometry.iterations, found.density.max_gaussians) == expected
    assert found.geometry.iterations < chosen(ours, ROOM, device)[0].geometry.iterations
    large = [circle_camera(0.0, width=256, height=256)] * 200
    assert [lift_steps_of(s.lift, large[:80]) for s in (ours, fast)] == [2_000, 1_000]
    assert [lift_steps_of(s.lift, large) for s in (ours, fast)] == [4_800, 2_400]  # 200 x 65,536 x 3 / 8,192
