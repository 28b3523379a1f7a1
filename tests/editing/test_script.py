"""Edits as YAML: read, done in order, written back."""

import pytest
import torch

from tests.editing.small_scene import random_gaussians, scene_of
from unified_lift.editing import script
from unified_lift.editing.operations import Move, Recolour, Remove, Rotation
from unified_lift.errors import UserError

EVERYTHING = """
- clean: {objects: [4], min_confidence: 0.2}
- merge: [0, 4]
- remove: [3]
- isolate: [0, 5, 7]
- recolour: {objects: [5], color: "#F00", strength: 0.5}
- move: {objects: 5, rotate: {axis: [1, 0.5, 0], degrees: -33.3}, scale: 1.1, about: [0, 0, 1]}
- duplicate:
    objects: [5, 7]
    rotate: {degrees: 90}
    translate: [0.1, 0, 1e-7]
    new_ids: [20, 21]
- rename: {7: mug, 20: "Tasse grün"}
"""


def scene():
    return scene_of(random_gaussians(60), [0, 3, 4, 5, 7, 9] * 10)


def tables(of):
    return [value for _, value in of.gaussians] + [of.object_ids, of.confidence]


def test_every_operation_is_read():
    found = script.parse(EVERYTHING)
    keys = "clean merge remove isolate recolour move duplicate rename".split()
    assert [operation.key for operation in found] == keys
    assert found[4] == Recolour(objects=(5,), color="#ff0000", strength=0.5)
    assert found[5].rotate == Rotation((1.0, 0.5, 0.0), -33.3)
    assert found[6].translate == (0.1, 0.0, 1e-7)
    assert found[7].names == ((7, "mug"), (20, "Tasse grün"))
    assert script.parse("") == script.parse("# nothing yet") == []


def test_what_is_written_is_read_back_as_the_same():
    found = script.parse(EVERYTHING)
    assert script.parse(script.dump(found)) == found
    exact = [Move(objects=(1,), translate=(0.1 + 0.2, 1 / 3, -1e-300), rotate=Rotation((0, 0, 1), 2 / 3))]
    assert script.parse(script.dump(exact)) == exact
    assert script.dump([Remove(objects=(3, 4))]) == "- remove: [3, 4]\n"


def test_a_replay_gives_the_same_bits():
    edits = script.parse(EVERYTHING)
    by_hand = scene()
    for operation in edits:
        by_hand = operation.apply(by_hand)
    again = script.apply(scene(), script.parse(script.dump(edits)))
    assert all(torch.equal(*pair) for pair in zip(tables(by_hand), tables(again), strict=True))
    assert dict(again.names) == {7: "mug", 20: "Tasse grün", 21: "copy of object 7"}
    assert set(again.objects) == {0, 5, 7, 20, 21}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- remove: [3]\n- remvoe: [4]", r"line 2, entry 2: no operation 'remvoe'; did you mean 'remove'\?"),
        ("- move: {objects: [3], translat: [1, 0, 0]}", r"move has no setting 'translat'; did you mean 'translate'\?"),
        ("- move: {translate: [1, 0, 0]}", "line 1, entry 1: move needs 'objects'"),
        ("- recolour: {objects: [3]}", "recolour needs 'color', as \"#ff0000\""),
        ("- recolour: {objects: [3], color: red}", "color must be a colour in quotes, as \"#ff0000\", received 'red'"),
        ('- recolour: {objects: [3], color: "#ff0000", strength: 2}', r"strength must be a number in \[0, 1\]"),
        ("- remove: []", "objects must be an object id or a list of different ones"),
        ("- remove: [3, 3]", "different ones"),
        ("- remove: [-1]", "objects must be"),
        ("- remove: [true]", "objects must be"),
        ("- remove: mug", "objects must be an object id .* received 'mug'"),
        ("- move: {objects: 3, translate: [1, 0]}", "translate must be three numbers"),
        ("- move: {objects: 3, translate: [1, 0, .nan]}", "translate must be three numbers"),
        ("- move: {objects: 3, translate: far}", "translate must be three numbers"),
        ("- move: {objects: 3, scale: 0}", "scale must be a positive number"),
        ("- move: {objects: 3, translate: [1.0e+38, 0, 0]}", "translate must be three numbers up to"),
        ("- move: {objects: 3, scale: 1.0e-300}", "scale must be a positive number from"),
        ("- duplicate: {objects: 3, new_ids: [99999999999]}", "new_ids must be"),
        ("[" * 100_000, "edits.yaml: not YAML"),
        ("- remove: " + "9" * 5_000, "edits.yaml: not YAML"),
        ("- move: {objects: 3, rotate: {axis: [0, 0, 0], degrees: 9}}", "the axis not zero"),
        ("- move: {objects: 3, rotate: 90}", "rotate must be {axis"),
        ("- move: {objects: 3, rotate: {degree: 90}}", "rotate must be {axis"),
        ("- move: {objects: 3, about: middle}", "about must be centroid or a point"),
        ("- rename: mug", "names must be ids and names, as {7: mug}, received 'mug'"),
        ("- rename: {mug: 7}", "names must be ids and names"),
        ("- remove", "expected one operation and its objects"),
        ("- remove: 3\n  merge: [4, 5]", "expected one operation"),
        ("remove: 3", "expected a list, .* received a dict"),
        ("- rename: {7: a}\n- rename: {7: b, 8: c, 7: d}", "line 2: '7' is there twice"),
        ("- remove: [3\n- merge: [4]", "edits.yaml, line [12]: not YAML"),
        ("- &a0 [3]\n" + "".join(f"- &a{n + 1} [{f'*a{n}, ' * 9}]\n" for n in range(9)), "line 1, entry 1: expected"),
    ],
)
def test_mistakes_are_told_with_their_place(text, message):
    with pytest.raises(UserError, match=message):
        script.parse(text, origin="edits.yaml")


def test_an_edit_that_cannot_be_done_is_named():
    edits = script.parse("- remove: [3]\n- recolour: {objects: [3], color: '#fff'}")
    with pytest.raises(UserError, match=r"edit 2 \(recolour\): .*no object 3"):
        script.apply(scene(), edits)
