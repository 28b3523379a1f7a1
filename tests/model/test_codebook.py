import torch
from torch.nn.functional import normalize

from unified_lift.model.codebook import codebook_from_prototypes, merged_codes, random_codebook


def bundle(direction, count, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.tensor(direction) + noise * torch.randn(count, 3, generator=generator), dim=1)


def test_codes_appear_at_the_modes_largest_first():
    prototypes = torch.cat([bundle([1.0, 0, 0], 6, 0.05, 0), bundle([0, 1.0, 0], 9, 0.05, 1)])
    codes = codebook_from_prototypes(prototypes, torch.ones(15), min_cosine=0.8, min_members=4)
    assert codes.shape == (2, 3)
    torch.testing.assert_close(codes, torch.tensor([[0.0, 1, 0], [1, 0, 0]]), atol=0.1, rtol=0)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2))


def test_rare_prototypes_open_no_code():
    prototypes = torch.cat([bundle([1.0, 0, 0], 6, 0.01, 0), bundle([0, 0, 1.0], 3, 0.01, 1)])
    assert len(codebook_from_prototypes(prototypes, torch.ones(9), min_cosine=0.8, min_members=4)) == 1
    assert len(codebook_from_prototypes(prototypes, torch.ones(9), min_cosine=0.8, min_members=3)) == 2


def test_number_of_codes_can_be_bounded_and_empty_input_gives_none():
    prototypes = torch.eye(3).repeat_interleave(4, dim=0)
    assert len(codebook_from_prototypes(prototypes, torch.ones(12), min_cosine=0.9, min_members=2, max_codes=2)) == 2
    assert codebook_from_prototypes(torch.zeros(0, 3), torch.zeros(0), min_cosine=0.9, min_members=1).shape == (0, 3)


def test_comparing_few_prototypes_at_a_time_changes_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    prototypes = normalize(torch.randn(60, 3, generator=generator), dim=1)
    expected = codebook_from_prototypes(prototypes, torch.ones(60), min_cosine=0.8, min_members=3)
    monkeypatch.setattr("unified_lift.model.codebook._CHUNK", 4)
    actual = codebook_from_prototypes(prototypes, torch.ones(60), min_cosine=0.8, min_members=3)
    assert len(expected) > 3
    torch.testing.assert_close(actual, expected)


def test_weights_pull_the_code():
    prototypes = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.4]]), dim=1)
    code = codebook_from_prototypes(prototypes, torch.tensor([1.0, 0.0]), min_cosine=0.5, min_members=2)
    torch.testing.assert_close(code, torch.tensor([[1.0, 0.0]]))


def test_random_rows_lie_in_the_released_range():
    rows = random_codebook(256, 16, generator=torch.Generator().manual_seed(0))
    assert rows.abs().max() <= 0.25
    assert 0.55 < rows.norm(dim=1).mean() < 0.6  # about 0.58


def merged(codes, sizes, presence, *, min_cosine=0.8, max_conflict=0.35):
    codes = normalize(torch.tensor(codes), dim=1)
    return merged_codes(
        codes, torch.tensor(sizes), torch.tensor(presence), min_cosine=min_cosine, max_conflict=max_conflict
    )


def test_alike_codes_that_never_meet_are_one_object_and_others_are_not():
    # The first two are alike and take turns; the third is like them but stands beside them; the fourth is not alike.
    codes = [[1.0, 0.1, 0.0], [1.0, -0.1, 0.0], [1.0, 0.0, 0.2], [0.0, 0.0, 1.0]]
    presence = [[1, 1, 0, 0, 1], [0, 0, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]
    found = merged(codes, [3.0, 1.0, 1.0, 1.0], presence)
    whole = normalize(torch.tensor([3.0, 0.3, 0.0]) / 1.01**0.5 + torch.tensor([1.0, -0.1, 0.0]) / 1.01**0.5, dim=0)
    torch.testing.assert_close(found[0], whole)
    torch.testing.assert_close(found[1:], normalize(torch.tensor(codes[2:]), dim=1))


def test_twins_side_by_side_stay_two_however_alike():
    assert len(merged([[1.0, 0.0], [1.0, 0.01]], [1.0, 1.0], [[1, 1, 1], [1, 1, 0]])) == 2
    assert len(merged([[1.0, 0.0], [1.0, 0.01]], [1.0, 1.0], [[1, 1, 1, 0], [0, 0, 1, 1]], max_conflict=0.4)) == 2
    assert len(merged([[1.0, 0.0], [1.0, 0.01]], [1.0, 1.0], [[1, 1, 1, 0], [0, 0, 1, 1]], max_conflict=0.5)) == 1


def test_an_object_in_three_parts_becomes_one_and_keeps_all_its_views():
    # The first two join; together they meet the third in one view of three: still seldom.
    codes = [[1.0, 0.0], [1.0, 0.05], [1.0, 0.3]]
    presence = [[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]]
    assert len(merged(codes, [1.0, 1.0, 1.0], presence)) == 1
    assert len(merged(codes, [1.0, 1.0, 1.0], presence, max_conflict=0.3)) == 2


def test_no_code_or_one_stays_as_it_is():
    assert merged_codes(
        torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, 4), min_cosine=0.8, max_conflict=0.3
    ).shape == (0, 3)
    assert merged([[0.0, 1.0]], [2.0], [[1, 0]]).tolist() == [[0.0, 1.0]]


def test_a_cosine_of_one_merges_nothing():
    assert len(merged([[1.0, 0.0], [1.0, 0.01]], [1.0, 1.0], [[1, 0], [0, 1]], min_cosine=1.0)) == 2
