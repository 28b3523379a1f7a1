"""A model trained with the low-pass compensated is drawn, labelled, edited and exported as such everywhere."""

from pathlib import Path

import pytest
import torch

from tests.saved_model import save_model
from tests.train.test_training import StopAt, assert_same_state, final_state, settings_for
from unified_lift.cli.main import main
from unified_lift.cli.model_flags import opened
from unified_lift.model.files import read_splat
from unified_lift.model.render import blending_weights, render
from unified_lift.modelfolder.inference import load_model, render_view, views_of
from unified_lift.modelfolder.outputs import read_run_settings
from unified_lift.train.hooks import Interrupted
from unified_lift.train.run import latest_checkpoint, run


@pytest.fixture
def model(tmp_path):
    """Return the folder of a model whose settings say that it was trained so."""
    folder = save_model(tmp_path)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("antialiased: false", "antialiased: true"))
    return folder


def is_antialiased(scene):
    """Return whether scene and settings say so, and whether its picture and blending weights are."""
    camera, gaussians = views_of(load_model(Path(scene.path))).test[0].camera, scene.gaussians
    weights = blending_weights(gaussians, camera)
    own = render(gaussians, camera, with_features=False).alpha
    sums = torch.zeros(weights.num_rows).index_add(0, weights.row_ids(), weights.weights)
    gaussians.antialiased = not gaussians.antialiased
    other = render(gaussians, camera, with_features=False).alpha
    gaussians.antialiased = not gaussians.antialiased
    assert torch.allclose(sums, own.flatten(), atol=1e-5)
    assert float((own - other).abs().max()) > 0.01
    assert scene.gaussians.antialiased == scene.settings.geometry.antialiased
    return bool(own.mean() < other.mean())


def test_every_way_from_a_model_keeps_how_it_is_drawn(model, tmp_path, capsys):
    scene = load_model(model)
    assert is_antialiased(scene)
    assert not is_antialiased(load_model(save_model(tmp_path / "plain")))
    edited, back = tmp_path / "edited", tmp_path / "back"
    script = tmp_path / "edits.yaml"
    script.write_text(
        "- duplicate: {objects: [1], translate: [0, 0, 1]}\n- recolour: {objects: [1], color: '#ff0000'}\n"
    )
    assert main(["edit", "-m", str(model), "--script", str(script), "--out", str(edited)]) == 0
    assert is_antialiased(load_model(edited))
    capsys.readouterr()
    assert main(["export", "-m", str(edited), "--format", "ply,spz,html", "--out", str(tmp_path / "out")]) == 0
    assert "turn anti-aliasing on" in capsys.readouterr().out
    assert read_splat(tmp_path / "out/scene.spz")[0].antialiased
    assert '"antialiased": true' in (tmp_path / "out/scene.html").read_text()
    splat = str(tmp_path / "out/scene.ply")  # which cannot say it
    assert main(["import-edit", "-m", str(edited), "--ply", splat, "--out", str(back)]) == 0
    assert is_antialiased(load_model(back))
    assert render_view(load_model(back), views_of(scene).test[0].camera).object_ids is not None
    # a splat of another program, and the folder that its edit becomes
    spz = opened(tmp_path / "out/scene.spz")
    assert spz.gaussians.antialiased
    assert spz.settings.geometry.antialiased
    script.write_text("- recolour: {objects: scene, color: '#00ff00'}\n")
    words = ["-m", str(tmp_path / "out/scene.spz"), "--script", str(script), "--out", str(tmp_path / "green")]
    assert main(["edit", *words]) == 0
    assert load_model(tmp_path / "green").gaussians.antialiased


def test_training_resumes_bit_for_bit_and_goes_on_from_a_file_that_says_so(tmp_path, scene, capsys):
    options = {"lift_iterations": 0, "antialiased": True}
    whole, halves = (settings_for(tmp_path / name, **options) for name in ("whole", "halves"))
    run(whole, scene)
    with pytest.raises(Interrupted):
        run(halves, scene, hooks=[StopAt(11)])
    run(halves, scene, resume_from=latest_checkpoint(halves))
    run(settings_for(tmp_path / "plain", lift_iterations=0), scene)
    ours, resumed, plain = (final_state(tmp_path / name, 24) for name in ("whole", "halves", "plain"))
    assert_same_state(ours, resumed)
    assert not torch.equal(ours["gaussians"]["sh0"][:20], plain["gaussians"]["sh0"][:20])
    assert load_model(tmp_path / "whole").gaussians.antialiased
    assert main(["export", "-m", str(tmp_path / "whole"), "--format", "spz", "--out", str(tmp_path)]) == 0
    again = settings_for(tmp_path / "again", lift_iterations=0, init_ply=str(tmp_path / "scene.spz"), iterations=3)
    state = run(again, scene)
    assert "--antialiased is turned on" in capsys.readouterr().out
    assert state.gaussians.antialiased
    assert read_run_settings(tmp_path / "again").geometry.antialiased
