import pytest
import torch
from torch.nn.functional import normalize

from tests.methods import calls
from unified_lift.methods.base import ViewPixels
from unified_lift.methods.unified_lift import UnifiedLift
from unified_lift.modelfolder.settings import TrainSettings, with_preset
from unified_lift.ops.segments import dense_slots


def method_with(codebook=None, **changes):
    method = calls.build("unified_lift", **changes)
    if codebook is not None:
        method.load_object_state(codebook)
    return method


def view(num_segments=4, per_segment=50, dim=16, noise=0.2, seed=0):
    """Features bundled around one direction per segment, ids that are not dense."""
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(num_segments, dim, generator=generator), dim=1)
    slot = torch.arange(num_segments).repeat_interleave(per_segment)
    features = directions[slot] + noise * torch.randn(len(slot), dim, generator=generator)
    return features, slot * 11 + 5, directions


def losses(method, features, segments, progress):
    """Terms for ids, as a stage would ask for them."""
    slot, ids = dense_slots(segments, ignore_zero=method.ignore_zero)
    return calls.losses(method, features, slot, len(ids), progress)


def observations(views):
    """What a stage shows of views of features and ids, all at one place."""
    for features, segments in views:
        slot, ids = dense_slots(segments, ignore_zero=False)
        yield ViewPixels(features, slot, len(ids), torch.zeros(len(slot), 3))


NAMES = ("unified_lift", "released", "paper")
every_preset = pytest.mark.parametrize(
    "settings", [with_preset(TrainSettings(), name).method for name in NAMES], ids=NAMES
)


@every_preset
def test_relabelling_the_ids_of_a_view_changes_nothing(settings):
    features, segments, directions = view()
    renamed = torch.tensor([700, 3, 90000, 41])[(segments - 5) // 11]
    results = []
    for ids in (segments, renamed):
        method = UnifiedLift(settings, zero_id="segment", seed=0)
        method.load_object_state(torch.cat([directions, -directions]))
        terms = losses(method, features, ids, 0.9)
        results.append({name: float(value.detach()) for name, value in terms.items()})
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert results[0]["contrastive"] > 0


@every_preset
def test_permuting_codebook_rows_permutes_the_ids_only(settings):
    features, segments, directions = view()
    order = torch.tensor([3, 1, 0, 2])
    plain = UnifiedLift(settings, zero_id="segment", seed=0)
    plain.load_object_state(directions)
    permuted = UnifiedLift(settings, zero_id="segment", seed=0)
    permuted.load_object_state(directions[order])
    a, b = losses(plain, features, segments, 0.9), losses(permuted, features, segments, 0.9)
    for name in a:
        torch.testing.assert_close(a[name], b[name])
    assert torch.equal(order[permuted.segment(features).object_ids], plain.segment(features).object_ids)


@every_preset
def test_codebook_terms_never_reach_the_features_and_contrastive_never_the_codebook(settings):
    features, segments, directions = view()
    features.requires_grad_(True)
    method = UnifiedLift(settings, zero_id="segment", seed=0)
    method.load_object_state(directions.flip(0).roll(1, dims=1))
    terms = losses(method, features, segments, 0.9)
    (terms["class"] + terms["concentration"]).backward(retain_graph=True)
    assert features.grad is None
    assert bool((method.codebook.grad != 0).any())
    method.codebook.grad = None
    terms["contrastive"].backward()
    assert bool((features.grad != 0).any())
    assert method.codebook.grad is None


def mislabelled():
    """Two segments, of which ten pixels of the first carry the label of the other."""
    features, segments, directions = view(num_segments=2, noise=0.01)
    segments[:10] = segments[-1]
    return features, segments, directions


def test_unreliable_pixels_do_not_train_the_codebook():
    features, segments, directions = mislabelled()
    wrong = torch.arange(len(segments)) < 10
    reliable_only = method_with(directions)
    losses(reliable_only, features, segments, 0.9)
    assert reliable_only.statistics["filtered_ratio"] == pytest.approx(10 / len(segments))
    kept, dropped = (method_with(directions, label_filter=flag) for flag in (False, True))
    with_wrong = losses(kept, features, segments, 0.9)["concentration"]
    without = losses(dropped, features, segments, 0.9)["concentration"]
    unfiltered = method_with(directions, label_filter=False)
    clean = losses(unfiltered, features[~wrong], segments[~wrong], 0.9)["concentration"]
    torch.testing.assert_close(without, clean)
    assert float(with_wrong.detach()) > 2 * float(without.detach())


def test_filter_waits_for_its_start():
    features, segments, directions = mislabelled()
    method = method_with(directions, filter_start=0.5)
    losses(method, features, segments, 0.4)
    assert method.statistics["filtered_ratio"] == 0
    losses(method, features, segments, 0.5)
    assert method.statistics["filtered_ratio"] > 0


def test_filter_can_protect_the_contrastive_term_too():
    features, segments, _ = mislabelled()
    features.requires_grad_(True)
    for flag in (False, True):
        features.grad = None
        losses(method_with(filter_contrastive=flag), features, segments, 0.9)["contrastive"].backward()
        assert bool((features.grad[:10] == 0).all()) == flag


def test_each_component_can_be_switched_off():
    features, segments, directions = view()
    assert "concentration" not in losses(method_with(directions, concentration=False), features, segments, 0.9)
    assert "norm" not in losses(method_with(directions), features, segments, 0.9)
    norm = losses(method_with(directions, weight_norm=1e-6), 2 * normalize(features, dim=1), segments, 0.9)["norm"]
    assert float(norm) == pytest.approx(1.0, rel=1e-4)  # (2 - 1)^2
    both = [method_with(directions, area_aware=flag) for flag in (True, False)]
    sizes = torch.cat([torch.arange(90), torch.tensor([150])])  # one large and one tiny segment that look alike
    for method in both:
        losses(method, features[sizes], torch.where(sizes < 100, 1, 2), 0.9)
    assert both[0].statistics["objects_used"] == 2


def test_segments_that_fit_nothing_stay_out_with_a_matching_floor():
    features, segments, directions = view(num_segments=3, noise=0.01)
    method = method_with(directions[:2], matching_floor=0.5)
    losses(method, features, segments, 0.9)
    assert method.statistics["objects_used"] == 2
    third = torch.cat([directions[:2], -directions[2:]])  # a third code exists, but far away
    method = method_with(third, matching_floor=0.5)
    losses(method, features, segments, 0.9)
    assert method.statistics["objects_used"] == 2
    method = method_with(third)
    losses(method, features, segments, 0.9)
    assert method.statistics["objects_used"] == 3


def test_codebook_starts_from_the_data_once_its_time_has_come():
    views = [view(seed=0, noise=0.05)[:2] for _ in range(5)]
    method = method_with(codebook_start=0.5, codebook_min_members=4)
    method.before_step(0.4, lambda: observations(views))
    assert len(method.codebook) == 0
    method.before_step(0.5, lambda: observations(views))
    assert len(method.codebook) == 4
    ids = method.segment(views[0][0]).object_ids
    for segment in views[0][1].unique():
        assert len(ids[views[0][1] == segment].unique()) == 1


def test_objects_are_the_same_however_few_pixels_are_asked_at_once():
    learnt, features = method_with(), torch.randn(9, 13, 16, generator=torch.Generator().manual_seed(0))
    learnt.load_object_state(torch.randn(7, 16, generator=torch.Generator().manual_seed(1)))
    whole = learnt.segment(features)
    assert whole.object_ids.shape == whole.confidence.shape == (9, 13)
    assert len(whole.object_ids.unique()) == 7
    parts = learnt.segment(features, max_association=7 * 10)  # 10 of the 117 pixels at a time
    assert torch.equal(whole.object_ids, parts.object_ids)
    torch.testing.assert_close(whole.confidence, parts.confidence)
    assert learnt.segment(features[0, 0]).object_ids == whole.object_ids[0, 0]


def test_a_segment_counts_by_the_root_of_its_pixels_in_the_mean_of_its_mode():
    small, large = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.2]]), dim=1)
    views = [(one.expand(count, 2), torch.ones(count, dtype=torch.int64)) for one, count in ((small, 16), (large, 400))]
    method = method_with(codebook_start=0.0, feature_dim=2)
    method.before_step(0.0, lambda: observations(views))
    torch.testing.assert_close(method.codebook.detach(), normalize(4 * small + 20 * large, dim=0)[None])


def test_random_codebook_has_the_size_asked_for():
    method = method_with(codebook_init="random", codebook_start=0.0, num_codes=37)
    method.before_step(0.0, lambda: pytest.fail("the data must not be asked"))
    assert method.codebook.shape == (37, 16)
    assert 0.2 < method.codebook.abs().max() <= 0.25  # the released range


NOISE = torch.randn(100, 16, generator=torch.Generator().manual_seed(0)), torch.ones(100, dtype=torch.int64)


@pytest.mark.parametrize(
    ("views", "support"), [([NOISE], 0.5), ([view(noise=0.05)[:2]] * 5, 1.1)], ids=["scattered", "no mask supports it"]
)
def test_data_that_found_no_code_are_said_and_not_asked_again(views, support):
    method = method_with(codebook_start=0.0, codebook_min_support=support)
    method.before_step(0.0, lambda: observations(views))
    assert "codebook_init random" in method.summary["no_objects"]
    assert method.num_objects == 0
    method.before_step(0.5, lambda: pytest.fail("the data must not be asked"))


def test_a_lift_too_short_to_reach_the_start_of_the_codebook_ends_with_one():
    method = method_with()
    method.before_step(0.9, lambda: pytest.fail("the data must not be asked"))
    method.finish(lambda: observations([view(seed=0, noise=0.05)[:2]] * 5))
    assert len(method.codebook) == len(method.places) == 4


def test_of_one_view_every_segment_founds_a_code_and_a_view_without_labels_none():
    method = method_with(codebook_start=0.0, data_says="ignore")
    blank = ViewPixels(torch.randn(9, 16), torch.full((9,), -1, dtype=torch.int32), 0, torch.zeros(9, 3))
    method.before_step(0.0, lambda: observations([view(seed=0, noise=0.05)[:2]]))
    assert len(method.codebook) == 4
    again = method_with(codebook_start=0.0, codebook_min_members=1)
    again.before_step(0.0, lambda: iter([*observations([view(seed=0, noise=0.05)[:2]]), blank]))
    assert torch.equal(again.codebook, method.codebook)


def test_pixels_vote_for_the_nearest_code_of_their_place_and_for_none_where_all_are_far_in_features_or_place():
    method = method_with(torch.eye(16)[:3])
    features, here = torch.eye(16)[[0, 1, 1, 8]] + 0.6 * torch.eye(16)[[1, 0, 0, 0]], torch.zeros(4, 3)
    assert method.vote(features, here).tolist() == [0, 1, 1, 0]  # no places known: the most probable code
    method.pieces, method.owners = torch.eye(16)[:3], torch.arange(3)
    method.places = torch.tensor([[0.0, 0, 0, 1], [5, 0, 0, 1], [0, 0, 0, 9]])
    points = torch.tensor([[0.5, 0, 0], [0.5, 0, 0], [4.5, 0, 0], [0.5, 0, 0]])
    assert method.vote(features, points).tolist() == [0, 0, 1, 0]
    assert method.vote(features, points + 20).tolist() == [-1] * 4
    assert method.vote(torch.eye(16)[[8]], points[:1]).tolist() == [-1]
    # the first two are pieces of one object, which keep codes and places when objects are numbered anew
    method.owners = torch.tensor([1, 1, 0])
    assert method.vote(features, points).tolist() == [1, 1, 1, 1]
    method.reorder(torch.tensor([1, 0, 2]))
    assert method.vote(features, points).tolist() == [0, 0, 0, 0]
    assert torch.equal(method.codebook, torch.eye(16)[[1, 0, 2]])


def codebook_of_cut_masks(directions, pixels, *, num_views, **changes):
    """A codebook of views of three bundles of pixels; only in four of them the second has a mask of its own."""
    features = directions.repeat_interleave(torch.tensor(pixels), dim=0)
    masks = [torch.tensor(ids).repeat_interleave(torch.tensor(pixels)) for ids in ((1, 2, 3), (1, 1, 3))]
    views = [(features, masks[index >= 4]) for index in range(num_views)]
    method = method_with(**{"codebook_start": 0.0, "feature_dim": 3, "codebook_min_pixels": 1} | changes)
    method.before_step(0.0, lambda: observations(views))
    return method


def test_code_that_grew_from_cut_masks_is_dropped():
    # Segment 1 has 100 pixels; in four of ten views a cut makes 20 of them, whose features lean away, a segment 2.
    directions = normalize(torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]), dim=1)
    for support, expected in ((0.0, 3), (0.5, 2)):
        options = {"codebook_min_support": support, "codebook_min_evidence": 3.0}
        method = codebook_of_cut_masks(directions, (80, 20, 200), num_views=10, **options)
        assert len(method.codebook) == expected


@pytest.mark.parametrize(("data_says", "expected"), [("segment", 3), ("ignore", 2)])
def test_an_object_that_most_masks_miss_is_kept_where_it_hid_in_the_background(data_says, expected):
    # Segment 2 has a mask in 4 of 12 views. Where id 0 is background it hides there in the others; where whole images
    # are segmented, what it lies in otherwise is a mask of its surroundings, and speaks against it.
    method = codebook_of_cut_masks(torch.eye(3), (200, 30, 60), num_views=12, data_says=data_says)
    assert len(method.codebook) == expected


def test_final_features_are_unit_codes_unless_gaussians_keep_theirs():
    method = method_with(torch.tensor([[3.0, 4.0]]), feature_dim=2)
    codes, power, steps = method.final_features()
    torch.testing.assert_close(codes, torch.tensor([[0.6, 0.8]]))
    assert (power, steps) == (2.0, -1)
    assert method_with(torch.tensor([[3.0, 4.0]]), feature_dim=2, vote_power=0.0).final_features() is None
