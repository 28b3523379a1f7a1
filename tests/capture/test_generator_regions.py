"""Masks without a network: regions of like colour."""

import numpy as np
import pytest

from unified_lift.capture.mask_generators.regions import GENERATOR, RegionSettings, regions
from unified_lift.capture.masks import GRANULARITIES

WALL, FLOOR, BALL, CUP = (200, 190, 170), (90, 60, 40), (200, 30, 40), (40, 80, 200)


@pytest.fixture
def picture():
    """A ball and a cup before a wall and a floor, with sensor noise; and what is what."""
    truth = np.zeros((120, 160), dtype=np.int32)
    truth[80:] = 1
    rows, columns = np.mgrid[0:120, 0:160]
    truth[(rows - 70) ** 2 + (columns - 50) ** 2 < 25**2] = 2
    truth[50:95, 100:130] = 3
    clean = np.array([WALL, FLOOR, BALL, CUP], dtype=np.float64)[truth]
    noise = np.random.default_rng(0).normal(0, 4, clean.shape)
    return np.clip(clean + noise, 0, 255).astype(np.uint8), truth


def iou_of_best(ids, mask):
    return max((mask & (ids == one)).sum() / (mask | (ids == one)).sum() for one in np.unique(ids))


def test_things_of_one_colour_come_out_whole(picture):
    image, truth = picture
    ids = regions(image, RegionSettings())["whole"]
    assert ids.max() + 1 == 4
    for what in range(4):
        assert iou_of_best(ids, truth == what) > 0.95


def test_finer_granularities_are_nested_in_coarser_ones():
    image = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    maps = regions(image, RegionSettings())
    counts = [int(maps[granularity].max()) + 1 for granularity in GRANULARITIES]
    assert counts[0] < counts[1] < counts[2]
    for coarse, fine in (("whole", "part"), ("part", "subpart")):
        pairs = np.unique(np.stack([maps[fine].ravel(), maps[coarse].ravel()]), axis=1)
        assert len(np.unique(pairs[0])) == pairs.shape[1]  # each fine region lies in one coarse region


def test_a_larger_scale_merges_more(picture):
    image, _ = picture
    counts = [int(regions(image, RegionSettings(scale=scale))["whole"].max()) + 1 for scale in (0.2, 2.5, 1000)]
    assert counts[0] > counts[1] > counts[2] == 1


@pytest.mark.parametrize("tiles", [6, 2])
def test_a_checkered_carpet_is_one_region_and_what_lies_on_it_another(tiles):
    checks, middle = np.indices((tiles, tiles)).sum(axis=0) % 2, slice(tiles * 15 - 15, tiles * 15 + 15)
    image = np.array([(200, 60, 50), (70, 70, 160)], dtype=np.uint8)[np.kron(checks, np.ones((30, 30), dtype=int))]
    thing, corner = np.zeros((2, *image.shape[:2]), dtype=bool)
    thing[middle, middle], corner[:30, :30] = True, True
    image[thing] = (240, 240, 60)
    maps = regions(image, RegionSettings())
    assert (iou_of_best(maps["whole"], ~thing) > 0.95) == (tiles == 6)  # 2 x 2 squares are no pattern yet
    assert iou_of_best(maps["whole"], thing) > 0.8
    assert iou_of_best(maps["part"], corner & ~thing) > 0.8  # parts of a pattern are its tiles


def test_things_in_pale_photos_come_out_whole_too(picture):
    image, truth = picture
    pale = (170 + 0.08 * image).astype(np.uint8)
    for what in range(4):
        assert iou_of_best(regions(pale, RegionSettings())["whole"], truth == what) > 0.9


def test_specks_are_merged_however_strong_their_border(picture):
    image, _ = picture
    image[20:24, 20:24] = 0
    finest = regions(image, RegionSettings(min_share=0))["subpart"]
    assert finest[22, 22] != finest[10, 10]
    maps = regions(image, RegionSettings(min_share=0.01))
    assert maps["subpart"][22, 22] == maps["subpart"][10, 10]
    assert all(np.bincount(ids.ravel()).min() >= 0.01 * ids.size for ids in maps.values())


def test_every_pixel_belongs_to_one_proposal_of_each_level(picture):
    image, _ = picture
    proposals = GENERATOR.load(RegionSettings(), None).propose(image, GRANULARITIES)
    for granularity in GRANULARITIES:
        count = sum(proposal.mask.astype(int) for proposal in proposals if proposal.granularity == granularity)
        assert (count == 1).all()


def test_photos_larger_than_a_megapixel_come_back_at_their_own_size():
    image = np.full((1100, 1300, 3), 200, dtype=np.uint8)
    image[:, 650:] = (30, 60, 90)
    ids = regions(image, RegionSettings())["whole"]
    assert ids.shape == (1100, 1300)
    assert iou_of_best(ids, np.arange(1300)[None].repeat(1100, 0) >= 650) > 0.98


@pytest.mark.parametrize("shape", [(1, 1), (2, 50), (3, 3), (5, 400), (24, 32)])
def test_tiny_photos_and_plain_photos_are_one_region(shape):
    maps = regions(np.full((*shape, 3), 128, dtype=np.uint8), RegionSettings())
    assert all(maps[granularity].shape == shape and not maps[granularity].any() for granularity in GRANULARITIES)
