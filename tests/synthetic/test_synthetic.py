import hashlib
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from unified_lift.ops.cameras import cam_from_world_opengl, project, unproject
from unified_lift.plyio import read_point_cloud
from unified_lift.synthetic.objects import KINDS
from unified_lift.synthetic.room import build_house
from unified_lift.synthetic.scene import (
    SyntheticSettings,
    build_cameras,
    noisy_segments,
    synthetic_room,
    write_synthetic,
)
from unified_lift.synthetic.solids import Solid, unit

CLEAN = SyntheticSettings(drop=0, merge=0, split=0, jitter=0, false_positives=0, shuffle=False)
MINIATURE = SyntheticSettings(num_objects=3, num_views=6, width=32, height=24, num_points=300)
WHITE = ((1, 1, 1), (1, 1, 1))
SIZES = {"ellipsoid": (0.8, 0.5, 0.3), "box": (0.4, 0.7, 0.2), "frustum": (0.7, 0.2, 0.5), "torus": (0.6, 0.2)}


@pytest.fixture(scope="module")
def room():
    return synthetic_room(SyntheticSettings())


@pytest.fixture(scope="module")
def view(room):
    camera = build_cameras(room, SyntheticSettings())[2]
    return camera, *room.render(camera)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "scene"
    write_synthetic(root, MINIATURE)
    return root


def turned(shape: str) -> Solid:
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    return Solid(shape=shape, size=SIZES[shape], centre=np.array([0.3, -0.2, 0.5]), rotation=rotation, colors=WHITE)


def hits(solid: Solid, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return origins and directions of rays, and where they meet the solid."""
    rng = np.random.default_rng(0)
    origins = rng.standard_normal((count, 3))
    origins *= 3 / np.linalg.norm(origins, axis=1, keepdims=True)
    directions = rng.uniform(-0.5, 0.5, (count, 3)) + [0.3, -0.2, 0.5] - origins
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return origins, directions, solid.intersect(origins, directions)


@pytest.mark.parametrize("shape", SIZES)
def test_rays_end_on_the_surface_whose_normals_are_the_gradient_and_never_pass_through_it(shape):
    solid = turned(shape)
    origins, directions, t = hits(solid, 400)
    hit = np.isfinite(t)
    assert 50 < hit.sum() < 400
    points = origins[hit] + t[hit, None] * directions[hit]
    assert np.abs(solid.distance(points)).max() < 2e-5
    # Dense samples before the hit, or all the way where there is none, lie outside.
    steps = np.linspace(0, 1, 200, endpoint=False)[:, None, None]
    along = origins + steps * np.where(hit, t, 6.0)[None, :, None] * directions
    assert solid.distance(along.reshape(-1, 3)).min() > -1e-3
    steps = 1e-4 * np.eye(3)
    gradient = np.stack([solid.distance(points + e) - solid.distance(points - e) for e in steps], axis=1) / 2e-4
    agree = (gradient * solid.normal(points)).sum(axis=1)
    # Within a step of an edge two faces share the gradient.
    assert np.quantile(agree, 0.03) > 0.999


@pytest.mark.parametrize("shape", SIZES)
def test_rays_that_start_inside_a_solid_leave_it(shape):
    solid = turned(shape)
    start = solid.centre + (solid.rotation @ [0.6, 0, 0] if shape == "torus" else 0)
    t = solid.intersect(start, np.eye(3))
    assert np.isfinite(t).all()
    assert np.abs(solid.distance(start + t[:, None] * np.eye(3))).max() < 2e-5


def to_surfaces(room, points) -> list[np.ndarray]:
    """Return the distances of points to every solid and, last, to the walls."""
    walls = np.column_stack([room.half - np.abs(points[:, :2]), points[:, 2], room.height - points[:, 2]])
    return [*(np.abs(solid.distance(points)) for solid in room.solids), np.abs(walls).min(axis=1)]


def test_pictures_are_lit_and_colourful_and_depth_leads_back_to_the_surface_of_the_id(room, view):
    camera, image, ids, depth = view
    assert 90 < image.mean() < 190
    assert np.ptp(image.astype(int), axis=2).mean() > 40
    rows, cols = np.mgrid[: camera.height, : camera.width].reshape(2, -1)
    pixels = np.column_stack([cols, rows]) + 0.5
    points = unproject(pixels, depth.reshape(-1), camera)
    assert np.abs(project(points, camera)[0] - pixels).max() < 1e-3
    distances = to_surfaces(room, points)
    # Where two surfaces touch, float32 depth leaves the nearer one open.
    assert (room.owner[np.argmin(distances, axis=0)] == ids.reshape(-1)).mean() > 0.995


def test_every_object_is_seen_and_ids_start_at_one(room):
    cameras = build_cameras(room, SyntheticSettings())[:12]
    assert set(np.unique([room.render(camera)[1] for camera in cameras])) == set(range(13))
    assert [one.object_id for one in room.objects] == list(range(1, 13))


def test_objects_do_not_interpenetrate(room):
    rng = np.random.default_rng(0)
    for one in room.objects:
        low, high = one.bounds
        points = rng.uniform(low, high, (4000, 3))
        inside = np.min([solid.distance(points) for solid in one.solids], axis=0) < -1e-3
        assert inside.any()
        for other in room.objects:
            if other is not one:
                clearance = np.min([solid.distance(points[inside]) for solid in other.solids], axis=0)
                assert clearance.min() > -1e-3, f"{one.name} and {other.name}"


def test_the_last_two_objects_are_twins_side_by_side(room):
    first, second = room.objects[-2:]
    assert first.name == second.name
    assert np.linalg.norm(first.position - second.position) < 3 * first.radius
    assert len({one.kind for one in room.objects}) == len(room.objects) - 1


@pytest.mark.parametrize("num_objects", [1, 2, 7, 40])
def test_rooms_of_any_size_have_distinct_places(num_objects):
    room = synthetic_room(replace(CLEAN, num_objects=num_objects))
    positions = np.array([one.position for one in room.objects])
    assert len(positions) == num_objects
    assert np.abs(positions[:, :2]).max() < room.rug_radius
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1) + 9 * np.eye(num_objects)
    assert apart.min() > 0.5


def test_every_kind_of_object_stands_on_the_floor():
    room = synthetic_room(replace(CLEAN, num_objects=len(KINDS) + 2))
    assert {one.kind for one in room.objects} == {"table", *KINDS}
    for one in room.objects:
        rng = np.random.default_rng(one.object_id)
        points = one.position + rng.uniform([-1, -1, -0.3], [1, 1, -1e-3], (2000, 3)) * 2 * one.radius
        assert min(solid.distance(points).min() for solid in one.solids) > -1e-2, one.name


def test_cameras_stay_inside_the_room_with_an_off_centre_principal_point(room):
    for camera in build_cameras(room, SyntheticSettings()):
        assert np.abs(camera.position[:2]).max() < room.half
        assert 0 < camera.position[2] < room.height
        assert (camera.cx, camera.cy) == (82.5, 58.5)


def test_without_noise_segments_are_the_ids_but_for_specks_and_dropped_objects(view):
    ids = view[2]
    assert (noisy_segments(ids, CLEAN, np.random.default_rng(0)) == ids).all()
    assert not noisy_segments(ids, replace(CLEAN, drop=1), np.random.default_rng(0)).any()
    speck = np.zeros((20, 20), dtype=np.int32)
    speck[:2, :3] = 7
    assert not noisy_segments(speck, CLEAN, np.random.default_rng(0)).any()


def test_default_noise_is_moderate_and_differs_between_views(view):
    ids = view[2]
    first, second = (noisy_segments(ids, SyntheticSettings(), np.random.default_rng(seed)) for seed in (1, 2))
    assert first.dtype == np.int32
    assert (first != second).any()
    assert np.unique(first).tolist() == list(range(first.max() + 1))
    assert ((first > 0) == (ids > 0)).mean() > 0.9


def test_merging_joins_touching_objects_only():
    ids = np.array([[1] * 8 + [2] * 8 + [0] * 8 + [3] * 8] * 8, dtype=np.int32)
    merged = noisy_segments(ids, replace(CLEAN, merge=1), np.random.default_rng(0))
    assert merged[0, 0] == merged[0, 8] != merged[0, 24]
    assert merged[0, 16] == 0


def test_cutting_splits_a_mask_in_two_fair_parts():
    ids = np.ones((20, 20), dtype=np.int32)
    counts = np.bincount(noisy_segments(ids, replace(CLEAN, split=1), np.random.default_rng(0)).ravel())
    assert len(counts[counts > 0]) == 2
    assert counts[counts > 0].min() > 150


def test_jitter_moves_borders_only():
    ids = np.zeros((60, 60), dtype=np.int32)
    ids[15:45, 15:45] = 1
    changed = noisy_segments(ids, replace(CLEAN, jitter=1.0), np.random.default_rng(0)) != ids
    assert 0.1 * 120 < changed.sum() < 2 * 120
    assert not changed[20:40, 20:40].any()


def test_false_positives_lie_on_the_background(view):
    ids = view[2]
    segments = noisy_segments(ids, replace(CLEAN, false_positives=5.0), np.random.default_rng(3))
    assert (segments[ids > 0] == ids[ids > 0]).all()
    assert (segments[ids == 0] > ids.max()).any()


def test_the_layout_is_complete(miniature):
    transforms = json.loads((miniature / "transforms.json").read_text())
    assert transforms["zero_id"] == "segment"
    assert [len(transforms[f"{split}_filenames"]) for split in ("train", "val", "test")] == [5, 1, 1]
    assert transforms["test_filenames"] == ["images/0005.png"]
    for frame in transforms["frames"]:
        assert cv2.imread(str(miniature / frame["file_path"])).shape == (transforms["h"], transforms["w"], 3)
        mask = cv2.imread(str(miniature / frame["object_mask_path"]), cv2.IMREAD_UNCHANGED)
        assert mask.dtype == np.uint16
        truth = miniature / "annotations" / "gt_instance" / Path(frame["file_path"]).name
        assert set(np.unique(cv2.imread(str(truth), cv2.IMREAD_UNCHANGED))) <= {0, 1, 2, 3}
    description = json.loads((miniature / "scene.json").read_text())
    assert [entry["id"] for entry in description["objects"]] == [1, 2, 3]
    assert [description["settings"].get(key) for key in ("drop", "rooms")] == [0.08, None]
    assert {"kind", "name", "centre", "size"} <= description["objects"][0].keys()


def test_written_poses_and_points_agree_with_the_analytic_room(miniature):
    room = synthetic_room(MINIATURE)
    frames = json.loads((miniature / "transforms.json").read_text())["frames"]
    for camera, frame in zip(build_cameras(room, MINIATURE), frames, strict=True):
        assert np.allclose(cam_from_world_opengl(np.array(frame["transform_matrix"])), camera.cam_from_world)
    points = read_point_cloud(miniature / "points3D.ply").positions.astype(float)
    assert len(points) == 300
    assert np.min(to_surfaces(room, points), axis=0).max() < 0.02 * 3 * room.half


def test_rays_through_doors_end_as_in_one_scene_of_all_solids_and_walls_with_gaps():
    first, second = build_house(2, num_objects=3, seed=0)
    half, height, thick = first.half, first.height, second.centre[0] / 2 - first.half
    walls = [((thick, 0.39 * half, height), side * half, 0) for side in (-0.61, 0.61)]
    walls.append(((thick, half, 0.15 * height), 0, 0.85 * height))
    solids = [Solid("box", size, np.array([half + thick, y, z]), WHITE) for size, y, z in walls]
    solids += [replace(one, centre=one.centre + room.centre) for room in (first, second) for one in room.solids]
    owner = np.array([0, 0, 0, 0, *first.owner[:-1], *second.owner[:-1]])
    origin = np.array([0.3 * half, 0.1 * half, 0.4 * height])
    rays = unit(np.random.default_rng(0).uniform([half, -half, 0], [3 * half, half, height], (4000, 3)) - origin)
    bounds = np.where(rays > 0, [second.centre[0] + half, half, height], [-half, -half, 0])
    t = [((bounds - origin) / rays).min(axis=1), *(solid.intersect(origin, rays) for solid in solids)]
    ids, distance = first.trace(origin, rays, lit=False)
    assert distance == pytest.approx(np.min(t, axis=0), abs=1e-4)
    assert (ids == owner[np.argmin(t, axis=0)]).all()
    assert set(ids) >= {0, 4, 5, 6}


def test_every_room_of_a_house_has_views_ids_and_points_and_is_seen_from_another(tmp_path):
    write_synthetic(tmp_path, replace(MINIATURE, rooms=3, num_views=10), train_views=6)
    transforms = json.loads((tmp_path / "transforms.json").read_text())
    assert [int(name[7:11]) for name in transforms["train_filenames"]] == [*range(6), *range(10, 16), *range(20, 26)]
    assert [int(name[7:11]) for name in transforms["test_filenames"]] == [8, 9, 18, 19, 28, 29]
    objects = json.loads((tmp_path / "scene.json").read_text())["objects"]
    assert [one["id"] for one in objects] == list(range(1, 10))
    truth = [cv2.imread(str(path), -1) for path in sorted((tmp_path / "annotations" / "gt_instance").iterdir())]
    seen = {(view // 10, room) for view, ids in enumerate(truth) for room in set((ids[ids > 0] - 1) // 3)}
    assert seen >= {(0, 0), (1, 1), (2, 2), (0, 1), (2, 0)}
    house = build_house(3, num_objects=3, seed=0)
    assert [[*room.doors] for room in house] == [[0, 2], [1], [3]]
    points = read_point_cloud(tmp_path / "points3D.ply").positions
    for places, few, many in ((points, 200, 400), (np.array([one["centre"] for one in objects]), 3, 3)):
        assert all(few <= (np.abs(places - room.centre)[:, :2] < room.half).all(axis=1).sum() <= many for room in house)


def test_the_same_seed_writes_the_same_files_and_one_room_those_of_before_there_were_houses(miniature, tmp_path):
    pictures = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(miniature.rglob("*.png")))
    digest = hashlib.sha256(b"".join(picture.tobytes() for picture in pictures))
    assert digest.hexdigest() == "b8444aa3e9836e3c17dbf630e3076ed937148866bdd0da39dd2efe164c9342e2"
    write_synthetic(tmp_path / "again", MINIATURE)
    for path in sorted(p for p in miniature.rglob("*") if p.is_file()):
        assert (tmp_path / "again" / path.relative_to(miniature)).read_bytes() == path.read_bytes(), path.name
    write_synthetic(tmp_path / "other", replace(MINIATURE, seed=1))
    assert (tmp_path / "other" / "images" / "0000.png").read_bytes() != (miniature / "images" / "0000.png").read_bytes()


def test_a_folder_with_files_is_never_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="not empty"):
        write_synthetic(tmp_path, CLEAN)


@pytest.mark.parametrize("wrong", [{"rooms": 0}, {"num_objects": 0}, {"num_views": 1}, {"drop": 1.5}, {"jitter": -1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="got|received"):
        SyntheticSettings(**wrong)
