"""Colours of each photo: what the kinds do, that they are learnt, saved, resumed, and never touch another view."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.train.test_training import StopAt, final_state, settings_for
from unified_lift.errors import UserError
from unified_lift.modelfolder.settings import GeometrySettings
from unified_lift.train.exposure import EXPOSURES, Exposures, affine, bilateral
from unified_lift.train.hooks import Interrupted
from unified_lift.train.logs import read_log
from unified_lift.train.run import latest_checkpoint, run

KINDS = sorted(EXPOSURES)


def random_image(height=6, width=7, seed=0):
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", KINDS)
def test_the_identity_changes_no_colour_and_has_no_penalty(name):
    kind, image = EXPOSURES[name], random_image() * 3 - 1
    start = kind.identity(GeometrySettings(), 400, 100)
    torch.testing.assert_close(kind.apply(start, image), image)
    assert torch.equal(kind.matrix(start), torch.eye(3, 4))
    assert name != "bilateral" or start.shape == (12, 8, 3, 12)  # no cell below 32 pixels, and 16 at most
    assert kind.penalty is None or kind.penalty(start) == 0


def test_affine_by_hand():
    matrix = torch.tensor([[2.0, 0, 0, 0.1], [0, 1, 0, 0], [1, 0, 0.5, -0.2]])
    image = torch.tensor([[[0.1, 0.2, 0.4]]])
    torch.testing.assert_close(affine.apply(matrix, image), torch.tensor([[[0.3, 0.2, 0.1]]]))


def sliced_slowly(grid, image):
    """The weight of every cell is a product of three tents."""
    (depth, rows, columns), (height, width) = grid.shape[1:], image.shape[:2]
    result = torch.empty_like(image)
    for y in range(height):
        for x in range(width):
            colour, matrix = image[y, x], torch.zeros(12)
            luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
            places = ((x + 0.5) / width, columns), ((y + 0.5) / height, rows), (float(luma.clamp(0, 1)), depth)
            tents = [np.maximum(1 - abs(at * (size - 1) - np.arange(size)), 0) for at, size in places]
            for i, j, k in np.ndindex(columns, rows, depth):
                matrix += float(tents[0][i] * tents[1][j] * tents[2][k]) * grid[:, k, j, i]
            result[y, x] = matrix.view(3, 4)[:, :3] @ colour + matrix.view(3, 4)[:, 3]
    return result


def test_a_bilateral_grid_is_sliced_at_place_and_brightness():
    grid = torch.rand(12, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    image = 1.4 * random_image() - 0.2  # some darker than 0 or brighter than 1
    torch.testing.assert_close(bilateral.apply(grid, image), sliced_slowly(grid, image), rtol=1e-4, atol=1e-5)


def test_the_total_variation_by_hand():
    grid = torch.zeros(12, 1, 2, 3)
    grid[0, 0, 1, 2] = 2.0  # two neighbours, along y one of 12 x 3 differences, along x one of 12 x 4
    assert float(bilateral.total_variation(grid)) == pytest.approx(4 / 36 + 4 / 48)
    assert float(bilateral.total_variation(torch.rand(12, 1, 1, 1))) == 0


@pytest.mark.parametrize("name", KINDS)
def test_a_photo_moves_by_the_rate_and_all_so_that_their_mean_changes_no_colour(scene, name):
    settings, kind = GeometrySettings(exposure_lr=0.5, exposure_grid=(1, 1, 1)), EXPOSURES[name]
    exposures = Exposures(kind, scene.train, settings, torch.device("cpu"))
    for progress, rate in ((0.1, 0.5 * kind.last_share**0.1), (1.0, 0.5 * kind.last_share)):
        before = exposures.tables.clone()
        exposures.apply(1, torch.ones(2, 2, 3)).sum().backward()
        exposures.step(1, progress)
        moved = (exposures.tables - before).flatten(1)
        torch.testing.assert_close(moved[1], torch.full((12,), -rate * 5 / 6))  # of six photos
        torch.testing.assert_close(moved[[0, 2, 3, 4, 5]], torch.full((5, 12), rate / 6))
    mean = torch.tensor(list(exposures.matrices().values())).mean(dim=0)
    torch.testing.assert_close(mean, torch.eye(3, 4))


def dimmed(scene):
    """Every second photo half as bright, as its exposure would have it."""
    views = [
        dataclasses.replace(view, image=(view.image // 2 if index % 2 else view.image))
        for index, view in enumerate(scene.train)
    ]
    return dataclasses.replace(scene, train=tuple(views))


@pytest.mark.parametrize("name", KINDS)
def test_exposures_of_photos_are_learnt_told_and_logged(tmp_path, scene, name, capsys):
    rates = {"exposure": name, "exposure_lr": 0.05, "weight_exposure": 0.1, "exposure_grid": [2, 2, 2]}
    settings = settings_for(tmp_path, iterations=120, lift_iterations=0, quiet=False, **rates)
    run(settings, dimmed(scene))
    size = {"affine": "3x4", "bilateral": "12x2x1x1"}[name]
    assert f"exposure: {name}, {EXPOSURES[name].what} ({size}) for each of 6 training photos" in capsys.readouterr().out
    matrices = {key: np.array(value) for key, value in json.loads((tmp_path / "exposure.json").read_text()).items()}
    bright = [matrices[view.name] @ [0.5, 0.5, 0.5, 1] for view in scene.train]
    assert np.mean(bright[1::2]) < 0.8 * np.mean(bright[::2])
    (last,) = [line for line in read_log(tmp_path) if line["stage"] == "geometry" and line["step"] == 120]
    penalty = 0.1 * last["exposure"] if EXPOSURES[name].penalty else 0.0
    assert last["total"] == pytest.approx(last["photometric"] + penalty)


@pytest.mark.parametrize("name", KINDS)
def test_a_run_with_exposures_resumes_bit_for_bit(tmp_path, scene, name):
    whole, halves = (settings_for(tmp_path / part, lift_iterations=0, exposure=name) for part in ("whole", "halves"))
    run(whole, scene)
    with pytest.raises(Interrupted):
        run(halves, scene, hooks=[StopAt(13)])
    run(halves, scene, resume_from=latest_checkpoint(halves))
    for file in ("exposure.json", "point_cloud/iteration_24/point_cloud.ply"):
        assert (whole.model_path / file).read_bytes() == (halves.model_path / file).read_bytes(), file
    states = [final_state(settings.model_path, 24)["stage_state"]["exposures"] for settings in (whole, halves)]
    assert torch.equal(states[0]["tables"], states[1]["tables"])


def test_an_unknown_kind_is_refused_before_anything_is_written(tmp_path, scene):
    with pytest.raises(UserError, match="--exposure gamma: no such kind; there are none, affine, bilateral"):
        run(settings_for(tmp_path / "model", exposure="gamma"), scene)
    assert not (tmp_path / "model").exists()
    with pytest.raises(UserError, match="exposure_grid must be a list of 3 values"):
        settings_for(tmp_path, exposure_grid=[4, 4])
