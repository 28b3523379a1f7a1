"""True ids of Gaussians from the room's surfaces, and how labels are scored against them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import score_gaussians as script
import torch

from tests.saved_model import save_model
from unified_lift.cli.main import main
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.outputs import iteration_dir, write_objects
from unified_lift.synthetic.scene import SyntheticSettings, build_cameras, synthetic_room, write_synthetic
from unified_lift.synthetic.solids import Solid

TINY = SyntheticSettings(num_objects=4, num_views=24, width=96, height=72, num_points=4000)


@pytest.fixture(scope="module")
def room():
    return synthetic_room(SyntheticSettings(num_objects=12, seed=3))


def inside(room, count, rng):
    """Return random points of the part of the room where the objects are."""
    low, high = [-room.rug_radius, -room.rug_radius, 0], [room.rug_radius, room.rug_radius, 1.5]
    return rng.uniform(low, high, (count, 3))


@pytest.mark.parametrize(
    ("point", "distance"),
    [
        ((0, 0, 0), 1),  # the centre: the smallest radius
        ((0, 0, 5), 2),
        ((0, -3, 0), 1),
        ((0, 0, 2.9), 0.1),  # inside, beyond the focus (9 - 1) / 3: the pole
        ((0, 0, 1), math.sqrt(0.875)),  # z' = 9 / 8, x'^2 = 1 - z'^2 / 9 = 0.859375: x'^2 + (1 / 8)^2
        ((1, 0, 0), 0),
    ],
)
def test_distance_to_an_ellipsoid_by_hand(point, distance):
    found = script.ellipsoid_distance(np.array([1.0, 2, 3]), np.array([point], dtype=float))
    assert found == pytest.approx([distance], abs=1e-6)


def test_distance_to_an_ellipsoid_is_that_to_its_nearest_sample():
    rng = np.random.default_rng(0)
    radii = np.array([0.3, 0.9, 0.5])
    angle, z = np.meshgrid(np.linspace(0, 2 * np.pi, 600), np.linspace(-1, 1, 600))
    ring = np.sqrt(1 - z**2)
    surface = np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=-1).reshape(-1, 3) * radii
    for point in rng.uniform(-1.2, 1.2, (40, 3)):
        sampled = np.linalg.norm(surface - point, axis=1).min()
        assert script.ellipsoid_distance(radii, point[None])[0] == pytest.approx(sampled, abs=2e-3)


def test_distance_to_a_turned_ellipsoid_far_from_round_is_exact():
    # Its longest axis, 3, lies along world x: 3 from the centre is on it, and the centre is 1 away from the surface.
    turned = np.array([[0, 0, 1.0], [0, 1, 0], [-1, 0, 0]])
    white = ((1, 1, 1), (1, 1, 1))
    solid = Solid(shape="ellipsoid", size=(1, 2, 3), centre=np.array([5.0, 0, 0]), rotation=turned, colors=white)
    points = np.array([[5, 0, 0], [8, 0, 0], [10, 0, 0], [6.0, 0, 0]])
    assert script.surface_distance(solid, points) == pytest.approx([1, 0, 2, math.sqrt(0.875)], abs=1e-6)


def test_points_where_rays_end_lie_on_the_surface_they_met(room):
    rng = np.random.default_rng(1)
    for camera in build_cameras(room, SyntheticSettings(num_objects=12, seed=3))[:3]:
        directions = inside(room, 2000, rng) - camera.position
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        which, t = room.cast(camera.position, directions)
        ids, distances = script.nearest_surfaces(room, camera.position + t[:, None] * directions)
        assert distances.max() < 2e-5  # rays to a torus stop 1e-5 before it
        assert len(np.unique(ids)) > 8
        assert np.array_equal(ids, room.owner[which])


def test_solids_that_are_left_out_as_too_far_are_not_nearest(room):
    points = inside(room, 500, np.random.default_rng(3))
    everything = np.array([script.surface_distance(solid, points) for solid in room.solids])
    ids, distances = script.nearest_surfaces(room, points)
    on_objects = ids > 0
    assert 50 < on_objects.sum() < 450
    assert distances[on_objects] == pytest.approx(everything.min(axis=0)[on_objects])
    assert np.array_equal(ids[on_objects], room.owner[everything.argmin(axis=0)][on_objects])
    assert (everything.min(axis=0)[~on_objects] >= distances[~on_objects]).all()


def test_floor_wall_and_what_is_behind_them_belong_to_the_room(room):
    points = np.array([[2, 2, 0.01], [room.half - 0.02, 2, 1], [room.half + 3, 2, room.height + 4]])
    ids, distances = script.nearest_surfaces(room, points)
    assert ids.tolist() == [0, 0, 0]
    assert distances == pytest.approx([0.01, 0.02, 5])


def test_points_of_a_house_are_asked_of_the_room_they_are_in():
    house = script.synthetic_house(SyntheticSettings(num_objects=3, rooms=3))
    directions = np.random.default_rng(2).uniform(-1, 1, (500, 3)) - [0, 0, 1]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for room in house:
        which, t = room.cast(room.lamp, directions)
        ids, distances = script.nearest_in_house(house, room.centre + room.lamp + t[:, None] * directions)
        assert distances.max() < 2e-5
        assert np.array_equal(ids, room.owner[which])
        assert set(ids) == {0, *(one.object_id for one in room.objects)}


def test_scores_by_hand():
    # Room: 4 of 5 Gaussians say 7. Object 1: 2 of 3 say 5. Object 2: both say 7, which the room has: no partner left.
    true_ids = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    labels = np.array([7, 7, 7, 7, 5, 5, 5, 7, 7, 7])
    rows = script.object_scores(labels, true_ids)
    assert [tuple(row) for row in rows] == [
        (0, 7, pytest.approx(4 / 8), 5, 4),
        (1, 5, pytest.approx(2 / 4), 3, 2),
        (2, -1, 0.0, 2, 0),
    ]
    assert script.summary(rows) == {
        "accuracy": pytest.approx(6 / 10),
        "object_accuracy": pytest.approx(2 / 5),
        "mean_object_iou": pytest.approx(0.25),
    }


@pytest.mark.parametrize(
    ("labels", "true_ids", "expected"),
    [
        # Room with 5 (3 Gaussians) leaves only label 6 to object 1, which never has it; room with 6 would give 2.
        ([5, 5, 5, 6, 5], [0, 0, 0, 0, 1], [(5, 3), (-1, 0)]),
        # Label 1 fits both. Object 1 has 3 of it and 2 of label 2; object 2 has 4 of it and nothing else: 2 + 4.
        ([1, 1, 1, 2, 2, 1, 1, 1, 1], [1] * 5 + [2] * 4, [(2, 2), (1, 4)]),
    ],
)
def test_matching_serves_all_gaussians_and_never_without_overlap(labels, true_ids, expected):
    rows = script.object_scores(np.array(labels), np.array(true_ids))
    assert [(row.label, row.right) for row in rows] == expected


def test_scores_do_not_depend_on_what_labels_are_called_or_on_the_order():
    rng = np.random.default_rng(4)
    true_ids = rng.integers(0, 6, 400)
    labels = np.where(rng.random(400) < 0.7, true_ids, rng.integers(0, 6, 400))
    expected = script.object_scores(labels, true_ids)
    names, order = np.array([90, 3, 17, 0, 55, 4]), rng.permutation(400)
    renamed = script.object_scores(names[labels][order], true_ids[order])
    assert renamed == [row._replace(label=names[row.label]) for row in expected]
    assert 0.5 < script.summary(expected)["accuracy"] < 1


def test_labels_of_a_trained_room_are_right_and_wrong_ones_are_counted(tmp_path, capsys):
    write_synthetic(tmp_path / "scene", TINY)
    model = tmp_path / "model"
    flags = ["--preset", "demo", "--eval", "--quiet", "--iterations", "300", "--lift_iterations", "100"]
    assert main(["train", "-s", str(tmp_path / "scene"), "-m", str(model), *flags, "--logger", "none"]) == 0
    capsys.readouterr()

    def scores(*arguments):
        assert script.main(["-m", str(model), "--json", str(tmp_path / "found.json"), *arguments]) == 0
        return json.loads((tmp_path / "found.json").read_text())

    before = scores()
    printed = capsys.readouterr().out
    assert f"{before['accuracy']:.2%} of all" in printed
    assert [row["true_id"] for row in before["objects"]] == [0, 1, 2, 3, 4]
    assert before["object_accuracy"] > 0.9
    assert before["floaters"] < 0.5
    assert scores("--max_distance", "1000")["floaters"] == 0
    assert scores("--min_opacity", "0")["num_opaque"] == before["num_gaussians"] > before["num_opaque"]

    loaded = load_model(model)
    one = replace(loaded.labels, object_ids=torch.zeros_like(loaded.object_ids))
    write_objects(iteration_dir(model, 300), loaded.gaussians, one)
    after = scores()
    largest = max(row["gaussians"] for row in after["objects"])
    assert after["accuracy"] == pytest.approx(largest / sum(row["gaussians"] for row in after["objects"]))
    assert after["floaters"] == before["floaters"]


def test_a_scene_that_is_no_synthetic_room_is_an_error_that_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main(["-m", str(save_model(tmp_path))])
    assert "no settings of a synthetic room" in capsys.readouterr().err
