import math

import pytest
import torch

from unified_lift.kernels.contrastive import uncertainty


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


def test_segments_without_pixel_do_not_count():
    generator = torch.Generator().manual_seed(0)
    features, slot = torch.randn(40, 4, generator=generator), torch.arange(40, dtype=torch.int32) % 3
    few = uncertainty(features, slot, 3, temperature=0.1)
    many = uncertainty(features, slot * 4, 12, temperature=0.1)
    assert few.std() > 0.05
    torch.testing.assert_close(many, few)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_uncertainty_sends_no_gradient(temperature):
    features = torch.eye(2, requires_grad=True)
    assert not uncertainty(features, slots(0, 1), 2, temperature=temperature).requires_grad
