"""Which object is meant, and which Gaussians belong to it."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.editing.small_scene import gaussians_of, scene_of
from tests.fake_transformers import Batch, Model, loader, package
from unified_lift.editing import query
from unified_lift.editing.operations import Duplicate, Remove
from unified_lift.errors import UserError
from unified_lift.model.gaussians import SH_C0
from unified_lift.modelfolder.inference import object_at
from unified_lift.modelfolder.labels import segment_by_labels
from unified_lift.ops.cameras import look_at
from unified_lift.types import Camera


def camera(position=(0.0, 0.0, -4.0)):
    pose = look_at(np.array(position), np.zeros(3), np.array([0.0, -1, 0]))
    return Camera(cam_from_world=pose, fx=40, fy=40, cx=20, cy=15, width=40, height=30)


@pytest.fixture
def balls():
    """Three balls seen from the front: 3 left, 5 right, and 8 behind 5; 3 and 8 have nearly the same feature."""
    red_green_blue = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9]])
    gaussians = gaussians_of(
        means=[[-1, 0, 0], [1, 0, 0], [1, 0, 2]],
        sh0=(red_green_blue[:, None] - 0.5) / SH_C0,
        features=[[1, 0], [0, 1], [0.9, 0.1]],
        log_scales=[[-1.2] * 3] * 3,
        logit_opacities=[4.0] * 3,
    )
    return scene_of(gaussians, [3, 5, 8], confidence=[1.0, 1.0, 1.0])


# ---- by a point ----


def test_a_pixel_shows_the_object_in_front(balls):
    # Pixels of the centres: 20 -+ 40 / 4 = 10 and 30.
    assert object_at(balls, camera(), 10.0, 15.0) == 3
    assert object_at(balls, camera(), 30.0, 15.0) == 5
    behind = camera((0.0, 0.0, 6.0))  # looks back: x is mirrored
    assert object_at(balls, behind, 20 - 40 / 4, 15.0) == 8
    assert object_at(balls, camera(), 0.5, 0.5) is None


def test_copies_are_told_apart_though_their_features_are_those_of_the_original(balls):
    both = Duplicate(objects=(3,), translate=(2.0, 0.0, 0.0)).apply(Remove(objects=(5, 8)).apply(balls))
    assert object_at(both, camera(), 10.0, 15.0) == 3
    assert object_at(both, camera(), 30.0, 15.0) == 4


@pytest.mark.parametrize("point", [(-1, 5), (40, 5), (5, 30), (float("nan"), 5)])
def test_a_point_outside_the_image_is_an_error(balls, point):
    with pytest.raises(UserError, match="outside the image of 40 x 30"):
        object_at(balls, camera(), *point)


def test_masks_are_disjoint_and_empty_pixels_belong_to_none(balls):
    masks = query.object_masks(balls, camera())
    assert set(masks) == {3, 5, 8}
    assert (sum(mask.astype(int) for mask in masks.values()) <= 1).all()
    assert not any(mask[0, 0] for mask in masks.values())
    assert masks[3][15, 10]


def test_asking_pixels_in_blocks_changes_nothing(balls):
    whole = segment_by_labels(balls.gaussians, balls.object_ids, camera())
    blocks = segment_by_labels(balls.gaussians, balls.object_ids, camera(), max_votes=100)
    assert torch.equal(whole.object_ids, blocks.object_ids)
    assert torch.equal(whole.confidence, blocks.confidence)
    assert whole.object_ids.unique().tolist() == [0, 3, 5, 8]
    assert float(whole.confidence.max()) <= 1.0001


def test_the_best_view_is_the_one_with_most_pixels(balls):
    assert query.best_views(balls, [camera(), camera((0.0, 0.0, 6.0))]) == {3: 0, 5: 0, 8: 1}


# ---- by likeness, masks and words ----


def test_like_goes_by_the_cosine_of_mean_features(balls):
    found = query.objects_like(balls, 3)
    assert list(found) == [8, 5]
    assert found[8] == pytest.approx(0.9 / np.hypot(0.9, 0.1))
    assert found[5] == pytest.approx(0)
    with pytest.raises(UserError, match="no object 4"):
        query.objects_like(balls, 4)


def test_unseen_gaussians_do_not_decide_what_an_object_is_like():
    gaussians = gaussians_of(means=torch.zeros(6, 3), features=[[1, 0], [0, 1], [0, 1], [0, 1], [1, 0], [0, 1]])
    scene = scene_of(gaussians, [1, 1, 1, 1, 2, 3], confidence=[1.0, 0, 0, 0, 1, 1])
    assert next(iter(query.objects_like(scene, 1))) == 2


def by_color(images, texts):
    """Encode a picture as the channel that stands out most in it; words are red, nothing, or grey."""
    spread = [(image - image.min(axis=2, keepdims=True)).sum(axis=(0, 1)) for image in images]
    words = {"red": (1.0, 0, 0), "nothing here": (-1.0, -1, -1)}
    words = torch.tensor([words.get(text, (1.0, 1, 1)) for text in texts])
    return torch.eye(3)[np.argmax(spread, axis=1)], torch.nn.functional.normalize(words, dim=1)


def test_words_find_what_fits_them_better_than_the_word_object(balls):
    shown = []

    def encode(images, texts):
        shown.extend(images)
        return by_color(images, texts)

    found = query.objects_by_text(balls, "red", [camera()], encode)
    assert list(found) == [3]
    assert found[3] > query.MIN_RELEVANCY
    assert len(shown) == 6  # each of three objects with and without its surroundings
    assert all(image.dtype == np.uint8 and image.shape[0] < 30 and image.shape[1] < 40 for image in shown)
    assert query.objects_by_text(balls, "nothing here", [camera()], by_color) == {}
    away = camera()
    away.cam_from_world[:3, 3] += [0, 0, -50]
    assert query.objects_by_text(balls, "red", [away], by_color) == {}


# ---- CLIP behind a stand-in for transformers ----


def fake_clip(*, images, texts):
    return SimpleNamespace(image_embeds=3 * torch.eye(4)[images], text_embeds=2 * torch.eye(4)[texts].double())


class FakeProcessor:
    batches: list[int] = []

    def __call__(self, *, text, images, padding, return_tensors):
        assert (padding, return_tensors) == (True, "pt")
        self.batches.append(len(images))
        return Batch(images=[image.getpixel((0, 0))[0] for image in images], texts=[len(word) for word in text])


@pytest.fixture
def clip(tmp_path, monkeypatch):
    FakeProcessor.batches = []
    library = package(CLIPProcessor=loader(FakeProcessor()), CLIPModel=loader(Model(fake_clip)))
    monkeypatch.setitem(sys.modules, "transformers", library)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_clip_encodes_pictures_in_batches_and_returns_unit_vectors(clip):
    encode = query.clip_encoder(clip, device=torch.device("cpu"))
    images = [np.full((3, 5, 3), index % 4, np.uint8) for index in range(40)]
    encoded, words = encode(images, ["ab", "c"])
    assert FakeProcessor.batches == [32, 8]
    assert torch.equal(encoded, torch.eye(4)[[index % 4 for index in range(40)]])
    assert torch.equal(words, torch.eye(4)[[2, 1]])


def test_clip_that_is_not_there_is_told(clip):
    with pytest.raises(UserError, match="--model .*nowhere: no such folder"):
        query.clip_encoder(clip / "nowhere", device=torch.device("cpu"))
    (clip / "config.json").unlink()
    with pytest.raises(UserError, match="--model .*cannot be loaded .*CLIPModel"):
        query.clip_encoder(clip, device=torch.device("cpu"))
