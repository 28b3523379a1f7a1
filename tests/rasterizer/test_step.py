"""The training step: its kernels against the definition made of public pieces, and the definition against autograd."""

import diff_gaussian_rasterization as dgr
import pytest
import torch
from diff_gaussian_rasterization.step import PARAMETERS

from unified_lift.kernels.photometric import backward, photometric_loss

from .scenes import random_inputs
from .tolerances import GRADIENT_RELATIVE

BETAS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-15}


def start(seed, *, num=300, degree=3, bands=16, dim=0, width=37, height=29, device="cpu"):
    """Raw parameters, moments that are not zero, a photo."""
    x = random_inputs(seed, num=num, width=width, height=height, dim=dim, sh_degree=degree)
    g = torch.Generator().manual_seed(seed)
    parameters = {
        "means": x.means,
        "quats": x.quats,
        "log_scales": x.scales.log(),
        "logit_opacities": x.opacities.clamp(0.02, 0.98).logit(),
        "sh0": x.colors[:, :1].contiguous(),
        "shN": x.colors[:, 1:bands].contiguous(),
    }
    features = {"features": x.features} if dim else {}
    target = torch.randint(0, 256, (height, width, 3), generator=g, dtype=torch.uint8)
    moved = {name: value.clone().to(device) for name, value in (parameters | features).items()}
    adam = {}
    for i, (name, value) in enumerate(moved.items()):
        first, second = torch.randn(value.shape, generator=g), torch.rand(value.shape, generator=g)
        adam[name] = dgr.AdamState((1e-3 * first).to(device), (1e-6 * (1 + second)).to(device), 0.01 * (i + 1), 7)
    scene = {"viewmat": x.viewmats[0].to(device), "K": x.Ks[0].to(device), "width": width, "height": height}
    return moved, adam, scene, target.to(device)


def run(
    implementation, seed, *, degree=3, dim=0, device="cpu", background=None, valid=None, lambda_dssim=0.2,
    antialiased=False, absolute=False, **options,
):  # fmt: skip
    """Do one step; return loss, feature map, changes of the parameters, moments and statistics on the CPU."""
    parameters, adam, scene, photo = start(seed, degree=degree, dim=dim, device=device, **options)
    before = {name: value.clone() for name, value in parameters.items()}
    count = len(parameters["means"])
    statistics = {"grad_sum": torch.ones(count, device=device), "num_seen": torch.full((count,), 2.0, device=device)}
    step = dgr.TrainingStep(implementation=implementation, absolute_gradients=absolute)
    optional = {"features": parameters.get("features"), "background": background}
    optional = {name: value.to(device) for name, value in optional.items() if value is not None}
    out = step.forward(parameters, **scene, **optional, sh_degree=degree, antialiased=antialiased)
    valid = None if valid is None else valid.to(device)
    beside = "auto" if implementation == "gsplat" else implementation  # that one renders and nothing else
    options = {"valid": valid, "lambda_dssim": lambda_dssim, "implementation": beside}
    loss = total = photometric_loss(out.image, photo, **options)
    if dim:
        g = torch.Generator().manual_seed(seed)
        total = loss + (out.features * torch.randn(out.features.shape, generator=g).to(device)).mean()
    backward(total)
    step.update(adam, loss=total, **BETAS, **statistics)
    changes = {name: value - before[name] for name, value in parameters.items()}
    values = {"loss": loss, "maps": out.features, **changes, **statistics}
    for name, state in adam.items():
        values |= {f"{name}.m": state.exp_avg, f"{name}.v": state.exp_avg_sq}
    return {name: value.detach().cpu() for name, value in values.items()}


def assert_same_step(expected, actual, seed):
    for name, value in expected.items():
        if value.numel():
            error, size = float((value - actual[name]).norm()), float(value.norm())
            assert size > 0, f"seed {seed}: {name} is all zeros, the comparison says nothing"
            assert error <= GRADIENT_RELATIVE * size, f"seed {seed}: {name} differs by {error / size} of its norm"


COUNTED = {
    "background": torch.tensor([1.0, 0.5, 0.25]),
    "valid": torch.rand(29, 37, generator=torch.Generator().manual_seed(0)) > 0.2,
}
STEPS = {
    "degree 0": {"degree": 0, "bands": 1},
    "degree 0 of 1": {"degree": 0, "bands": 4},
    "degree 1": {"degree": 1, "bands": 4},
    "degree 2": {"degree": 2, "bands": 9},
    "degree 1 of 3": {"degree": 1, "bands": 16},
    "3 features": {"dim": 3},
    "16 features": {"dim": 16},
    "antialiased": {"dim": 3, "antialiased": True},
    "absolute gradients": {"absolute": True},
    "absolute gradients and features": {"dim": 3, "absolute": True},
    **{f"background, mask, lambda {share}": COUNTED | {"lambda_dssim": share} for share in (0.0, 0.2, 1.0)},
}


@pytest.mark.parametrize("options", STEPS.values(), ids=STEPS)
def test_step_kernels_agree_with_the_definition(cuda_device, options):
    assert_same_step(run("reference", 20, **options), run("cuda", 20, device=cuda_device, **options), 20)


@pytest.mark.parametrize("num", [1, 31, 32, 33, 129, 1000])
def test_step_kernels_agree_for_every_number_of_gaussians(cuda_device, num):
    expected = run("reference", 40, num=num)
    actual = run("cuda", 40, num=num, device=cuda_device)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=2e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("options", [{}, {"absolute": True}], ids=str)
def test_cpu_kernels_agree_with_the_definition(options):
    assert_same_step(run("reference", 50, dim=16, **options), run("cpu", 50, dim=16, **options), 50)


@pytest.mark.parametrize("implementation", ["reference", "cpu", "cuda"])
def test_absolute_gradients_are_longer_and_all_that_differs(cuda_device, implementation):
    device = cuda_device if implementation == "cuda" else "cpu"
    plain, absolute = (run(implementation, 51, device=device, absolute=each) for each in (False, True))
    assert bool((absolute["grad_sum"] >= plain["grad_sum"] - 1e-6).all())
    assert float((absolute["grad_sum"] - 1).sum()) > 1.5 * float((plain["grad_sum"] - 1).sum())
    for name in set(plain) - {"grad_sum"}:
        torch.testing.assert_close(absolute[name], plain[name], rtol=1e-4, atol=1e-7)


def gradients_of(implementation, seed, *, dim, device="cpu", weight=1.0, into=None, **options):
    """Add the gradients of a view to tensors, new ones without `into`; return these, statistics among them."""
    parameters, _, scene, photo = start(seed, dim=dim, device=device)
    if into is None:
        into = {name: torch.zeros_like(value) for name, value in parameters.items()}
        into |= {name: torch.zeros(300, device=device) for name in ("grad_sum", "num_seen")}
    step = dgr.TrainingStep(implementation=implementation, **options)
    out = step.forward(parameters, **scene, features=parameters.get("features"), sh_degree=3)
    parameters["log_scales"].requires_grad_()
    opinion = 0.1 * parameters["log_scales"].exp().mean() + (out.features.square().mean() if dim else 0)
    total = photometric_loss(out.image, photo, lambda_dssim=0.2, implementation=implementation) + opinion
    backward(weight * total)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    statistics = {name: into[name] for name in ("grad_sum", "num_seen")}
    step.gradients({name: into[name] for name in parameters}, loss=weight * total, **statistics)
    assert all(torch.equal(value, before[name]) for name, value in parameters.items())
    assert all(value.grad is None for value in parameters.values())
    return into


@pytest.mark.parametrize("dim", [0, 3])
@pytest.mark.parametrize("absolute", [False, True])
def test_gradients_of_views_add_up_and_move_nothing(cuda_device, dim, absolute):
    options = {"dim": dim, "absolute_gradients": absolute}
    expected = gradients_of("reference", 52, **options)
    found = gradients_of("cuda", 52, device=cuda_device, **options)
    assert_same_step(expected, {name: value.cpu() for name, value in found.items()}, 52)
    assert_same_step(expected, gradients_of("cpu", 52, **options), 52)
    twice = {name: 2 * value for name, value in expected.items()}
    again = gradients_of("cuda", 52, device=cuda_device, into=found, **options)
    assert_same_step(twice, {name: value.cpu() for name, value in again.items()}, 52)
    for implementation, device in (("cpu", "cpu"), ("cuda", cuda_device)):
        nothing = gradients_of(implementation, 52, device=device, weight=float("inf"), **options)
        assert not any(bool((value != 0).any()) for value in nothing.values())


def step_on_colour(step, parameters, adam, scene, photo):
    out = step.forward(parameters, **scene, sh_degree=3)
    loss = photometric_loss(out.image, photo, lambda_dssim=0.2, implementation="cuda")
    backward(loss)
    step.update(adam, loss=loss, **BETAS)
    return loss


def test_gaussians_that_no_pixel_sees_still_follow_their_momentum(cuda_device):
    # m = 0.9 m, v = 0.999 v, p -= lr m / (1 - 0.9^7) / sqrt(v / (1 - 0.999^7))
    parameters, adam, scene, photo = start(60, device=cuda_device)
    parameters["means"][:, 2] = -5  # behind the camera
    before = {n: (parameters[n].clone(), adam[n].exp_avg.clone(), adam[n].exp_avg_sq.clone()) for n in PARAMETERS}
    step_on_colour(dgr.TrainingStep(implementation="cuda"), parameters, adam, scene, photo)
    for name, (value, m, v) in before.items():
        m, v = 0.9 * m, 0.999 * v
        expected = value - adam[name].lr * m / (1 - 0.9**7) / (v / (1 - 0.999**7)).sqrt()
        torch.testing.assert_close(parameters[name], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(adam[name].exp_avg, m, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("implementation", ["reference", "cpu", "cuda"])
def test_nothing_moves_when_the_loss_is_not_finite(cuda_device, implementation):
    parameters, adam, scene, _ = start(70, dim=3, device=cuda_device if implementation == "cuda" else "cpu")
    before = {name: value.clone() for name, value in parameters.items()}
    step = dgr.TrainingStep(implementation=implementation)
    out = step.forward(parameters, **scene, features=parameters["features"], sh_degree=3)
    loss = out.image.mean() * float("inf") + out.features.sum()
    backward(loss)
    step.update(adam, loss=loss, **BETAS)
    assert all(torch.equal(value, before[name]) for name, value in parameters.items())


# each loss names what it is on: a map of the view, or a parameter
LOSSES = {
    "colour": lambda out, table: (out.image - 0.25).square().mean(),
    "depth": lambda out, table: (out.depth - 1).abs().mean(),
    "alpha": lambda out, table: out.alpha.square().mean(),
    "colour, depth and alpha": lambda out, table: (out.image.mean(-1) * out.depth).mean() + 0.3 * out.alpha.mean(),
    "features": lambda out, table: out.features.square().mean() + 0.01 * table["features"].abs().mean(),
    "scale": lambda out, table: table["log_scales"].exp().mean(),
    "opacity and depth": lambda out, table: table["logit_opacities"].sigmoid().mean() + out.depth.mean(),
}


@pytest.mark.parametrize("loss_of", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("implementation", ["reference", "cpu", "cuda"])
def test_any_loss_in_torch_gives_the_update_of_plain_autograd(cuda_device, implementation, loss_of):
    device = cuda_device if implementation == "cuda" else "cpu"
    table, _, scene, _ = start(91, dim=3, device=device)
    leaves = {name: value.clone().requires_grad_() for name, value in table.items()}
    means2d = torch.zeros(1, 300, 2, device=device, requires_grad=True)
    plain = dgr.rasterize(
        leaves["means"], leaves["quats"], leaves["log_scales"].exp(), leaves["logit_opacities"].sigmoid(),
        torch.cat([leaves["sh0"], leaves["shN"]], 1), leaves["features"], scene["viewmat"][None], scene["K"][None],
        37, 29, sh_degree=3, means2d=means2d, implementation=implementation,
    )  # fmt: skip
    loss_of(dgr.RasterOutput(*(m[0] for m in plain[:4]), plain.meta), leaves).backward()
    zero = {n: dgr.AdamState(torch.zeros_like(v), torch.zeros_like(v), 0.01, 1) for n, v in table.items()}
    for value in table.values():
        value.requires_grad_()
    step = dgr.TrainingStep(implementation=implementation)
    out = step.forward(table, **scene, features=table["features"], sh_degree=3)
    torch.testing.assert_close(out.depth, plain.depth[0])
    total = loss_of(out, table)
    total.backward()
    statistics = {"grad_sum": torch.zeros(300, device=device), "num_seen": torch.zeros(300, device=device)}
    step.update(zero, loss=total, **BETAS, **statistics)
    assert 0 < int(statistics["num_seen"].sum()) < 300
    assert torch.equal(statistics["num_seen"] > 0, plain.meta.radii[0] > 0)
    # pixels -> NDC: half of 37 across, half of 29 down
    slope = torch.zeros(1, 300, 2) if means2d.grad is None else means2d.grad.cpu()
    lengths = (slope[0] * torch.tensor([18.5, 14.5])).norm(dim=1)
    torch.testing.assert_close(statistics["grad_sum"].cpu(), lengths, rtol=1e-3, atol=1e-6)
    moved = [name for name, leaf in leaves.items() if leaf.grad is not None and bool((leaf.grad != 0).any())]
    assert moved
    for name, leaf in leaves.items():
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        got = zero[name].exp_avg / (1 - BETAS["beta1"])  # after a first step
        size = float(gradient.norm())
        assert float((got - gradient).norm()) <= GRADIENT_RELATIVE * size, name
        assert table[name].grad is None
        assert bool((table[name] != leaf).any()) == (name in moved)


def test_working_memory_serves_steps_of_every_size(cuda_device):
    step = dgr.TrainingStep(implementation="cuda")
    for num, width, height in ((300, 37, 29), (40, 16, 16), (900, 64, 33), (300, 37, 29)):
        parameters, adam, scene, photo = start(80, num=num, width=width, height=height, device=cuda_device)
        before = parameters["shN"].clone()
        loss = step_on_colour(step, parameters, adam, scene, photo)
        expected = run("reference", 80, num=num, width=width, height=height)
        torch.testing.assert_close(loss.detach().cpu(), expected["loss"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close((parameters["shN"] - before).cpu(), expected["shN"], rtol=2e-3, atol=2e-5)


def test_wrong_masks_and_strides_are_named():
    parameters, _, scene, photo = start(100)
    with pytest.raises(ValueError, match=r"valid must be bool \[29, 37\]"):
        photometric_loss(photo / 255, photo, lambda_dssim=0.2, valid=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="means must be contiguous"):
        dgr.TrainingStep().forward(parameters | {"means": torch.zeros(3, 300).T}, **scene, sh_degree=3)
