"""A colour behind everything in each step: photos that are transparent lie over it too, and nothing is made of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.fixtures import write_dataset
from tests.train.test_training import DEFAULT, StopAt, final_state, settings_for
from unified_lift.data import load_scene
from unified_lift.data.images import write_image
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.modelfolder.settings import GeometrySettings
from unified_lift.train.geometry import GeometryStage, over
from unified_lift.train.hooks import Interrupted
from unified_lift.train.run import latest_checkpoint, run


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("resolution", [1, 2])
def test_a_transparent_photo_lies_over_any_background(tmp_path, white, resolution):
    root = write_dataset("transforms", tmp_path)
    alpha = np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8)
    path = root / "images/0002.png"
    colours = np.array(Image.open(path).convert("RGB"))
    write_image(path, np.dstack([colours, alpha]))
    settings = DataSettings(source_path=root, resolution=resolution)
    views = {view.name: view for view in load_scene(settings, white=white, keep_alpha=True).train}
    background, base = torch.tensor([0.2, 0.9, 0.4]), torch.ones(3) if white else None
    share = alpha[..., None] / 255
    exact = colours / 255 * share + (1 - share) * background.numpy()
    exact = exact.reshape(24 // resolution, resolution, 32 // resolution, resolution, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(over(background, views["0002"], base).numpy(), exact, atol=2.1 / 255)
    assert over(background, views["0003"], base) is views["0003"].image  # opaque
    assert views["0003"].alpha is None
    assert all(view.alpha is None for view in load_scene(settings, white=white).train)
    scored = {view.name: view.image for view in load_scene(settings, white=white).train}
    assert torch.equal(scored["0002"], views["0002"].image)  # what trains and scores without is as before


def cut_out(scene):
    """The balls without what is around them: transparent, and black as it is loaded."""
    views = []
    for view in scene.train:
        ball = view.image.amax(dim=2) > 25
        views.append(replace(view, image=view.image * ball[..., None], alpha=255 * ball.byte()))
    return replace(scene, train=tuple(views))


def stage_of(scene, **settings):
    gaussians = gaussians_from_points(scene.points, sh_degree=0)
    return GeometryStage(scene, gaussians, GeometrySettings(iterations=60, **settings), DEFAULT, seed=1)


def test_the_colour_follows_from_seed_and_step_and_opaque_photos_stay(scene):
    stage = stage_of(scene, random_background=True)
    first = [stage.background_at(step) for step in (0, 1, 0)]
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    assert stage_of(scene).background_at(0) is None
    assert stage.choices == ["random background: 0 of 6 photos are transparent"]
    assert stage_of(cut_out(scene), random_background=True).choices[0].startswith("random background: 6 of 6")


def test_nothing_is_made_of_the_colour_of_the_background(scene):
    """Black clutter where photos are transparent: over black it costs nothing, over another colour it does."""
    clutter = replace(
        scene.points,
        positions=np.random.default_rng(0).uniform(-1, 1, (400, 3)).astype(np.float32),
        colors=np.zeros((400, 3), np.uint8),
    )
    left = []
    for random in (False, True):
        stage = stage_of(replace(cut_out(scene), points=clutter), random_background=random, opacity_lr=0.2)
        for step in range(60):
            stage.step(step)
        black = stage.gaussians.sh0[:, 0].amax(dim=1) < -1
        left.append((stage.gaussians.opacities * black).sum().item())
    assert left[1] < 0.7 * left[0]


@pytest.mark.parametrize("exposure", ["none", "affine"])
def test_a_run_resumes_bit_for_bit(tmp_path, scene, exposure):
    scene, options = cut_out(scene), {"lift_iterations": 0, "random_background": True, "exposure": exposure}
    whole, halves = (settings_for(tmp_path / part, **options) for part in ("whole", "halves"))
    run(whole, scene)
    with pytest.raises(Interrupted):
        run(halves, scene, hooks=[StopAt(13)])
    run(halves, scene, resume_from=latest_checkpoint(halves))
    means = [final_state(settings.model_path, 24)["gaussians"]["means"] for settings in (whole, halves)]
    assert torch.equal(*means)
    other = settings_for(halves.model_path, **options | {"random_background": False})
    with pytest.raises(UserError, match="was trained with geometry.random_background = True, now False"):
        run(other, scene, resume_from=latest_checkpoint(halves))


def test_an_exposure_leaves_the_background_behind_a_transparent_photo(scene):
    stage = stage_of(cut_out(scene), exposure="affine", random_background=True)
    with torch.no_grad():
        stage.exposures.tables[0].mul_(0.5)
    image, alpha = torch.full((1, 2, 3), 0.8), torch.tensor([[255, 0]], dtype=torch.uint8)
    changed = stage.exposures.apply(0, image, alpha).detach()
    torch.testing.assert_close(changed[0, :, 0], torch.tensor([0.4, 0.8]))
