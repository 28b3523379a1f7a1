import pytest
import torch

from unified_lift.kernels.assignment import association_scores
from unified_lift.shapes import check_shapes


def test_letters_are_bound_across_tensors():
    bound = check_shapes({"a": (torch.zeros(4, 3), "N 3"), "b": (torch.zeros(4, 7), "N D")})
    assert bound == {"N": 4, "D": 7}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": (torch.zeros(4, 2), "N 3")}, r"a must be \[N 3\] with 3 = 3, received \[4, 2\]"),
        ({"a": (torch.zeros(4), "N"), "b": (torch.zeros(5), "N")}, r"b must be \[N\] with N = 4, received \[5\]"),
        ({"a": (torch.zeros(4, 1), "N")}, r"a must be \[N\], received \[4, 1\]"),
    ],
)
def test_disagreement_names_tensor_expected_and_received(tensors, message):
    with pytest.raises(ValueError, match=message):
        check_shapes(tensors)


def test_public_doors_check_their_tensors():
    with pytest.raises(ValueError, match="slot must be"):
        association_scores(torch.zeros(5, 3), torch.zeros(4, dtype=torch.int64), 1, area_aware=True)
