import math

import torch

from unified_lift.losses.association import association_logits, concentration_loss, sparsity_loss


def test_raw_association_is_the_dot_product():
    logits = association_logits(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 1.0], [0.0, 5.0]]), temperature=None)
    assert logits.tolist() == [[6.0, 0.0]]


def test_cosine_association_forgets_lengths():
    logits = association_logits(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 5.0]]), temperature=0.1)
    torch.testing.assert_close(logits, torch.tensor([[10.0, 0.0]]))


def test_sparsity_by_hand():
    # One pixel with logits (0, ln 3): softmax (1/4, 3/4). Label 0: -ln(1/4) / ln 2 = 2.
    loss = sparsity_loss(torch.tensor([[0.0, math.log(3)]]).log_softmax(1), torch.tensor([0]))
    assert math.isclose(float(loss), 2.0, rel_tol=1e-6)


def test_sparsity_rests_when_everything_agrees_or_nothing_is_labelled():
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).log_softmax(dim=1)
    assert float(sparsity_loss(logits, torch.tensor([1, 0]))) == 0
    assert float(sparsity_loss(logits, torch.tensor([-1, -1]))) == 0
    assert float(sparsity_loss(logits, torch.tensor([0, -1]))) > 0


def test_concentration_by_hand():
    # |(1, 0) - (0, 1)| = sqrt 2 for the first pixel, |(0, 1) - (0, 1)| = 0 for the second; the third is unlabelled.
    features = torch.tensor([[4.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    codebook = torch.tensor([[0.0, 1.0], [9.0, 9.0]])
    loss = concentration_loss(features, codebook, torch.tensor([0, 0, -1]), unit_codes=False)
    assert math.isclose(float(loss), math.sqrt(2) / 2, rel_tol=1e-5)


def test_concentration_with_unit_codes_ignores_code_length():
    features, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    near = concentration_loss(features, torch.tensor([[7.0, 0.0]]), labels, unit_codes=True)
    far = concentration_loss(features, torch.tensor([[7.0, 0.0]]), labels, unit_codes=False)
    assert float(near) < 1e-4
    assert math.isclose(float(far), 6.0, rel_tol=1e-5)


def test_unmatched_rows_get_no_concentration_gradient():
    codebook = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    concentration_loss(features, codebook, torch.tensor([0, 0, 2, 2, -1, -1]), unit_codes=False).backward()
    assert bool((codebook.grad[1] == 0).all())
    assert bool((codebook.grad[[0, 2]] != 0).any(dim=1).all())


def test_perfect_pixel_has_a_finite_gradient():
    codebook = torch.tensor([[1.0, 0.0]], requires_grad=True)
    concentration_loss(torch.tensor([[1.0, 0.0]]), codebook, torch.tensor([0]), unit_codes=False).backward()
    assert bool(torch.isfinite(codebook.grad).all())
