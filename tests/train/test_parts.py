import copy
import json

import pytest
import torch

from unified_lift import device as device_module
from unified_lift.device import chosen_device
from unified_lift.errors import UserError
from unified_lift.train.geometry import log_linear
from unified_lift.train.hooks import Finite
from unified_lift.train.logs import RunLog, read_log
from unified_lift.train.optim import NamedAdam, RowAdam
from unified_lift.train.stage import weighted_sum


def test_total_is_the_weighted_sum_of_the_terms():
    # Eq. 8 with the paper's weights: 0.5 + 1 * 2 + 1e-3 * 3 + 1e-1 * 4 = 2.903
    terms = {"photometric": 0.5, "contrastive": 2.0, "class": 3.0, "concentration": 4.0}
    weights = {"contrastive": 1.0, "class": 1e-3, "concentration": 1e-1}
    total = weighted_sum({name: torch.tensor(value) for name, value in terms.items()}, weights)
    assert float(total) == pytest.approx(2.903)


def add(record, step, **values):
    terms = {name: torch.tensor(value) for name, value in values.items()}
    record.after_step(None, step, terms)
    return terms


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_step_that_is_not_finite_is_named_although_it_is_found_later(bad):
    record = Finite()
    add(record, 6, photometric=0.25)
    add(record, 7, photometric=0.5, contrastive=bad)
    add(record, 8, photometric=bad, contrastive=0.5)
    add(record, 9, photometric=0.5)
    with pytest.raises(FloatingPointError, match=f"step 7: photometric = 0.5, contrastive = {bad:g}$"):
        record.last_terms()


def test_record_returns_the_terms_of_the_last_step_and_forgets_what_was_checked():
    record = Finite()
    assert record.last_terms() == {}
    add(record, 0, a=1.0, b=2.0)
    add(record, 1, a=3.0)
    assert record.last_terms() == {"a": 3.0}
    assert record.last_terms() == {"a": 3.0}
    add(record, 2, b=4.0, a=5.0)
    assert record.last_terms() == {"b": 4.0, "a": 5.0}


def test_record_keeps_values_that_are_overwritten_afterwards():
    record = Finite()
    terms = add(record, 3, a=float("nan"))
    terms["a"].fill_(1.0)
    with pytest.raises(FloatingPointError, match="step 3: a = nan"):
        record.last_terms()


def test_a_record_that_nobody_asks_checks_itself_after_a_thousand_steps():
    record = Finite()
    add(record, 0, a=float("nan"))
    for step in range(1, 999):
        add(record, step, a=0.0)
    with pytest.raises(FloatingPointError, match="step 0"):
        add(record, 999, a=0.0)


def test_position_rate_falls_on_a_log_scale_and_then_stays():
    assert log_linear(1.6e-4, 1.6e-6, 0.0) == pytest.approx(1.6e-4)
    assert log_linear(1.6e-4, 1.6e-6, 0.5) == pytest.approx(1.6e-5)
    assert log_linear(1.6e-4, 1.6e-6, 1.0) == log_linear(1.6e-4, 1.6e-6, 2.0) == pytest.approx(1.6e-6)


def test_log_survives_a_cut_last_line(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    log.scalars("lift", 3, 10, {"contrastive": 0.5})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "li')
    assert read_log(tmp_path) == [{"stage": "lift", "step": 3, "contrastive": 0.5}]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["step"] == 3


def test_tensorboard_gets_the_names_dashboards_expect(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, tensorboard=True)
    log.scalars("geometry", 5, 5, {"total": 0.25, "num_gaussians": 7, "contrastive": 1.5})
    log.image("test/view", 5, torch.rand(4, 6, 3))
    log.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train_loss_patches/total_loss", "total_points", "train/contrastive"}
    assert events.Tags()["images"] == ["test/view"]
    assert events.Scalars("train_loss_patches/total_loss")[0].value == 0.25


def test_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device("auto").type == "cpu"
    with pytest.raises(UserError, match="sees no CUDA device"):
        chosen_device("cuda")


def test_gsplat_that_cannot_render_is_refused_with_the_cure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device_module, "backend_info", lambda: {"gsplat": "the package gsplat is missing: pip install"})
    with pytest.raises(UserError, match="--rasterizer gsplat: the package gsplat is missing: pip install"):
        chosen_device("cuda", rasterizer="gsplat")
    monkeypatch.setattr(device_module, "backend_info", lambda: {"gsplat": "gsplat"})
    assert chosen_device("cuda", rasterizer="gsplat").type == "cuda"
    with pytest.raises(UserError, match="renders on a GPU, and this run is on cpu; use --device cuda"):
        chosen_device("cpu", rasterizer="gsplat")


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


@pytest.mark.parametrize("again", [False, True])  # another object goes on from a state
def test_rows_that_are_seldom_touched_follow_adam_of_all(again):
    generator = torch.Generator().manual_seed(0)
    start, num_steps = torch.randn(9, 3, generator=generator), 700
    whole, part = start.clone().requires_grad_(True), start.clone()
    dense, sparse = NamedAdam(eps=1e-15), NamedAdam(eps=1e-15)
    rows_of = RowAdam(sparse, "x", part, num_steps)
    for step in range(num_steps):
        # row 0 always, the others seldom, the last two once or never
        rows = (torch.rand(9, generator=generator) < torch.tensor([1.0, *[0.03] * 6, 0, 0])).nonzero()[:, 0]
        rows = torch.cat([rows, torch.tensor([7])]) if step == 5 else rows
        gradient = torch.randn(len(rows), 3, generator=generator)
        rate = 0.01 * 0.1 ** (step / num_steps)
        whole.grad = torch.zeros(9, 3).index_copy_(0, rows, gradient)
        dense.step({"x": whole}, {"x": rate})
        leaf = rows_of.rows(rows)
        leaf.grad = gradient
        rows_of.step(rate)
        if again and step == 300:
            state, adam = rows_of.state_dict(), sparse.state_dict()
            sparse = NamedAdam(eps=1e-15)
            sparse.load_state_dict(adam)
            rows_of = RowAdam(sparse, "x", part, num_steps)
            rows_of.load_state_dict(copy.deepcopy(state))
    assert not torch.allclose(part, whole.detach(), atol=1e-5)
    rows_of.settle()
    torch.testing.assert_close(part, whole.detach(), atol=2e-6, rtol=1e-5)
    assert torch.equal(part[8], start[8])
    for mine, theirs in zip(sparse.moments["x"], dense.moments["x"], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-4)
    settled = part.clone()
    rows_of.settle()
    assert torch.equal(part, settled)


def test_only_parameters_with_a_gradient_move():
    table = {"a": torch.zeros(2, requires_grad=True), "b": torch.zeros(2, requires_grad=True)}
    table["a"].grad = torch.ones(2)
    adam = NamedAdam(eps=1e-8)
    adam.step(table, {"a": 0.1, "b": 0.1})
    torch.testing.assert_close(table["a"].detach(), torch.full((2,), -0.1))
    assert table["b"].tolist() == [0.0, 0.0]
    assert set(adam.moments) == {"a"}
