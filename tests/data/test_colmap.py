import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from tests.data.fixtures import write_dataset
from tests.data.fixtures.colmap_model import points_of, read_model, write_model
from unified_lift.data.base import Frame, fit_lens
from unified_lift.data.colmap_tables import MODELS, ColmapCamera, read_cameras, read_images, read_points
from unified_lift.data.images import write_image
from unified_lift.data.lens import Lens
from unified_lift.errors import UserError
from unified_lift.plyio import write_point_cloud
from unified_lift.types import PointCloud

CAMERAS_HEX = (
    "01000000000000000100000001000000400000000000000030000000000000000000000000004940000000000080494000000000000040400000"
    "000000003840"
)
IMAGES_HEX = (
    "010000000000000003000000000000000000f03f0000000000000000000000000000000000000000000000009a9999999999b93f9a9999999999"
    "c93f333333333333d33f01000000612f622e706e67000200000000000000000000000000254000000000008034400700000000000000000000000"
    "000f03f0000000000000040ffffffffffffffff"
)
POINTS_HEX = (
    "01000000000000000700000000000000000000000000f03f00000000000000400000000000000840ff8000000000000000d03f02000000000000"
    "0003000000000000000400000005000000"
)


@pytest.fixture
def fixture_model(tmp_path):
    for table, content in (("cameras", CAMERAS_HEX), ("images", IMAGES_HEX), ("points3D", POINTS_HEX)):
        (tmp_path / f"{table}.bin").write_bytes(bytes.fromhex(content))
    return tmp_path


def check_fixture(folder, suffix):
    (key, camera), *_ = read_cameras(folder / f"cameras{suffix}").items()
    assert key == 1
    assert camera == ColmapCamera(model="PINHOLE", width=64, height=48, params=(50.0, 51.0, 32.0, 24.0))
    (key, image), *_ = read_images(folder / f"images{suffix}").items()
    assert (key, image.name, image.camera_id) == (3, "a/b.png", 1)
    assert image.qvec == (1.0, 0.0, 0.0, 0.0)
    assert image.tvec == (0.1, 0.2, 0.3)
    assert image.points2d["xy"].tolist() == [[10.5, 20.5], [1.0, 2.0]]
    assert image.points2d["point3d"].tolist() == [7, -1]
    points = read_points(folder / f"points3D{suffix}")
    assert points.ids.tolist() == [7]
    assert points.positions.tolist() == [[1.0, 2.0, 3.0]]
    assert points.colors.tolist() == [[255, 128, 0]]


def test_a_model_written_by_colmap_parses_as_bytes_and_as_text(fixture_model, tmp_path):
    check_fixture(fixture_model, ".bin")
    write_model(tmp_path / "text", *read_model(fixture_model), text=True)
    check_fixture(tmp_path / "text", ".txt")


@pytest.mark.parametrize("text", [False, True])
def test_every_camera_model_keeps_its_place_in_the_file(text, tmp_path):
    cameras = {
        100 - n: ColmapCamera(
            model=name, width=n + 1, height=2, params=tuple(float(k) for k in range(len(params.split())))
        )
        for n, (name, params) in MODELS.items()
    }
    write_model(tmp_path, cameras, {}, points_of(np.zeros((0, 3)), np.zeros((0, 3))), text=text)
    assert read_cameras(tmp_path / f"cameras.{'txt' if text else 'bin'}") == cameras


def test_unknown_camera_models_are_refused(tmp_path):
    data = bytearray(bytes.fromhex(CAMERAS_HEX))
    data[12] = 99
    (tmp_path / "cameras.bin").write_bytes(data)
    with pytest.raises(UserError, match=r"cameras\.bin: unknown camera model 99.*image_undistorter"):
        read_cameras(tmp_path / "cameras.bin")
    (tmp_path / "cameras.txt").write_text("# header\n1 PINHOLED 4 4 1 1 1 1\n")
    with pytest.raises(UserError, match=r"cameras\.txt: unknown camera model 'PINHOLED'"):
        read_cameras(tmp_path / "cameras.txt")


def scenes_agree(first, second):
    for a, b in zip((*first.train, *first.test), (*second.train, *second.test), strict=True):
        assert a.name == b.name
        np.testing.assert_allclose(a.camera.cam_from_world, b.camera.cam_from_world)
        assert (a.camera.fx, a.camera.cx, a.camera.cy) == (b.camera.fx, b.camera.cx, b.camera.cy)
    np.testing.assert_array_equal(first.points.positions, second.points.positions)
    np.testing.assert_array_equal(first.points.colors, second.points.colors)


@pytest.mark.parametrize("place", ["sparse", "colmap/sparse/0"])
def test_the_model_is_found_where_tools_put_it(place, dataset, read):
    root = dataset("colmap")
    expected = read(root)
    (root / "sparse" / "0").rename(root / "model")
    (root / "sparse").rmdir()
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / "model").rename(root / place)
    scenes_agree(read(root), expected)


def test_text_and_binary_give_the_same_scene_and_rigs_and_frames_are_ignored(dataset, read):
    root = dataset("colmap")
    expected = read(root)
    for name in ("rigs.bin", "frames.bin"):
        (root / "sparse" / "0" / name).write_bytes(b"anything")
    scenes_agree(read(root), expected)
    (root / "sparse").rename(root / "binary")
    (root / "sparse_text").rename(root / "sparse")
    scenes_agree(read(root), expected)


def test_names_keep_folders_spaces_and_inner_dots_and_cameras_their_principal_points(dataset, read):
    scene = read(dataset("colmap"))
    names = [view.name for view in scene.train]
    assert names == ["cam1/0001", "cam1/a.b", "cam1/with space", *[f"cam2/{n:04d}" for n in range(6)]]
    for view in scene.train:
        expected = (17.5, 11.0) if view.name.startswith("cam1") else (16.0, 12.0)
        assert (view.camera.cx, view.camera.cy) == expected
    assert scene.zero_id == "ignore"


def test_test_list_decides_the_split_with_eval(dataset, read):
    root = dataset("colmap")
    (root / "test.txt").write_text("cam1/with space.png\ncam1/a.b\n\n")
    assert [view.name for view in read(root, eval=True).test] == ["cam1/a.b", "cam1/with space"]
    assert read(root).test == ()
    (root / "test.txt").write_text("unknown.png\n")
    with pytest.raises(UserError, match=r"test\.txt: the split lists unknown\.png, which is no photo"):
        read(root, eval=True)


def test_prescaled_images_scale_the_intrinsics(dataset, read):
    root = dataset("colmap")
    expected = read(root)
    for view in expected.train:
        write_image(root / "images_2" / f"{view.name}.png", view.image.numpy()[::2, ::2])
    scene = read(root, images="images_2")
    for a, b in zip(expected.train, scene.train, strict=True):
        assert b.camera.fx == a.camera.fx / 2
        assert b.segments.shape == (12, 16)
    assert any("intrinsics of 32x24 scaled to 16x12" in note for note in scene.notes)


def test_distorted_models_are_undistorted_and_noted(dataset, read):
    root = dataset("colmap")
    folder = root / "sparse" / "0"
    cameras, images, points = read_model(folder)
    focal, *centre = cameras[3].params
    cameras[3] = dataclasses.replace(cameras[3], model="SIMPLE_RADIAL", params=(focal, *centre, 0.4))
    write_model(folder, cameras, images, points)
    scene = read(root)
    note = next(note for note in scene.notes if "undistorted" in note)
    assert note.startswith("6 of 9 views")
    view = next(view for view in scene.train if view.name == "cam2/0000")
    assert view.camera.fx == focal
    assert view.image[0, 0].tolist() == [0, 0, 0]
    assert view.segments[0, 0] == 0
    plain = next(view for view in scene.train if view.name == "cam1/0001")
    assert plain.image[0, 0].any()


def test_points_come_from_a_ply_beside_the_model_else_from_the_photos(dataset, read):
    root = dataset("colmap")
    folder = root / "sparse" / "0"
    (folder / "points3D.bin").unlink()
    scene = read(root)
    assert len(scene.points.positions) >= 50
    assert any("in the camera frusta" in note for note in scene.notes)
    cloud = PointCloud(positions=np.arange(15, dtype=np.float32).reshape(5, 3), colors=np.full((5, 3), 9, np.uint8))
    write_point_cloud(folder / "points3D.ply", cloud)
    np.testing.assert_array_equal(read(root).points.positions, cloud.positions)


def as_text(root):
    """Leave the text model alone in its place and return its folder."""
    (root / "sparse").rename(root / "binary")
    (root / "sparse_text").rename(root / "sparse")
    return root / "sparse/0"


def without_second_lines(text):
    return "".join(line for line in text.splitlines(keepends=True) if line.startswith("#") or len(line.split()) > 9)


def half_of_second_lines(text):
    lines = text.splitlines(keepends=True)
    return "".join(line for n, line in enumerate(lines) if len(line.split()) > 9 or n % 4 == 0)


def commented(text):
    return "  # by hand\n" + "".join(f"{line}# and on\n" for line in text.splitlines(keepends=True))


@pytest.mark.parametrize(
    "rewrite",
    [
        without_second_lines,
        half_of_second_lines,
        commented,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("\n\n", "\n\n\n\n"),
    ],
)
@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_tables_are_read_as_people_write_them(rewrite, coding, dataset, read):
    root = dataset("colmap")
    expected = read(root)
    folder = as_text(root)
    for path in folder.iterdir():
        text = path.read_text()
        path.write_bytes((rewrite(text) if path.name == "images.txt" else text).encode(coding))
    scenes_agree(read(root), expected)


def test_tables_by_hand_may_name_models_in_lower_case_and_points_without_errors(tmp_path):
    (tmp_path / "cameras.txt").write_text("1 pinhole 64 48 50 51 32 24  # the phone\n")
    assert read_cameras(tmp_path / "cameras.txt")[1].model == "PINHOLE"
    (tmp_path / "points3D.txt").write_text("1 1 2 3 255 128 0\n2 4 5 6 1 2 3 0.5\n3 7 8 9 4 5 6 0.5 1 2 3 4\n")
    points = read_points(tmp_path / "points3D.txt")
    assert points.positions.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert points.colors[0].tolist() == [255, 128, 0]


@pytest.mark.parametrize("name", ["0001", "12 13", "a b c.png", "#1.png"])
def test_names_of_numbers_and_words_are_no_2d_points(name, tmp_path):
    line = f"{{}} 1 0 0 0 0 0 1 1 {name}\n"
    for between in ("", "\n", "1.5 2.5 -1\n", "1.5 2.5 -1 4 5 6 7 8 9 10 11 12\n"):
        (tmp_path / "images.txt").write_text((line.format(1) + between + line.format(2) + between))
        images = read_images(tmp_path / "images.txt")
        assert [(key, image.name, image.camera_id) for key, image in images.items()] == [(1, name, 1), (2, name, 1)]
        assert [len(image.points2d) for image in images.values()] == [len(between.split()) // 3] * 2


def test_of_several_models_the_largest_is_read_or_the_one_chosen(dataset, read):
    root = dataset("colmap")
    expected = read(root)
    cameras, images, points = read_model(root / "sparse/0")
    (root / "sparse/0").rename(root / "sparse/2")
    few = dict(list(images.items())[:4])
    write_model(root / "sparse/0", cameras, few, points)
    write_model(root / "sparse/10", cameras, dict(list(images.items())[:2]), points, text=True)
    write_model(root / "sparse/copy", cameras, images, points)
    scene = read(root)
    scenes_agree(scene, expected)
    note = (
        "sparse/2 is read, of 4 COLMAP models the largest: 2 (9 images), copy (9 images), 0 (4 images), 10 (2 images)"
    )
    assert any(note in line and "--sparse" in line for line in scene.notes)
    for chosen in ("0", "sparse/0"):
        assert {view.name for view in read(root, sparse=chosen).train} == {
            image.name.removesuffix(".png") for image in few.values()
        }
    with pytest.raises(UserError, match=r"sparse/5: no COLMAP model; correct --sparse \(there is 2 \(9 images\)"):
        read(root, sparse="5")


def test_a_cut_model_beside_a_whole_one_does_no_harm(dataset, read):
    root = dataset("colmap")
    expected = read(root)
    (root / "sparse/1").mkdir()
    for table in ("cameras", "images"):
        (root / f"sparse/1/{table}.bin").write_bytes(b"")
    scenes_agree(read(root), expected)


@pytest.mark.parametrize("text", [True, False])
def test_an_empty_table_of_points_is_none(text, dataset, read):
    root = dataset("colmap")
    folder = as_text(root) if text else root / "sparse/0"
    if text:
        (folder / "points3D.txt").write_text("# 3D point list\n")
    else:
        (folder / "points3D.bin").write_bytes(bytes(8))
    (root / "binary").mkdir(exist_ok=True)
    notes = read(root).notes
    assert "own cloud holds 0 usable points, " in notes[-1]
    assert "in the camera frusta" in notes[-1]


def test_a_ply_beside_the_table_is_read_as_3dgs_does_unless_it_is_its_copy(dataset, read):
    root = dataset("colmap")
    folder = root / "sparse/0"
    table = read_points(folder / "points3D.bin")
    copy = PointCloud(positions=table.positions.astype(np.float32) + 7, colors=table.colors)
    write_point_cloud(folder / "points3D.ply", copy)
    np.testing.assert_array_equal(read(root).points.positions, table.positions.astype(np.float32))
    more = PointCloud(positions=np.tile(copy.positions, (2, 1)), colors=np.tile(table.colors, (2, 1)))
    more.positions[len(copy.positions) :, 0] += 0.5
    write_point_cloud(folder / "points3D.ply", more)
    scene = read(root)
    assert len(scene.points.positions) == len(more.positions)
    told = f"points3D.ply gives the initial points, as in 3DGS; remove it for the {len(table.ids)} of points3D.bin"
    assert told in scene.notes


def test_a_2d_point_of_no_number_is_of_no_point(tmp_path):
    write_dataset("colmap", tmp_path)
    path = tmp_path / "sparse_text/0/images.txt"
    lines = path.read_text().splitlines()
    at = next(index for index, line in enumerate(lines) if not line.startswith("#")) + 1
    for word in ("nan", "inf", "9" * 20):
        lines[at] = f"1.5 2.5 {word} 3 4 5"
        path.write_text("\n".join(lines) + "\n")
        image = next(iter(read_images(path).values()))
        assert image.points2d["point3d"].tolist() == [-1, 5]


@pytest.mark.parametrize("line", ["nan 1 2 3 4 5 6 1", "1e30 1 2 3 4 5 6 1", "1 1 2 3 nan 5 6 1", "1 1 2 3 4 inf 6 1"])
def test_a_point_of_no_number_or_no_colour_is_told(line, tmp_path):
    (tmp_path / "points3D.txt").write_text(f"7 1 2 3 4 5 6 1\n{line}\n")
    with pytest.raises(UserError, match=r"points3D.txt: point .* has no number or no colour"):
        read_points(tmp_path / "points3D.txt")


@pytest.mark.parametrize("values", [{"fx": 1e-300}, {"cy": 1e308}, {"fy": 1e30}, {"coefficients": (math.nan,)}])
def test_a_lens_out_of_all_range_is_told_whatever_the_layout(values):
    lens = Lens(**({"fx": 80.0, "fy": 80.0, "cx": 40.0, "cy": 30.0, "width": 80, "height": 60} | values))
    frame = Frame(name="a", image_path=Path("a.png"), cam_from_world=np.eye(4), lens=lens, source=Path("poses.json"))
    with pytest.raises(UserError, match=r"poses.json: the lens of a \(.*\) holds a number out of all range"):
        fit_lens(frame, width=80, height=60)
