"""Colour that depends on the direction turns with the object."""

import math

import pytest
import torch
from diff_gaussian_rasterization.reference import SH_C1, SH_C2, harmonics_color

from unified_lift.ops.harmonics import harmonics_basis, harmonics_rotations, rotate_harmonics
from unified_lift.ops.quaternions import multiply, rotation_from_quaternion


def random_rotations(count, seed):
    generator = torch.Generator().manual_seed(seed)
    quats = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    return quats, rotation_from_quaternion(quats)


def random_directions(count, seed):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(count, 3, dtype=torch.float64, generator=generator)
    return torch.nn.functional.normalize(directions, dim=1)


def test_the_basis_is_that_of_the_rasterizer():
    x, y, z = 2 / 7, 3 / 7, 6 / 7
    basis = harmonics_basis(torch.tensor([[x, y, z]], dtype=torch.float64), degree=2)[0]
    expected = [
        0.28209479177387814, -SH_C1 * y, SH_C1 * z, -SH_C1 * x,
        SH_C2[0] * x * y, SH_C2[1] * y * z, SH_C2[2] * (2 * z * z - x * x - y * y), SH_C2[3] * x * z,
        SH_C2[4] * (x * x - y * y),
    ]  # fmt: skip
    assert basis.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_turned_object_shows_along_a_turned_ray_what_it_showed_before(degree):
    directions = random_directions(200, seed=1)
    coefficients = 0.1 * torch.randn(
        200, (degree + 1) ** 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    for rotation in random_rotations(5, seed=degree)[1]:
        turned = torch.cat([coefficients[:, :1], rotate_harmonics(coefficients[:, 1:], rotation)], dim=1)
        before = harmonics_color(coefficients, directions, degree=degree)
        after = harmonics_color(turned, directions @ rotation.T, degree=degree)
        assert (before - after).abs().max() < 1e-12
        unturned = harmonics_color(coefficients, directions @ rotation.T, degree=degree)
        assert (before - unturned).abs().max() > 0.05  # so the test can fail


def test_float32_coefficients_keep_five_digits():
    coefficients = torch.randn(50, 15, 3, generator=torch.Generator().manual_seed(3))
    (rotation,) = random_rotations(1, seed=4)[1]
    directions = random_directions(50, seed=5)
    turned = rotate_harmonics(coefficients, rotation)
    assert turned.dtype == torch.float32
    before = (harmonics_basis(directions, degree=3)[:, 1:, None] * coefficients).sum(dim=1)
    after = (harmonics_basis(directions @ rotation.T, degree=3)[:, 1:, None] * turned).sum(dim=1)
    assert (before - after).abs().max() < 1e-5


def test_two_turns_are_one():
    quats, (first, second) = random_rotations(2, seed=6)
    coefficients = torch.randn(20, 15, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    both = rotation_from_quaternion(multiply(quats[1], quats[0]))
    assert torch.allclose(
        rotate_harmonics(rotate_harmonics(coefficients, first), second),
        rotate_harmonics(coefficients, both),
        atol=1e-12,
    )


def test_no_turn_changes_nothing_and_matrices_are_orthogonal():
    for matrix in harmonics_rotations(torch.eye(3), degree=3):
        assert torch.allclose(matrix, torch.eye(len(matrix), dtype=torch.float64), atol=1e-12)
    (rotation,) = random_rotations(1, seed=8)[1]
    matrices = harmonics_rotations(rotation, degree=3)
    assert [len(matrix) for matrix in matrices] == [3, 5, 7]
    for matrix in matrices:
        assert torch.allclose(matrix @ matrix.T, torch.eye(len(matrix), dtype=torch.float64), atol=1e-12)


def test_a_quarter_turn_about_z_by_hand():
    # Y_1 = (-y, z, -x) C1. The light c = (0, 0, 1) is bright towards -x; a quarter turn about z carries -x to -y,
    # where (1, 0, 0) is bright.
    rotation = rotation_from_quaternion(torch.tensor([math.sqrt(0.5), 0, 0, math.sqrt(0.5)], dtype=torch.float64))
    coefficients = torch.tensor([0.0, 0, 1], dtype=torch.float64).view(1, 3, 1).expand(1, 3, 3)
    turned = rotate_harmonics(coefficients, rotation)
    assert torch.allclose(turned[0, :, 0], torch.tensor([1.0, 0, 0], dtype=torch.float64), atol=1e-12)


def test_colour_without_direction_stays_and_other_shapes_are_refused():
    nothing = torch.zeros(4, 0, 3)
    assert rotate_harmonics(nothing, torch.eye(3)).shape == (4, 0, 3)
    with pytest.raises(ValueError, match=r"received \[4, 7, 3\]"):
        rotate_harmonics(torch.zeros(4, 7, 3), torch.eye(3))
