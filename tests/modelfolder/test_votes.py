import pytest
import torch
from diff_gaussian_rasterization import PixelWeights

from unified_lift.modelfolder import votes
from unified_lift.modelfolder.votes import Votes

COUNT, OBJECTS = 40, 9


def view(generator, *, entries):
    """Return weights of 30 pixels with so many entries, and their objects; a third of the pixels votes for none."""
    offsets = torch.cat([torch.zeros(1), torch.rand(29, generator=generator).sort().values * entries, torch.ones(1)])
    offsets[-1] = entries
    gaussians = torch.randint(0, COUNT - 1, (entries,), generator=generator, dtype=torch.int32)  # the last is in none
    ids = torch.randint(0, OBJECTS, (30,), generator=generator)
    ids[torch.rand(30, generator=generator) < 0.3] = -1
    return PixelWeights(offsets.long(), gaussians, torch.rand(entries, generator=generator), COUNT), ids


# One object at a time or all; put together after each view or at the end; tables of all Gaussians or of those shown.
@pytest.mark.parametrize("max_cells", [1, 100, 10_000])
@pytest.mark.parametrize("pending", [0, 10_000])
@pytest.mark.parametrize("entries", [20, 2_000])
def test_votes_are_those_of_a_dense_table(monkeypatch, max_cells, pending, entries):
    monkeypatch.setattr(votes, "_LEAST_PENDING", pending)
    generator, expected = torch.Generator().manual_seed(entries), torch.zeros(COUNT, OBJECTS)
    found = Votes(COUNT, OBJECTS, torch.device("cpu"), max_cells=max_cells)
    for index in range(5):
        weights, ids = view(generator, entries=entries)
        ids = torch.full_like(ids, -1) if index == 2 else ids  # a view that says nothing
        found.add(weights, ids)
        for pixel in range(30):
            rows = slice(int(weights.offsets[pixel]), int(weights.offsets[pixel + 1]))
            if ids[pixel] >= 0:
                expected[:, ids[pixel]].index_add_(0, weights.gaussian_ids[rows].long(), weights.weights[rows])
    entries = found.entries()
    dense = torch.zeros(COUNT, OBJECTS).index_put_((entries.gaussian, entries.object), entries.votes)
    torch.testing.assert_close(dense, expected)
    assert len(entries.votes) == int((expected > 0).sum())
    winner, best = entries.winners()
    assert torch.equal(winner, expected.argmax(dim=1))
    torch.testing.assert_close(best, expected.max(dim=1).values)
    torch.testing.assert_close(entries.totals(), expected.sum(dim=1))
    codes = torch.randn(OBJECTS, 3, generator=generator)
    sums, shares = entries.mixed(codes, power=2.0, at_once=7)
    torch.testing.assert_close(sums, expected**2 @ codes, rtol=1e-4, atol=1e-3)  # of sums of up to 100
    torch.testing.assert_close(shares, (expected**2).sum(dim=1))


def test_of_as_many_votes_the_first_object_wins_and_nothing_is_object_0():
    found = Votes(3, 2**40, torch.device("cpu"), max_cells=100)  # Gaussian x object needs more than 32 bits
    weights = PixelWeights(
        torch.tensor([0, 1, 2]), torch.tensor([2, 2], dtype=torch.int32), torch.tensor([0.5, 0.5]), 3
    )
    assert found.entries().winners()[0].tolist() == [0, 0, 0]
    found.add(weights, torch.tensor([2**39, 7]))
    winner, best = found.entries().winners()
    assert (winner.tolist(), best.tolist()) == ([0, 0, 7], [0, 0, 0.5])
