import pytest
import torch

from unified_lift.ops.blocks import Blocks, boxes_of, z_order


def test_z_order_by_hand():
    # cells (0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1) of the two halves of each axis, last axis slowest
    points = torch.tensor([[3.0, 3, 3], [0, 3, 0], [3, 0, 0], [0, 0, 0]])
    assert z_order(points).tolist() == [3, 2, 1, 0]


def test_boxes_are_around_points_that_follow_one_another():
    low, high = boxes_of(torch.tensor([[0.0], [4], [2], [9], [7]]), size=2)
    assert low.tolist() == [[0], [2], [7]]
    assert high.tolist() == [[4], [9], [7]]


@pytest.mark.parametrize(("count", "size"), [(1, 8), (8, 8), (9, 8), (300, 8)])
def test_every_point_is_in_one_block_and_none_that_reaches_a_box_is_missed(count, size):
    generator = torch.Generator().manual_seed(count)
    points = 10 * torch.rand(count, 3, generator=generator)
    reach = torch.rand(count, generator=generator)
    reach[count // 2] = 30.0
    blocks = Blocks.of(points, reach, size=size)
    assert torch.equal(torch.cat(blocks.rows).sort().values, torch.arange(count, dtype=torch.int32))
    assert max(map(len, blocks.rows)) <= size
    low = torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64)
    high = low + 1.5
    away = torch.maximum(low - points, points - high).clamp(min=0).norm(dim=1)
    near = blocks.points_in(blocks.touching(low, high, 0.5))
    assert near.tolist() == sorted(near.tolist())
    assert set((away <= reach + 0.5).nonzero()[:, 0].tolist()) <= set(near.tolist())
    some = torch.arange(len(blocks.rows))[[i for i in range(len(blocks.rows)) if i % 3 != 1]]  # neighbours and gaps
    assert torch.equal(blocks.points_in(some), torch.cat([blocks.rows[i] for i in some.tolist()]).sort().values)
    if count == 300:
        assert len(near) < 150
    assert len(blocks.points_in(torch.zeros(0, dtype=torch.int64))) == 0
