"""The viewer without a viewer."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.saved_model import floor_scene
from unified_lift.editing import script
from unified_lift.editing.operations import Duplicate, Move, Recolour, Remove, Rename, centroid
from unified_lift.errors import UserError
from unified_lift.viewer.session import Session

REMOVE_1, REMOVE_3 = Remove(objects=(1,)), Remove(objects=(3,))


@pytest.fixture(scope="module")
def opened():
    return floor_scene()


@pytest.fixture
def session(opened):
    return Session(opened)


def equal(first, second):
    return (
        torch.equal(first.object_ids, second.object_ids)
        and dict(first.names) == dict(second.names)
        and all(torch.equal(a, b) for (_, a), (_, b) in zip(first.gaussians, second.gaussians, strict=True))
    )


def test_hiding_changes_what_is_shown_and_not_what_is_saved(session, opened):
    assert session.shown is opened
    assert (session.selected, session.hidden, session.operations) == (None, frozenset(), ())
    session.hide(2)
    assert set(session.shown.objects) == {0, 1, 3}
    assert session.scene is opened
    assert not session.is_dirty
    session.hide(2)
    assert session.shown is opened
    session.isolate(3)
    assert set(session.shown.objects) == {3}
    session.hide(3)
    assert len(session.shown) == 0  # everything may be hidden
    session.isolate(None)
    assert session.shown is opened


def test_edits_are_operations_of_the_script_and_replay_to_the_same_scene(session, opened):
    session.rename(1, " mug ")
    session.apply(Recolour(objects=(2,), color="#ff0080"))
    copy = session.duplicate(1, along=(2.0, 0.0, 0.0))
    session.apply(session.move(copy, wxyz=(0.5**0.5, 0, 0, 0.5**0.5), translation=(0.1, 0.2, -1e-9)))
    session.apply(REMOVE_3)
    assert [type(operation) for operation in session.operations] == [Rename, Recolour, Duplicate, Move, Remove]
    moved = session.operations[3]
    assert (moved.rotate.axis, moved.rotate.degrees, moved.translate) == ((0, 0, 1), 90, (0.1, 0.2, 0))
    replayed = script.apply(opened, script.parse(script.dump(session.operations)))
    assert equal(replayed, session.scene)


def test_a_copy_stands_beside_its_original_and_is_selected(session):
    means = session.scene.gaussians.means.detach()[session.scene.mask([1])]
    width = float(means[:, 0].max() - means[:, 0].min())
    copy = session.duplicate(1, along=(2.0, 0.0, 0.0))
    assert copy == session.selected == 4
    distance = torch.tensor(centroid(session.scene, [copy])) - torch.tensor(centroid(session.scene, [1]))
    assert 0.8 * width < float(distance[0]) < 1.2 * width
    assert distance[1:].abs().max() < 1e-6


def test_undo_takes_edits_back_one_by_one_to_the_very_scene_and_redo_does_them_again(session, opened):
    session.apply(REMOVE_1)
    session.apply(Recolour(objects=(2,), color="#00ff00"))
    edited = session.scene
    session.undo()
    assert set(session.scene.objects) == {0, 2, 3}
    session.undo()
    session.undo()  # nothing is left to undo
    assert equal(session.scene, opened)
    session.redo()
    session.redo()
    session.redo()
    assert equal(session.scene, edited)
    session.undo()
    session.apply(REMOVE_3)
    session.redo()  # a new edit forgets those taken back
    assert session.operations == (REMOVE_1, REMOVE_3)


def test_what_is_removed_is_neither_selected_nor_hidden_any_more(session):
    session.select(1)
    session.hide(1)
    session.apply(REMOVE_1)
    assert (session.selected, session.hidden) == (None, frozenset())
    session.undo()
    assert set(session.shown.objects) == {0, 1, 2, 3}
    copy = session.duplicate(1, along=(1, 0, 0))
    session.undo()
    assert session.selected is None
    with pytest.raises(UserError, match=f"object {copy} is not there any more"):
        session.select(copy)


def test_an_edit_that_cannot_be_done_leaves_everything_as_it_was(session, opened):
    nowhere = Remove(objects=(9,))
    for edit in (lambda: session.apply(nowhere), lambda: session.rename(1, "  "), lambda: session.hide(9)):
        with pytest.raises(UserError):
            edit()
    assert session.scene is opened
    assert session.operations == ()


def test_a_preview_is_shown_but_is_no_edit_and_ends_with_the_next_action(session, opened):
    move = session.move(1, wxyz=(1, 0, 0, 0), translation=(0, 0, 1))
    session.preview(move)
    lifted = session.shown.gaussians.means[session.shown.mask([1]), 2]
    assert torch.allclose(lifted, torch.ones(()))
    assert session.scene is opened
    session.select(2)
    assert session.shown is opened
    session.preview(Move(objects=(9,)))  # its object has gone: there is nothing to show
    assert session.shown is opened


def test_saved_is_what_was_written_and_an_undo_makes_it_unsaved_again(session, monkeypatch):
    written = []

    def write(scene, folder, *, edits, overwrite):
        if overwrite:
            raise UserError("no room")
        written.append((set(scene.objects), edits))

    monkeypatch.setattr("unified_lift.editing.script.save_model", write)
    session.hide(0)
    session.apply(REMOVE_1)
    with pytest.raises(UserError, match="no room"):
        session.save(Path("place"), overwrite=True)
    assert session.is_dirty
    session.save(Path("place"))
    assert written == [({0, 2, 3}, (REMOVE_1,))]
    assert not session.is_dirty
    session.undo()
    assert session.is_dirty
    session.redo()
    assert not session.is_dirty


def test_edits_given_on_opening_can_be_undone_and_count_as_saved(opened):
    session = Session(opened, edits=[REMOVE_1])
    assert set(session.scene.objects) == {0, 2, 3}
    assert not session.is_dirty
    session.undo()
    assert session.scene.objects == opened.objects
    with pytest.raises(UserError, match="no object 7"):
        Session(opened, edits=[Remove(objects=(7,))])


def test_labels_differ_even_where_names_do_not_and_giving_the_same_name_is_no_edit(session):
    session.rename(1, "object 1")
    assert session.operations == ()
    for object_id, name in ((1, "cup"), (2, "cup"), (1, " cup"), (3, "object 0")):
        session.rename(object_id, name)
    assert len(session.operations) == 3
    labels = [session.label(object_id) for object_id in session.scene.objects]
    assert labels == ["object 0 (background)", "cup (1)", "cup (2)", "object 0 (3)"]


def test_windows_may_act_at_the_same_time(session):
    def work(_):
        for _ in range(5):
            session.hide(1)
            _ = session.shown
            session.duplicate(2, along=(1, 0, 0))
            session.undo()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert session.hidden == frozenset()  # 20 times: hidden and shown again
    assert session.operations == ()
    assert set(session.scene.objects) == {0, 1, 2, 3}


def test_further_objects_are_selected_beside_the_first_and_let_go_again(session):
    session.select(3)
    session.select(1, add=True)
    assert (session.selection, session.selected) == ((3, 1), 1)
    session.select(3, add=True)  # once more: no longer
    assert session.selection == (1,)
    session.select(None, add=True)  # a click beside everything, with Shift
    assert session.selection == (1,)
    session.hide(2)
    session.select_all()
    assert session.selection == (0, 3, 1)  # what is shown; the last one stays the last
    session.isolate(0, 3)
    assert session.hidden == {1, 2}
    session.hide(0, 1)
    assert session.hidden == {0, 1, 2}
    session.hide(0, 1)
    assert session.hidden == {2}
    session.apply(Remove(objects=(3, 1)))
    assert session.selection == (0,)
    with pytest.raises(UserError, match="object 3 is not there"):
        session.select(0, 3)


def test_several_objects_are_copied_beside_them_as_one(session):
    assert session.duplicate(1, 3, along=(1.0, 0.0, 0.0)) == 4
    assert session.selection == (4, 5)
    assert session.operations[-1].objects == (1, 3)
