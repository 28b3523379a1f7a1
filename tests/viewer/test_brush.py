"""Strokes of the brush, without a viewer."""

import pytest
import torch

from tests.saved_model import camera_above, floor_scene
from unified_lift.editing.operations import Isolate
from unified_lift.editing.script import dump, parse
from unified_lift.errors import UserError
from unified_lift.types import IDENTITY, Similarity
from unified_lift.viewer.brush import Stroke
from unified_lift.viewer.session import Session

BORDER = torch.tensor([0.5, 0.45, 0.0])  # of object 1 to the floor, object 0
SHARE = 10 / 64  # 10 of 64 pixels; at a focal length of 80, seen from 2 units above, they are 0.25 units


@pytest.mark.parametrize("frame", [IDENTITY, Similarity(offset=(3.0, -1.0, 7.0), scale=4.0)])
@pytest.mark.parametrize(
    ("selection", "hidden", "givers"), [((2,), (), (0, 1, 3)), ((0, 2), (), (0,)), ((2,), (3,), (0, 1))]
)
def test_a_dab_takes_a_ball_on_the_surface_from_those_that_may_give(frame, selection, hidden, givers):
    session = Session(floor_scene(frame=frame))
    session.select(*selection)
    session.hide(*hidden)
    stroke, before = Stroke(session, camera_above(BORDER), SHARE), session.scene
    stroke.to([(0.5, 0.5)])
    session.apply(stroke.edit(), seen=stroke.scene)
    away = (before.gaussians.means.detach() - BORDER).norm(dim=1)
    may = torch.isin(before.object_ids, torch.tensor(givers))
    gained = session.scene.object_ids != before.object_ids
    assert {*before.object_ids[gained].tolist()} == {*givers} - {3}
    assert bool(gained[may & (away < 0.24)].all())
    assert not bool(gained[~may | (away > 0.26)].any())
    assert parse(dump(session.operations)) == [*session.operations]
    with pytest.raises(UserError, match="has changed the scene"):
        session.apply(stroke.edit(), seen=stroke.scene)


def test_a_stroke_leaves_no_gap_however_far_apart_its_places_are():
    session = Session(floor_scene())
    session.select(3)
    stroke = Stroke(session, camera_above(BORDER), SHARE)
    stroke.to([(0.1, 0.5), (0.9, 0.5), (7.0, 0.5)])  # 38.4 pixels to either side, 0.96 units; then out of the picture
    session.apply(stroke.edit())
    x, y, _ = (session.original.gaussians.means.detach() - BORDER).T
    gained = session.scene.mask([3])
    assert bool(gained[(y.abs() < 0.2) & (x.abs() < 0.96)].all())  # balls are half a radius apart
    assert not bool((gained & ~session.original.mask([3]))[y.abs() > 0.26].any())


def test_where_nothing_is_selected_or_seen_nothing_is_painted():
    session = Session(floor_scene())
    with pytest.raises(UserError, match="no object is selected"):
        Stroke(session, camera_above(BORDER), SHARE)
    session.apply(Isolate(objects=(1,)))
    session.select(1)
    stroke = Stroke(session, camera_above(BORDER), SHARE)
    stroke.to([(0.99, 0.99)])
    with pytest.raises(UserError, match="met no surface"):
        stroke.edit()
