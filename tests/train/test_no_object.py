"""What no mask claims, masks that tell no object, and a geometry that is lifted once more."""

import dataclasses
import json

import pytest
import torch

from tests.train.test_training import assert_same_state, final_state, saved_features, settings_for
from unified_lift.modelfolder.checkpoint import checkpoint_path
from unified_lift.modelfolder.inference import load_model
from unified_lift.settings.yaml import merged
from unified_lift.train.run import latest_checkpoint, run


def test_a_finished_geometry_is_lifted_again_with_any_settings_of_the_lift(tmp_path, scene):
    changes = {"feature_lr": 0.02, "lift_pixels": 100, "sharpen_steps": 3}
    run(settings_for(tmp_path / "direct", **changes), scene)
    run(settings_for(tmp_path / "again"), scene)
    settings = merged(settings_for(tmp_path / "again"), changes, origin="test")
    start = latest_checkpoint(settings)
    assert start == checkpoint_path(tmp_path / "again", 24)
    run(settings, scene, resume_from=start)
    assert_same_state(final_state(tmp_path / "direct", 44), final_state(tmp_path / "again", 44))
    assert torch.equal(saved_features(tmp_path / "direct"), saved_features(tmp_path / "again"))


def test_masks_without_a_consistent_segment_leave_a_model_of_colours_and_a_sentence(tmp_path, scene, capsys):
    state = run(settings_for(tmp_path, codebook_min_consistency=1.1), scene)
    assert "the model has colours only: no segment is consistent enough" in "".join(capsys.readouterr())
    assert state.manifest["num_codes"] == 0
    assert load_model(tmp_path).labels is None


def test_what_no_mask_claims_is_no_object_and_comes_last(tmp_path, scene, capsys):
    def only_one(view):
        return dataclasses.replace(view, segments=(view.segments == view.segments.max()).int())

    one = dataclasses.replace(scene, train=tuple(map(only_one, scene.train)), zero_id="ignore")
    longer = {"geometry": {"iterations": 150}, "lift": {"lift_iterations": 150}}
    state = run(settings_for(tmp_path, density={"opacity_reset_interval": 0}, **longer), one)
    assert "of the pixels are in no mask: they are learnt as `no object`" in "".join(capsys.readouterr())
    model, last = load_model(tmp_path), state.manifest["num_codes"] - 1
    assert model.names == {last: "no object"}
    listed = json.loads(next(tmp_path.rglob("objects.json")).read_text())  # objects, which it is not
    assert set(listed) == {str(i) for i in range(last)}
    counts = torch.bincount(model.labels.object_ids)
    assert counts[last] > 0.7 * counts.sum()  # the ball has 4 % to 9 % of the pixels


@pytest.mark.parametrize(
    ("asked", "learnt", "said"),
    [
        ("auto", True, "learnt as `no object`"),  # as other pixels in no mask, where there are many
        ("segment", False, ""),
        ("ignore", False, "--void_id 0,-1 leaves out those of id 0 too"),
    ],
)
def test_void_pixels_are_never_a_segment_where_zero_id_is_asked_for(tmp_path, scene, capsys, asked, learnt, said):
    void = dataclasses.replace(scene, zero_id="ignore", void_ids=(-1,))
    state = run(settings_for(tmp_path, zero_id=asked), void)
    assert (not state.method.ignore_zero, state.learns_unclaimed) == (learnt, learnt)
    told = "".join(capsys.readouterr())
    assert said in told if said else "void" not in told
