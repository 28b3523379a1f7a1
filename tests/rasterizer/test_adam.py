"""Adam: kernels against torch's own, and the definition against known values."""

import diff_gaussian_rasterization as dgr
import pytest
import torch

from .tolerances import ADAM


def test_adam_step_equals_torch_adam(implementation, instruction_set):
    g = torch.Generator().manual_seed(0)
    start = torch.randn(37, 5, generator=g)
    theirs = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.03, betas=(0.9, 0.999), eps=1e-15)
    ours, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, 8):
        theirs.grad = torch.randn(37, 5, generator=g)
        optimizer.step()
        update = [(ours, theirs.grad, dgr.AdamState(first, second, 0.03, step))]
        dgr.adam_steps(update, beta1=0.9, beta2=0.999, eps=1e-15, implementation=implementation)
    assert float((ours - start).abs().max()) > 0.05
    assert (ours - theirs).detach().abs().max().item() < 10 * ADAM


def test_adam_leaves_values_without_any_gradient_where_they_are(implementation):
    # 0 / (sqrt(0) + eps) must be 0, not NaN
    param, grad, first, second = torch.ones(20), *torch.zeros(3, 20)
    update = [(param, grad, dgr.AdamState(first, second, 0.1, 1))]
    dgr.adam_steps(update, beta1=0.9, beta2=0.999, eps=1e-15, implementation=implementation)
    assert torch.equal(param, torch.ones(20))


def test_adam_works_on_a_leaf_that_requires_grad():
    param = torch.ones(4, requires_grad=True)
    (param**2).sum().backward()
    update = [(param, param.grad, dgr.AdamState(torch.zeros(4), torch.zeros(4), 0.1, 1))]
    dgr.adam_steps(update, beta1=0.9, beta2=0.999, eps=1e-8)
    # the first step of Adam has length lr whatever the gradient
    assert torch.allclose(param.detach(), torch.full((4,), 0.9), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad": torch.zeros(3)}, "grad must match param"),
        ({"grad": torch.zeros(4).double()}, "must be torch.float32 on cpu, like the first"),
        ({"exp_avg": torch.zeros(4, 2)[:, 0]}, "must be contiguous"),
        ({"step": 0}, "step counts from 1"),
    ],
)
def test_adam_names_what_is_wrong(change, message):
    x = {n: torch.zeros(4) for n in ("param", "grad", "exp_avg", "exp_avg_sq")} | {"step": 1} | change
    update = (x["param"], x["grad"], dgr.AdamState(x["exp_avg"], x["exp_avg_sq"], 0.1, x["step"]))
    with pytest.raises(ValueError, match=message):
        dgr.adam_steps([update], beta1=0.9, beta2=0.999, eps=1e-8)
    dgr.adam_steps([], beta1=0.9, beta2=0.999, eps=1e-8)


def test_several_parameters_step_as_they_would_alone(implementation):
    def updates():
        g = torch.Generator().manual_seed(3)
        for i, size in enumerate((1, 4, 7, 1030, 0, 12, 5, 2051, 3, 64)):
            param, grad, first, second = (torch.randn(size, generator=g) for _ in range(4))
            yield param, grad, dgr.AdamState(first, second.abs_(), 0.1 * (i + 1), i + 1)

    alone, together = list(updates()), list(updates())
    shared = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
    for update in alone:
        dgr.adam_steps([update], **shared, implementation="reference")
    dgr.adam_steps(together, **shared, implementation=implementation)
    for (param, _, state), (other, _, others) in zip(alone, together):
        for a, b in zip((param, *state[:2]), (other, *others[:2])):
            assert torch.allclose(a, b, rtol=1e-5, atol=20 * ADAM)
