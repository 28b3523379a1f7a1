import dataclasses
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from tests.methods.calls import losses
from tests.scenes import exact_ids, tiny_scene
from unified_lift.data.cache import DataCache
from unified_lift.errors import UserError
from unified_lift.kernels.assignment import hungarian
from unified_lift.methods.base import LabelledView, LiftData
from unified_lift.methods.classifier import KnownClasses, KnownClassesSettings
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.modelfolder.inference import load_model, render_view
from unified_lift.modelfolder.settings import LiftSettings, TrainSettings, changed
from unified_lift.ops.segments import dense_slots
from unified_lift.settings.yaml import merged
from unified_lift.train.lift import LiftStage
from unified_lift.train.run import run


class Modulo(KnownClasses):
    """The class of a segment is its id modulo 8; ids that 11 divides have none."""

    def segment_classes(self, data):
        ids = [view.segment_ids for view in data.views()]
        return [torch.where(x % 11 == 0, -1, x % 8) for x in ids], 8


def modulo(**changes):
    return Modulo(KnownClassesSettings(**changes), zero_id="segment", seed=0)


def bundles(ids, *, per_segment=50, dim=16, noise=0.2, seed=0):
    """Features around one direction for each id, and the ids of the pixels."""
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(len(ids), dim, generator=generator), dim=1)
    which = torch.arange(len(ids)).repeat_interleave(per_segment)
    features = 2 * directions[which] + noise * torch.randn(len(which), dim, generator=generator)
    return features, torch.tensor(ids)[which]


def data_of(views, *, ignore_zero=False):
    """What a stage shows of views of flat ids; geometry does not matter."""

    def walk():
        for index, ids in enumerate(views):
            slots, known = dense_slots(ids[None], ignore_zero=ignore_zero)
            yield LabelledView(f"view_{index}", None, slots, known)

    return LiftData(torch.zeros(1, 3), walk)


# ---- on a whole scene; used by the tests of the methods too --------------------------------------------------------


def consistent(scene):
    """Return a scene with one id per ball in all views, 300 to 302."""
    views = []
    for view in scene.train:
        ids = torch.from_numpy(exact_ids(view.camera))
        views.append(dataclasses.replace(view, segments=torch.where(ids > 0, ids + 299, 0)))
    return dataclasses.replace(scene, train=tuple(views))


def run_settings(path, method, *, steps=40, **method_settings):
    settings = changed(TrainSettings(), {"method_name": method, "model_path": str(path)}, origin="test")
    short = {
        "geometry": {"iterations": 6, "sh_degree": 0},
        "density": {"densify_until_iter": 0},
        "lift": {"lift_iterations": steps, "lift_pixels": 200},
        "method": {"feature_lr": 0.05, "head_lr": 0.05} | method_settings,
        "run": {"logger": "none", "quiet": True, "log_interval": 10},
    }
    return merged(settings, short, origin="test")


def lift_stage(scene, method, *, steps=60, device="cpu"):
    device = torch.device(device)
    gaussians = gaussians_from_points(scene.points, sh_degree=0).to(device)
    method.to(device)
    placed = DataCache("auto", device=device).cached(scene)
    return LiftStage(placed, gaussians, method, LiftSettings(lift_iterations=steps, lift_pixels=200), seed=0)


def assert_saved_model_shows_what_was_trained(tmp_path, scene, method, **method_settings):
    settings = run_settings(tmp_path, method, **method_settings)
    state = run(settings, scene)
    model = load_model(tmp_path)
    assert model.method.num_objects == state.manifest["num_codes"] == state.method.num_objects
    shown = render_view(model, scene.train[0].camera)
    live = render_view(replace(model, gaussians=state.gaussians, method=state.method), scene.train[0].camera)
    assert float((shown.object_ids == live.object_ids).float().mean()) > 0.99  # features are saved in 16 bits
    torch.testing.assert_close(shown.confidence, live.confidence, atol=0.02, rtol=0)
    assert len(shown.object_ids.unique()) > 1
    state = torch.load(tmp_path / "point_cloud" / "iteration_6" / "classifier.pth", weights_only=True)
    head = torch.nn.Conv2d(16, model.method.num_objects, kernel_size=1)
    head.load_state_dict(state)  # as Gaussian Grouping's scripts read it
    features = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    expected = head(features.T[None, :, :, None])[0, :, :, 0].argmax(dim=0)
    assert torch.equal(model.method.segment(features).object_ids, expected)


def share_told_apart(stage):
    """Return the share of the balls' pixels whose id stands for their ball, each ball having one id of its own."""
    table = torch.zeros(3, stage.method.num_objects)
    for index, (view, (features, *_)) in enumerate(zip(stage.views.all(), stage.labelled_pixels())):
        truth = torch.from_numpy(exact_ids(view.camera)).flatten()[stage.maps.of(index, view).pixel_ids].long()
        ids = stage.method.segment(features).object_ids
        table.index_put_((truth[truth > 0] - 1, ids[truth > 0]), torch.tensor(1.0), accumulate=True)
    return float(table[torch.arange(3), hungarian(table)].sum() / table.sum())


# ---- the head ------------------------------------------------------------------------------------------------------


def test_head_begins_as_a_convolution_of_torch_does_and_again_with_the_same_seed():
    methods = [modulo() for _ in range(2)]
    for method in methods:
        assert method.num_objects == 0
        method.prepare(data_of([torch.arange(5)]))
    weight, bias = methods[0].weight.detach(), methods[0].bias.detach()
    assert (weight.shape, bias.shape) == ((8, 16), (8,))
    assert torch.equal(weight, methods[1].weight.detach())
    reference = torch.nn.Conv2d(16, 8, kernel_size=1)
    assert weight.abs().max() <= 0.25
    assert weight.std() == pytest.approx(float(reference.weight.detach().std()), rel=0.3)
    assert bool((bias.abs() <= 0.25).all())
    assert len(bias.unique()) == 8


def test_id_and_confidence_by_hand():
    method = modulo(feature_dim=1)
    method.load_object_state({"weight": torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), "bias": torch.tensor([1.0, 0.0])})
    found = method.segment(torch.tensor([[0.0], [3.0]]))  # logits (1, 0) and (1, 3)
    assert found.object_ids.tolist() == [0, 1]
    expected = [1 / (1 + torch.tensor(-1.0).exp()), 1 / (1 + torch.tensor(-2.0).exp())]
    torch.testing.assert_close(found.confidence, torch.stack(expected))


def test_checkpoint_brings_a_head_of_unknown_size_which_prepare_leaves_alone():
    method = modulo()
    method.prepare(data_of([torch.arange(5)]))
    copy = modulo()
    copy.load_state_dict(method.state_dict())
    assert torch.equal(copy.weight, method.weight)
    copy.prepare(data_of([torch.arange(5)]))
    assert torch.equal(copy.weight, method.weight)
    assert torch.equal(copy.bias, method.bias)
    assert torch.equal(copy.generator.get_state(), method.generator.get_state())
    with pytest.raises(UserError, match="checkpoint knows 8 classes, the masks have 9"):
        copy.start_head(9)


# ---- known classes -------------------------------------------------------------------------------------------------


def test_pixels_are_trained_for_the_class_of_their_segment_in_their_view():
    features, ids = bundles([3, 5, 22, 9], noise=1.0)  # classes 3, 5, none, 1
    features.requires_grad_(True)
    method = modulo()
    other = torch.full_like(ids, 6)
    method.prepare(data_of([other, ids]))
    slot, known = dense_slots(ids, ignore_zero=False)
    loss = losses(method, features, slot, len(known), 0.0, view=1)["identity"]
    logits = features @ method.weight.T + method.bias
    labels = torch.tensor([{3: 3, 5: 5, 22: -1, 9: 1}[int(x)] for x in ids])
    chosen = torch.log_softmax(logits, dim=1)[labels >= 0, labels[labels >= 0]]
    torch.testing.assert_close(loss, -chosen.mean() / torch.tensor(8.0).log())
    loss.backward()
    assert bool((features.grad[ids == 22] == 0).all())
    assert bool((features.grad[ids != 22] != 0).any(dim=1).all())
    assert bool((method.weight.grad != 0).any(dim=1).all())


def test_a_view_without_segments_trains_nothing():
    method = modulo()
    method.prepare(data_of([torch.zeros(4, dtype=torch.int64), torch.tensor([3, 3, 5, 5])], ignore_zero=True))
    slot = torch.full((4,), -1, dtype=torch.int32)
    assert float(losses(method, torch.randn(4, 16), slot, 0, 0.0, view=0)["identity"].detach()) == 0


def test_neighbours_are_compared_at_every_fifth_step_only():
    method = modulo(knn_anchors=10)
    seen, of_gaussians = (torch.randn(5, 16), torch.arange(5).int(), 5), torch.randn(30, 16)
    data = data_of([torch.arange(5)])._replace(means=torch.randn(30, 3))
    method.prepare(data)
    terms = [losses(method, *seen, step=step, gaussian_features=of_gaussians) for step in (*range(12), 4)]
    assert [step for step, found in enumerate(terms) if "knn" in found] == [4, 9, 12]
    assert terms[4]["knn"] == terms[12]["knn"] != terms[9]["knn"]
    assert method.weights["knn"] == 2
    without = modulo(weight_knn=0.0)
    without.prepare(data)
    assert "knn" not in losses(without, *seen, step=4)


def test_masks_without_any_class_are_refused():
    with pytest.raises(UserError, match="--object_path: no pixel of any mask has a label"):
        modulo().prepare(data_of([torch.tensor([11, 22, 0])]))


def test_classes_known_before_the_lift_are_learnt_from_a_scene():
    scene = consistent(tiny_scene())
    method = modulo(feature_lr=0.05, head_lr=0.05)
    stage = lift_stage(scene, method)
    terms = [stage.step(step) for step in range(60)]
    assert float(terms[-1]["identity"]) < 0.5 * float(terms[0]["identity"])
    assert [step for step, values in enumerate(terms) if "knn" in values] == list(range(4, 60, 5))
    assert share_told_apart(stage) > 0.9


# ---- on a real GPU only ------------------------------------------------------------------------------------------


def terms_without_waiting(stage, *, first=20, count=10):
    """Return the terms of steps after the first in which the host must not wait for the GPU."""
    for step in range(first):  # keeps the weights of all views, captures the step
        stage.step(step)
    assert stage.sampler.keeps_weights
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = range(first, first + count)
        return [{name: term.clone() for name, term in stage.step(step).items()} for step in steps]
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_step_does_not_make_the_host_wait(scene):
    method = modulo(knn_anchors=20)
    terms = terms_without_waiting(lift_stage(scene, method, device="cuda"))
    assert [sorted(values) for values in terms[3:5]] == [["identity"], ["identity", "knn"]]
    assert all(bool(torch.isfinite(value)) for values in terms for value in values.values())
