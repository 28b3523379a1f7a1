"""Two implementations of the rasterizer on a trained scene: what agrees, what does not, and what is explained."""

import json
from itertools import chain, repeat

import compare_implementations as script
import pytest
import torch
from diff_gaussian_rasterization import cpu

from tests.saved_model import save_model
from unified_lift.cli.train import train_main
from unified_lift.synthetic.scene import SyntheticSettings, write_synthetic


def test_the_cpu_kernels_agree_with_the_definition_on_a_saved_model(tmp_path, capsys):
    path, arguments = tmp_path / "found.json", ["--second", "reference", "--views", "2", "--channels", "3"]
    assert script.main(["-m", str(save_model(tmp_path)), *arguments, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    assert len(rows) == 2
    assert "Gaussians, cpu against reference" in capsys.readouterr().out
    for row in rows:
        assert 0 < row["map_error"] < 1e-4
        assert row["unexplained"] == 0
        assert set(row["gradient_errors"]) == {"means", "quats", "scales", "opacities", "colors", "features"}
        assert all(0 < error < 1e-3 for error in row["gradient_errors"].values())
        assert 0 < row["quats_by_rounding"] < 1e-3


def test_a_kernel_that_is_wrong_in_some_pixels_or_in_a_gradient_is_found_out(tmp_path, monkeypatch):
    model, right = save_model(tmp_path), cpu.rasterize

    def brighter(inputs, options):
        out = right(inputs, options)
        change = torch.zeros_like(out.image)
        change[:, 3:5, 2] = 0.01
        return out._replace(image=out.image + change)

    def steeper(inputs, options):
        return right(inputs._replace(means=inputs.means + (inputs.means - inputs.means.detach())), options)

    arguments = ["-m", str(model), "--second", "cpu", "--views", "1", "--json", str(tmp_path / "found.json")]
    assert script.main(arguments) == 0
    for wrong, unexplained in ((brighter, 2), (steeper, 0)):
        calls = chain([right, wrong], repeat(right))
        monkeypatch.setattr(cpu, "rasterize", lambda *a, calls=calls, **o: next(calls)(*a, **o))
        assert script.main(arguments) == 1
        assert json.loads((tmp_path / "found.json").read_text())[0]["unexplained"] == unexplained


def test_a_gradient_may_differ_where_the_last_bit_of_the_inputs_changes_it_too():
    row = {"unexplained": 0, "gradient_errors": {"means": 9e-4, "quats": 1.4e-3}, "quats_by_rounding": 3e-4}
    assert script.agrees(row)
    assert not script.agrees(row | {"quats_by_rounding": 2e-4})
    assert not script.agrees(row | {"gradient_errors": {"means": 1.1e-3, "quats": 1.4e-3}})
    assert not script.agrees(row | {"unexplained": 1})


def test_a_folder_without_a_model_is_an_error_that_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main(["-m", str(tmp_path)])
    assert "no point_cloud/iteration_<N> there" in capsys.readouterr().err


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu_on_a_trained_scene(tmp_path):
    write_synthetic(tmp_path / "room", SyntheticSettings())
    arguments = ["-s", str(tmp_path / "room"), "-m", str(tmp_path / "model"), "--iterations=2000", "--device=cuda"]
    assert train_main([*arguments, "--lift_iterations=300", "--quiet"]) == 0
    assert script.main(["-m", str(tmp_path / "model")]) == 0
