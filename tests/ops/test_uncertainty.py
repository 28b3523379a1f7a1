import math

import torch

from unified_lift.ops.uncertainty import uncertainty


def test_uncertainty_is_one_minus_own_softmax_by_hand():
    # softmax(2, 0) at 0 = e^2 / (e^2 + 1)
    similarity = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    own = math.exp(2) / (math.exp(2) + 1)
    torch.testing.assert_close(uncertainty(similarity, torch.tensor([0, 1])), torch.tensor([1 - own, own]))


def test_pixel_without_label_is_fully_uncertain():
    assert uncertainty(torch.tensor([[5.0, 0.0]]), torch.tensor([-1])).tolist() == [1.0]


def test_uncertainty_sends_no_gradient():
    similarity = torch.tensor([[2.0, 0.0]], requires_grad=True)
    assert not uncertainty(similarity, torch.tensor([0])).requires_grad
