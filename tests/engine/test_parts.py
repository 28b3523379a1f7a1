import json

import pytest
import torch

from unified_lift.engine import device as device_module
from unified_lift.engine.device import chosen_device, on_device, require_rasterizer
from unified_lift.engine.geometry import log_linear
from unified_lift.engine.logs import RunLog, read_log
from unified_lift.engine.terms import require_finite, weighted_sum
from unified_lift.engine.views import ViewOrder
from unified_lift.types import UserError


def test_total_is_the_weighted_sum_of_the_terms():
    # Eq. 8 with the paper's weights: 0.5 + 1 * 2 + 1e-3 * 3 + 1e-1 * 4 = 2.903
    terms = {"photometric": 0.5, "contrastive": 2.0, "class": 3.0, "concentration": 4.0}
    weights = {"contrastive": 1.0, "class": 1e-3, "concentration": 1e-1}
    total = weighted_sum({name: torch.tensor(value) for name, value in terms.items()}, weights)
    assert float(total) == pytest.approx(2.903)


def test_nan_stops_the_run_and_names_the_terms():
    terms = {"photometric": torch.tensor(0.5), "contrastive": torch.tensor(float("nan"))}
    with pytest.raises(FloatingPointError, match="step 7: photometric = 0.5, contrastive = nan"):
        require_finite(weighted_sum(terms, {}), terms, 7)


def test_every_view_comes_once_before_any_comes_again():
    order = ViewOrder(5, seed=0)
    rounds = [[order.next_index() for _ in range(5)] for _ in range(3)]
    assert all(sorted(indices) == [0, 1, 2, 3, 4] for indices in rounds)
    assert rounds[0] != rounds[1] or rounds[1] != rounds[2]


def test_view_order_goes_on_where_it_was():
    order, copy = ViewOrder(5, seed=0), ViewOrder(5, seed=9)
    for _ in range(7):
        order.next_index()
    copy.load_state_dict(order.state_dict())
    assert [order.next_index() for _ in range(9)] == [copy.next_index() for _ in range(9)]


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


def test_device_that_is_not_there_is_refused(monkeypatch, scene):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device("auto").type == "cpu"
    assert on_device(scene, chosen_device("cpu")) is scene
    with pytest.raises(UserError, match="sees no CUDA device"):
        chosen_device("cuda")


def test_gsplat_that_cannot_render_is_refused_with_the_cure(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    require_rasterizer("ours", cpu)
    monkeypatch.setattr(device_module, "backend_info", lambda: {"gsplat": "the package gsplat is missing: pip install"})
    with pytest.raises(UserError, match="--rasterizer gsplat: the package gsplat is missing: pip install"):
        require_rasterizer("gsplat", gpu)
    monkeypatch.setattr(device_module, "backend_info", lambda: {"gsplat": "gsplat"})
    require_rasterizer("gsplat", gpu)
    with pytest.raises(UserError, match="renders on a GPU, and this run is on cpu; use --device cuda"):
        require_rasterizer("gsplat", cpu)
