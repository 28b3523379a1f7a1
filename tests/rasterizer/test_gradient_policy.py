"""Which losses reach which inputs."""

from dataclasses import replace

import pytest
import torch

from .scenes import GEOMETRY, gradients, loss_of, random_inputs, render, with_gradients


@pytest.mark.parametrize("maps", [("image",), ("image", "alpha", "depth")])
def test_geometry_gradients_are_bit_identical_with_and_without_features(maps):
    x = random_inputs(2, dim=16)
    without = replace(x, features=None)
    plain = gradients(without, "cpu", 2, maps=maps)[1]
    x = with_gradients(x)
    out = render(x, "cpu")
    (loss_of(out, 2, maps) + (out.features**2).sum()).backward()
    for name in (*GEOMETRY, "colors"):
        assert bool((plain[name] != 0).any()), name
        assert torch.equal(plain[name], getattr(x, name).grad), name


def test_harmonics_that_are_clamped_or_inactive_get_zero_gradient(implementation):
    x = random_inputs(3, sh_degree=0, dim=0)
    dark = replace(x, colors=torch.full_like(x.colors, -5.0))
    _, grads = gradients(dark, implementation, 3, maps=("image",))
    assert not bool((grads["colors"] != 0).any())
    assert bool((grads["backgrounds"] != 0).any())
    _, grads = gradients(random_inputs(4, sh_degree=1, dim=0), implementation, 4)
    assert bool((grads["colors"][:, :4] != 0).any())
    assert not bool((grads["colors"][:, 4:] != 0).any())


def test_camera_gradients_exist_in_the_definition_only():
    x = random_inputs(5)
    view = x.viewmats.clone().requires_grad_()
    moved = replace(x, viewmats=view)
    render(moved, "reference").image.sum().backward()
    assert bool((view.grad != 0).any())
    with pytest.raises(ValueError, match="no gradient to viewmats and Ks.*implementation='reference'"):
        render(moved, "cpu")


def test_changing_an_input_before_backward_is_noticed():
    x = with_gradients(random_inputs(6))
    out = render(x, "cpu")
    with torch.no_grad():
        x.means.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.image.sum().backward()


def test_backward_twice_gives_the_same_gradient_twice():
    x = with_gradients(random_inputs(8))
    out = render(x, "cpu")
    loss = loss_of(out, 8)
    first = torch.autograd.grad(loss, [x.means, x.features], retain_graph=True)
    other = render(with_gradients(random_inputs(9)), "cpu")  # another view in between takes its own memory
    second = torch.autograd.grad(loss, [x.means, x.features])
    assert other.image.shape == out.image.shape
    assert all(torch.equal(a, b) for a, b in zip(first, second))
