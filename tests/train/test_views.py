import threading

import pytest
import torch

from unified_lift.data.on_demand import Decoder, Pixels, ViewOnDemand
from unified_lift.train.views import Prefetcher, ViewOrder

CPU = torch.device("cpu")


def test_every_view_comes_once_before_any_comes_again():
    order = ViewOrder(5, seed=0)
    rounds = [[order.next_index() for _ in range(5)] for _ in range(3)]
    assert all(sorted(indices) == [0, 1, 2, 3, 4] for indices in rounds)
    assert rounds[0] != rounds[1] or rounds[1] != rounds[2]


def test_looking_ahead_tells_the_next_view_and_changes_no_order():
    seen, order, blind = [], ViewOrder(4, seed=3), ViewOrder(4, seed=3)
    for _ in range(10):
        (ahead, *_), stack = order.upcoming(2), list(order.stack)
        assert order.upcoming(3) == stack[::-1][:3]
        copy = ViewOrder(4, seed=8)
        copy.load_state_dict(order.state_dict())  # as a checkpoint taken after looking ahead
        assert copy.next_index() == ahead
        assert order.next_index() == ahead
        seen.append(ahead)
    assert seen == [blind.next_index() for _ in range(10)]


def test_views_in_memory_are_handed_out_as_they_are(scene):
    source = Prefetcher(scene.train, ("image",), kept_on="cpu", device=CPU)
    assert source.get(2, then=[4]) is scene.train[2]
    assert list(source.all()) == list(scene.train)


@pytest.mark.parametrize("fields", [("image", "segments", "valid"), ("segments",)])
def test_views_on_disk_arrive_in_any_order_and_only_with_the_fields_asked_for(scene, fields):
    source = Prefetcher(scene.train, fields, kept_on="disk", device=CPU)
    for index, then in (
        (0, [3]),
        (3, [5, 1]),
        (1, [1]),
        (1, []),
        (4, [0]),
    ):  # foretold, not foretold, twice, nothing foretold
        view = source.get(index, then=then)
        assert view.name == scene.train[index].name
        assert torch.equal(view.segments, scene.train[index].segments)
        assert torch.equal(view.image, scene.train[index].image)
        assert view.valid is None
    assert [view.name for view in source.all()] == [view.name for view in scene.train]
    source.close()


def on_demand(scene, decode, max_bytes=0):
    decoder = Decoder(decode, max_bytes=max_bytes)
    return [ViewOnDemand(decoder, index, name=view.name, camera=view.camera) for index, view in enumerate(scene.train)]


def test_the_foretold_views_are_decoded_before_anybody_asks_for_them(scene):
    read = [threading.Event() for _ in scene.train]

    def decode(index):
        read[index].set()
        return Pixels(scene.train[index].image)

    source = Prefetcher(on_demand(scene, decode), ("image",), kept_on="disk", device=CPU)
    assert torch.equal(source.get(0, then=[2, 4]).image, scene.train[0].image)
    assert read[2].wait(10)
    assert read[4].wait(10)
    assert [event.is_set() for event in read] == [True, False, True, False, True, False]
    source.close()


def test_an_error_while_reading_reaches_the_step(scene):
    def decode(index):
        raise OSError("the disk is gone")

    source = Prefetcher(on_demand(scene, decode), ("image",), kept_on="disk", device=CPU)
    with pytest.raises(OSError, match="the disk is gone"):
        source.get(0)
    source.close()
