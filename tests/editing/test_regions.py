"""Edits of where objects end, by hand: a row of Gaussians on the x axis, one unit apart unless said otherwise."""

from dataclasses import replace

import pytest
import torch

from tests.editing.small_scene import gaussians_of, scene_of
from unified_lift.editing.operations import Merge
from unified_lift.editing.regions import Grow, Relabel, Shrink, Split
from unified_lift.editing.script import apply, dump, parse
from unified_lift.errors import UserError
from unified_lift.types import Similarity


def row(places, ids, **changes):
    """Return Gaussians at places of the x axis, confidence 0.5."""
    gaussians = gaussians_of(means=[[float(x), 0.0, 0.0] for x in places])
    return replace(scene_of(gaussians, ids, confidence=[0.5] * len(ids)), **changes)


TWO_HEAPS = [*range(10), *range(100, 106)]  # object 4 in heaps of ten and six


@pytest.mark.parametrize(
    ("places", "ids", "operation", "expected"),
    [
        (TWO_HEAPS, [4] * 16, Split(objects=(4,)), [4] * 10 + [5] * 6),  # the larger keeps the id
        (TWO_HEAPS[::-1], [4] * 16, Split(objects=(4,)), [5] * 6 + [4] * 10),  # whatever the order
        # a lone Gaussian of 41 is under 5 %: it goes with the nearer heap, which is the other one
        ([*range(20), *range(100, 120), 160], [4] * 41, Split(objects=(4,)), [4] * 20 + [5] * 21),
        # two objects split at once: the new ids are in their order; a third that lies apart stays
        (TWO_HEAPS * 2 + [0, 500], [7] * 16 + [4] * 16 + [0] * 2, Split(objects=(7, 4)),
         [7] * 10 + [8] * 6 + [4] * 10 + [9] * 6 + [0] * 2),
        (TWO_HEAPS, [4] * 16, Split(objects=(4,), box=((7, 1, 1), (3, -1, -1))), [4] * 3 + [5] * 5 + [4] * 8),
        ([0, 1, 2, 3], [4, 4, 0, 0], Split(objects=(-1,), box=((1, 0, 0), (2, 0, 0))), [4, 6, 5, 0]),
        ([0, 1, 2, 3], [4, 0, 0, 9], Grow(objects=(4,), distance=1), [4, 4, 0, 9]),
        ([0, 1, 2, 3], [4, 0, 0, 9], Grow(objects=(4, 9), distance=1.5), [4, 4, 9, 9]),
        ([0, 1, 2, 3], [4, 4, 0, 9], Shrink(objects=(4,), distance=1), [4, 0, 0, 9]),
        ([0, 1, 2, 3, 4], [4, 4, 0, 9, 9], Shrink(objects=(4, 9), distance=1), [4, 0, 0, 0, 9]),
        ([0, 1, 2, 3], [4, 4, 0, 9], Relabel(object=4, gaussians=(3, 0)), [4, 4, 0, 4]),
        ([0, 1, 2, 3], [4, 4, 0, 9], Relabel(object=12, centre=(2, 0, 0), radius=1), [4, 12, 12, 12]),
        ([0, 1, 2, 3], [4, 4, 0, 9], Relabel(object=4, centre=(2, 0, 0), radius=1, objects=(0,)), [4, 4, 4, 9]),
        ([0, 1, 2, 3], [4, 4, 0, 9], Relabel(object=7, centre=((0, 0, 0), (2.5, 0, 0)), radius=0.5), [7, 4, 7, 7]),
    ],
)  # fmt: skip
def test_gaussians_change_their_object_and_nothing_else_and_the_script_does_it_again(places, ids, operation, expected):
    scene = row(places, ids)
    edited = operation.apply(scene)
    assert edited.object_ids.tolist() == expected
    sure = {"Grow": 1.0, "Relabel": 1.0, "Shrink": 0.0, "Split": 0.5}[type(operation).__name__]
    changed = [sure if new != old else 0.5 for new, old in zip(expected, ids, strict=True)]
    assert edited.confidence.tolist() == changed
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(edited.gaussians, scene.gaussians, strict=True))
    assert scene.object_ids.tolist() == ids  # the one given stays
    assert parse(dump([operation])) == [operation]
    again = apply(scene, parse(dump([operation])))
    assert again.object_ids.tolist() == expected


def test_a_merged_object_is_split_into_what_it_was_made_of():
    scene = row(TWO_HEAPS, [4] * 10 + [7] * 6, names={4: "cup"})
    merged = Merge(objects=(4, 7)).apply(scene)
    assert merged.object_ids.tolist() == [4] * 16
    again = Split(objects=(4,)).apply(merged)
    assert again.object_ids.tolist() == [4] * 10 + [5] * 6
    assert again.name_of(5) == "part of cup"


def test_lengths_and_places_are_those_of_the_user():
    """Inside, lengths are half of the user's, and shifted: the user's x = 2 is 0 there."""
    scene = row([0, 1, 2, 3], [4, 0, 0, 0], frame=Similarity(offset=(2.0, 0.0, 0.0), scale=0.5))
    inside = scene.frame.inside(torch.tensor([[2.0, 0, 0]]).numpy())[0, 0]
    assert inside == 0
    assert Grow(objects=(4,), distance=2).apply(scene).object_ids.tolist() == [4, 4, 0, 0]
    with pytest.raises(UserError, match="no Gaussian lies within 1.9"):
        Grow(objects=(4,), distance=1.9).apply(scene)
    ball = Relabel(object=4, centre=(6.0, 0.0, 0.0), radius=2.0)  # x = 2 inside, radius 1
    assert ball.apply(scene).object_ids.tolist() == [4, 4, 4, 4]
    box = Split(objects=(0,), box=((5.0, 0, 0), (7.0, 0, 0)))
    assert box.apply(scene).object_ids.tolist() == [4, 0, 5, 0]


@pytest.mark.parametrize(
    ("operation", "told"),
    [
        (Split(objects=(4,)), "no piece is 3 spacings apart; lower gap"),
        (Split(objects=(4,), box=((0, 0, 0), (9, 0, 0))), "the box cuts none"),
        (Split(objects=(4,), box=((20, 0, 0), (30, 0, 0))), "the box cuts none"),
        (Split(objects=(8,)), "no object 8"),
        (Grow(objects=(4, 0), distance=1), "no Gaussian lies within 1"),
        (Shrink(objects=(4,), distance=10), "nothing would be left of object 4; lower distance"),
        (Shrink(objects=(0, 4), distance=0.1), "no Gaussian lies within 0.1"),
        (Relabel(object=4, gaussians=(9,)), "there is no Gaussian 9; the last is 5"),
        (Relabel(object=4, gaussians=(0,)), "no Gaussian lies"),  # it is 4 already
        (Relabel(object=4), "either gaussians, their numbers, or centre and radius"),
        (Relabel(object=4, gaussians=(1,), centre=(0, 0, 0), radius=1), "either gaussians"),
        (Relabel(object=4, centre=(0, 0, 0)), "either gaussians"),
    ],
)
def test_what_cannot_be_done_is_said(operation, told):
    with pytest.raises(UserError, match=told):
        operation.apply(row(range(6), [4, 4, 4, 0, 0, 0]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- split: {objects: [4], box: [[0, 0, 0]]}", "two corners"),
        ("- split: {objects: [4], gap: 0}", "positive number of spacings"),
        ("- grow: [4]", "grow needs 'distance'"),
        ("- shrink: {objects: [4], distance: -1}", "a positive length"),
        ("- relabel: {object: scene, centre: [0, 0, 0], radius: 1}", "an object id, old or new"),
        ("- relabel: {object: 4, gaussians: scene}", "numbers of Gaussians"),
        ("- relabel: {object: 4, gaussians: [1, 1]}", "different numbers"),
        ("- relabel: {objects: [4], centre: [0, 0, 0], radius: 1}", "relabel needs 'object'"),
        ("- splitt: [4]", "did you mean 'split'"),
    ],
)
def test_scripts_name_what_is_wrong(text, told):
    with pytest.raises(UserError, match=told):
        parse(text)
