"""Features trained, from votes on, to explain the codes of the training pixels."""

import math
from dataclasses import replace

import hypothesis
import numpy as np
import pytest
import torch
from diff_gaussian_rasterization import blend
from hypothesis import strategies as st
from torch.nn.functional import normalize

from tests.train.test_training import SHORT, CrashAfter, saved_features, settings_for
from unified_lift.methods.unified_lift import UnifiedLift, UnifiedLiftSettings
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.model.render import blending_weights
from unified_lift.modelfolder.checkpoint import checkpoints
from unified_lift.modelfolder.labels import Labelling, label_gaussians
from unified_lift.modelfolder.settings import RefineSettings
from unified_lift.ops.segments import dense_slots
from unified_lift.settings.yaml import merged
from unified_lift.train import refine
from unified_lift.train.hooks import Hook, fit
from unified_lift.train.logs import read_log
from unified_lift.train.refine import RefineStage, pixel_targets, some_codes, steps_of
from unified_lift.train.run import latest_checkpoint, run


@pytest.fixture
def learnt(scene):
    """Return Gaussians with random features, and a method with four codes."""
    generator = torch.Generator().manual_seed(1)
    gaussians = gaussians_from_points(scene.points, sh_degree=0)
    gaussians.freeze_geometry()
    gaussians.set("features", torch.randn(len(gaussians), 16, generator=generator))
    method = UnifiedLift(UnifiedLiftSettings(), zero_id="segment", seed=0)
    method.load_object_state(torch.randn(4, 16, generator=generator))
    return gaussians, method


def refined(scene, gaussians, method, start, *, num_steps, **changes):
    """Return features after some steps from `start`."""
    method.settings = replace(method.settings, sharpen_steps=num_steps)
    codes = normalize(method.codebook.detach(), dim=1)
    labels = Labelling(*torch.zeros(4, 0, dtype=torch.int64), codes, start)
    stage = RefineStage(scene, gaussians, method, RefineSettings(**changes), labels, seed=5)
    fit(stage, [])
    return stage.features.detach()


def dense_view(view, gaussians, method):
    """Return weights [P, N] and target of each pixel of a view."""
    weights = blend(blending_weights(gaussians, view.camera), torch.eye(len(gaussians)))
    own = (normalize(weights @ gaussians.features.detach(), dim=1) @ normalize(method.codebook, dim=1).T).argmax(dim=1)
    slot, ids = dense_slots(view.segments.flatten(), ignore_zero=method.ignore_zero)
    return weights, pixel_targets(own, slot, len(ids), len(method.codebook))


def test_the_first_step_goes_down_the_gradient_of_a_dense_reference(scene, learnt):
    gaussians, method = learnt
    one = replace(scene, train=scene.train[:1])
    start = torch.randn(len(gaussians), 16, generator=torch.Generator().manual_seed(2))
    weights, target = dense_view(scene.train[0], gaussians, method)
    values, codes = start.clone().requires_grad_(True), normalize(method.codebook.detach(), dim=1)
    logits = (weights @ values) @ codes.T * (1 + math.log(4))
    (torch.logsumexp(logits, dim=1) - logits.gather(1, target[:, None])[:, 0]).sum().backward()
    found = refined(one, gaussians, method, start, num_steps=1)
    # Adam's first step is the rate in the direction of the sign, wherever there is a gradient.
    surely = values.grad.abs() > 1e-3
    assert surely.float().mean() > 0.1
    torch.testing.assert_close((found - start)[surely], -0.005 * values.grad.sign()[surely], rtol=1e-3, atol=1e-6)
    unseen = weights.sum(dim=0) == 0
    assert torch.equal(found[unseen], start[unseen])


def test_more_training_pixels_get_their_code_than_by_votes(scene, learnt):
    gaussians, method = learnt
    start = label_gaussians(gaussians, method, [view.camera for view in scene.train]).features
    codes = normalize(method.codebook.detach(), dim=1)
    views = [dense_view(view, gaussians, method) for view in scene.train]

    def wrong(values):
        return sum(int(((weights @ values) @ codes.T).argmax(dim=1).ne(target).sum()) for weights, target in views)

    before = wrong(start)
    after = wrong(refined(scene, gaussians, method, start, num_steps=250))
    assert 0 < after < 0.8 * before
    assert torch.equal(refined(scene, gaussians, method, start, num_steps=0), start)


def test_a_pixel_without_label_says_nothing(scene, learnt):
    gaussians, method = learnt
    method.ignore_zero = True
    blank = [replace(view, segments=torch.zeros_like(view.segments)) for view in scene.train]
    start = torch.randn(len(gaussians), 16)
    assert torch.equal(refined(replace(scene, train=tuple(blank)), gaussians, method, start, num_steps=8), start)


def test_what_the_lens_did_not_see_says_nothing(scene, learnt):
    gaussians, method = learnt
    seen = torch.zeros(scene.train[0].segments.shape, dtype=torch.bool)
    seen[: len(seen) // 2] = True
    start = torch.randn(len(gaussians), 16)
    half = replace(scene, train=(replace(scene.train[0], valid=seen),))
    found = refined(half, gaussians, method, start, num_steps=3)
    weights, _ = dense_view(scene.train[0], gaussians, method)
    shown, hidden = (weights[where.flatten()].sum(dim=0) > 0 for where in (seen, ~seen))
    assert (hidden & ~shown).any()
    assert torch.equal(found[~shown], start[~shown])
    assert not torch.equal(found, start)


def test_targets_are_made_once_a_view_where_they_fit_and_change_nothing(scene, learnt, monkeypatch):
    gaussians, method = learnt
    seen = torch.rand(scene.train[0].segments.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    two = replace(scene, train=(replace(scene.train[0], valid=seen), scene.train[1]))
    start, targets, calls = torch.randn(len(gaussians), 16), refine.pixel_targets, []
    monkeypatch.setattr(refine, "pixel_targets", lambda *args: calls.append(0) or targets(*args))
    kept = refined(two, gaussians, method, start, num_steps=6)
    assert len(calls) == 2
    monkeypatch.setattr(refine, "_MAX_KEPT", 0)
    assert torch.equal(refined(two, gaussians, method, start, num_steps=6), kept)
    assert len(calls) == 2 + 6


def test_large_views_are_sampled(scene, learnt):
    gaussians, method = learnt
    start, one = torch.randn(len(gaussians), 16), replace(scene, train=scene.train[:1])
    found, again = (refined(one, gaussians, method, start, num_steps=1, refine_pixels=1) for _ in range(2))
    assert torch.equal(found, again)
    moved = (found != start).any(dim=1)
    of_a_pixel = dense_view(scene.train[0], gaussians, method)[0] > 0
    assert moved.any()
    assert (of_a_pixel == moved).all(dim=1).any()  # those of one pixel, no more


@pytest.mark.parametrize("num_codes", [2, 25, 1000])
def test_a_pixel_that_shows_its_code_is_as_sure_for_any_number_of_codes(num_codes):
    logits = torch.eye(num_codes)[0] / refine.temperature_for(num_codes)  # orthogonal codes
    sure = float(torch.softmax(logits, dim=0)[0])
    assert sure == pytest.approx(math.e / (math.e + 1 - 1 / num_codes))


def test_number_of_steps(scene):
    def steps_of(wanted, scene=scene):
        return refine.steps_of(wanted, RefineSettings(), scene)

    assert steps_of(7) == 7
    assert steps_of(0) == 0
    count, pixels = len(scene.train), sum(view.camera.width * view.camera.height for view in scene.train)
    assert steps_of(-1) == math.ceil(1.5 * pixels / 16_384) < 300  # small: each pixel 1.5 times
    assert steps_of(-1, large(scene, 1)) == 300
    assert steps_of(-1, large(scene, 30)) == 2 * 30 * count > 300
    unlabelled = tuple(replace(view, segments=None) for view in large(scene, 30).train)
    assert steps_of(-1, replace(scene, train=unlabelled + scene.train)) == steps_of(-1)


def large(scene, times):
    """Return the scene with its views repeated, each of a million pixels."""
    views = [replace(view, camera=replace(view.camera, width=1000, height=1000)) for view in scene.train]
    return replace(scene, train=tuple(views) * times)


def test_refinement_is_logged_saved_and_resumed_after_a_crash(tmp_path, scene):
    run(settings_for(tmp_path / "whole"), scene)
    settings = settings_for(tmp_path / "crashed", run=SHORT["run"] | {"checkpoint_interval": 2, "log_interval": 1})
    with pytest.raises(MemoryError):
        run(settings, scene, hooks=[CrashAfter(47)])
    assert list(checkpoints(settings.model_path)) == [24, 44, 46]
    for longer, total in (({}, 46), ({"lift_iterations": 30}, 44), ({"iterations": 30}, 24)):
        assert latest_checkpoint(merged(settings, longer, origin="test")).name == f"chkpnt{total}.pth"
    assert not list((tmp_path / "crashed").rglob("segmentation.npz"))
    run(settings, scene, resume_from=latest_checkpoint(settings))
    log = [line for line in read_log(settings.model_path) if line["stage"] == "refine"]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert all(line["refine"] == line["total"] > 0 for line in log)
    assert torch.equal(saved_features(tmp_path / "whole"), saved_features(tmp_path / "crashed"))


def test_nan_in_the_refinement_ends_the_run(tmp_path, scene):
    settings = settings_for(tmp_path, refine={"refine_lr": 1e38})
    with pytest.raises(FloatingPointError, match=r"the loss is not finite at step \d: refine = "):
        run(settings, scene)
    assert not list(tmp_path.rglob("segmentation.npz"))


def test_what_is_saved_is_refined(tmp_path, scene):
    class Keep(Hook):
        def after_stage(self, stage):
            self.stage = stage

    keep = Keep()
    run(settings_for(tmp_path), scene, hooks=[keep])
    saved = np.load(tmp_path / "point_cloud" / "iteration_24" / "segmentation.npz")["feature"]
    assert np.array_equal(saved, keep.stage.features.detach().numpy().astype(np.float16))
    assert not torch.equal(keep.stage.features, keep.stage.labels.features)


def targets(own, slot, num_segments, num_codes):
    own, slot = torch.tensor(own, dtype=torch.int64), torch.tensor(slot, dtype=torch.int32)
    return pixel_targets(own, slot, num_segments, num_codes).tolist()


def test_strays_take_the_code_of_their_segment_and_swallowed_objects_keep_their_own():
    # Segment 0: code 0 five times. Two of the three pixels of code 1: swallowed. One of the four of code 2: a stray.
    # Segment 1: code 2 three times; code 1's third pixel is a stray. A pixel without label has no target.
    own = [0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 1, 0]
    slot = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, -1]
    assert targets(own, slot, 2, 3) == [0, 0, 0, 0, 0, 1, 1, 0, 2, 2, 2, 2, -1]


def test_pixels_near_no_code_take_that_of_their_segment_if_it_has_one():
    own, slot = [1, -1, -1, 0, -1, -1, -1], [0, 0, 0, 1, 1, 2, -1]
    assert targets(own, slot, 3, 2) == [1, 1, 1, 0, 0, -1, -1]


def test_half_of_a_code_is_not_most_of_it():
    assert targets([0, 0, 1, 2, 2, 1], [0, 0, 0, 1, 1, 1], 2, 3) == [0, 0, 0, 2, 2, 2]


def test_what_lies_mostly_without_label_is_no_object_of_the_segment():
    assert targets([0, 0, 1, 1, 1], [0, 0, 0, -1, -1], 1, 2) == [0, 0, 0, -1, -1]


def test_no_label_no_target():
    assert targets([0, 1], [-1, -1], 0, 2) == [-1, -1]
    assert targets([], [], 0, 2) == []


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 4)), min_size=1, max_size=60))
def test_equals_counting_one_pixel_at_a_time(pixels):
    slot, own = [s for s, _ in pixels], [c for _, c in pixels]
    expected = []
    for segment, code in pixels:
        counts = [sum(p == (segment, k) for p in pixels) for k in range(5)]
        is_held = 2 * counts[code] > own.count(code)
        expected.append(-1 if segment < 0 else code if is_held else counts.index(max(counts)))
    assert targets(own, slot, 4, 5) == expected


def test_its_length_follows_number_and_size_of_the_views(scene):
    pixels = sum(view.camera.width * view.camera.height for view in scene.labelled)
    settings = RefineSettings(refine_min_steps=4, refine_visits=3, refine_pixels=1, refine_max_draws=9.0)
    assert steps_of(-1, settings, scene) == 3 * len(scene.labelled)
    assert steps_of(-1, replace(settings, refine_min_steps=50), scene) == 50
    assert steps_of(-1, replace(settings, refine_pixels=pixels), scene) == 9  # draws of each pixel, no more
    assert steps_of(5, settings, scene) == 5


def test_its_rate_falls_once_near_the_end(scene, learnt):
    gaussians, method = learnt
    start = torch.randn(len(gaussians), 16, generator=torch.Generator().manual_seed(2))
    moved = []
    for share in (1.0, 0.0):  # late from the first step on, or never; Adam's first step is the rate
        changes = {"refine_lr": 0.004, "refine_lr_final": 0.001, "refine_lr_final_share": share}
        found = refined(scene, gaussians, method, start, num_steps=1, **changes)
        moved.append(float((found - start).abs().max()))
    assert moved == pytest.approx([0.001, 0.004], rel=1e-3)


def test_some_codes_stand_for_all_of_them():
    target, generator = torch.tensor([5, -1, 5, 2, 90]), torch.Generator().manual_seed(0)
    logits = torch.randn(100, generator=torch.Generator().manual_seed(1))
    sums, seen = [], torch.zeros(100)
    for _ in range(800):
        some, stand_for, place = some_codes(target, 100, 13, generator)
        assert len(some.unique()) == 13
        assert [int(some[index]) if index >= 0 else -1 for index in place.tolist()] == target.tolist()
        assert stand_for.sum() == pytest.approx(100)
        assert sorted(some[stand_for == 1].tolist()) == [2, 5, 90]
        sums.append(float((logits[some] + stand_for.log()).exp().sum()))
        seen[some] += 1
    assert sum(sums) / 800 == pytest.approx(float(logits.exp().sum()), rel=0.03)
    others = seen[[index for index in range(100) if index not in (2, 5, 90)]]
    assert float((others - 800 * 10 / 97).abs().max()) < 45  # five standard deviations of a binomial


def test_targets_beyond_the_codes_that_stand_for_all_say_nothing_this_time():
    some, stand_for, place = some_codes(torch.arange(9), 20, 4, torch.Generator().manual_seed(0))
    assert int((place >= 0).sum()) == 4
    assert bool((some < 9).all())
    assert stand_for.tolist() == [1.0] * 4


def test_pixels_compared_with_some_codes_get_theirs_as_by_all(scene, learnt, monkeypatch):
    gaussians, method = learnt
    method.load_object_state(torch.randn(40, 16, generator=torch.Generator().manual_seed(3)))
    start = label_gaussians(gaussians, method, [view.camera for view in scene.train]).features
    codes = normalize(method.codebook.detach(), dim=1)
    views = [dense_view(view, gaussians, method) for view in scene.train]

    def right(values):
        return sum(int(((weights @ values) @ codes.T).argmax(dim=1).eq(target).sum()) for weights, target in views)

    of_all = right(refined(scene, gaussians, method, start, num_steps=150))
    monkeypatch.setattr(refine, "_ALL_CODES", 20)
    monkeypatch.setattr(refine, "_FEWEST_CODES", 12)
    of_some = right(refined(scene, gaussians, method, start, num_steps=150))
    assert right(start) < of_some
    assert of_some == pytest.approx(of_all, rel=0.03)
