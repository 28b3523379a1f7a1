"""Sparse blending weights: the same numbers as a render, for chosen pixels."""

import diff_gaussian_rasterization as dgr
import pytest
import torch
from diff_gaussian_rasterization import native

from .scenes import random_inputs, render
from .tolerances import BLEND


def weights_of(x, pixels=None, **options):
    return dgr.pixel_weights(
        x.means, x.quats, x.scales, x.opacities, x.viewmats[0], x.Ks[0], x.width, x.height, pixels, **options
    )


def some_pixels(x, count, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(size, (count,), generator=g) for size in (x.width, x.height)], -1)


def test_blend_equals_the_rendered_features(implementation, instruction_set):
    x = random_inputs(0, dim=16)
    weights = weights_of(x, implementation=implementation)
    assert weights.num_rows == x.width * x.height
    assert (weights.offsets.dtype, weights.gaussian_ids.dtype) == (torch.int64, torch.int32)
    expected = render(x, implementation).features.reshape(-1, 16)
    assert float(expected.abs().max()) > 0.5
    blended = dgr.blend(weights, x.features, implementation=implementation)
    assert float((blended - expected).abs().max()) < BLEND


@pytest.mark.parametrize("dim", [1, 3, 16, 19, 33, 70, 256])
def test_blend_and_scatter_take_any_width(dim, implementation, instruction_set, two_threads):
    x = random_inputs(1, dim=dim, num=100)
    weights = weights_of(x)
    values = torch.randn(weights.num_rows, dim, generator=torch.Generator().manual_seed(1))
    for function, argument in ((dgr.blend, (x.features,)), (dgr.scatter, (values, 100))):
        expected = function(weights, *argument, implementation="reference")
        actual = function(weights, *argument, implementation=implementation)
        assert float(expected.abs().max()) > 0.1
        assert float((expected - actual).abs().max()) < 20 * BLEND


def test_chosen_pixels_are_rows_of_all_pixels(implementation):
    x = random_inputs(2)
    everything = weights_of(x, implementation=implementation)
    pixels = some_pixels(x, 500)  # more than once in places
    assert torch.unique(pixels, dim=0).shape[0] < 500
    chosen = weights_of(x, pixels, implementation=implementation)
    rows = pixels[:, 1] * x.width + pixels[:, 0]
    assert chosen.weights.numel() > 100
    for i, row in enumerate(rows.tolist()):
        mine, its = slice(*chosen.offsets[i : i + 2].tolist()), slice(*everything.offsets[row : row + 2].tolist())
        assert torch.equal(chosen.gaussian_ids[mine], everything.gaussian_ids[its])
        assert torch.equal(chosen.weights[mine], everything.weights[its])


def test_entries_are_those_of_the_definition_run_front_to_back_and_sum_to_alpha(implementation):
    x = random_inputs(4)
    expected, weights = weights_of(x, implementation="reference"), weights_of(x, implementation=implementation)
    assert torch.equal(expected.offsets, weights.offsets)
    assert torch.equal(expected.gaussian_ids, weights.gaussian_ids)
    assert torch.allclose(expected.weights, weights.weights, atol=1e-6)
    depth = (x.means @ x.viewmats[0, :3, :3].T + x.viewmats[0, :3, 3])[:, 2][weights.gaussian_ids.long()]
    row = weights.row_ids()
    assert bool((depth[1:] >= depth[:-1])[row[1:] == row[:-1]].all())
    sums = torch.zeros(weights.num_rows).index_add(0, row, weights.weights)
    assert float((sums - render(x, implementation).alpha.flatten()).abs().max()) < BLEND


def test_min_weight_only_removes_entries(implementation):
    x = random_inputs(5)
    full = weights_of(x, implementation=implementation)
    strong = weights_of(x, min_weight=0.05, implementation=implementation)
    keep = full.weights >= 0.05
    assert 0 < int(keep.sum()) < keep.numel()
    assert torch.equal(strong.gaussian_ids, full.gaussian_ids[keep])
    assert torch.equal(strong.weights, full.weights[keep])


def test_concatenate_joins_rows():
    x = random_inputs(8)
    everything = weights_of(x)
    all_pixels = torch.cartesian_prod(torch.arange(x.height), torch.arange(x.width)).flip(1)
    parts = [weights_of(x, some) for some in all_pixels.split(x.width * 10)]
    assert len(parts) == 3
    joined = dgr.PixelWeights.concatenate(parts)
    assert all(torch.equal(a, b) for a, b in zip(joined.dense(None)[:3], everything.dense(None)[:3]))
    assert joined.nbytes == 8 * (joined.num_rows + 1) + 8 * joined.weights.numel()


SMALL = dgr.PixelWeights(
    torch.tensor([0, 2, 2, 3]), torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0.5, 0.25, 1.0]), 3
)


def test_chosen_rows_keep_order_and_repeats(implementation):
    features, rows = torch.tensor([[4.0], [8.0], [3.0]]), torch.tensor([2, 1, 0, 2])
    assert dgr.blend(SMALL, features, rows=rows, implementation=implementation).tolist() == [[3.0], [0.0], [4.0], [3.0]]
    values = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    back = dgr.scatter(SMALL, values, 3, rows=rows, implementation=implementation)
    assert back.tolist() == [[50.0], [25.0], [1001.0]]


def test_chosen_rows_agree_with_the_definition(implementation, two_threads):
    x = random_inputs(11, dim=16)
    weights = weights_of(x)
    rows = torch.randint(weights.num_rows, (3000,), generator=torch.Generator().manual_seed(0))
    incoming = torch.randn(3000, 16, generator=torch.Generator().manual_seed(1))
    gradients = []
    for kind in ("reference", implementation):
        features = x.features.clone().requires_grad_()
        blended = dgr.blend(weights, features, rows=rows, implementation=kind)
        all_rows = dgr.blend(weights, x.features, implementation=kind)
        assert float((blended.detach() - all_rows[rows]).abs().max()) < BLEND
        blended.backward(incoming)
        gradients.append(features.grad)
    assert float(gradients[0].abs().max()) > 1
    assert float((gradients[0] - gradients[1]).abs().max()) < 100 * BLEND


@pytest.mark.parametrize("rows", [torch.tensor([0, 3]), torch.tensor([-1]), torch.tensor([0.0]), torch.tensor(1)])
def test_rows_out_of_range_are_refused(rows):
    for function, argument in ((dgr.blend, (torch.ones(3, 1),)), (dgr.scatter, (torch.ones(rows.numel(), 1), 3))):
        with pytest.raises(ValueError, match=r"row numbers must lie in \[0, 3\)|rows must be int64"):
            function(SMALL, *argument, rows=rows)


def test_rows_out_of_range_show_as_nan_on_a_gpu(cuda):
    module = native.select("cuda", torch.empty(0))
    rows = torch.tensor([0, 3, -1])
    blended = module.blend(SMALL, torch.ones(3, 4), rows)
    assert blended[0].tolist() == [0.75] * 4
    assert bool(blended[1:].isnan().all())
    assert module.scatter(SMALL, torch.ones(3, 4), 3, rows)[:, 0].tolist() == [0.5, 0.25, 0.0]


def test_no_pixels_and_no_gaussians(implementation):
    x = random_inputs(9)
    none = weights_of(x, torch.zeros(0, 2, dtype=torch.int64), implementation=implementation)
    assert none.num_rows == 0
    assert dgr.blend(none, x.features, implementation=implementation).shape == (0, 5)
    empty = weights_of(random_inputs(9, num=0), implementation=implementation)
    assert empty.weights.numel() == 0
    assert dgr.scatter(empty, torch.ones(empty.num_rows, 2), 0, implementation=implementation).shape == (0, 2)


def test_wrong_pixels_and_widths_are_named():
    x = random_inputs(10)
    with pytest.raises(ValueError, match="inside the 37 x 29 image"):
        weights_of(x, torch.tensor([[37, 0]]))
    with pytest.raises(ValueError, match=r"pixels must be int64 \[P, 2\]"):
        weights_of(x, torch.tensor([[1.0, 0]]))
    with pytest.raises(ValueError, match=r"values must have shape \[P, D\]"):
        dgr.scatter(weights_of(x), torch.zeros(3, 4), 300)
    with pytest.raises(ValueError, match="at least one part"):
        dgr.PixelWeights.concatenate([])


def test_fewer_gaussians_than_promised_will_do_if_no_row_mentions_them():
    weights = weights_of(random_inputs(12))
    assert weights.num_gaussians == 300
    most = int(weights.gaussian_ids.max())
    assert dgr.blend(weights, torch.zeros(most + 1, 2)).shape == (weights.num_rows, 2)
    with pytest.raises(ValueError, match=f"mention Gaussian {most}, but there are only {most}"):
        dgr.blend(weights, torch.zeros(most, 2))


def test_a_drawn_sample_has_one_row_of_each_part_and_its_slot(cuda_device):
    weights = weights_of(random_inputs(13, dim=16)).to(cuda_device)
    slot = torch.arange(weights.num_rows, dtype=torch.int32, device=cuda_device) * 3
    sample = dgr.Sample.empty(100, torch.device(cuda_device))
    draws = []
    for stream in (1, 2, 1):
        dgr.draw(weights, slot, sample, stream=stream)
        draws.append(sample.rows.clone())
        assert torch.equal(sample.slot, slot[sample.rows])
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
    edges = torch.arange(101, dtype=torch.float64) * (weights.num_rows / 100)
    rows = draws[0].cpu()
    assert bool((rows >= edges[:-1].floor()).all() and (rows < edges[1:].ceil()).all())


def test_draws_are_spread_evenly_inside_their_parts(cuda_device):
    weights = weights_of(random_inputs(13)).to(cuda_device)
    count = 29 * 37
    sample = dgr.Sample.empty(107, torch.device(cuda_device))  # 10.03 rows a part
    inside = []
    for stream in range(40):
        dgr.draw(weights, torch.zeros(count, dtype=torch.int32, device=cuda_device), sample, stream=stream)
        place = sample.rows.double().cpu() + 0.5 - torch.arange(107) * (count / 107)
        inside.append(place / (count / 107))
    inside = torch.cat(inside)
    assert float(inside.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(inside.var()) == pytest.approx(1 / 12, abs=0.01)


def test_blending_a_sample_is_blending_its_rows(cuda_device):
    x = random_inputs(14, dim=16)
    sample = dgr.Sample.empty(200, torch.device(cuda_device))
    for seed in (0, 1):  # other weights, the same sample: what is in it counts when it is used
        weights = weights_of(random_inputs(14 + seed, dim=16))
        there = weights.to(cuda_device)
        dgr.draw(there, torch.zeros(there.num_rows, dtype=torch.int32, device=cuda_device), sample, stream=seed)
        features = x.features.clone().to(cuda_device).requires_grad_()
        incoming = torch.randn(200, 16, generator=torch.Generator().manual_seed(seed))
        blended = dgr.blend_sample(sample, features)
        blended.backward(incoming.to(cuda_device))
        rows = sample.rows.cpu()
        expected = dgr.blend(weights, x.features, rows=rows, implementation="reference")
        assert float((blended.detach().cpu() - expected).abs().max()) < BLEND
        gradient = dgr.scatter(weights, incoming, 300, rows=rows, implementation="reference")
        assert float(gradient.abs().max()) > 0.5
        assert float((features.grad.cpu() - gradient).abs().max()) < 20 * BLEND


@pytest.mark.parametrize(
    ("slot", "wanted", "match"),
    [
        (torch.zeros(3, dtype=torch.int64), 2, r"slot must be int32 \[3\]"),
        (torch.zeros(2, dtype=torch.int32), 2, r"slot must be int32 \[3\]"),
        (torch.zeros(3, dtype=torch.int32), 4, "cannot draw 4 of 3 rows"),
        (torch.zeros(3, dtype=torch.int32), 0, "cannot draw 0 of 3 rows"),
    ],
)
def test_draws_that_cannot_be_are_refused(slot, wanted, match):
    with pytest.raises(ValueError, match=match):
        dgr.draw(SMALL, slot, dgr.Sample.empty(wanted, torch.device("cpu")), stream=0)
