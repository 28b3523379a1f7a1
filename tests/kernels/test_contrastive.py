import math

import pytest
import torch

from unified_lift.kernels.contrastive import contrastive_loss, released_temperature, uncertainty

OURS = {"temperature": 0.5, "min_pixels": 0, "detach_norm": False, "unit_centres": True, "mean_over_pixels": True}
RELEASED = {"temperature": None, "min_pixels": 0, "detach_norm": True, "unit_centres": False, "mean_over_pixels": False}


def released_loop(features, slot, min_pixels):
    """The released recipe, segment by segment, in float64 (reference/method: steps 2 to 7)."""
    x = features / (features.norm(dim=1, keepdim=True) + 1e-6)
    kept = [j for j in slot.unique().tolist() if j >= 0 and int((slot == j).sum()) > min_pixels]
    centres, phi = [], []
    for j in kept:
        own = x[slot == j]
        centres.append(own.mean(dim=0))
        spread = (own - centres[-1]).norm(dim=1).mean() / math.log(len(own) + 10)
        phi.append(min(max(10 * float(spread), 0.5), 1.0))
    total = 0.0
    for index, j in enumerate(kept):
        for row in x[slot == j]:
            logits = [float(row @ centre) / t for centre, t in zip(centres, phi, strict=True)]
            total -= logits[index] - math.log(sum(math.exp(v) for v in logits))
    return total / len(kept)


def test_two_opposite_segments_by_hand():
    # x = +-e1, centres +-e1, t = 0.5: logits (2, -2), loss = log(1 + e^-4) for every pixel.
    features = torch.tensor([[3.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
    for mean_over_pixels, factor in ((True, 1), (False, 3 / 2)):  # the sum is divided by the number of segments
        settings = OURS | {"mean_over_pixels": mean_over_pixels}
        loss = contrastive_loss(features, torch.tensor([0, 0, 1]), 2, **settings)
        assert math.isclose(float(loss), factor * math.log(1 + math.exp(-4)), rel_tol=1e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("min_pixels", [0, 10])
def test_released_form_equals_its_loop(seed, min_pixels):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(80, 16, generator=generator, dtype=torch.float64)
    slot = torch.randint(-1, 6, (80,), generator=generator)
    loss = contrastive_loss(features, slot, 6, **RELEASED | {"min_pixels": min_pixels})
    assert math.isclose(float(loss), released_loop(features, slot, min_pixels), rel_tol=1e-5, abs_tol=1e-9)


def test_released_temperature_is_clipped_by_hand():
    # Tight segment: spread 0 -> 0.5. Loose one: x = e1 and -e1, centre 0, spread 1 / ln 12 = 0.402 -> clip(4.02) = 1.
    x = torch.tensor([[1.0, 0], [1, 0], [1, 0], [-1, 0]])
    slot, counts = torch.tensor([0, 0, 1, 1]), torch.tensor([2, 2])
    centres = torch.tensor([[1.0, 0], [0, 0]])
    assert released_temperature(x, centres, slot, counts).tolist() == [0.5, 1.0]


def test_loss_does_not_depend_on_feature_length_or_segment_names():
    generator = torch.Generator().manual_seed(0)
    features, slot = torch.randn(60, 8, generator=generator), torch.randint(0, 4, (60,), generator=generator)
    base = contrastive_loss(features, slot, 4, **OURS)
    torch.testing.assert_close(contrastive_loss(5 * features, slot, 4, **OURS), base)
    renamed = torch.tensor([2, 0, 3, 1])[slot]
    torch.testing.assert_close(contrastive_loss(features, renamed, 4, **OURS), base)


def test_true_derivative_is_tangential_and_detached_norm_is_not():
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    slot = torch.arange(40) % 3
    for detach, bound in ((False, 1e-6), (True, None)):
        (grad,) = torch.autograd.grad(contrastive_loss(features, slot, 3, **OURS | {"detach_norm": detach}), features)
        radial = (grad * features).sum(dim=1).abs().max()
        assert radial < 1e-5 if bound else radial > 1e-3


def test_unlabelled_pixels_get_no_gradient():
    features = torch.randn(10, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    slot = torch.tensor([0, 1, -1, 0, 1, -1, 0, 1, 0, 1])
    contrastive_loss(features, slot, 2, **OURS).backward()
    assert bool((features.grad[slot < 0] == 0).all())
    assert bool((features.grad[slot >= 0] != 0).any(dim=1).all())


def test_small_segments_leave_together_with_their_pixels():
    generator = torch.Generator().manual_seed(3)
    features, slot = torch.randn(30, 4, generator=generator), torch.tensor([0] * 14 + [1] * 14 + [2] * 2)
    with_small = contrastive_loss(features, slot, 3, **OURS | {"min_pixels": 2})
    torch.testing.assert_close(with_small, contrastive_loss(features[:28], slot[:28], 2, **OURS))


def test_segments_without_pixel_change_nothing():
    generator = torch.Generator().manual_seed(5)
    features, slot = torch.randn(30, 4, generator=generator), torch.arange(30, dtype=torch.int32) % 3
    few = contrastive_loss(features, slot, 3, **OURS)
    torch.testing.assert_close(contrastive_loss(features, 4 * slot, 12, **OURS), few)


def test_one_segment_alone_costs_nothing():
    assert float(contrastive_loss(torch.randn(5, 4), torch.zeros(5, dtype=torch.int64), 1, **OURS)) == 0


def test_gradient_agrees_with_finite_differences():
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    slot = torch.arange(12) % 3
    assert torch.autograd.gradcheck(lambda f: contrastive_loss(f, slot, 3, **OURS), features)


def slots(*values):
    return torch.tensor(values, dtype=torch.int32)


def test_uncertainty_is_one_minus_own_softmax_by_hand():
    # Centres e1 (of 3 e1 and e1) and -e1, temperature 0.5: logits (2, -2) of a pixel at e1, whatever its length.
    features = torch.tensor([[3.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
    own = 1 / (1 + math.exp(-4))
    torch.testing.assert_close(
        uncertainty(features, slots(0, 0, 1), 2, temperature=0.5), torch.full((3,), 1 - own), atol=1e-5, rtol=0
    )


def test_mislabelled_pixel_is_uncertain():
    features = torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]] * 9 + [[0.0, 1.0]])
    unsure = uncertainty(features, slots(*[0] * 9, *[1] * 9, 0), 2, temperature=0.1)
    assert unsure[-1] > 0.99
    assert unsure[:-1].max() < 0.01


def test_pixel_without_label_is_fully_uncertain():
    assert uncertainty(torch.ones(2, 3), slots(-1, 0), 1, temperature=0.1).tolist() == [1.0, 0.0]
    assert uncertainty(torch.ones(2, 3), slots(-1, -1), 0, temperature=0.1).tolist() == [1.0, 1.0]


def test_uncertainty_does_not_count_segments_without_pixel():
    generator = torch.Generator().manual_seed(0)
    features, slot = torch.randn(40, 4, generator=generator), torch.arange(40, dtype=torch.int32) % 3
    few = uncertainty(features, slot, 3, temperature=0.1)
    many = uncertainty(features, slot * 4, 12, temperature=0.1)
    assert few.std() > 0.05
    torch.testing.assert_close(many, few)


def test_uncertainty_sends_no_gradient():
    assert not uncertainty(torch.eye(2, requires_grad=True), slots(0, 1), 2, temperature=0.1).requires_grad
