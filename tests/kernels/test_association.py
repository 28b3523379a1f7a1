import math

import pytest
import torch

from unified_lift.kernels.assignment import association_scores
from unified_lift.kernels.association import (
    _near_places,
    associate,
    association_logits,
    codebook_terms,
    concentration_loss,
    nearest_code,
)
from unified_lift.kernels.identity import identity_loss


def test_association_is_the_dot_product_or_the_cosine():
    features, codebook = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    assert association_logits(features, codebook, temperature=None).tolist() == [[6.0, 0.0]]
    torch.testing.assert_close(association_logits(features, codebook, temperature=0.1), torch.tensor([[6.0, 0.0]]))


def test_association_by_hand():
    # Logits (0, ln 3) and (0, 0): softmax (1/4, 3/4) and (1/2, 1/2); the third pixel has no segment.
    features, codebook = torch.tensor([[1.0], [0.0], [5.0]]), torch.tensor([[0.0], [math.log(3)]])
    slot = torch.tensor([0, 0, -1], dtype=torch.int32)
    out = associate(features, codebook, slot, 2, temperature=None, area_aware=True)
    torch.testing.assert_close(out.scores, torch.tensor([[0.75, 1.25], [0.0, 0.0]]))
    torch.testing.assert_close(out.log_normaliser[:2], torch.tensor([4.0, 2.0]).log())
    assert out.best[[0, 2]].tolist() == [1, 1]
    means = associate(features, codebook, slot, 2, temperature=None, area_aware=False).scores
    torch.testing.assert_close(means, torch.tensor([[0.375, 0.625], [0.0, 0.0]]), atol=1e-4, rtol=0)


def test_terms_follow_the_codes_of_the_segments_and_the_trusted_pixels():
    generator = torch.Generator().manual_seed(1)
    features, codebook = torch.randn(40, 4, generator=generator), torch.randn(6, 4, generator=generator)
    slot = torch.randint(-1, 5, (40,), generator=generator, dtype=torch.int32)
    trusted = torch.where(torch.rand(40, generator=generator) < 0.3, -1, slot)
    association = associate(features, codebook, slot, 5, temperature=0.5, area_aware=True)
    codes = torch.tensor([4, -1, 0, 2, 3])
    labels = torch.tensor([-1 if s < 0 else int(codes[s]) for s in trusted])
    terms = codebook_terms(features, codebook, association, codes, trusted, temperature=0.5, unit_codes=True)
    logits = association_logits(features, codebook, temperature=0.5)
    torch.testing.assert_close(terms[0], identity_loss(logits, labels, rest_when_right=True))
    torch.testing.assert_close(terms[1], concentration_loss(features, codebook, labels, unit_codes=True))
    expected = association_scores(logits.softmax(dim=1), slot, 5, area_aware=True)
    torch.testing.assert_close(association.scores, expected)


@pytest.mark.parametrize("area_aware", [True, False])
def test_few_logits_at_a_time_change_nothing(monkeypatch, area_aware):
    generator = torch.Generator().manual_seed(4)
    features, codebook = (torch.randn(count, 4, generator=generator) for count in (40, 6))
    slot = torch.randint(-1, 5, (40,), generator=generator, dtype=torch.int32)

    def computed():
        book = codebook.clone().requires_grad_(True)
        found = associate(features, book, slot, 5, temperature=0.5, area_aware=area_aware)
        codes = torch.tensor([4, -1, 0, 2, 3])
        terms = codebook_terms(features, book, found, codes, slot, temperature=0.5, unit_codes=True)
        (terms[0] + terms[1]).backward()
        return *found, *terms, book.grad

    expected = computed()
    monkeypatch.setattr("unified_lift.kernels.association._MAX_LOGITS", 40)
    for actual, wanted in zip(computed(), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_nearest_code_is_the_one_with_the_largest_cosine(monkeypatch):
    monkeypatch.setattr("unified_lift.kernels.association._CHUNK", 7)
    generator = torch.Generator().manual_seed(2)
    features, codebook = torch.randn(30, 4, generator=generator), torch.randn(5, 4, generator=generator)
    cosines = association_logits(features, codebook, temperature=1.0)
    for expected, actual in zip(cosines.max(dim=1), nearest_code(features, codebook), strict=True):
        torch.testing.assert_close(actual, expected)
    points = torch.randn(30, 3, generator=generator) + 1e4
    places = torch.cat([points[:5], torch.full((5, 1), 1.5)], dim=1)
    near = (points[:, None] - points[None, :5]).norm(dim=2) <= 1.5
    cosine, code = nearest_code(features, codebook, points=points, places=places)
    expected = torch.where(near, cosines, -2.0).max(dim=1)
    torch.testing.assert_close(cosine, expected.values)
    assert torch.equal(code, expected.indices)
    assert 0 < int((cosine == -2).sum()) < 25
    for few, size in ((4, 30), (1, 2)):  # all points at once; some at a time
        monkeypatch.setattr("unified_lift.kernels.association._FEW_CODES", few)
        monkeypatch.setattr("unified_lift.kernels.association._MIN_BOX", size)
        of_near = nearest_code(features, codebook, points=points, places=places)
        torch.testing.assert_close(of_near[0], cosine)
        assert torch.equal(of_near[1][cosine > -2], code[cosine > -2])
    for rows, own in _near_places(points, places, 1):
        assert len(rows) == 2
        assert set(near[rows].any(dim=0).nonzero()[:, 0].tolist()) <= set(own.tolist())
    away = nearest_code(features, codebook, points=points + 50, places=places)
    assert away[0].tolist() == [-2.0] * 30


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


@pytest.mark.gpu
def test_a_large_view_finds_the_same_codes_by_looking_near(monkeypatch):
    generator = torch.Generator().manual_seed(5)
    points = 20 * torch.rand(5_000, 3, generator=generator).cuda()
    features, codes = (torch.randn(n, 8, generator=generator).cuda() for n in (5_000, 300))
    places = torch.cat([20 * torch.rand(300, 3, generator=generator), torch.full((300, 1), 3.0)], dim=1).cuda()
    cosine, code = nearest_code(features, codes, points=points, places=places)
    monkeypatch.setattr("unified_lift.kernels.association._FEW_PAIRS", 0)
    near = nearest_code(features, codes, points=points, places=places)
    torch.testing.assert_close(near[0], cosine)
    assert (near[1] == code)[cosine > -2].float().mean() > 0.999  # two may be as near within rounding
    assert 0 < int((cosine == -2).sum()) < 5_000
