import math

import pytest
import torch

from unified_lift.methods.contrastive_lift_gs import slow_fast_losses


def slow_twin(fast, fast_slot, slow, slow_slot):
    """Contrastive Lift's recipe, pixel by pixel (reference/method 9.5)."""
    labels = [k for k in sorted(set(fast_slot.tolist()) & set(slow_slot.tolist())) if k >= 0]
    concentration, terms = 0.0, []
    for k in labels:
        centre = slow[slow_slot == k].mean(dim=0)
        own = fast[fast_slot == k]
        concentration -= sum(math.exp(-float((f - centre) @ (f - centre))) for f in own) / len(own) / len(labels)
        for f in own:
            same = everything = 0.0
            for s, j in zip(slow, slow_slot.tolist(), strict=True):
                if j >= 0:
                    value = math.exp(math.exp(-float((f - s).norm())))
                    everything += value
                    same += value * (j == k)
            terms.append(-math.log(same / everything))
    return concentration, sum(terms) / len(terms) if terms else 0.0


def test_two_segments_by_hand():
    # Fast 0 and 3; slow 1 and 1 of segment 0 (mean 1), 3 of segment 1.
    fast, slow = torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [1.0], [3.0]])
    concentration, contrastive = slow_fast_losses(fast, torch.tensor([0, 1]), slow, torch.tensor([0, 0, 1]), 2)
    assert math.isclose(float(concentration), -(math.exp(-1) + 1) / 2, rel_tol=1e-6)
    near, far, hit = (math.exp(math.exp(-d)) for d in (1, 3, 0))
    first = -math.log(2 * near / (2 * near + far))
    second = -math.log(hit / (hit + 2 * math.exp(math.exp(-2))))
    assert math.isclose(float(contrastive), (first + second) / 2, rel_tol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_slow_twin(seed):
    generator = torch.Generator().manual_seed(seed)
    fast = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    slow = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    fast_slot = torch.randint(-1, 6, (40,), generator=generator, dtype=torch.int32)
    slow_slot = torch.randint(-1, 9, (30,), generator=generator, dtype=torch.int32)
    fast_slot[fast_slot == 2] = -1  # segment 2 in the slow half only, 6 to 8 likewise
    found = slow_fast_losses(fast, fast_slot, slow, slow_slot, 9)
    expected = slow_twin(fast, fast_slot, slow, slow_slot)
    assert expected[0] < 0 < expected[1]
    assert [float(value) for value in found] == pytest.approx(expected, rel=1e-9)


def test_gradient_reaches_the_fast_features_only_and_is_right():
    generator = torch.Generator().manual_seed(0)
    fast = torch.randn(12, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    slow = torch.randn(10, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    fast_slot, slow_slot = torch.arange(12) % 4 - 1, torch.arange(10) % 5 - 1
    for term in slow_fast_losses(fast, fast_slot, slow, slow_slot, 4):
        grads = torch.autograd.grad(term, (fast, slow), allow_unused=True)
        assert grads[1] is None
        assert bool((grads[0][fast_slot >= 0] != 0).any())
        assert bool((grads[0][fast_slot < 0] == 0).all())
    fixed = slow.detach()
    assert torch.autograd.gradcheck(lambda f: sum(slow_fast_losses(f, fast_slot, fixed, slow_slot, 4)), fast)


def test_equal_fast_and_slow_features_have_a_finite_gradient():
    fast = torch.ones(6, 4, requires_grad=True)
    terms = slow_fast_losses(fast, torch.zeros(6).int(), torch.ones(6, 4), torch.zeros(6).int(), 1)
    sum(terms).backward()
    assert [float(term.detach()) for term in terms] == pytest.approx([-1.0, 0.0], abs=1e-6)
    assert bool(torch.isfinite(fast.grad).all())


@pytest.mark.parametrize(("fast_id", "slow_id"), [(-1, -1), (0, 1), (0, -1), (-1, 0)])
def test_without_a_segment_in_both_halves_there_is_nothing_to_learn(fast_id, slow_id):
    fast = (torch.arange(15.0).view(5, 3) / 10).requires_grad_(True)
    slots = torch.full((5,), fast_id, dtype=torch.int32), torch.full((4,), slow_id, dtype=torch.int32)
    terms = slow_fast_losses(fast, slots[0], torch.ones(4, 3), slots[1], 2)
    sum(terms).backward()
    assert [float(term.detach()) for term in terms] == [0.0, 0.0]
    assert bool((fast.grad == 0).all())


def test_no_pixels_or_segments_at_all():
    none = torch.zeros(0, dtype=torch.int32)
    terms = slow_fast_losses(torch.zeros(0, 3), none, torch.zeros(0, 3), none, 0)
    assert [float(term) for term in terms] == [0.0, 0.0]
