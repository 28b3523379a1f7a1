"""Operations on objects, by hand and by what is rendered."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.editing.small_scene import gaussians_of, random_gaussians, scene_of
from unified_lift.editing.operations import Clean, Duplicate, Isolate, Merge, Move, Recolour, Remove, Rename, Rotation
from unified_lift.errors import UserError
from unified_lift.model.gaussians import SH_C0
from unified_lift.model.render import render
from unified_lift.modelfolder.labels import GaussianLabels
from unified_lift.ops.cameras import look_at
from unified_lift.ops.quaternions import rotation_from_quaternion
from unified_lift.types import Camera

CUBE_TURN = Rotation((1.0, 1.0, 1.0), 120.0)  # carries x to y, y to z, z to x


def done(operation, scene, ids, **settings):
    return operation(objects=tuple(ids), **settings).apply(scene)


def three_objects(**changes):
    """Return five Gaussians of the objects 0, 2, 2, 5, 5."""
    return scene_of(
        gaussians_of(means=[[9, 9, 9], [1, 0, 0], [3, 0, 0], [0, 1, 0], [0, 3, 0]]),
        [0, 2, 2, 5, 5],
        confidence=[1.0, 1.0, 1.0, 0.5, 0.5],
        **changes,
    )


def pictures(scene, camera):
    with torch.no_grad():
        return render(scene.gaussians, camera, with_features=False)


def same_tables(left, right):
    return all(torch.equal(value, getattr(right.gaussians, name)) for name, value in left.gaussians)


# ---- which Gaussians ----


@pytest.mark.parametrize("length", [1e-300, 1e200])
def test_an_axis_may_have_any_length(length):
    turned, wanted = Rotation((length, 0.0, length), 40).wxyz, Rotation((1.0, 0.0, 1.0), 40).wxyz
    assert torch.allclose(turned, wanted)


def test_remove_takes_rows_and_names_away_and_leaves_the_scene_given():
    scene = three_objects(names={2: "mug", 5: "cup"})
    rest = done(Remove, scene, [2])
    assert rest.objects == {0: 1, 5: 2}
    assert rest.gaussians.means.tolist() == [[9, 9, 9], [0, 1, 0], [0, 3, 0]]
    assert dict(rest.names) == {5: "cup"}
    assert scene.objects == {0: 1, 2: 2, 5: 2}
    assert scene.name_of(2) == "mug"


def test_isolate_is_what_remove_leaves_out():
    scene = three_objects(names={2: "mug", 5: "cup"})
    alone = done(Isolate, scene, [2])
    assert alone.objects == {2: 2}
    assert same_tables(alone, done(Remove, scene, [0, 5]))
    assert dict(alone.names) == {2: "mug"}


def test_nothing_left_and_unknown_objects_are_errors():
    scene = three_objects()
    with pytest.raises(UserError, match="without objects 0, 2, 5 nothing is left"):
        done(Remove, scene, [0, 2, 5])
    for operation in (Remove, Isolate, Move, Duplicate, Merge, Clean):
        with pytest.raises(UserError, match="no object 3; there are 0, 2, 5"):
            done(operation, scene, [2, 3])
    with pytest.raises(UserError, match="no object 3"):
        done(Recolour, scene, [3], color="#ff0000")
    with pytest.raises(UserError, match="no object 3"):
        Rename(names=((3, "mug"),)).apply(scene)


def test_merged_objects_are_the_first_one():
    scene = three_objects(names={2: "mug", 5: "handle"})
    merged = done(Merge, scene, [5, 2])
    assert merged.objects == {0: 1, 5: 4}
    assert dict(merged.names) == {5: "handle"}


def test_names_are_trimmed_and_never_empty():
    scene = Rename(names=((2, " blue mug "),)).apply(three_objects())
    assert scene.name_of(2) == "blue mug"
    with pytest.raises(UserError, match="new name of object 2 is empty"):
        Rename(names=((2, "  "),)).apply(scene)


# ---- clean ----


def plate_with_outlier():
    """Return a 5 x 5 plate of object 1, one outlier of it far off beside a plate of object 0, and one unsure row."""
    plate = [[x, y, 0] for x in range(5) for y in range(5)]
    other = [[x + 100.0, y, 0] for x in range(5) for y in range(5)]
    means = plate + [[102.2, 2.2, 0]] + other
    confidence = [1.0] * 24 + [0.3] + [0.9] + [1.0] * 25
    return scene_of(gaussians_of(means=means), [1] * 26 + [0] * 25, confidence=confidence)


def test_outliers_and_unsure_gaussians_go_to_the_nearest_object():
    scene = plate_with_outlier()
    cleaned = done(Clean, scene, [1], outliers=5)
    assert cleaned.objects == {0: 26, 1: 25}
    assert int(cleaned.object_ids[25]) == 0
    assert float(cleaned.confidence[25]) == 0
    assert len(cleaned) == len(scene)
    assert scene.objects == {0: 25, 1: 26}
    unsure = done(Clean, scene, [1], min_confidence=0.5)
    assert torch.nonzero(unsure.object_ids == 0)[0].tolist() == [24]
    assert int(unsure.object_ids[25]) == 1  # sure of itself, if far away
    assert len(done(Clean, scene.subset(torch.arange(26)), [1], outliers=5)) == 25  # no other object: taken away


def test_two_halves_of_an_object_both_stay():
    means = [[x, 0, 0] for x in range(20)] + [[x + 200, 0, 0] for x in range(20)]
    scene = scene_of(gaussians_of(means=means), [1] * 40, confidence=[1.0] * 40)
    assert done(Clean, scene, [1], outliers=3).objects == {1: 40}


def test_off_means_off_and_nothing_left_is_an_error():
    scene = plate_with_outlier()
    assert torch.equal(done(Clean, scene, [1]).object_ids, scene.object_ids)
    with pytest.raises(UserError, match="nothing would be left of object 1"):
        done(Clean, scene_of(scene.gaussians, [1] * 51, confidence=[0.5] * 51), [1], min_confidence=0.6)
    alone = scene_of(gaussians_of(means=[[0, 0, 0], [5, 0, 0]]), [1, 1], confidence=[1.0, 1.0])
    assert done(Clean, alone, [1], outliers=1).objects == {1: 2}  # too few to tell


# ---- places ----


def test_a_rotation_is_right_handed():
    turned = rotation_from_quaternion(CUBE_TURN.wxyz) @ torch.eye(3, dtype=torch.float64)
    assert torch.allclose(turned, torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64), atol=1e-12)


def test_move_by_hand():
    # Object 2 has its middle at (2, 0, 0): (1, 0, 0) is 1 before it, and after a quarter turn about z, twice as large,
    # 2 below it in y.
    scene = three_objects()
    moved = done(Move, scene, [2], rotate=Rotation((0, 0, 2), 90), translate=(0.0, 0.0, 5.0), scale=2.0)
    expected = torch.tensor([[9.0, 9, 9], [2, -2, 5], [2, 2, 5], [0, 1, 0], [0, 3, 0]])
    assert torch.allclose(moved.gaussians.means, expected, atol=1e-6)
    assert torch.allclose(moved.gaussians.log_scales[1:3], torch.full((2, 3), math.log(2)))
    half = math.sqrt(0.5)
    assert torch.allclose(moved.gaussians.quats[1:3], torch.tensor([half, 0, 0, half]))
    for name, value in scene.gaussians:
        assert torch.equal(value[[0, 3, 4]], getattr(moved.gaussians, name)[[0, 3, 4]])


def test_the_pivot_can_be_a_point_and_outliers_do_not_shift_the_middle():
    scene = three_objects()
    moved = done(Move, scene, [2], rotate=Rotation(degrees=180), about=(0.0, 0.0, 0.0))
    assert torch.allclose(moved.gaussians.means[1:3], torch.tensor([[-1.0, 0, 0], [-3, 0, 0]]), atol=1e-6)
    for values, middle in (([1, 1, 0.0, 0.5, 0.5], 1), ([0.0] * 5, 2)):
        doubted = replace(scene, labels=GaussianLabels(scene.object_ids, torch.tensor(values)))
        turned = done(Move, doubted, [2], rotate=Rotation(degrees=180))
        assert turned.gaussians.means[1:3, 0].tolist() == pytest.approx([2 * middle - 1, 2 * middle - 3])


def test_a_shift_alone_rounds_nothing_else():
    scene = scene_of(random_gaussians(30))
    moved = done(Move, scene, [4], translate=(1.0, 2.0, 3.0))
    for name in ("quats", "shN", "log_scales", "sh0", "features"):
        assert torch.equal(getattr(moved.gaussians, name), getattr(scene.gaussians, name))
    rows = scene.object_ids == 4
    assert torch.equal(moved.gaussians.means[rows], scene.gaussians.means[rows] + torch.tensor([1.0, 2, 3]))


@pytest.mark.parametrize("degree", [1, 3])
def test_a_world_moved_together_with_its_camera_looks_the_same(degree):
    # Rotation of positions, shapes and colours, translation and growth: all of them must be right at once.
    gaussians = random_gaussians(150, degree=degree)
    gaussians.set("log_scales", gaussians.log_scales + 2)
    gaussians.set("logit_opacities", gaussians.logit_opacities + 1)
    scene = scene_of(gaussians)
    pose = look_at(np.array([6.0, 1, 2]), np.zeros(3), np.array([0.0, 0, 1]))
    camera = Camera(cam_from_world=pose, fx=60, fy=60, cx=32.5, cy=23.5, width=64, height=48)
    turn = Rotation((0.3, -1.0, 0.5), 77.0)
    matrix = rotation_from_quaternion(turn.wxyz).numpy()
    pivot, shift, scale = np.array([0.5, -1, 2]), np.array([3.0, -2, 1]), 1.7
    moved = done(Move, scene, [0, 4], rotate=turn, translate=tuple(shift), scale=scale, about=tuple(pivot))
    pose = np.eye(4)
    pose[:3, :3] = camera.cam_from_world[:3, :3] @ matrix.T
    position = scale * matrix @ (camera.position - pivot) + pivot + shift
    pose[:3, 3] = -pose[:3, :3] @ position
    before, after = pictures(scene, camera), pictures(moved, replace(camera, cam_from_world=pose))
    assert float(before.alpha.mean()) > 0.2
    assert torch.allclose(before.image, after.image, atol=2e-4)
    assert torch.allclose(before.depth * scale, after.depth, atol=2e-3)
    stale = done(Move, scene, [0, 4], rotate=turn)
    stale.gaussians.set("shN", scene.gaussians.shN)
    about = done(Move, scene, [0, 4], rotate=turn)
    assert (pictures(stale, camera).image - pictures(about, camera).image).abs().max() > 0.05  # colours did turn


# ---- copies ----


def test_copies_come_last_above_the_largest_id_and_are_called_so():
    scene = three_objects(names={2: "mug"})
    both = done(Duplicate, scene, [5, 2], translate=(0.0, 0.0, 1.0))
    assert both.object_ids.tolist() == [0, 2, 2, 5, 5, 7, 7, 6, 6]
    assert (both.name_of(6), both.name_of(7)) == ("copy of object 5", "copy of mug")
    assert both.gaussians.means[5:].tolist() == [[1, 0, 1], [3, 0, 1], [0, 1, 1], [0, 3, 1]]
    assert torch.equal(both.gaussians.features[5:], scene.gaussians.features[1:])
    assert both.confidence.tolist() == [1, 1, 1, 0.5, 0.5, 1, 1, 0.5, 0.5]
    assert len(scene) == 5


def test_a_copy_is_the_moved_object():
    scene = scene_of(random_gaussians(40))
    place = {"rotate": CUBE_TURN, "translate": (0.1, 0.2, 0.3), "scale": 0.5}
    copy = done(Isolate, done(Duplicate, scene, [4], **place, new_ids=(9,)), [9])
    assert same_tables(copy, done(Isolate, done(Move, scene, [4], **place), [4]))


@pytest.mark.parametrize(
    ("new_ids", "problem"), [([5], "id 5 is taken"), ([7, 8], "as many new ids"), ([-1], "none negative")]
)
def test_ids_of_copies_must_be_free(new_ids, problem):
    with pytest.raises(UserError, match=problem):
        done(Duplicate, three_objects(), [2], new_ids=tuple(new_ids))


# ---- colours ----


def test_painted_objects_have_the_colour_on_average_and_keep_their_shading():
    scene = scene_of(random_gaussians(400))
    painted = done(Recolour, scene, [4], color="#cc1933")
    rows, luma = scene.object_ids == 4, torch.tensor([0.2126, 0.7152, 0.0722])
    before, after = (each.gaussians.sh0.detach()[rows, 0] * SH_C0 + 0.5 for each in (scene, painted))
    assert after.mean(dim=0).tolist() == pytest.approx([0.8, 25 / 255, 0.2], abs=1e-5)
    assert float(torch.corrcoef(torch.stack([before @ luma, after @ luma]))[0, 1]) > 0.999
    assert torch.equal(painted.gaussians.sh0[~rows], scene.gaussians.sh0[~rows])
    assert torch.equal(painted.gaussians.shN[~rows], scene.gaussians.shN[~rows])


def test_strength_mixes_old_and_new():
    scene = scene_of(random_gaussians(60))
    none = done(Recolour, scene, [4], color="#0000ff", strength=0)
    assert torch.allclose(none.gaussians.sh, scene.gaussians.sh, atol=1e-6)
    half = done(Recolour, scene, [4], color="#0000ff", strength=0.5)
    whole = done(Recolour, scene, [4], color="#0000ff")
    assert torch.allclose(half.gaussians.sh, (scene.gaussians.sh + whole.gaussians.sh) / 2, atol=1e-6)


def test_the_higher_coefficients_take_the_hue_too():
    # Grey 0.5 has luma 0.5, so luma is multiplied by color / 0.6: a white sheen of 0.06 becomes 0.1 of the colour.
    gaussians = gaussians_of(means=[[0, 0, 0]], sh0=[[[0, 0, 0]]], shN=[[[0.06] * 3, [0] * 3, [0] * 3]])
    painted = done(Recolour, scene_of(gaussians, [4]), [4], color="#ff6600")
    assert painted.gaussians.shN[0, 0].tolist() == pytest.approx([0.1, 0.04, 0])
    assert (painted.gaussians.sh0[0, 0] * SH_C0 + 0.5).tolist() == pytest.approx([1, 0.4, 0], abs=1e-6)


def test_a_black_object_is_painted_without_blowing_up():
    gaussians = gaussians_of(means=torch.zeros(50, 3), sh0=-0.5 / SH_C0 + 0.02 * torch.rand(50, 1, 3))
    painted = done(Recolour, scene_of(gaussians, [4] * 50), [4], color="#ffffff")
    colors = painted.gaussians.sh0.detach() * SH_C0 + 0.5
    assert float((colors - 1).abs().max()) < 0.1
