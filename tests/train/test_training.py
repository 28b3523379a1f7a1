import dataclasses
import re
import signal
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from diff_gaussian_rasterization import blend

from unified_lift.density.default import DefaultStrategy, DefaultStrategySettings
from unified_lift.density.mcmc import MCMCStrategy, MCMCStrategySettings
from unified_lift.errors import UserError
from unified_lift.methods.unified_lift import UnifiedLift, UnifiedLiftSettings
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.model.ply import write_gaussians
from unified_lift.model.render import blending_weights
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.checkpoint import checkpoint_path, checkpoints, load_checkpoint
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.labels import label_gaussians
from unified_lift.modelfolder.settings import GeometrySettings, LiftSettings, TrainSettings, with_preset
from unified_lift.ops.cameras import unproject
from unified_lift.settings.yaml import merged
from unified_lift.train.geometry import GeometryStage, log_linear
from unified_lift.train.hooks import Hook, Interrupted
from unified_lift.train.lift import LiftStage
from unified_lift.train.logs import read_log
from unified_lift.train.optim import RowAdam
from unified_lift.train.run import latest_checkpoint, run

SHORT = {
    "geometry": {"iterations": 24, "sh_degree": 1, "sh_interval": 8},
    "density": {
        "densify_from_iter": 4,
        "densify_until_iter": 20,
        "densification_interval": 6,
        "opacity_reset_interval": 10,
    },
    "lift": {"lift_iterations": 20, "lift_pixels": 200},
    "method": {
        "codebook_min_members": 2,
        "codebook_min_cosine": 0.5,
        "codebook_min_pixels": 5,
        "codebook_min_consistency": 0.2,
        "codebook_min_support": 0,
        "sharpen_steps": 4,
    },
    "run": {"logger": "none", "quiet": True, "checkpoint_interval": 0, "log_interval": 5},
}

JOINT = {"preset": "released", "method": {"num_codes": 8, "contrastive_samples": 100, "min_pixels": 2}}

DEFAULT = DefaultStrategy(DefaultStrategySettings())


def settings_for(path, *, preset="unified_lift", **changes):
    base = with_preset(TrainSettings(), preset)
    return merged(merged(base, SHORT | {"model_path": str(path)}, origin="test"), changes, origin="test")


def final_state(model_path, total):
    return load_checkpoint(checkpoint_path(model_path, total))


def assert_same_state(left, right):
    for name, value in left["gaussians"].items():
        assert torch.equal(value, right["gaussians"][name]), name
    assert torch.equal(left["method"]["codebook"], right["method"]["codebook"])
    for name, pair in left["stage_state"]["adam"]["moments"].items():
        for a, b in zip(pair, right["stage_state"]["adam"]["moments"][name], strict=True):
            assert torch.equal(a, b), name


class StopAt(Hook):
    """Presses Ctrl-C during the step that makes `total_steps`."""

    def __init__(self, total_steps):
        self.total_steps = total_steps

    def before_step(self, stage, step):
        if stage.steps_before + step + 1 == self.total_steps:
            signal.raise_signal(signal.SIGINT)


class CrashAfter(Hook):
    """Dies after the step that makes `total_steps`; `before` is called after each step up to then."""

    def __init__(self, total_steps, before=lambda: None):
        self.total_steps, self.before = total_steps, before

    def after_step(self, stage, step, terms):
        self.before()
        if stage.steps_before + step + 1 == self.total_steps:
            raise MemoryError


def saved_features(model_path):
    return load_model(model_path).gaussians.features


# In geometry, lift and refine, at their ends, and in the joint schedule.
@pytest.mark.parametrize("stop_at", [11, 24, 33, 44, 46, "joint", "lift of many", "refine of many"])
def test_interrupted_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, scene, stop_at, monkeypatch):
    joint, total = (JOINT, 24) if stop_at == "joint" else ({}, 44)
    if str(stop_at).endswith("of many"):
        monkeypatch.setattr("unified_lift.model.gaussians.MANY", 1)
        joint, stop_at = {"lift": {"lift_cache_mb": 0}}, 33 if stop_at == "lift of many" else 46
    whole, halves = (settings_for(tmp_path / name, **joint) for name in ("whole", "halves"))
    run(whole, scene)
    stop_at = 13 if stop_at == "joint" else stop_at
    with pytest.raises(Interrupted):
        run(halves, scene, hooks=[StopAt(stop_at)])
    assert max(checkpoints(halves.model_path)) == stop_at
    assert outputs.saved_iterations(halves.model_path) == ([24] if stop_at >= 24 else [])
    run(halves, scene, resume_from=latest_checkpoint(halves))
    assert_same_state(final_state(whole.model_path, total), final_state(halves.model_path, total))
    for name in ("segmentation.npz", "classifier.pth", "objects.json"):
        folders = (settings.model_path / "point_cloud" / "iteration_24" for settings in (whole, halves))
        assert len({(folder / name).read_bytes() for folder in folders}) == 1, name


def test_steps_on_what_views_show_of_many_gaussians_train_what_steps_on_all_do(tmp_path, scene, monkeypatch):
    found, touched = [], []
    monkeypatch.setattr("unified_lift.model.gaussians._BLOCK", 16)
    begin = RowAdam.rows
    monkeypatch.setattr(RowAdam, "rows", lambda own, rows: touched.append(len(rows)) or begin(own, rows))
    for many in (2**20, 1):
        monkeypatch.setattr("unified_lift.model.gaussians.MANY", many)
        assert not touched
        lift = {"lift_cache_mb": 0, "lift_iterations": 60, "lift_pixels": 6, "lift_min_samples": 0}
        settings = settings_for(tmp_path / str(many), lift=lift, geometry={"iterations": 0})
        found.append(run(settings, scene).gaussians.features.detach())
    assert 0 < min(touched) < len(found[0]) == max(touched)
    torch.testing.assert_close(*found, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("changes", [{}, JOINT], ids=["staged", "joint"])
def test_objects_leave_the_geometry_bit_identical(tmp_path, scene, changes):
    settings = settings_for(tmp_path / "objects", **changes)
    plain = {"schedule": "staged", "lift_iterations": 0, "model_path": str(tmp_path / "plain")}
    run(settings, scene)
    run(merged(settings, plain, origin="test"), scene)
    ply = "point_cloud/iteration_24/point_cloud.ply"
    assert (tmp_path / "plain" / ply).read_bytes() == (tmp_path / "objects" / ply).read_bytes()


def test_n_steps_then_n_more_equal_two_n(tmp_path, scene):
    fixed = {"position_lr_max_steps": 100, "lift_iterations": 0}
    run(settings_for(tmp_path / "whole", **fixed), scene)
    half = settings_for(tmp_path / "halves", iterations=12, **fixed)
    run(half, scene)
    longer = merged(half, {"iterations": 24}, origin="test")
    run(longer, scene, resume_from=latest_checkpoint(longer))
    assert_same_state(final_state(tmp_path / "whole", 24), final_state(tmp_path / "halves", 24))


def test_same_seed_same_result_and_another_seed_another(tmp_path, scene):
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(settings_for(tmp_path / name, seed=seed), scene)
        states.append(final_state(tmp_path / name, 44))
    assert_same_state(states[0], states[1])
    assert not torch.equal(states[0]["gaussians"]["means"][:20], states[2]["gaussians"]["means"][:20])


def test_training_learns_colour_and_objects(tmp_path, scene):
    settings = settings_for(
        tmp_path, geometry={"iterations": 150}, lift={"lift_iterations": 150}, density={"opacity_reset_interval": 0}
    )
    state = run(settings, scene)
    log = read_log(tmp_path)
    psnr = [line["psnr"] for line in log if "psnr" in line]
    assert psnr[-1] > 18
    assert state.manifest["num_codes"] >= 3
    found = label_gaussians(state.gaussians, state.method, [view.camera for view in scene.train])
    assert found.confidence.mean() > 0.7


def test_model_folder_reads_back_as_it_was_asked_for(tmp_path, scene):
    run(settings_for(tmp_path), scene)
    assert (tmp_path / "cfg_args").read_text().startswith("Namespace(")
    model = load_model(tmp_path)
    assert model.gaussians.feature_dim == model.method.codebook.shape[1] == 16
    assert outputs.read_run_settings(tmp_path) == settings_for(tmp_path)


def test_rolling_checkpoints_keep_the_last_the_asked_for_and_the_ends_of_stages(tmp_path, scene):
    options = SHORT["run"] | {"checkpoint_interval": 5, "checkpoint_iterations": [7], "save_iterations": [12]}
    run(settings_for(tmp_path, run=options), scene)
    assert list(checkpoints(tmp_path)) == [7, 24, 44, 45]
    assert outputs.saved_iterations(tmp_path) == [12, 24]


def test_checkpoint_of_other_settings_is_refused_by_name(tmp_path, scene):
    settings = settings_for(tmp_path, lift_iterations=0)
    run(settings, scene)
    other = merged(settings, {"sh_interval": 7}, origin="test")
    with pytest.raises(UserError, match=r"geometry.sh_interval = \d+, now 7"):
        run(other, scene, resume_from=checkpoint_path(tmp_path, 24))


def test_foreign_splat_is_lifted_without_touching_it(tmp_path, scene):
    run(settings_for(tmp_path / "donor", lift_iterations=0), scene)
    ply = tmp_path / "donor" / "point_cloud" / "iteration_24" / "point_cloud.ply"
    settings = settings_for(tmp_path / "lifted", geometry={"iterations": 0}, init_ply=str(ply))
    run(settings, scene)
    result = tmp_path / "lifted" / "point_cloud" / "iteration_0"
    assert (result / "point_cloud.ply").read_bytes() == ply.read_bytes()
    assert (result / "segmentation.npz").exists()


def test_splat_of_another_frame_is_refused_where_no_view_shows_it_and_else_warned_of(tmp_path, scene, capsys):
    ply, gaussians = tmp_path / "splat.ply", gaussians_from_points(scene.points, sh_degree=1)
    settings = settings_for(tmp_path / "m", geometry={"iterations": 0}, init_ply=str(ply), lift_iterations=0)
    beyond = unproject(np.array([[9.0, 9.0]]), np.array([50.0]), scene.train[0].camera)  # two views show it
    for centre, share, blind in ((beyond * [1, 0, 1] + [0, 1e6, 0], 0, 6), (beyond, 33.3, 4)):
        gaussians.set("means", torch.tensor(centre, dtype=torch.float32).expand(len(gaussians), 3))
        write_gaussians(ply, gaussians)
        said = f"{ply}: the cameras hardly see its Gaussians ({share:.1f} % of them in a view), {blind} of 6 views show"
        with pytest.raises(UserError, match=re.escape(said)) if blind == 6 else nullcontext():
            run(settings, scene)
        assert (tmp_path / "m").exists() == (blind != 6)
    assert f"warning: {said} none; export the splat in the frame of the poses" in capsys.readouterr().out


@pytest.mark.parametrize("preset", ["unified_lift", "released"])
def test_scene_without_masks_trains_geometry_only(tmp_path, scene, preset):
    bare = dataclasses.replace(scene, train=tuple(dataclasses.replace(v, segments=None) for v in scene.train))
    manifest = run(settings_for(tmp_path, preset=preset), bare).manifest
    assert set(manifest["seconds"]) == {"geometry", "finish"}
    assert sorted(p.name for p in (tmp_path / "point_cloud" / "iteration_24").iterdir()) == ["point_cloud.ply"]
    with pytest.raises(UserError, match="no training view has a mask"):
        LiftStage(bare, gaussians_from_points(scene.points, sh_degree=0), method(), LiftSettings(), seed=0)


def test_views_without_mask_are_trained_on_colour_only(tmp_path, scene):
    views = [dataclasses.replace(v, segments=None) if i % 2 else v for i, v in enumerate(scene.train)]
    partly = dataclasses.replace(scene, train=tuple(views))
    stage = LiftStage(partly, gaussians_from_points(scene.points, sh_degree=0), method(), LiftSettings(), seed=0)
    assert len(stage.cameras) == 3
    assert len(list(stage.labelled_pixels())) == 3


def method():
    return UnifiedLift(UnifiedLiftSettings(), zero_id="segment", seed=0)


def test_objects_are_numbered_by_falling_area_without_changing_who_is_who(tmp_path, scene):
    state = run(settings_for(tmp_path, method={"vote_power": 0}), scene)
    cameras = [view.camera for view in scene.train]
    found = label_gaussians(state.gaussians, state.method, cameras)
    assert found.features is None
    assert found.areas.tolist() == sorted(found.areas.tolist(), reverse=True)
    saved = np.load(tmp_path / "point_cloud" / "iteration_24" / "segmentation.npz")
    assert np.array_equal(saved["object_id"], found.object_ids.numpy())
    assert torch.equal(load_model(tmp_path).method.codebook, state.method.codebook)


@pytest.mark.parametrize("max_votes", [1, 300, 700, 10_000])  # one code at a time, two, five, all seven
def test_labels_are_the_votes_of_the_pixels_whatever_memory_they_may_take(scene, max_votes, monkeypatch):
    monkeypatch.setattr("unified_lift.modelfolder.votes._LEAST_PENDING", max_votes)
    generator = torch.Generator().manual_seed(0)
    gaussians, learnt = gaussians_from_points(scene.points, sh_degree=0), method()
    gaussians.set("features", torch.randn(len(gaussians), 16, generator=generator))
    gaussians.means.data[5] = torch.tensor([0.0, 50.0, 0.0])  # seen by nobody
    learnt.load_object_state(torch.randn(7, 16, generator=generator))
    cameras = [view.camera for view in scene.train]
    found = label_gaussians(gaussians, learnt, cameras, max_votes=max_votes)

    votes, areas, num_views = torch.zeros(len(gaussians), 7), torch.zeros(7, dtype=torch.int64), [0] * 7
    for camera in cameras:
        weights = blending_weights(gaussians, camera, min_weight=1e-3)
        ids = learnt.segment(blend(weights, gaussians.features)).object_ids.tolist()
        offsets = weights.offsets.tolist()
        for pixel, code in enumerate(ids):
            rows = slice(offsets[pixel], offsets[pixel + 1])
            votes[:, code].index_add_(0, weights.gaussian_ids[rows].long(), weights.weights[rows])
            areas[code] += offsets[pixel + 1] > offsets[pixel]
        seen = {code for pixel, code in enumerate(ids) if offsets[pixel + 1] > offsets[pixel]}
        num_views = [count + (code in seen) for code, count in enumerate(num_views)]
    expected = votes.argmax(dim=1)
    others = [index for index in range(len(gaussians)) if votes[index].any()]
    assert 5 not in others
    for index in set(range(len(gaussians))) - set(others):  # seen by nobody: the object of the nearest that is seen
        away = (gaussians.means[others] - gaussians.means[index]).norm(dim=1)
        expected[index] = expected[others[int(away.argmin())]]
    share = votes.max(dim=1).values / votes.sum(dim=1)
    share[5] = 0
    assert found.object_ids.tolist() == expected.tolist()
    torch.testing.assert_close(found.confidence, share)
    assert float(found.confidence.max()) > 0.5
    assert found.areas.tolist() == areas.tolist()
    assert found.num_views.tolist() == num_views

    codes, power, _ = learnt.final_features()
    shares = (votes / votes.sum(dim=1, keepdim=True)) ** power
    mixed = shares @ codes / shares.sum(dim=1, keepdim=True)
    mixed[5] = codes[expected[5]]
    torch.testing.assert_close(found.features, mixed)


def test_saved_features_are_those_of_the_votes_and_a_resumed_run_saves_the_same(tmp_path, scene):
    settings = settings_for(tmp_path, method={"sharpen_steps": 0})
    run(settings, scene)
    saved = np.load(tmp_path / "point_cloud" / "iteration_24" / "segmentation.npz")
    run(settings, scene, resume_from=checkpoint_path(tmp_path, 44))
    resumed = np.load(tmp_path / "point_cloud" / "iteration_24" / "segmentation.npz")
    for name in ("object_id", "feature"):
        assert np.array_equal(saved[name], resumed[name]), name
    learnt, state = settings.build_method(zero_id="segment"), final_state(tmp_path, 44)
    gaussians = Gaussians(state["gaussians"])
    learnt.load_state_dict(state["method"])
    found = label_gaussians(gaussians, learnt, [view.camera for view in scene.train])
    assert np.array_equal(saved["feature"], found.features.numpy().astype(np.float16))
    assert not np.array_equal(saved["feature"], gaussians.features.detach().numpy().astype(np.float16))


class Memory(Hook):
    """Sees that the optimiser of geometry and all gradients are gone when the lift begins."""

    def before_stage(self, stage):
        if stage.name == "geometry":
            self.adam = weakref.ref(stage.adam)
        elif stage.name == "lift":
            self.is_free = self.adam() is None and all(value.grad is None for _, value in stage.gaussians)


def test_what_geometry_needed_is_free_when_the_lift_begins(tmp_path, scene):
    memory = Memory()
    run(settings_for(tmp_path), scene, hooks=[memory])
    assert memory.is_free


def test_new_run_in_an_old_folder_does_not_mix_with_the_old_one(tmp_path, scene):
    run(settings_for(tmp_path, lift_iterations=0), scene)
    run(settings_for(tmp_path, lift_iterations=0, iterations=12), scene)
    assert list(checkpoints(tmp_path)) == [12]
    assert outputs.saved_iterations(tmp_path) == [12]
    assert max(line["step"] for line in read_log(tmp_path)) == 12


def test_log_of_a_resumed_run_tells_every_step_once(tmp_path, scene):
    options = SHORT["run"] | {"checkpoint_interval": 10, "log_interval": 4}
    settings = settings_for(tmp_path, run=options)
    with pytest.raises(MemoryError):
        run(settings, scene, hooks=[CrashAfter(18)])  # eight steps after the last checkpoint
    run(settings, scene, resume_from=latest_checkpoint(settings))
    steps = [(line["stage"], line["step"]) for line in read_log(tmp_path)]
    assert len(steps) == len(set(steps))
    assert [step for stage, step in steps if stage == "geometry"] == [4, 8, 12, 16, 20, 24]


@pytest.mark.parametrize(("changes", "pixels"), [({}, 200), ({}, 10_000), (JOINT, 200)])
def test_what_stands_in_pixels_the_lens_did_not_see_changes_nothing(tmp_path, scene, changes, pixels):
    valid = torch.ones(20, 24, dtype=torch.bool)
    valid[:, :4] = False
    states = []
    for fill in (0, 9):
        views = []
        for view in scene.train:
            image, segments = view.image.clone(), view.segments.clone()
            image[~valid], segments[~valid] = 20 * fill, fill
            views.append(dataclasses.replace(view, image=image, segments=segments, valid=valid))
        settings = settings_for(tmp_path / str(fill), lift_pixels=pixels, **changes)
        run(settings, dataclasses.replace(scene, train=tuple(views)))
        states.append(final_state(tmp_path / str(fill), 24 if changes else 44))
    assert_same_state(*states)


def test_rates_are_those_of_3dgs(scene):
    settings = GeometrySettings(iterations=100, position_lr_max_steps=50)
    stage = GeometryStage(scene, gaussians_from_points(scene.points, sh_degree=1), settings, DEFAULT, seed=0)
    first, last = stage.rates(0), stage.rates(99)
    fixed = {"quats": 1e-3, "log_scales": 5e-3, "logit_opacities": 0.05, "sh0": 2.5e-3, "shN": 2.5e-3 / 20}
    assert {name: first[name] for name in fixed} == {name: last[name] for name in fixed} == pytest.approx(fixed)
    assert first["means"] == pytest.approx(1.6e-4 * scene.radius)
    assert stage.rates(25)["means"] == pytest.approx(1.6e-5 * scene.radius)
    assert last["means"] == pytest.approx(1.6e-6 * scene.radius)


def test_rates_settle_after_so_many_visits_and_nothing_is_added_then(scene):
    most = 2 * len(scene.points.positions)
    growing = MCMCStrategySettings(max_gaussians=most, grown_at=1, relocate_from_iter=2, relocation_interval=2)

    def stage_of(**more):
        settings = GeometrySettings(iterations=60, cooldown=0.5, final_rates=0.01, **more)
        gaussians = gaussians_from_points(scene.points, sh_degree=1)
        return GeometryStage(scene, gaussians, settings, MCMCStrategy(growing), seed=0)

    settled, never, visits = stage_of(settled_after=2), stage_of(), 2 * len(scene.train)
    assert (settled.unsettled_steps, never.unsettled_steps) == (visits, 60)
    assert stage_of(settled_after=100).unsettled_steps == 60
    assert "settled after 12 of 60" in "".join(settled.choices)
    assert not any("settled" in line for line in never.choices)
    for step in (visits, 59):
        assert settled.rates(step)["sh0"] == pytest.approx(0.01 * 2.5e-3)
        assert settled.rates(step)["means"] == pytest.approx(1.6e-6 * scene.radius)
    assert settled.rates(visits // 2)["sh0"] == never.rates(visits)["sh0"] == 2.5e-3
    counts = {stage: [(stage.step(step), len(stage.gaussians))[1] for step in range(20)] for stage in (settled, never)}
    assert counts[settled][0] < counts[settled][visits] == counts[settled][-1]
    assert counts[never][visits] < counts[never][-1]


def test_rates_fall_over_a_cooldown_and_those_of_positions_as_ever(scene):
    settings = GeometrySettings(iterations=100, cooldown=0.4, final_rates=0.01)
    stage = GeometryStage(scene, gaussians_from_points(scene.points, sh_degree=1), settings, DEFAULT, seed=0)
    scales = [stage.rates(step)["log_scales"] / 5e-3 for step in (0, 60, 80, 90)]
    assert scales == pytest.approx([1, 1, 0.1, 10**-1.5])
    assert stage.rates(80)["sh0"] / 2.5e-3 == pytest.approx(0.1)
    assert stage.rates(80)["means"] == pytest.approx(log_linear(1.6e-4, 1.6e-6, 0.8) * scene.radius)


def test_feature_rate_falls_to_its_share_and_the_codebook_rate_stays():
    chosen = UnifiedLiftSettings(feature_lr=0.02, feature_lr_decay=0.25, codebook_lr=3e-4)
    rates = [UnifiedLift(chosen, zero_id="segment", seed=0).rates(p) for p in (0.0, 0.5, 1.0)]
    assert [r["features"] for r in rates] == pytest.approx([0.02, 0.01, 0.005])
    assert [r["codebook"] for r in rates] == [3e-4] * 3


def test_geometry_steps_render_with_the_rasterizer_of_the_settings(scene):
    for rasterizer, implementation in (("ours", "auto"), ("gsplat", "gsplat")):
        gaussians = gaussians_from_points(scene.points, sh_degree=0)
        settings = GeometrySettings(iterations=4, rasterizer=rasterizer)
        stage = GeometryStage(scene, gaussians, settings, DEFAULT, seed=0)
        assert stage.renderer.implementation == implementation


def test_a_rasterizer_that_is_not_there_stops_the_run_before_anything_is_written(tmp_path, scene):
    settings = settings_for(tmp_path / "model", geometry={"rasterizer": "gsplat"}, run={"device": "cpu"})
    with pytest.raises(UserError, match="--rasterizer gsplat"):
        run(settings, scene)
    assert not (tmp_path / "model").exists()
