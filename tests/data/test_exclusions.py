"""Pixels that neither train nor count: who marks them, what it does to views and points, and what is said."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.fixtures import edit_json
from tests.data.fixtures.floor import LANDMARK, floor_photos, orbit
from unified_lift.capture.check import check_lines, check_scene
from unified_lift.data.images import write_image
from unified_lift.data.points import initial_points
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.ops.cameras import project
from unified_lift.types import View

LEFT = np.ones((24, 32), np.uint8)
LEFT[:, :8] = 0


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **({"quality": 90} if path.suffix == ".jpg" else {}))


def mask_path(root, picture):
    edit_json(
        root / "transforms.json", lambda data: [f.update(mask_path=f"m/{n}.png") for n, f in enumerate(data["frames"])]
    )
    for n in range(10):
        save(root / f"m/{n}.png", picture)


def dynamic_masks(root, picture):
    for n in range(10):
        save(root / f"images/dynamic_mask_{n:04d}.png", 255 * (picture == 0).astype(np.uint8))


def masks_folder(root, picture, name="masks/{}.png"):
    for n in range(10):
        save(root / name.format(f"{n:04d}"), picture)


def masks_like_colmap(root, picture):
    masks_folder(root, picture, "masks/{}.png.PNG")


def masks_as_jpeg(root, picture):
    masks_folder(root, 255 * picture, "masks/{}.jpg")


@pytest.mark.parametrize("mark", [mask_path, dynamic_masks, masks_folder, masks_like_colmap, masks_as_jpeg])
@pytest.mark.parametrize("scale", [1, 255])
def test_whoever_marks_pixels_they_do_not_count_and_it_is_said(dataset, read, mark, scale):
    root = dataset("transforms")
    mark(root, LEFT * scale if mark is not masks_as_jpeg else LEFT)
    scene = read(root)
    for view in scene.train:
        np.testing.assert_array_equal(view.valid.numpy(), LEFT > 0)
    assert not any("no pose" in note for note in scene.notes)
    assert any(
        "10 of 10 views have pixels that neither train nor count: 25.0% of theirs" in note for note in scene.notes
    )
    assert all(view.valid is None for view in read(root, exclude="none").train)
    check = check_scene(DataSettings(source_path=root))
    assert check.facts["left_out"] == {"views": 10, "share": 0.25}
    lines = [" ".join(line.split()) for line in check_lines(check)]
    assert "left out 25.0 % of the pixels of 10 views neither train nor count" in lines


def test_pictures_of_another_size_or_for_some_photos_are_fitted_and_noted(dataset, read):
    root = dataset("colmap")
    save(root / "masks/cam2/0000.png", np.kron(LEFT, np.full((2, 2), 255, np.uint8)))
    scene = read(root, resolution=2)
    views = {view.name: view.valid for view in scene.train}
    np.testing.assert_array_equal(views.pop("cam2/0000").numpy(), LEFT[::2, ::2] > 0)
    assert set(views.values()) == {None}
    assert any("8 of 9 photos have no picture there: cam1/0001" in note for note in scene.notes)
    save(root / "masks/cam2/0000.png", np.ones((32, 24), np.uint8))
    with pytest.raises(UserError, match=r"0000\.png: the mask is 24x32 but its image is 32x24"):
        read(root)


def test_a_folder_of_ids_is_none_of_what_to_leave_out_nor_is_that_of_the_objects(dataset, read):
    root = dataset("colmap")
    (root / "object_mask").rename(root / "masks")
    notes = read(root).notes
    assert any("masks: holds ids, not black and white; --object_path masks lifts them" in note for note in notes)
    scene = read(root, object_path="masks")
    assert len(scene.labelled) == 9
    assert all(view.valid is None for view in scene.train)


def test_a_named_folder_is_taken_and_a_wrong_one_is_the_users_to_correct(dataset, read):
    root = dataset("transforms")
    masks_folder(root, LEFT, "people/{}.png")
    assert all(view.valid is None for view in read(root).train)
    assert all((view.valid.numpy() == LEFT).all() for view in read(root, exclude="people").train)
    (root / "empty").mkdir()
    for name in ("gone", "empty"):
        with pytest.raises(UserError, match=f"{name}: holds no picture of a photo; correct --exclude"):
            read(root, exclude=name)


def test_a_missing_mask_path_is_an_error_for_its_frame_unless_none_is_wanted(dataset, read):
    root = dataset("transforms")
    mask_path(root, LEFT)
    edit_json(root / "transforms.json", lambda data: data["frames"][0].update(mask_path="C:\\data\\scene\\m\\0.png"))
    (root / "m/3.png").unlink()
    scene = read(root)
    assert len(scene.train) == 9
    assert any(r"m/3.png: mask_path of images/0006.png is missing" in note for note in scene.notes)
    assert len(read(root, exclude="none").train) == 10


def test_points_among_excluded_pixels_go_and_a_view_without_any_other_pixel_has_no_mask(dataset, read):
    root = dataset("transforms")
    for view in read(root).train:
        (u, v), _ = (values[0] for values in project(LANDMARK[None], view.camera))
        rows, columns = np.mgrid[:24, :32] + 0.5
        near = (np.hypot(columns - u, (rows - v)) < 6) | (view.name == "0007")
        save(root / f"masks/{view.name}.png", 255 * (~near).astype(np.uint8))
    before, scene = read(root, exclude="none"), read(root)
    near_coin = [np.linalg.norm(one.points.positions - LANDMARK, axis=1) < 0.15 for one in (before, scene)]
    assert near_coin[0].sum() > 0
    assert near_coin[1].sum() == 0
    assert len(scene.points.positions) > 0.7 * len(before.points.positions)
    assert any("points lie among such pixels" in note for note in scene.notes)
    assert {view.name for view in scene.train} - {view.name for view in scene.labelled} == {"0007"}


def with_alpha(root, alpha, *, folder="images"):
    for path in sorted((root / folder).rglob("*.png")):
        colours = np.array(Image.open(path).convert("RGB"))
        write_image(path, np.dstack([colours, np.broadcast_to(alpha, colours.shape[:2])]).astype(np.uint8))


HOLE = np.full((24, 32), 255)
HOLE[10:14, 10:20] = 0
CUT_OUT = np.where(np.hypot(*(np.mgrid[:24, :32] - [[[12]], [[16]]])) < 7, 255, 0)


@pytest.mark.parametrize(
    ("alpha", "settings", "meaning"),
    [
        (HOLE, {}, "mask"),
        (CUT_OUT, {}, "background"),
        (CUT_OUT, {"alpha": "mask"}, "mask"),
        (HOLE, {"alpha": "background"}, "background"),
        (HOLE, {"alpha": "ignore"}, "ignore"),
        (np.full((24, 32), 255), {}, "opaque"),
    ],
)
def test_alpha_of_colmap_photos(dataset, read, alpha, settings, meaning):
    root = dataset("colmap")
    plain = read(root).train
    with_alpha(root, alpha)
    scene = read(root, **settings)
    for view, before in zip(scene.train, plain, strict=True):
        clear = torch.from_numpy(alpha == 0)
        if meaning == "background":
            assert not view.image[clear].any()
        else:
            assert torch.equal(view.image, before.image)
        assert view.valid is None if meaning != "mask" else torch.equal(view.valid, ~clear)
    said = {
        "mask": "alpha below one half neither train nor count",
        "background": "lie over the background",
        "ignore": "alpha is ignored",
        "opaque": "",
    }[meaning]
    assert any("9 of 9 views are partly transparent" in note and said in note for note in scene.notes) == bool(said)


def test_transparent_photos_of_transforms_lie_over_the_background_of_the_renderer(dataset):
    from unified_lift.data import load_scene

    root = dataset("transforms")
    with_alpha(root, np.where(HOLE == 0, 51, 255))
    colours = np.array(Image.open(root / "images/0002.png"))[12, 15, :3].astype(int)
    settings = DataSettings(source_path=root, num_random_points=50)
    for white, expected in ((False, colours / 5), (True, colours / 5 + 204)):
        view = next(view for view in load_scene(settings, white=white).train if view.name == "0002")
        np.testing.assert_allclose(view.image[12, 15].numpy(), expected, atol=0.5)
        assert view.valid is None


def test_points_are_triangulated_from_pixels_that_count_alone():
    found, counts = [], torch.ones(90, 120, dtype=torch.bool)
    counts[20:70, 30:60] = False
    for garbage in (0, 255, "noise"):
        views, rng = [], np.random.default_rng(0)
        for n, photo in enumerate(floor_photos(orbit(10, width=120, height=90))):
            other = rng.integers(0, 256, photo.image.shape, dtype=np.uint8) if garbage == "noise" else garbage
            image = torch.from_numpy(np.where(counts[..., None].numpy(), photo.image, other).astype(np.uint8))
            views.append(View(name=str(n), camera=photo.camera, image=image, valid=counts))
        settings = DataSettings(num_random_points=1)
        found.append(initial_points(views, settings, own=None)[0])
        assert len(found[-1].positions) - found[-1].num_random > 50
        assert np.array_equal(found[-1].positions, found[0].positions)
        assert np.array_equal(found[-1].colors, found[0].colors)
