"""Which Gaussians a view may show, against those that are rendered."""

import diff_gaussian_rasterization as dgr
import pytest
import torch


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("implementation", ["reference", "cpu", "cuda"])
def test_what_is_rendered_is_in_sight_and_much_else_is_not(cuda_device, implementation, seed, antialiased):
    g, count, device = torch.Generator().manual_seed(seed), 3_000, cuda_device if implementation == "cuda" else "cpu"
    table = {
        "means": 4 * torch.randn(count, 3, generator=g),
        "quats": torch.randn(count, 4, generator=g),
        "log_scales": torch.rand(count, 3, generator=g) * 6 - 5,
        "logit_opacities": 4 * torch.randn(count, generator=g) - 2,
        "sh0": torch.zeros(count, 1, 3),
        "shN": torch.zeros(count, 0, 3),
    }
    table = {name: value.to(device) for name, value in table.items()}
    viewmat, intrinsics = torch.eye(4), torch.tensor([[14.0, 0, 30.0 * (seed - 1)], [0, 16, 9], [0, 0, 1]])
    viewmat[:3, 3] = torch.tensor([0.3, -0.2, 3.0])
    view = viewmat.to(device), intrinsics.to(device), 24, 20
    step = dgr.TrainingStep(implementation=implementation)
    shown = step.forward(table, *view, sh_degree=0, antialiased=antialiased).meta.radii > 0
    found = dgr.in_sight(table, *view, antialiased=antialiased, implementation=implementation)
    assert not bool((shown & ~found).any())
    assert 0.02 * count < int(shown.sum()) <= int(found.sum()) < 0.9 * count
    if implementation == "cuda":
        assert torch.equal(shown, found)
