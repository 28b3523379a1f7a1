"""Scenes of many Gaussians and objects: few stand for all while the camera moves, and lists stay short."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.saved_model import camera_above, floor_scene, save_model, window_of
from unified_lift.cli import view
from unified_lift.cli.main import main
from unified_lift.model.gaussians import Gaussians
from unified_lift.modelfolder.labels import GaussianLabels
from unified_lift.viewer import renderer as drawing
from unified_lift.viewer import session as sessions
from unified_lift.viewer.session import Session
from unified_lift.viewer.thinning import ALL, most_in_time, thinned


def of_weights(weights, *, opacity=0.5):
    """Return Gaussians whose opacity times diameter is each of these."""
    count, diameters = len(weights), torch.tensor(weights) / opacity
    thin = diameters * 1e-3  # the third axis counts for nothing
    table = {
        "means": torch.zeros(count, 3),
        "quats": torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        "log_scales": torch.stack([diameters, thin, diameters], dim=1).log(),
        "logit_opacities": torch.full((count,), opacity).logit(),
        "sh0": torch.zeros(count, 1, 3),
        "shN": torch.zeros(count, 0, 3),
        "features": torch.zeros(count, 0),
    }
    return Gaussians(table)


def test_few_stand_for_all_by_hand():
    """Of 12 in all three may stay: one is larger than a third, the others share the two left, 2 for each."""
    rows, growth = thinned(of_weights([1.0, 1.0, 8.0, 1.0, 1.0]), 3)
    assert rows.tolist() == [1, 2, 4]  # sums of probabilities: 0.5, 1, 2, 2.5, 3
    torch.testing.assert_close(growth, torch.tensor([2**0.4, 1.0, 2**0.4]))


@pytest.mark.parametrize("most", [1, 2, 37, 499, 500, 501])
def test_never_more_are_drawn_and_those_stand_for_the_whole(most):
    weights = torch.exp(2 * torch.randn(500, generator=torch.Generator().manual_seed(most)))
    rows, growth = thinned(of_weights(weights.tolist()), most)
    assert min(most, 500) - 1 <= len(rows) <= most
    assert (rows.diff() > 0).all()
    assert (growth >= 1).all()
    stands_for = (weights[rows] * growth**2.5).sum()  # each over its probability
    assert float(stands_for / weights.sum()) == pytest.approx(1.0, abs=2 / most if most > 1 else 1.0)


def test_discs_holes_and_broken_numbers_do_no_harm():
    odd = of_weights([0.5, 0.5, 0.5, 0.5, 0.5])
    scales = odd.log_scales.detach().clone()
    scales[0, 1], scales[1], scales[2, 0] = -math.inf, math.nan, math.inf
    odd.set("log_scales", scales)
    rows, growth = thinned(odd, 2)
    assert set(rows.tolist()) <= {0, 3, 4}
    assert growth.isfinite().all()
    nothing = of_weights([0.5] * 5)
    nothing.set("logit_opacities", torch.full((5,), -math.inf))
    assert len(thinned(nothing, 2)[0]) <= 2


@pytest.mark.parametrize(
    ("seconds", "count", "expected"),
    [
        (1e-6, ALL, 0),  # so few are never asked about
        (1e-6, 200_000, 70_000),  # 0.066 s for the first 65,536
        (1e-5, 2_000_000, 65_536),  # slower than that: still so many
        (1e-7, 20_000_000, 700_000),  # the first two are drawn too fast to tell
        (1e-9, 20_000_000, 0),  # all in time
    ],
)
def test_as_many_are_drawn_as_the_machine_draws_in_time(seconds, count, expected):
    now, drawn = [0.0], []

    def draw(most):
        drawn.append(most)
        now[0] += seconds * min(most, count)

    assert most_in_time(draw, count, clock=lambda: now[0]) == pytest.approx(expected, rel=1e-3)
    assert bool(drawn) == (count > ALL)


@pytest.fixture
def counted(monkeypatch):
    """How many Gaussians each frame drew."""
    numbers, render = [], drawing.render

    def counting(gaussians, *given, **named):
        numbers.append(len(gaussians))
        return render(gaussians, *given, **named)

    monkeypatch.setattr(drawing, "render", counting)
    return numbers


def test_a_moving_frame_draws_the_budget_and_one_at_rest_and_a_click_look_at_all(tmp_path, open_viewer, counted):
    viewer = open_viewer(save_model(tmp_path), moving_gaussians=700)
    camera, whole = viewer.thumbnails._cameras[0], len(viewer.session.scene)
    counted.clear()
    for moving in (True, False, True):
        viewer._draw(camera, moving)
    assert [number <= 700 for number in counted] == [True, False, True]
    assert counted[1] == whole
    looking_down = window_of((0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 2.0), 0.8, 64, 48)
    client = SimpleNamespace(client_id=0, camera=looking_down.camera)
    viewer._clicked(SimpleNamespace(client=client, screen_pos=(0.5, 0.5), modifier=None))
    middle = viewer.session.scene.gaussians.means.detach().norm(dim=1).argmin()
    assert viewer.session.selected == int(viewer.session.scene.object_ids[middle])


@pytest.mark.parametrize("mode", ["RGB", "Object ids"])
def test_a_moving_picture_looks_like_the_whole(mode):
    """And nearer to it than if those that are drawn had not grown."""
    session, camera = Session(floor_scene()), camera_above((0, 0, 0))
    rows, _ = thinned(session.scene.gaussians, 1_000)
    scenes = (session.shown, session.shown_by(1_000), session.scene.subset(rows))
    renderer = drawing.Renderer(session.original)
    whole, moving, bare = (renderer.frame(scene, camera, mode=mode).astype(float) for scene in scenes)
    assert np.abs(moving - whole).mean() < 0.7 * np.abs(bare - whole).mean()


def test_few_follow_edits_that_are_tried_or_done_and_leave_out_what_is_hidden(monkeypatch):
    made, session = [], Session(floor_scene())
    monkeypatch.setattr(sessions, "thinned", lambda *given: made.append(len(given[0])) or thinned(*given))
    few, whole = session.shown_by(500), len(session.scene)
    assert session.shown_by(500) is few
    move = session.move(1, wxyz=(1, 0, 0, 0), translation=(0, 0, 3))
    for change in (session.preview, session.apply):  # by the same ones
        change(move)
        moved = session.shown_by(500)
        shift = (moved.gaussians.means - few.gaussians.means).detach()
        torch.testing.assert_close(shift, few.mask([1])[:, None] * torch.tensor([0.0, 0.0, 3.0]))
        assert made == [whole]
    session.hide(2)
    assert 2 not in session.shown_by(500).objects
    assert made == [whole, len(session.shown)]
    session.hide(0)
    for most in (0, 500, whole):  # all that is left
        assert session.shown_by(most) is session.shown


def test_the_budget_is_told_and_wrong_ones_are_refused(tmp_path, monkeypatch, capsys):
    model = save_model(tmp_path)
    monkeypatch.setattr(view.Viewer, "wait", lambda _: None)
    for most, told in (("800", "while the camera moves 800 of 3,364 Gaussians are drawn"), ("-1", ""), ("0", "")):
        assert main(["view", "-m", str(model), "--device", "cpu", "--moving_gaussians", most]) == 0
        out = capsys.readouterr().out
        assert (told in out) if told else ("while the camera moves" not in out)
    assert main(["view", "-m", str(model), "--moving_gaussians", "-2"]) == 2
    assert "--moving_gaussians" in capsys.readouterr().err


# ---- many objects ----


def test_lists_of_many_objects_stay_short_and_show_what_is_selected_searched_or_in_view(tmp_path, open_viewer):
    viewer = open_viewer(save_model(tmp_path))
    scene, panels = viewer.session.scene, viewer.panels
    ids = torch.arange(len(scene)) // 8  # 421
    viewer.session.scene = replace(scene, labels=GaussianLabels(ids, torch.ones(len(ids))))
    panels.refresh()
    assert len(panels._object_box.options) == 301
    assert panels._list.content.count("<button") == 48
    assert "and 373 more" in panels._list.content
    viewer.session.select(420)
    panels.refresh()
    assert panels._object_box.value == "object 420"
    panels.search.value = "object 41"
    panels._list_again(None)
    searched = {n for n in range(421) if "41" in str(n)}
    assert set(panels._object_box.options[1:]) == {f"object {n}" for n in searched | {420}}
    panels.list_seen(camera_above((0, 0, 0), height=0.3))
    panels.refresh()
    assert panels.search.value == ""
    near = set(ids[scene.gaussians.means.detach().norm(dim=1) < 0.05].tolist())
    listed = {int(name.split()[1]) for name in panels._object_box.options[1:]}
    assert near <= listed
    assert len(listed) < 40


def test_what_is_in_view_comes_by_falling_area_without_what_is_hidden():
    session = Session(floor_scene())
    middle = session.scene.gaussians.means[session.scene.mask([1])].mean(dim=0)
    close, far = camera_above(middle, height=0.5), camera_above((0, 0, 0), height=4.0)
    assert session.in_view(close)[0] == 1
    assert session.in_view(far)[0] == 0  # the floor
    assert set(session.in_view(far)) == {0, 1, 2, 3}
    session.hide(0)
    assert set(session.in_view(far)) == {1, 2, 3}
