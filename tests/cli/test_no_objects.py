"""Models that know no objects, and splats of other programs: export, edit and view of the whole scene."""

import numpy as np
import pytest
import torch

from tests.saved_model import floor_gaussians, save_model
from unified_lift.cli.main import main
from unified_lift.cli.model_flags import opened
from unified_lift.editing.operations import Move, Recolour, Remove
from unified_lift.editing.script import parse
from unified_lift.errors import UserError
from unified_lift.evaluation.evaluate import evaluate
from unified_lift.model.files import read_splat
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.model.ply import write_gaussians
from unified_lift.model.spz import encode_spz
from unified_lift.modelfolder.inference import load_model, render_view, views_of
from unified_lift.types import Similarity
from unified_lift.viewer.renderer import MODES, Renderer, cameras_of


@pytest.fixture(params=["model", "3dgs", "ply", "spz"])
def source(request, tmp_path):
    """Return a model that was not lifted, that of 3DGS, and splats of these Gaussians, one with another's features."""
    if request.param in ("model", "3dgs"):
        folder = save_model(tmp_path, lifted=False)
        if request.param == "3dgs":
            (folder / "config.yaml").unlink()
        return folder
    path, gaussians = tmp_path / f"splat.{request.param}", floor_gaussians()
    if request.param == "ply":
        write_gaussians(path, gaussians, object_ids=np.zeros(len(gaussians)))
    else:
        path.write_bytes(encode_spz(gaussians))
    return path


def expected():
    table = floor_gaussians().state_dict()
    return Gaussians(table | {"features": table["features"][:, :0]})


def test_the_scene_is_exported_in_every_format_but_labels_and_objects_are_refused_with_the_reason(
    source, tmp_path, capsys
):
    out = tmp_path / "out"
    assert main(["export", "-m", str(source), "--format", "ply,splat,spz,html,points", "--out", str(out)]) == 0
    names = {"scene.ply", "scene.splat", "scene.spz", "scene.html", "scene_points.ply"}
    assert {path.name for path in out.iterdir()} == names
    back, _ = read_splat(out / "scene.ply")
    assert torch.allclose(back.means, expected().means, atol=1e-4)
    for words in (["--objects", "all"], ["--objects", "0"], ["--objects", "background"], ["--format", "labels"]):
        assert main(["export", "-m", str(source), "--out", str(tmp_path / "none"), *words]) == 2
        assert "this model knows no objects; lift it" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_without_out_files_go_beside_the_splat_or_into_the_model(source):
    assert main(["export", "-m", str(source), "--quiet"]) == 0
    folder = source if source.is_dir() else source.parent
    assert len(read_splat(folder / "export/scene.ply")[0]) == len(expected())


@pytest.mark.parametrize("word", ["scene", "0"])
def test_the_whole_scene_is_edited_by_its_name_or_as_object_0(source, tmp_path, capsys, word):
    argv = ["edit", "-m", str(source), "--move", word, "--translate", "0", "0", "5", "--scale", "2", "--out"]
    assert main([*argv, str(tmp_path / "new")]) == 0
    assert "knows no objects; the whole scene is object 0" in capsys.readouterr().out
    new, old = load_model(tmp_path / "new"), opened(source)
    assert new.labels is None
    assert torch.allclose(new.gaussians.log_scales, old.gaussians.log_scales + np.log(2), atol=1e-5)
    gap = new.gaussians.means - old.gaussians.means.mean(dim=0) - torch.tensor([0, 0, 5.0])
    assert torch.allclose(gap, 2 * (old.gaussians.means - old.gaussians.means.mean(dim=0)), atol=1e-4)
    assert f"objects: {word}" in (tmp_path / "new/edits.yaml").read_text().replace("[0]", "0")
    argv = ["edit", "-m", str(tmp_path / "new"), "--recolour", "scene", "--color", "#ff0000", "--out"]
    assert main([*argv, str(tmp_path / "red")]) == 0
    red = load_model(tmp_path / "red")
    assert torch.allclose((red.gaussians.sh0 * SH_C0 + 0.5)[..., 1:], torch.zeros(1), atol=0.02)
    assert [type(edit) for edit in parse((tmp_path / "red/edits.yaml").read_text())] == [Move, Recolour]


def test_what_another_program_changed_comes_back(source, tmp_path, capsys):
    gaussians = opened(source).gaussians
    write_gaussians(tmp_path / "cut.ply", Gaussians({name: value[100:] for name, value in gaussians}))
    argv = ["import-edit", "-m", str(source), "--ply", str(tmp_path / "cut.ply"), "--out", str(tmp_path / "new")]
    assert main(argv) == 0
    assert "100 old ones are gone" in capsys.readouterr().out
    assert torch.equal(load_model(tmp_path / "new").gaussians.means, gaussians.means[100:])


@pytest.mark.parametrize("place", [(4e5, 5e6, 100.0), (0.0, 0.0, 0.0)])
def test_a_splat_on_a_map_keeps_its_place_when_it_is_edited(tmp_path, place):
    gaussians = floor_gaussians()
    write_gaussians(tmp_path / "a.ply", gaussians, frame=Similarity(offset=place))
    argv = ["edit", "-m", str(tmp_path / "a.ply"), "--move", "scene", "--translate", "1", "0", "0", "--out"]
    assert main([*argv, str(tmp_path / "new")]) == 0
    new = load_model(tmp_path / "new")
    found = new.frame.outside(new.gaussians.means.detach().numpy())
    np.testing.assert_allclose(found, gaussians.means.detach().double().numpy() + place + [1, 0, 0], atol=1e-4)


def test_other_ids_and_removing_everything_are_errors(source, tmp_path, capsys):
    for words, message in (
        (["--remove", "3"], "no object 3; there are 0"),
        (["--remove", "scene"], "without objects 0 nothing is left"),
    ):
        assert main(["edit", "-m", str(source), *words, "--out", str(tmp_path / "new")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_scene_means_all_objects_of_a_lifted_model_too(model, tmp_path):
    argv = ["edit", "-m", str(model), "--move", "scene", "--translate", "1", "2", "3", "--out", str(tmp_path / "new")]
    assert main(argv) == 0
    new, old = load_model(tmp_path / "new"), load_model(model)
    assert torch.allclose(new.gaussians.means, old.gaussians.means + torch.tensor([1.0, 2, 3]), atol=1e-5)
    assert torch.equal(new.object_ids, old.object_ids)


def test_an_edited_model_without_objects_is_rendered_and_not_scored(tmp_path):
    source = save_model(tmp_path, lifted=False)
    assert main(["edit", "-m", str(source), "--move", "scene", "--scale", "0.5", "--out", str(tmp_path / "new")]) == 0
    new = load_model(tmp_path / "new")
    views = views_of(new)
    assert render_view(new, views.test[0].camera).object_ids is None
    with pytest.raises(UserError, match="edit"):
        evaluate(new, views)


def test_the_viewer_shows_selects_edits_and_saves_it(source, tmp_path, open_viewer):
    viewer = open_viewer(source)
    session = viewer.session
    assert dict(session.scene.objects) == {0: len(expected())}
    assert session.label(0) == "scene (0)"
    for mode in MODES:
        frame = Renderer(session.original).frame(session.shown, cameras_of(session.original)[0], mode=mode, selected=0)
        assert 0.2 < (frame != frame[0, 0]).any(axis=2).mean()  # it is in sight
    session.apply(session.move(0, wxyz=(1, 0, 0, 0), translation=(0, 0, 1)))
    with pytest.raises(UserError, match="nothing is left"):
        session.apply(Remove(objects=(0,)))
    session.save(tmp_path / "saved")
    new = load_model(tmp_path / "saved")
    assert new.labels is None
    assert torch.allclose(new.gaussians.means[:, 2], opened(source).gaussians.means[:, 2] + 1, atol=1e-5)
    again = open_viewer(tmp_path / "saved")
    assert len(again.session.scene) == len(expected())
