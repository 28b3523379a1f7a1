import dataclasses
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from unified_lift import ranks
from unified_lift.data.cache import DataCache
from unified_lift.methods.unified_lift import UnifiedLift, UnifiedLiftSettings
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.model.render import render
from unified_lift.modelfolder.settings import LiftSettings
from unified_lift.ops.cameras import unproject
from unified_lift.ops.segments import dense_slots
from unified_lift.train.batches import copies_for, stratified
from unified_lift.train.lift import LiftStage, steps_of
from unified_lift.train.views import SegmentMaps


def with_unseen_border(view):
    valid = torch.ones(view.segments.shape, dtype=torch.bool)
    valid[:, :4] = False
    return dataclasses.replace(view, valid=valid)


@pytest.mark.parametrize("ignore_zero", [True, False])
@pytest.mark.parametrize("by_slot", [True, False])
@pytest.mark.parametrize("border", [True, False])
def test_segment_map_says_where_the_seen_pixels_of_each_segment_are(scene, border, by_slot, ignore_zero):
    view = with_unseen_border(scene.train[1]) if border else scene.train[1]
    slot, num_segments, pixel_ids, *_ = SegmentMaps(ignore_zero=ignore_zero, keep=False, by_slot=by_slot).of(1, view)
    assert slot.dtype == torch.int32
    assert (pixel_ids is None) == (not border and not by_slot)
    pixel_ids = torch.arange(slot.numel()) if pixel_ids is None else pixel_ids
    seen = torch.ones(view.segments.shape, dtype=torch.bool) if view.valid is None else view.valid
    assert torch.equal(pixel_ids.sort().values, seen.flatten().nonzero()[:, 0])
    expected, ids = dense_slots(view.segments.flatten()[pixel_ids], ignore_zero=ignore_zero)
    assert torch.equal(slot, expected)
    assert num_segments == len(ids) == 3 + (not ignore_zero)
    assert bool((slot.diff() >= 0).all()) == by_slot


@pytest.mark.parametrize("keep", [True, False])
def test_segment_map_is_made_once_where_it_may_be_kept(scene, keep):
    maps = SegmentMaps(ignore_zero=False, keep=keep)
    first, second = (maps.of(2, scene.train[2]) for _ in range(2))
    assert (first is second) == keep
    assert torch.equal(first.slot, second.slot)
    assert maps.of(1, scene.train[1]) is not first


def test_method_sees_the_features_of_the_seen_pixels(scene):
    view = with_unseen_border(scene.train[0])
    features = torch.randn(*view.segments.shape, 3)
    for valid in (None, view.valid):
        pixels = SegmentMaps(ignore_zero=False, keep=True).of(0, dataclasses.replace(view, valid=valid))
        expected = features.flatten(0, 1) if valid is None else features[valid]
        assert torch.equal(pixels.seen(SimpleNamespace(features=features)).features, expected)


@pytest.mark.parametrize(("count", "wanted"), [(10, 10), (1000, 7), (17, 5), (5_000_000, 8192), (3, 3)])
def test_stratified_sample_has_one_number_of_each_part(count, wanted):
    sample = stratified(count, wanted, torch.Generator().manual_seed(0))
    assert sample.dtype == torch.int64
    assert len(sample) == wanted
    edges = torch.arange(wanted + 1, dtype=torch.float64) * (count / wanted)
    assert bool((sample >= edges[:-1].floor()).all() and (sample < edges[1:].ceil()).all())
    assert int(sample[-1]) < count


def test_stratified_sample_takes_every_number_equally_often():
    generator = torch.Generator().manual_seed(1)
    drawn = [stratified(17, 5, generator) for _ in range(4000)]
    counts = torch.bincount(torch.cat(drawn), minlength=17)
    expected = 4000 * 5 / 17
    assert float(((counts - expected) ** 2 / expected).sum()) < 40  # chi square of 16 degrees: 0.999 quantile is 39


def lift_stage(scene, device="cpu", *, pixels=200, pool=0, cache_mb=100, steps=30, min_samples=0):
    gaussians = gaussians_from_points(scene.points, sh_degree=0).to(torch.device(device))
    settings = UnifiedLiftSettings(
        codebook_start=0.3, codebook_min_members=2, codebook_min_cosine=0.3, codebook_min_pixels=1,
        codebook_min_consistency=0.0, codebook_min_support=0.0,
    )  # fmt: skip
    method = UnifiedLift(settings, zero_id="segment", seed=0)
    method.to(torch.device(device))
    lift = LiftSettings(
        lift_iterations=steps, lift_pixels=pixels, lift_pool=pool, lift_cache_mb=cache_mb, lift_min_samples=min_samples
    )
    placed = DataCache("auto", device=torch.device(device)).cached(scene)
    return LiftStage(placed, gaussians, method, lift, seed=0)


def test_small_segments_stand_in_the_list_often_enough():
    slot = torch.tensor([-1] * 40 + [0] * 2 + [1] * 8 + [2] * 50, dtype=torch.int32)
    # A fifth is drawn: 0.4 of segment 0, 1.6 of segment 1, 10 of segment 2. Wanted are 2 (all there are), 4 and 4.
    copies = copies_for(slot, 3, samples=4, share=0.2)
    assert copies.tolist() == [1] * 40 + [5] * 2 + [3] * 8 + [1] * 50
    assert copies_for(slot, 3, samples=1, share=0.2).tolist() == [1] * 40 + [3] * 2 + [1] * 58


@pytest.mark.parametrize("cache_mb", [100, 0])
def test_a_step_draws_enough_of_every_segment(scene, cache_mb):
    fair, few = (lift_stage(scene, pixels=60, cache_mb=cache_mb, min_samples=count).sampler.of(2) for count in (12, 0))
    assert torch.equal(fair.slot, fair.slot.sort().values)
    assert set(fair.pixel_ids.tolist()) == set(few.pixel_ids.tolist())
    smallest = [torch.bincount(pool.slot[pool.slot >= 0]).min() * 60 / len(pool.slot) for pool in (few, fair)]
    assert smallest[0] < 6  # else there is nothing to see here
    assert smallest[1] > 1.5 * smallest[0]


def test_a_lift_is_as_long_as_its_pixels_ask_unless_told(scene):
    cameras = [scene.train[0].camera] * 6  # of 24 x 20 pixels
    assert steps_of(LiftSettings(lift_iterations=7), cameras) == 7
    assert steps_of(LiftSettings(lift_iterations=0), cameras) == 0
    assert steps_of(LiftSettings(lift_pixels=8_192), cameras) == 2_000
    pixels = 6 * cameras[0].width * cameras[0].height
    assert steps_of(LiftSettings(lift_pixels=1), cameras) == 3 * pixels
    assert steps_of(LiftSettings(lift_pixels=1, lift_draws=1.5), cameras) == 1.5 * pixels
    assert steps_of(LiftSettings(lift_min_steps=77), cameras) == 77
    large = [replace(cameras[0], width=1600, height=1066)] * 200  # 200 x 3 x 384 x 384 / 8,192, not 125,000
    assert steps_of(LiftSettings(), large) == steps_of(LiftSettings(), [replace(large[0], height=93)] * 200) == 10_800


@pytest.mark.parametrize("cache_mb", [100, 0])
@pytest.mark.parametrize(("pixels", "pool"), [(200, 0), (200, 300), (10_000, 0)])
def test_lift_learns_with_and_without_kept_weights_from_some_or_all_pixels(scene, pixels, pool, cache_mb):
    stage = lift_stage(scene, pixels=pixels, pool=pool, cache_mb=cache_mb, steps=90)
    terms = [stage.step(step) for step in range(90)]
    assert terms[-1]["contrastive"] < 0.7 * terms[0]["contrastive"]
    assert len(stage.method.codebook) >= 2
    assert stage.method.statistics["objects_used"] >= 2
    assert stage.sampler.keeps_weights == (cache_mb > 0)
    fallback = 480 if cache_mb else 2 * pixels  # room for all pixels, or none
    assert len(stage.sampler.of(3).slot) == min(pool or fallback, 480)
    assert (stage.sampler.of(3).weights is not None) == (cache_mb > 0)


def test_kept_weights_are_those_of_the_pixels_of_the_pool(scene):
    kept, fresh = (lift_stage(scene, pool=120, pixels=50, cache_mb=mb) for mb in (100, 0))
    for index in (0, 3):
        a, b = kept.sampler.of(index), fresh.sampler.of(index)
        assert torch.equal(a.pixel_ids, b.pixel_ids)
        assert torch.equal(
            dense_slots(scene.train[index].segments.flatten(), ignore_zero=False)[0][a.pixel_ids], a.slot
        )
        assert b.weights is None
        now = fresh.sampler.weights_at(index, b.pixel_ids)
        for name in ("gaussian_ids", "weights", "offsets"):
            assert torch.equal(getattr(a.weights, name), getattr(now, name)), name


def test_pools_take_as_many_pixels_as_the_budget_keeps_the_weights_of(scene):
    def mebibytes(sampler):
        return sum(sampler.of(index).weights.nbytes for index in range(6)) / 2**20

    whole = mebibytes(lift_stage(scene).sampler)
    assert len(lift_stage(scene, pixels=50, cache_mb=2 * whole).sampler.of(0).slot) == 480
    pool = lift_stage(scene, pixels=50, cache_mb=whole / 2).sampler
    assert 200 < len(pool.of(0).slot) < 280
    assert 0.9 < mebibytes(pool) / (whole / 2) < 1.1
    fair = lift_stage(scene, pixels=50, cache_mb=whole / 2, min_samples=12).sampler
    assert len(fair.of(0).slot) > len(fair.of(0).pixel_ids.unique())
    # Twelve of each of four segments are nearly all that a step draws: copies are rounded up, and rounding shows.
    assert 0.6 < mebibytes(fair) / (whole / 2) < 1.25
    too_little = lift_stage(scene, pixels=50, cache_mb=whole / 20).sampler
    assert not too_little.keeps_weights
    assert too_little.of(0).weights is None
    assert len(too_little.of(0).slot) == 100


def test_a_pool_is_renewed_when_its_pixels_were_drawn_twice_and_in_time_all_pixels_have_their_turn(scene):
    stage = lift_stage(scene, pixels=60, pool=120)
    pools = [stage.sampler.of(1, visit).pixel_ids for visit in range(40)]
    changes = [visit for visit in range(1, 40) if not torch.equal(pools[visit], pools[visit - 1])]
    assert changes == list(range(4, 40, 4))  # 4 visits of 60 draw 120 pixels twice
    assert len(torch.cat(pools).unique()) > 0.9 * 480
    again = lift_stage(scene, pixels=60, pool=120).sampler
    assert torch.equal(again.of(1, 22).pixel_ids, pools[22])  # depends on the visit alone, as resuming needs
    whole = lift_stage(scene, pixels=60).sampler
    assert whole.of(1, 0) is whole.of(1, 100)  # nothing to renew


def test_steps_tell_the_sampler_how_often_a_view_was_seen(scene):
    stage = lift_stage(scene, pixels=60, pool=60)
    with mock.patch.object(stage.sampler, "of", wraps=stage.sampler.of) as of:
        for step in range(12):  # two visits of each of six views
            stage.step(step)
    assert [call.args[1] for call in of.call_args_list] == [0] * 6 + [1] * 6


def test_observed_features_are_those_of_the_image_in_the_order_of_their_slots(scene):
    stage = lift_stage(scene)
    for view, (features, slot, count, points, ids) in zip(scene.train, stage.labelled_pixels(), strict=True):
        assert count == len(ids) == 4
        assert ids.tolist() == view.segments.unique().tolist()
        expected, order = view.segments.flatten().unique(return_inverse=True)[1].sort(stable=True)
        assert torch.equal(slot.long(), expected)
        out = render(stage.gaussians, view.camera)
        assert torch.equal(features, out.features.detach().flatten(0, 1)[order])
        covered = out.alpha.detach().flatten()[order] > 0.01  # they show the points of their rays at the mean depth
        depth = (out.depth / out.alpha).detach().flatten()[order][covered]
        pixels = torch.stack([order % view.camera.width, order // view.camera.width], dim=1)[covered] + 0.5
        expected = torch.tensor(unproject(pixels.numpy(), depth.numpy(), view.camera), dtype=torch.float32)
        torch.testing.assert_close(points[covered], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("replayed", [True, False])
def test_a_lift_step_does_not_make_the_host_wait(scene, replayed, monkeypatch):
    stage = lift_stage(scene, "cuda")
    if not replayed:
        monkeypatch.setattr(stage.method, "graph_key", lambda *_: None)
    for step in range(20):  # keeps the weights of all views, starts the codebook, captures the step
        stage.step(step)
    assert stage.sampler.keeps_weights
    assert len(stage.method.codebook)
    phases = []
    stage.on_phase = phases.append
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = [stage.step(step) for step in range(20, 30)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ("losses" in phases) == (not replayed)
    assert set(terms[-1]) == {"contrastive", "class", "concentration"}
    assert all(bool(torch.isfinite(value)) for value in terms[-1].values())


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2])
def test_replayed_steps_are_the_steps_that_were_captured(scene, monkeypatch, batch):
    monkeypatch.setattr(ranks, "_current", ranks.Ranks(batch=batch))
    # the same draws, once replayed and once computed one kernel after the other: a new key is not captured
    stages, phases = [lift_stage(scene, "cuda", steps=40) for _ in range(2)], []
    run = stages[1].graph.run
    monkeypatch.setattr(stages[1].graph, "run", lambda key, progress: run(object(), progress))
    stages[0].on_phase = phases.append
    for step in range(0, 40, batch):
        terms = [{name: float(value) for name, value in stage.step(step).items()} for stage in stages]
        assert set(terms[0]) == set(terms[1])
        for name, value in terms[0].items():  # float additions in another order, and what they grow to
            assert value == pytest.approx(terms[1][name], rel=0.05, abs=1e-3), f"step {step}: {name}"
    assert phases.count("losses") < 10 * batch
    assert phases.count("replay") > 10
    features = [stage.gaussians.features.detach() for stage in stages]
    start = lift_stage(scene, "cuda").gaussians.features.detach()
    assert float((features[0] - features[1]).norm()) < 0.1 * float((features[0] - start).norm())


@pytest.mark.gpu
def test_lift_on_a_gpu_learns_what_it_learns_on_a_cpu(scene):
    last = []
    for device in ("cpu", "cuda"):
        stage = lift_stage(scene, device, steps=60)
        last.append([stage.step(step) for step in range(60)][-1])
    for name in ("contrastive", "class", "concentration"):  # other pixels are drawn
        assert float(last[1][name]) == pytest.approx(float(last[0][name]), rel=0.5, abs=0.05)


@pytest.mark.gpu
def test_lift_steps_on_a_gpu_draw_the_same_pixels_again(scene):
    stages = [lift_stage(scene, "cuda") for _ in range(2)]
    for step in range(3):
        terms = [float(stage.step(step)["contrastive"]) for stage in stages]
        assert terms[0] == pytest.approx(terms[1], rel=1e-4)
