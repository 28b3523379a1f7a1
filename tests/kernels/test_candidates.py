"""The most alike of what lies within reach: by hand, and the kernel of every instruction set against the definition."""

import pytest
import torch
from diff_gaussian_rasterization.native import isa, use_isa

from unified_lift.kernels.candidates import nearest_two


@pytest.mark.parametrize("defined", [True, False])
def test_by_hand(defined):
    angle, rows = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([[1, 2], [3, 0], [9, 9]], dtype=torch.uint8)
    angle2 = torch.tensor([0.5, 0.25, 1.0, 5.0, 5.0])
    reach2 = torch.tensor([0.5, 0.2, 0.0, -1.0, torch.nan])
    rows2 = torch.tensor([[3, 1], [255, 255], [200, 0], [1, 1], [1, 1]], dtype=torch.uint8)
    found = nearest_two(angle, rows, angle2, reach2, rows2, defined=defined)
    # 0: only the first is within reach, 1*3 + 2*1; 1: 3*200 before 3*3; 5: negative and NaN reach take nothing
    assert found.row.tolist() == [0, 2, -1]
    assert found.best.tolist() == [5, 600, -1]
    assert found.second.tolist() == [-1, 9, -1]
    assert all(part.dtype == torch.int32 for part in found)


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize(("count", "count2", "width"), [(40, 9, 1), (70, 61, 128), (5, 0, 4), (0, 7, 4)])
def test_kernels_equal_the_definition(name, count, count2, width):
    generator, before = torch.Generator().manual_seed(count + width), isa()
    angle, angle2, reach2 = (torch.rand(size, generator=generator) for size in (count, count2, count2))
    rows, rows2 = (torch.randint(256, (n, width), generator=generator, dtype=torch.uint8) for n in (count, count2))
    arguments = angle, rows, angle2, reach2 - 0.5, rows2
    try:
        use_isa(name)  # on a machine without it what there is
        found = nearest_two(*arguments)
    finally:
        use_isa(before)
    expected = nearest_two(*arguments, defined=True)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert count2 == 0 or count == 0 or len(expected.second.unique()) > 2


def test_shapes_are_checked():
    row = torch.zeros(2, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="reach2"):
        nearest_two(torch.zeros(2), row, torch.zeros(2), torch.zeros(3), row)
