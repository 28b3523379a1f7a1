import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_lift.train.refine import pixel_targets


def targets(own, slot, num_segments, num_codes):
    own, slot = torch.tensor(own, dtype=torch.int64), torch.tensor(slot, dtype=torch.int32)
    return pixel_targets(own, slot, num_segments, num_codes).tolist()


def test_strays_take_the_code_of_their_segment_and_swallowed_objects_keep_their_own():
    # Segment 0: code 0 five times. Two of the three pixels of code 1: swallowed. One of the four of code 2: a stray.
    # Segment 1: code 2 three times; code 1's third pixel is a stray. A pixel without label has no target.
    own = [0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 1, 0]
    slot = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, -1]
    assert targets(own, slot, 2, 3) == [0, 0, 0, 0, 0, 1, 1, 0, 2, 2, 2, 2, -1]


def test_half_of_a_code_is_not_most_of_it():
    assert targets([0, 0, 1, 2, 2, 1], [0, 0, 0, 1, 1, 1], 2, 3) == [0, 0, 0, 2, 2, 2]


def test_what_lies_mostly_without_label_is_no_object_of_the_segment():
    assert targets([0, 0, 1, 1, 1], [0, 0, 0, -1, -1], 1, 2) == [0, 0, 0, -1, -1]


def test_no_label_no_target():
    assert targets([0, 1], [-1, -1], 0, 2) == [-1, -1]
    assert targets([], [], 0, 2) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 4)), min_size=1, max_size=60))
def test_equals_counting_one_pixel_at_a_time(pixels):
    slot, own = [s for s, _ in pixels], [c for _, c in pixels]
    expected = []
    for segment, code in pixels:
        counts = [sum(p == (segment, k) for p in pixels) for k in range(5)]
        is_held = 2 * counts[code] > own.count(code)
        expected.append(-1 if segment < 0 else code if is_held else counts.index(max(counts)))
    assert targets(own, slot, 4, 5) == expected
