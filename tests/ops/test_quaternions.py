import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_lift.ops.quaternions import multiply, normalise, rotate, rotation_from_quaternion


def random_quats(seed: int, count: int = 64) -> torch.Tensor:
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_rotation_of_a_quarter_turn_about_z():
    half = 0.5**0.5
    expected = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(
        rotation_from_quaternion(torch.tensor([half, 0, 0, half], dtype=torch.float64)), expected
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_rotations_are_orthonormal_and_right_handed(seed):
    rotation = rotation_from_quaternion(random_quats(seed))
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(64, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(64, dtype=torch.float64))


def test_product_is_the_product_of_rotations():
    left, right = random_quats(1), random_quats(2)
    product = rotation_from_quaternion(left) @ rotation_from_quaternion(right)
    torch.testing.assert_close(rotation_from_quaternion(multiply(left, right)), product)


def test_length_does_not_change_the_rotation():
    quats = random_quats(3)
    torch.testing.assert_close(rotation_from_quaternion(7 * quats), rotation_from_quaternion(quats))


def test_gradient_reaches_the_quaternion():
    quats = random_quats(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(rotation_from_quaternion, quats)


@pytest.mark.parametrize("function", [normalise, rotation_from_quaternion, lambda q: multiply(q, torch.ones(4))])
def test_wrong_width_is_refused(function):
    with pytest.raises(ValueError, match=r"must be \[\.\.\., 4\]"):
        function(torch.ones(5, 3))


def test_turning_vectors_is_what_the_rotation_matrix_does():
    generator = torch.Generator().manual_seed(0)
    quats, vectors = torch.randn(2, 7, 4, generator=generator), torch.randn(2, 7, 3, generator=generator)
    expected = (rotation_from_quaternion(quats) @ vectors[..., None])[..., 0]
    torch.testing.assert_close(rotate(normalise(quats), vectors), expected, rtol=1e-5, atol=1e-6)
    quarter = torch.tensor([2**-0.5, 0.0, 0.0, 2**-0.5])  # about z
    torch.testing.assert_close(rotate(quarter, torch.tensor([1.0, 0.0, 5.0])), torch.tensor([0.0, 1.0, 5.0]))
