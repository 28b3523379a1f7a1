import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.fixtures.floor import LANDMARK, LANDMARK_ID, floor_photos
from tests.data.fixtures.replica import write_rgb
from unified_lift.data import load_annotations
from unified_lift.data.masks import write_mask
from unified_lift.data.replica import (
    benchmark_frames,
    benchmark_split,
    depth_points,
    describe,
    find_recording,
    read_lens,
    read_trajectory,
)
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.ops.cameras import project
from unified_lift.plyio import write_point_cloud
from unified_lift.types import Camera, PointCloud

NICE_SLAM_CAMERA = {"w": 1200, "h": 680, "fx": 600.0, "fy": 600.0, "cx": 599.5, "cy": 339.5, "scale": 6553.5}


def names(views):
    return [view.name for view in views]


@pytest.fixture
def rgb_scene(tmp_path):
    """Return a function: sequence folder inside the scene -> a fresh scene with 40 frames there."""

    def write(sequence: str = "Sequence_1", **options: int):
        root = tmp_path / "room_0"
        write_rgb(root / sequence, masks=root / "object_mask", **options)
        return root

    return write


def truth_of(root, *views):
    return load_annotations(DataSettings(source_path=root), views)


def test_split_oracles():
    train, test = benchmark_split("nice_slam", 2000)
    assert (len(train), len(test), train[:6]) == (64, 16, [25, 50, 75, 100, 150, 175])
    assert (test[:4], test[-2:]) == ([0, 125, 250, 375], [1750, 1875])
    assert benchmark_split("vmap", 2000) == (train, test)
    train, test = benchmark_split("semantic_nerf", 900)
    assert (len(train), len(test), train[:3], test[:3]) == (180, 180, [0, 5, 10], [2, 7, 12])
    assert [train[-1], test[-1]] == [895, 897]


class TestPixelsAndCameras:
    def test_nice_slam_oracle(self, dataset):
        root = dataset("replica")
        (root / "cam_params.json").write_text(json.dumps({"camera": NICE_SLAM_CAMERA}))
        lens = read_lens(find_recording(root), 0)
        assert (lens.fx, lens.fy, lens.cx, lens.cy, lens.width, lens.height) == (600, 600, 600, 340, 1200, 680)
        camera = Camera(cam_from_world=np.eye(4), fx=600, fy=600, cx=lens.cx, cy=lens.cy, width=1200, height=680)
        pixel, depth = project(np.array([[0.4, -0.2, 2.0]]), camera)
        np.testing.assert_allclose(pixel[0], [720.0, 280.0])  # index coordinates 719.5, 279.5
        assert depth[0] == 2.0

    @pytest.mark.parametrize(
        ("size", "fx", "cx", "cy"),
        [((640, 480), 320.0, 319.5, 239.5), ((320, 240), 160.0, 159.5, 119.5), ((1200, 680), 600.0, 599.5, 339.5)],
    )
    def test_semantic_nerf_oracle(self, size, fx, cx, cy, rgb_scene):
        root = rgb_scene(count=8)
        Image.new("RGB", size).save(root / "Sequence_1/rgb/rgb_0.png")
        lens = read_lens(find_recording(root), 0)
        assert (lens.fx, lens.fy) == (fx, fx)
        assert (lens.cx - 0.5, lens.cy - 0.5) == (cx, cy)  # the oracle counts from the first pixel's centre

    @pytest.mark.parametrize("sequence", ["Sequence_1", "imap/00"])
    def test_known_point_and_truth_agree_with_the_photos(self, sequence, rgb_scene, read):
        root = rgb_scene(sequence, count=250)
        scene = read(root, eval=True)
        truth = truth_of(root, *names((*scene.train, *scene.test)))
        for view in (*scene.train, *scene.test):
            column, row = project(LANDMARK[None], view.camera)[0][0].astype(int)
            assert truth[view.name][row, column] == LANDMARK_ID
            assert view.image[row, column, 0] > view.image[row, column, 1] + 40
            np.testing.assert_array_equal(floor_photos([view.camera])[0].ids, truth[view.name])

    def test_poses_are_camera_to_world_with_opencv_axes(self, dataset):
        # Frame 25: turned by 90 degrees about y (x forward), standing at (1, 2, 3); (4, 2, 3) lies 3 ahead.
        root = dataset("replica")
        lines = (root / "traj.txt").read_text().splitlines()
        lines[25] = "0 0 1 1  0 1 0 2  -1 0 0 3  0 0 0 1"
        (root / "traj.txt").write_text("\n".join(lines) + "\n\n")
        frame = describe(root, DataSettings(source_path=root)).frames[1]
        np.testing.assert_allclose(frame.cam_from_world @ [4, 2, 3, 1], [0, 0, 3, 1], atol=1e-12)
        np.testing.assert_allclose(frame.cam_from_world @ [1, 3, 3, 1], [0, 1, 0, 1], atol=1e-12)  # y stays down


class TestLayouts:
    @pytest.mark.parametrize(
        ("sequence", "inside", "layout"),
        [
            ("Sequence_1", False, "semantic_nerf"),
            ("Sequence_1", True, "semantic_nerf"),
            ("imap/00", False, "vmap"),
            ("imap/00", True, "vmap"),
            ("vmap/03", True, "vmap"),
        ],
    )
    def test_rendering_is_recognised_from_the_scene_and_from_the_sequence(self, sequence, inside, layout, rgb_scene):
        root = rgb_scene(sequence, count=8)
        assert find_recording(root / sequence if inside else root).layout == layout

    def test_splits_and_order_are_numeric(self, dataset, rgb_scene, read):
        scene = read(dataset("replica"), eval=True)
        assert names(scene.test) == ["frame000000", "frame000125"]
        assert names(scene.train) == [f"frame{n:06d}" for n in (25, 50, 75, 100, 150, 175, 200, 225)]
        scene = read(rgb_scene(), eval=True)
        assert names(scene.train) == [f"rgb_{n}" for n in (0, 5, 10, 15, 20, 25, 30, 35)]
        assert names(scene.test) == [f"rgb_{n}" for n in (2, 7, 12, 17, 22, 27, 32, 37)]

    def test_numbers_are_matched_as_numbers(self, rgb_scene, read):
        # As strings rgb_10 sorts before rgb_2 and would get its pose.
        root = rgb_scene()
        scene, poses = read(root, eval=True), read_trajectory(root / "Sequence_1/traj_w_c.txt")
        by_name = {view.name: view for view in (*scene.train, *scene.test)}
        np.testing.assert_allclose(by_name["rgb_2"].camera.position, poses[2][:3, 3], atol=1e-12)
        np.testing.assert_allclose(by_name["rgb_10"].camera.position, poses[10][:3, 3], atol=1e-12)

    def test_only_frames_of_the_benchmark_are_read_and_png_photos_are_found_too(self, dataset, read):
        root = dataset("replica")
        (root / "results" / "frame000001.jpg").write_bytes(b"not a picture")
        Image.open(root / "results" / "frame000025.jpg").save(root / "results" / "frame000025.png")
        (root / "results" / "frame000025.jpg").unlink()
        lines = (root / "traj.txt").read_text().splitlines()
        lines[26] = " ".join(["nan"] * 16)  # a frame that is not used
        (root / "traj.txt").write_text("\n".join(lines))
        assert len(read(root).train) == 10

    def test_camera_file_may_lie_one_folder_up(self, dataset, read):
        root = dataset("replica")
        before = read(root).train[0].camera
        (root / "cam_params.json").rename(root.parent / "cam_params.json")
        assert read(root).train[0].camera.cx == before.cx == 16.0

    def test_processed_folder_with_transforms_is_still_replica(self, dataset, read):
        root = dataset("replica")
        (root / "transforms.json").write_text("{}")  # DN-Splatter writes one with the training frames only
        assert read(root).dataset == "replica"


class TestTruth:
    def test_ids_exceed_8_bits_and_zero_is_kept(self, dataset):
        root = dataset("replica")
        (root / "annotations/gt_instance/frame000050.png").unlink()
        truth = truth_of(root, "frame000025", "frame000001", "frame000050")
        assert set(truth) == {"frame000025"}  # the others have no map
        assert {0, LANDMARK_ID} <= set(np.unique(truth["frame000025"]).tolist())

    def vmap_beside_nice_slam(self, root):
        shutil.rmtree(root / "annotations")
        for n in range(0, 250, 25):
            write_mask(root / "semantic_instance" / f"semantic_instance_{n}.png", np.full((24, 32), 500 + n))

    def test_maps_of_vmap_serve_photos_of_the_same_walk(self, dataset):
        root = dataset("replica")
        self.vmap_beside_nice_slam(root)
        poses = read_trajectory(root / "traj.txt") + 0.9e-4
        np.savetxt(root / "traj_w_c.txt", poses.reshape(-1, 16))
        truth = truth_of(root, "frame000025", "frame000100")
        assert {name: int(ids.max()) for name, ids in truth.items()} == {"frame000025": 525, "frame000100": 600}

    @pytest.mark.parametrize("change", [lambda poses: poses + 1.1e-4, lambda poses: poses[:-1], lambda p: p * np.nan])
    def test_maps_of_another_walk_are_refused(self, change, dataset):
        root = dataset("replica")
        self.vmap_beside_nice_slam(root)
        np.savetxt(root / "traj_w_c.txt", change(read_trajectory(root / "traj.txt")).reshape(-1, 16))
        with pytest.raises(UserError, match=r"traj_w_c\.txt: is another walk than traj\.txt"):
            truth_of(root, "frame000025")

    def test_maps_without_a_trajectory_are_refused_and_no_maps_are_no_truth(self, dataset):
        root = dataset("replica")
        self.vmap_beside_nice_slam(root)
        with pytest.raises(UserError, match=r"traj_w_c\.txt: .*copy it"):
            truth_of(root, "frame000025")
        shutil.rmtree(root / "semantic_instance")
        assert truth_of(root, "frame000025") == {}


class TestInitialPoints:
    def test_depth_of_training_frames_lands_on_the_floor(self, dataset, read):
        root = dataset("replica")
        for n in (0, 125):  # the held-out frames
            (root / "results" / f"depth{n:06d}.png").write_bytes(b"must not be read")
        scene = read(root, eval=True)
        assert len(scene.points.positions) == 8 * 24 * 32  # every pixel: fewer than 100,000
        assert np.abs(scene.points.positions[:, 2]).max() < 1e-3  # half a depth unit is 0.08 mm
        assert any("6144 initial points from the scene" in note for note in scene.notes)

    def test_colours_are_those_of_the_pixels(self, rgb_scene, read):
        points = read(rgb_scene(), eval=True).points
        assert np.abs(points.positions[:, 2]).max() < 2e-3  # depth in millimetres
        near = np.linalg.norm(points.positions - LANDMARK, axis=1) < 0.2
        red, green, _ = points.colors[near].mean(axis=0)
        assert near.sum() > 20
        assert red > green + 40

    def test_count_and_seed(self, dataset):
        recording = find_recording(root := dataset("replica"))
        numbers = benchmark_frames(recording, 250)[0]
        frames = {numbers[frame.name]: frame for frame in describe(root, DataSettings(source_path=root)).frames}
        first, again = (depth_points(frames, recording, seed=0, count=95) for _ in range(2))
        other = depth_points(frames, recording, seed=1, count=95)
        assert first.positions.shape == (100, 3)  # ten of each frame
        np.testing.assert_array_equal(first.positions, again.positions)
        assert not np.array_equal(first.positions, other.positions)

    def test_pixels_of_unknown_depth_give_no_point(self, dataset, read):
        root = dataset("replica")
        path = root / "results" / "depth000025.png"
        depth = np.array(Image.open(path))
        depth[:12] = 0
        Image.fromarray(depth.astype(np.uint16)).save(path)
        points = read(root, eval=True).points.positions
        assert len(points) == 8 * 24 * 32 - 12 * 32
        assert np.abs(points[:, 2]).max() < 1e-3

    def test_depth_at_half_the_size_of_the_photo(self, dataset, read):
        root = dataset("replica")
        for path in (root / "results").glob("depth*.png"):
            halved = np.array(Image.open(path))[::2, ::2]  # taken at (0.25, 0.25) of the larger pixels
            Image.fromarray(halved.astype(np.uint16)).save(path)
        points = read(root, eval=True).points.positions
        assert len(points) == 8 * 12 * 16
        assert np.abs(points[:, 2]).max() < 0.1

    def test_own_cloud_is_preferred(self, dataset, read):
        root = dataset("replica")
        cloud = PointCloud(positions=np.eye(5, 3, 1, dtype=np.float32), colors=np.zeros((5, 3), np.uint8))
        cloud.positions[:, 0] = range(5)
        write_point_cloud(root / "point_cloud.ply", cloud)
        assert len(read(root).points.positions) == 5

    def test_missing_depth_maps_are_noted_and_without_any_points_come_from_the_photos(self, dataset, read):
        root = dataset("replica")
        (root / "results" / "depth000050.png").unlink()
        scene = read(root, eval=True)
        assert len(scene.points.positions) == 7 * 24 * 32
        assert any("1 of 8 training frames have no depth map" in note for note in scene.notes)
        for path in (root / "results").glob("depth*.png"):
            path.unlink()
        assert any("random" in note or "triangulated" in note for note in read(root).notes)

    def test_8_bit_depth_is_refused(self, dataset, read):
        root = dataset("replica")
        Image.new("L", (32, 24)).save(root / "results" / "depth000050.png")
        with pytest.raises(UserError, match=r"depth000050\.png: image mode L is not a 16-bit depth map"):
            read(root)


class TestBadInput:
    @pytest.mark.parametrize(
        ("line", "pattern"),
        [
            ("1 0 0 0", r"traj\.txt: line 26 does not hold the 16 numbers"),
            (None, r"traj\.txt: holds no pose"),
            (" ".join(["x"] * 16), r"traj\.txt: line 26 does not hold the 16 numbers"),
            ("", r"traj\.txt: line 26 does not hold the 16 numbers"),
            (" ".join(["nan"] * 16), r"traj\.txt: the pose of frame000025 \(line 26\) holds NaN"),
            ("1 0 0 0 0 1 0 0 0 0 -1 0 0 0 0 1", r"traj\.txt: the pose of frame000025 .*mirrors"),
        ],
    )
    def test_broken_trajectory_lines_are_named(self, line, pattern, dataset, read):
        root = dataset("replica")
        lines = (root / "traj.txt").read_text().splitlines()
        lines[25] = line
        (root / "traj.txt").write_text("\n\n" if line is None else "\n".join(lines))
        with pytest.raises(UserError, match=pattern):
            read(root)

    @pytest.mark.parametrize(
        ("content", "pattern"),
        [
            (None, "neither here nor one folder up"),
            ("{}", "has no object named camera"),
            ('{"camera": {"w": 32}}', "h is missing"),
            ("[", "not a readable JSON"),
            (json.dumps({"camera": NICE_SLAM_CAMERA | {"fx": 0}}), "sizes and focal lengths must"),
            (json.dumps({"camera": NICE_SLAM_CAMERA | {"w": 32, "h": 24, "scale": 1e-300}}), "scale is 1e-300"),
        ],
    )
    def test_broken_camera_file(self, content, pattern, dataset, read):
        root = dataset("replica")
        (root / "cam_params.json").unlink()
        if content is not None:
            (root / "cam_params.json").write_text(content)
        with pytest.raises(UserError, match=rf"cam_params\.json: {pattern}"):
            read(root)
