import torch

from unified_lift.train.optim import NamedAdam


def test_steps_equal_torch_adam():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(7, 3, generator=generator)
    ours, theirs = start.clone().requires_grad_(True), start.clone().requires_grad_(True)
    adam, reference = NamedAdam(eps=1e-15), torch.optim.Adam([theirs], lr=0.01, eps=1e-15)
    for _ in range(5):
        grad = torch.randn(7, 3, generator=generator)
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        adam.step({"x": ours}, {"x": 0.01})
        reference.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_only_parameters_with_a_gradient_move():
    table = {"a": torch.zeros(2, requires_grad=True), "b": torch.zeros(2, requires_grad=True)}
    table["a"].grad = torch.ones(2)
    adam = NamedAdam(eps=1e-8)
    adam.step(table, {"a": 0.1, "b": 0.1})
    torch.testing.assert_close(table["a"].detach(), torch.full((2,), -0.1))
    assert table["b"].tolist() == [0.0, 0.0]
    assert set(adam.moments) == {"a"}
