"""SSIM and Adam: kernels against their torch twins, and the twins against known values."""

import diff_gaussian_rasterization as dgr
import pytest
import torch

from .tolerances import ADAM, SSIM_GRADIENT_RELATIVE, SSIM_VALUE


def image_pair(height, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(height, width, 3, generator=g)
    return (target + 0.2 * torch.randn(height, width, 3, generator=g)).clamp(0, 1), target


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (11, 11), (23, 38), (64, 48)])
def test_ssim_kernel_agrees_with_its_twin(height, width, instruction_set):
    image, target = image_pair(height, width)
    values, grads = [], []
    for implementation in ("reference", "cpu"):
        leaf = image.clone().requires_grad_()
        value = dgr.fused_ssim(leaf, target, implementation=implementation)
        (1 - value).mul(3).backward()
        values.append(value.item())
        grads.append(leaf.grad)
    assert values[0] == pytest.approx(values[1], abs=SSIM_VALUE)
    assert float(grads[0].norm()) > 0
    assert float((grads[0] - grads[1]).norm() / grads[0].norm()) < SSIM_GRADIENT_RELATIVE


def test_ssim_of_an_image_with_itself_is_one(implementation):
    image, _ = image_pair(20, 30)
    assert dgr.fused_ssim(image, image, implementation=implementation).item() == pytest.approx(1.0, abs=SSIM_VALUE)


def test_ssim_of_constant_images_is_the_luminance_term(implementation):
    # far from the border variances vanish: (2 a b + C1) / (a^2 + b^2 + C1); with 0.4 and 0.6 that is 0.4801 / 0.5201
    a, b = torch.full((41, 41, 3), 0.4), torch.full((41, 41, 3), 0.6)
    inner = a.clone().requires_grad_()
    value = dgr.fused_ssim(inner, b, implementation=implementation)
    # the border of 5 px sees zeros outside, which couple both images: only a bound there
    assert 0.8 < value.item() < 1.0
    big = 401
    wide = dgr.fused_ssim(torch.full((big, big, 3), 0.4), torch.full((big, big, 3), 0.6), implementation=implementation)
    assert wide.item() == pytest.approx(0.4801 / 0.5201, abs=5e-3)


def test_ssim_without_gradient_and_with_changing_threads():
    image, target = image_pair(40, 33)
    before = torch.get_num_threads()
    values = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        values.append(dgr.fused_ssim(image, target).item())
    torch.set_num_threads(before)
    assert values[0] == values[1] == values[2]


def test_ssim_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"must both be \[H, W, 3\]"):
        dgr.fused_ssim(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="one dtype"):
        dgr.fused_ssim(torch.zeros(8, 8, 3), torch.zeros(8, 8, 3).double())


def test_adam_step_equals_torch_adam(implementation, instruction_set):
    g = torch.Generator().manual_seed(0)
    start = torch.randn(37, 5, generator=g)
    theirs = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.03, betas=(0.9, 0.999), eps=1e-15)
    ours, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, 8):
        theirs.grad = torch.randn(37, 5, generator=g)
        optimizer.step()
        dgr.fused_adam_step(
            ours, theirs.grad, first, second, lr=0.03, beta1=0.9, beta2=0.999, eps=1e-15, step=step,
            implementation=implementation,
        )  # fmt: skip
    assert float((ours - start).abs().max()) > 0.05
    assert (ours - theirs).detach().abs().max().item() < 10 * ADAM


def test_adam_leaves_values_without_any_gradient_where_they_are(implementation):
    # 0 / (sqrt(0) + eps) must be 0, not NaN
    param, moments = torch.ones(20), [torch.zeros(20), torch.zeros(20)]
    grad = torch.zeros(20)
    dgr.fused_adam_step(
        param, grad, *moments, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-15, step=1, implementation=implementation
    )
    assert torch.equal(param, torch.ones(20))


def test_adam_works_on_a_leaf_that_requires_grad():
    param = torch.ones(4, requires_grad=True)
    (param**2).sum().backward()
    dgr.fused_adam_step(
        param, param.grad, torch.zeros(4), torch.zeros(4), lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8, step=1
    )
    # the first step of Adam has length lr whatever the gradient
    assert torch.allclose(param.detach(), torch.full((4,), 0.9), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad": torch.zeros(3)}, "grad must match param"),
        ({"exp_avg": torch.zeros(4, 2)[:, 0]}, "must be contiguous"),
        ({"step": 0}, "step counts from 1"),
    ],
)
def test_adam_names_what_is_wrong(change, message):
    arguments = {n: torch.zeros(4) for n in ("param", "grad", "exp_avg", "exp_avg_sq")} | {"step": 1} | change
    with pytest.raises(ValueError, match=message):
        dgr.fused_adam_step(**arguments, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8)


def test_several_parameters_step_as_they_would_alone(implementation):
    def parameters():
        g = torch.Generator().manual_seed(3)
        return [[torch.randn(size, generator=g) for _ in range(4)] for size in (1, 4, 7, 1030, 0, 12, 5, 2051, 3, 64)]

    alone, together = parameters(), parameters()
    rates, steps = [0.1 * (i + 1) for i in range(10)], list(range(1, 11))
    shared = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "implementation": implementation}
    for four in (*alone, *together):
        four[3].abs_()
    for four, lr, step in zip(alone, rates, steps):
        dgr.fused_adam_step(*four, lr=lr, step=step, **{**shared, "implementation": "reference"})
    dgr.fused_adam_steps(together, lrs=rates, steps=steps, **shared)
    for expected, actual in zip(alone, together):
        for a, b in zip(expected, actual):
            assert torch.allclose(a, b, rtol=1e-5, atol=20 * ADAM)


def test_several_parameters_must_fit_together():
    four = [torch.zeros(3) for _ in range(4)]
    options = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
    with pytest.raises(ValueError, match="1 parameters, 2 rates and 1 steps"):
        dgr.fused_adam_steps([four], lrs=[0.1, 0.2], steps=[1], **options)
    with pytest.raises(ValueError, match="must be torch.float32 on cpu, like the first"):
        dgr.fused_adam_steps([four, [t.double() for t in four]], lrs=[0.1, 0.2], steps=[1, 1], **options)
    with pytest.raises(ValueError, match="step counts from 1"):
        dgr.fused_adam_steps([four], lrs=[0.1], steps=[0], **options)
    dgr.fused_adam_steps([], lrs=[], steps=[], **options)
