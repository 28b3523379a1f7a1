"""The losses of lifting: CUDA kernels, emulated and real, against the torch definitions in double precision."""

import pytest
import torch
from diff_gaussian_rasterization import native

from tests.rasterizer.tolerances import LIFT_GRADIENT_RELATIVE, LIFT_RELATIVE
from unified_lift.kernels import fused
from unified_lift.kernels.association import associate, codebook_terms
from unified_lift.kernels.contrastive import contrastive_loss, uncertainty
from unified_lift.methods.base import StepInfo, ViewPixels
from unified_lift.methods.unified_lift import UnifiedLift, UnifiedLiftSettings
from unified_lift.modelfolder.settings import TrainSettings, with_preset

OURS = {"temperature": 0.15, "min_pixels": 4, "detach_norm": False, "unit_centres": True, "mean_over_pixels": True}
PAPER = {"temperature": 1.0, "min_pixels": 0, "detach_norm": True, "unit_centres": False, "mean_over_pixels": True}
RELEASED = PAPER | {"temperature": None, "min_pixels": 20, "mean_over_pixels": False}
HOWS = (OURS, RELEASED, PAPER)
WIDTHS = [1, 3, 8, 16, 17, 33, 64]


def make_view(seed, *, pixels=300, segments=9, dim=16, in_order=True, noise=0.7, zeros=False):
    """Features bundled around a direction per segment, some pixels without label, some segments without pixel."""
    g = torch.Generator().manual_seed(seed)
    share = torch.rand(segments, generator=g) ** 3
    share[1::4] = 0  # empty
    slot = torch.multinomial(share + 1e-9, pixels, replacement=True, generator=g)
    slot[torch.rand(pixels, generator=g) < 0.1] = -1
    slot = slot.sort().values if in_order else slot
    directions = torch.randn(segments, dim, generator=g)
    features = directions[slot.clamp(min=0)] + noise * torch.randn(pixels, dim, generator=g)
    features *= 1.5 * torch.rand(pixels, 1, generator=g)
    features[::7] *= not zeros
    return features, slot.int()


def make_codebook(seed, codes, dim):
    return torch.randn(codes, dim, generator=torch.Generator().manual_seed(1000 + seed))


def assert_close(actual, expected, tolerance, what):
    expected = expected.detach()
    assert torch.isfinite(expected).all()
    assert float(expected.norm()) > 0, f"{what}: all zero proves nothing"
    error = float((actual.detach().double() - expected).norm() / expected.norm())
    assert error < tolerance, f"{what}: relative error {error:.2e}"


def with_gradient(function, leaf):
    """Return function(leaf) and its gradient."""
    leaf = leaf.detach().clone().requires_grad_()
    value = function(leaf)
    return value, torch.autograd.grad(value, leaf)[0]


CONTRASTS = [
    *((how, {"seed": s, "in_order": s % 2 == 0, "pixels": 200 + 90 * s}) for how in HOWS for s in range(4)),
    *((OURS | {"detach_norm": d == 1}, {"seed": 10 + d, "dim": d}) for d in WIDTHS),  # a line's directions do not turn
    *((OURS | {n: v}, {"seed": 20}) for n, v in (RELEASED | {"min_pixels": 30, "mean_over_pixels": False}).items()),
    # more than one round of columns in shared memory and more than one block of columns
    (OURS | {"min_pixels": 2}, {"seed": 21, "segments": 400, "pixels": 3000, "dim": 8}),
    # blocks of the column pass take several rounds of pixels
    (OURS, {"seed": 22, "segments": 3, "pixels": 270_000, "dim": 3, "noise": 2.5}),
    (OURS, {"seed": 25, "zeros": True}),
]


@pytest.mark.parametrize(("how", "view"), CONTRASTS, ids=str)
def test_contrastive_loss_agrees_with_the_definition(how, view, kernels):
    features, slot = make_view(**view)

    def loss(f):
        return 3 * contrastive_loss(f, slot, view.get("segments", 9), **how)

    kernels(False)
    expected, expected_gradient = with_gradient(loss, features.double())
    kernels(True)
    actual, gradient = with_gradient(loss, features)
    assert_close(actual, expected, LIFT_RELATIVE, "loss")
    assert_close(loss(features), expected, LIFT_RELATIVE, "loss without gradient")
    assert_close(gradient, expected_gradient, LIFT_GRADIENT_RELATIVE, "gradient")


@pytest.mark.parametrize("how", [OURS, RELEASED], ids=["ours", "released"])
@pytest.mark.parametrize("case", ["one segment", "no label", "no segment", "all too small"])
def test_fewer_than_two_segments_cost_nothing_and_pull_nothing(case, how, kernels):
    kernels(True)
    features = make_view(24)[0].requires_grad_()
    slot = {"one segment": 0, "all too small": torch.arange(300)}.get(case, -1) * torch.ones(300, dtype=torch.int32)
    loss = contrastive_loss(features, slot.int(), {"no segment": 0, "all too small": 300}.get(case, 9), **how)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not bool(features.grad.any())


def test_slots_outside_the_range_take_no_part(kernels):
    kernels(True)
    features, slot = make_view(26)
    strange = torch.where(slot < 0, torch.tensor([-7, 9, 10**9], dtype=torch.int32).repeat(100), slot)
    plain, other = (with_gradient(lambda f, s=s: contrastive_loss(f, s, 9, **OURS), features) for s in (slot, strange))
    assert_close(other[0], plain[0], LIFT_RELATIVE, "loss")
    assert_close(other[1], plain[1], LIFT_GRADIENT_RELATIVE, "gradient")
    for s in (slot, strange):
        assert bool((uncertainty(features, s, 9, temperature=0.1)[slot < 0] == 1).all())


def test_nan_spreads_as_in_the_definition_and_nothing_hangs(kernels):
    features, slot = make_view(27)
    features[slot.tolist().index(0)] = float("nan")
    for on in (False, True):
        kernels(on)
        assert bool(contrastive_loss(features, slot, 9, **OURS).isnan())
        assert bool(uncertainty(features, slot, 9, temperature=0.1)[slot == 0].isnan().all())
        codebook = make_codebook(27, 11, 16)
        out = associate(features, codebook, slot, 9, temperature=0.1, area_aware=True)
        assert bool(out.scores[0].isnan().all())
        assert bool(out.scores[2:].isfinite().all())
        codes = torch.arange(9)
        terms = codebook_terms(features, codebook, out, codes, slot, temperature=0.1, unit_codes=True)
        assert bool(terms[1].isnan())


@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_uncertainty_agrees_with_the_definition(dim, temperature, kernels):
    features, slot = make_view(30 + dim, dim=dim, in_order=dim % 2 == 0)
    kernels(False)
    expected = uncertainty(features.double(), slot, 9, temperature=temperature)
    kernels(True)
    actual = uncertainty(features, slot, 9, temperature=temperature)
    assert float((actual - expected).abs().max()) < 2e-5
    assert bool((actual[slot < 0] == 1).all())
    assert expected[slot >= 0].std() > 0.005 or dim == 1


def test_uncertainty_of_a_view_without_segments_is_one(kernels):
    kernels(True)
    features, slot = make_view(31)
    assert bool((uncertainty(features, torch.full_like(slot, -1), 0, temperature=0.1) == 1).all())


MANY = {"seed": 41, "segments": 3, "pixels": 270_000, "dim": 3}


@pytest.mark.parametrize("area_aware", [True, False])
@pytest.mark.parametrize(
    ("view", "codes", "temperature"),
    [
        *(({"seed": 40 + c, "in_order": c == 5}, c, t) for c in (1, 5, 150) for t in (0.1, None)),
        # on a line, all cosines are 1 or -1
        *(({"seed": 50 + d, "dim": d, "in_order": d % 2 == 0}, 20, None if d == 1 else 0.2) for d in WIDTHS),
        (MANY, 2, 0.2),
    ],
    ids=str,
)
def test_association_agrees_with_the_definition(view, codes, temperature, area_aware, kernels):
    features, slot = make_view(**view)
    codebook = make_codebook(view["seed"], codes, features.shape[1])
    segments, options = view.get("segments", 9), {"temperature": temperature, "area_aware": area_aware}
    kernels(False)
    expected = associate(features.double(), codebook.double(), slot, segments, **options)
    kernels(True)
    actual = associate(features, codebook.clone().requires_grad_(), slot, segments, **options)
    assert_close(actual.scores, expected.scores, LIFT_RELATIVE, "scores")
    assert_close(actual.log_normaliser, expected.log_normaliser, LIFT_RELATIVE, "normaliser")
    assert (actual.best != expected.best).float().mean() < 0.01  # near ties
    assert not actual.log_normaliser.requires_grad


def test_association_of_a_view_without_segments(kernels):
    kernels(True)
    features, slot = make_view(42)
    out = associate(features, make_codebook(42, 7, 16), torch.full_like(slot, -1), 0, temperature=0.1, area_aware=False)
    assert out.scores.shape == (0, 7)
    assert bool(out.log_normaliser.isfinite().all())


CODES = [3, 19, -1, 0, 7, 12, 5, 1, 2]


@pytest.mark.parametrize(("temperature", "unit_codes"), [(0.1, True), (0.1, False), (None, True), (None, False)])
@pytest.mark.parametrize(
    ("view", "num_codes", "codes"),
    [
        # on a line, directions have no derivative
        *(({"seed": 60 + d, "dim": d, "in_order": d % 2 == 0}, 20, CODES) for d in WIDTHS[1:]),
        (MANY, 2, [0, -1, 1]),
        ({"seed": 73, "pixels": 400}, 300, range(200, 209)),
    ],
    ids=str,
)
def test_codebook_terms_and_their_gradients_agree(view, num_codes, codes, temperature, unit_codes, kernels):
    features, slot = make_view(**view)
    trusted = torch.where(torch.arange(len(slot)) % 5 == 0, -1, slot)
    codes, codebook = torch.tensor(codes), make_codebook(view["seed"], num_codes, features.shape[1])

    def terms(f, c):
        c = c.clone().requires_grad_()
        association = associate(f, c, slot, len(codes), temperature=temperature, area_aware=True)
        both = codebook_terms(f, c, association, codes, trusted, temperature=temperature, unit_codes=unit_codes)
        few = both if len(slot) < 1000 else ()  # of many pixels the gradient of one term alone cancels
        alone = [torch.autograd.grad(term, c, retain_graph=True)[0] for term in few]
        return *both, *alone, torch.autograd.grad(2 * both[0] + 5 * both[1], c)[0]

    kernels(False)
    expected = terms(features.double(), codebook.double())
    kernels(True)
    for number, (a, b) in enumerate(zip(terms(features, codebook), expected)):
        assert_close(a, b, LIFT_GRADIENT_RELATIVE if number > 1 else LIFT_RELATIVE, f"term or gradient {number}")


def test_class_term_rests_where_every_pixel_agrees(kernels):
    kernels(True)
    codebook = torch.eye(4).requires_grad_()
    slot = torch.tensor([0, 0, 1, -1], dtype=torch.int32)
    features = torch.tensor([[1.0, 0, 0, 0], [2, 0.1, 0, 0], [0, 0, 0.5, 0], [0, 1, 0, 0]])
    association = associate(features, codebook, slot, 2, temperature=0.1, area_aware=True)
    for codes, rests in (([0, 2], True), ([0, 1], False), ([-1, -1], True)):
        codebook.grad = None
        term, _ = codebook_terms(
            features, codebook, association, torch.tensor(codes), slot, temperature=0.1, unit_codes=True
        )
        term.backward(retain_graph=True)
        assert (float(term.detach()) == 0) == rests
        assert bool((codebook.grad == 0).all()) == rests


def test_nothing_labelled_gives_zero_terms_and_zero_gradient(kernels):
    kernels(True)
    features, slot = make_view(71)
    codebook = make_codebook(71, 6, 16).requires_grad_()
    association = associate(features, codebook, slot, 9, temperature=0.1, area_aware=True)
    codes, unlabelled = torch.arange(9) % 6, torch.full_like(slot, -1)
    terms = codebook_terms(features, codebook, association, codes, unlabelled, temperature=0.1, unit_codes=True)
    sum(terms).backward()
    assert [float(t.detach()) for t in terms] == [0, 0]
    assert not bool(codebook.grad.any())


PRESETS = [with_preset(TrainSettings(), name).method for name in ("unified_lift", "released", "paper")]


OTHER_OPTIONS = UnifiedLiftSettings(
    area_aware=False, matching_floor=0.1, filter_contrastive=True, contrastive_samples=500, weight_norm=0.1
)


def differentiated(settings, features, slot, num_segments, codebook, device):
    """Return the terms of a view, the gradients of their sum by features and codebook, and the statistics."""
    method = UnifiedLift(settings, zero_id="segment", seed=0)
    method.to(device).load_object_state(codebook)
    leaf = features.to(device, copy=True).requires_grad_()
    terms = method.losses(ViewPixels(leaf, slot.to(device), num_segments), StepInfo(0.9, 0, 0, leaf))
    sum(method.weights[name] * term for name, term in terms.items()).backward()
    return terms, leaf.grad, method.codebook.grad, method.statistics


@pytest.mark.parametrize(
    "settings", [*PRESETS, OTHER_OPTIONS], ids=["unified_lift", "released", "paper", "other options"]
)
def test_the_method_with_kernels_is_the_same_method(settings, kernels):
    features, slot = make_view(80, pixels=700, segments=12, noise=0.3)
    codebook = make_codebook(80, 30, 16)
    codebook[:12] = features[:700:60] + 0.1
    results = []
    for on in (False, True):
        kernels(on)
        results.append(differentiated(settings, features, slot, 12, codebook, "cpu"))
    (terms, by_features, by_codes, statistics), actual = results
    assert terms.keys() == actual[0].keys()
    assert set(terms) >= {"contrastive", "class", "concentration"}
    for name, term in terms.items():
        assert_close(actual[0][name], term.double(), 2 * LIFT_RELATIVE, name)
    assert_close(actual[1], by_features.double(), 2 * LIFT_GRADIENT_RELATIVE, "gradient by the features")
    assert_close(actual[2], by_codes.double(), 2 * LIFT_GRADIENT_RELATIVE, "gradient by the codebook")
    assert actual[3] == pytest.approx(statistics)
    if not settings.matching_floor:
        assert statistics["objects_used"] == len(slot[slot >= 0].unique()) < 12  # some segments have no pixel here


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slot": torch.zeros(4, dtype=torch.int64)}, "slot must be int32"),
        ({"slot": torch.zeros(5, dtype=torch.int32)}, "slot"),
        ({"num_segments": -1}, "must not be negative"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"min_pixels": -1}, "must not be negative"),
    ],
)
def test_wrong_arguments_are_named(change, message, kernels):
    kernels(True)
    arguments = {"features": torch.zeros(4, 16), "slot": torch.zeros(4, dtype=torch.int32), "num_segments": 2}
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**arguments | OURS | change)


def test_wrong_codes_are_named():
    features, slot, codebook = torch.zeros(4, 16), torch.zeros(4, dtype=torch.int32), torch.zeros(3, 16)
    options = {"temperature": 0.1, "area_aware": True}
    with pytest.raises(ValueError, match=r"codebook must be \[L D\] with D = 16"):
        associate(features, codebook[:, :5], slot, 2, **options)
    with pytest.raises(ValueError, match="codebook must be torch.float32"):
        associate(features, codebook.double(), slot, 2, **options)
    with pytest.raises(ValueError, match="codes must be int64"):
        codebook_terms(features, codebook, None, slot, slot, temperature=0.1, unit_codes=True)


def test_the_definitions_run_on_a_cpu():
    assert not fused.runs_on(torch.zeros(4, 16))


# ---- on a real GPU only: tensors that live there ------------------------------------------------------------------


@pytest.mark.gpu
def test_kernels_run_where_they_can_and_the_variable_turns_them_off(monkeypatch):
    here = torch.zeros(4, 16, device="cuda")
    assert native.CUDA.problem() is None
    assert fused.runs_on(here)
    assert not fused.runs_on(here.double())
    assert not fused.runs_on(here[:0])
    assert not fused.runs_on(torch.zeros(4, 65, device="cuda"))
    assert fused.runs_on(torch.zeros(4, 65, device="cuda"), max_width=None)
    monkeypatch.setenv("DGR_IMPLEMENTATION", "reference")
    assert not fused.runs_on(here)


@pytest.mark.gpu
@pytest.mark.parametrize(("segments", "codes"), [(100, 256), (300, 1024)])
@pytest.mark.parametrize("settings", PRESETS, ids=["unified_lift", "released", "paper"])
def test_a_large_view_agrees_with_the_definition(settings, segments, codes):
    features, slot = make_view(90, pixels=32_768, segments=segments, noise=0.3)
    codebook = make_codebook(90, codes, 16)
    results = [differentiated(settings, features, slot, segments, codebook, device) for device in ("cpu", "cuda")]
    for name, term in results[0][0].items():
        assert_close(results[1][0][name].cpu(), term.double(), 1e-4, name)
    assert_close(results[1][1].cpu(), results[0][1].double(), 3e-4, "gradient by the features")
    assert_close(results[1][2].cpu(), results[0][2].double(), 3e-3, "gradient by the codebook")  # near ties may match
