"""A stranger follows docs/adding.md to the letter: the blocks of the page, written to the files they name, work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unified_lift.data.masks import read_mask
from unified_lift.synthetic.scene import SyntheticSettings, write_synthetic

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adding.md"
PARTS = (
    "data/mask_formats/csv.py data/toy.py density/toy.py evaluation/protocols/toy.py methods/toy.py metrics/mae.py "
    "settings/presets/toy.yaml train/losses/depth_smooth.py"
)


def blocks():
    """File name -> content of the fenced blocks whose first line is a comment that names a file."""
    fences = re.findall(
        r"^```(?:python|yaml)\n(# \S+\.(?:py|yaml)\n.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    return {block.split("\n", 1)[0].removeprefix("# "): block for block in fences}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The program as a stranger has it, with the files of the page."""
    root = tmp_path_factory.mktemp("stranger")
    for folder in ("unified_lift", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("*.pyc", "__pycache__"))
    for door in ("train.py", "eval.py", "render.py", "pyproject.toml"):
        shutil.copy(ROOT / door, root / door)
    for name, block in blocks().items():
        assert not (root / name).exists(), f"{name} is a file of the program already"
        (root / name).write_text(block)
    return root


def run(copy, *argv, code=0):
    path = os.pathsep.join([str(copy), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *argv], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(copy):
    """A fixture of the toy dataset and a model of it by the toy method; the flags and what the program said."""
    run(copy, "-c", "from pathlib import Path; from tests.data.fixtures import *; write_dataset('toy', Path('scene'))")
    points = "-s scene --eval --random_init --num_random_points 300 --sh_degree 0 --logger none --quiet".split()
    flags = [*points, *"--method toy --lift_pixels 400 --iterations 200 --checkpoint_iterations 350".split()]
    return flags, run(copy, "train.py", *flags, "-m", "model")


def test_the_page_has_a_block_for_each_file():
    assert set(blocks()) == {"tests/data/fixtures/toy.py", *(f"unified_lift/{part}" for part in PARTS.split())}


def test_the_toy_method_learns_the_toy_dataset(copy, trained):
    _, said = trained
    assert "scene: toy, 8 training views (8 with masks), 2 held out" in said
    assert "12 object codes" in said
    printed = run(copy, "eval.py", "-m", "model", "--quiet")
    assert re.search(r"purity +\d+\.\d %", printed)
    assert re.search(r"MAE +0\.\d{4}", printed)
    (scores,) = json.loads((copy / "model" / "results.json").read_text()).values()
    truth = [read_mask(copy / "scene" / "truth" / f"{name}.png") for name in ("00", "08")]
    floor = np.mean([view == 0 for view in truth])  # what one id for everything would reach
    assert floor + 0.3 * (1 - floor) < scores["purity"] <= 1
    for file in ("results.json", "per_view.json", "report.html"):
        assert "MAE" in (copy / "model" / file).read_text(), file
    assert 0 < scores["MAE"] < 0.2
    assert json.loads((copy / "model" / "evaluation.json").read_text())["ours_200"]["protocol"] == "toy"
    config = (copy / "model" / "config.yaml").read_text()
    assert "method_name: toy" in config
    assert "lift_iterations: 300" in config  # of the preset


def test_a_resumed_toy_run_ends_where_the_uninterrupted_one_did(copy, trained):
    flags, _ = trained
    run(copy, "train.py", *flags, "-m", "again", "--start_checkpoint", "model/chkpnt350.pth")
    for file in ("classifier.pth", "segmentation.npz", "point_cloud_objects.ply"):
        ours, theirs = (copy / model / "point_cloud" / "iteration_200" / file for model in ("model", "again"))
        assert ours.read_bytes() == theirs.read_bytes(), file


def test_a_depth_loss_and_a_density_strategy_take_part(copy, trained):
    flags, _ = trained
    more = "--strategy toy --prune_interval 20 --loss_weights depth_smooth=0.01 --lift_iterations 5 --log_interval 10"
    said = run(copy, "train.py", *flags, "-m", "pruned", "--iterations", "60", *more.split())
    assert 220 <= int(re.search(r"pruned: (\d+) Gaussians", said)[1]) < 260  # of 300, three times five percent less
    lines = [json.loads(line) for line in (copy / "pruned" / "metrics.jsonl").read_text().splitlines()]
    geometry = [line for line in lines if line["stage"] == "geometry"]
    assert len(geometry) == 6
    for line in geometry:
        assert 0 < line["depth_smooth"] == pytest.approx((line["total"] - line["photometric"]) / 0.01, rel=1e-3)


def test_help_and_errors_know_the_toys(copy, trained):
    (copy / "empty").mkdir()
    calls = {
        "train --method toy --help": r"--num-anchors",
        "train -s scene -m other --method tay": r"--method tay: .* there are .*\btoy\b",
        "train -s scene -m other --method toy --num_anchors 0": r"error: --num_anchors must be at least 1, received 0",
        "train -s empty -m other": r"toy\.json \(toy\)",
        "eval -m model --protocol tay": r"error: --protocol tay: there are .*\btoy\b",
    }
    in_one_process = (  # it takes seconds to start
        "import contextlib, sys; from unified_lift.cli.main import main\n"
        "for call in sys.argv[1:]:\n  print('>', call, flush=True)\n"
        "  with contextlib.suppress(SystemExit), contextlib.redirect_stderr(sys.stdout):\n    main(call.split())"
    )
    said = run(copy, "-c", in_one_process, *calls)
    for call, message in calls.items():
        assert re.search(message, said.split(f"> {call}\n")[1].split("\n> ")[0]), call


def test_everything_added_works_together_on_the_demo_scene(copy):
    scene = copy / "demo_scene"
    write_synthetic(scene, SyntheticSettings(num_views=8, width=64, height=48, num_points=400))
    for mask in (scene / "object_mask").glob("*.png"):
        np.savetxt(mask.with_suffix(".csv"), read_mask(mask), fmt="%d", delimiter=",")
        mask.unlink()
    described = json.loads((scene / "transforms.json").read_text())
    for frame in described["frames"]:
        frame.pop("object_mask_path", None)
    (scene / "transforms.json").write_text(json.dumps(described))
    assert "csv" in run(copy, "-m", "unified_lift", "check-data", "-s", "demo_scene")
    added = "--method toy --strategy toy --loss_weights depth_smooth=0.01"
    short = "--eval --iterations 60 --sh_degree 0 --lift_iterations 60 --logger none --quiet"
    said = run(copy, "train.py", "-s", "demo_scene", "-m", "demo_model", *added.split(), *short.split())
    assert "6 training views (6 with masks), 2 held out" in said
    assert re.search(r"MAE +0\.\d{4}", run(copy, "eval.py", "-m", "demo_model", "--quiet"))
    (scores,) = json.loads((copy / "demo_model" / "results.json").read_text()).values()
    assert {"PQ_scene", "mIoU", "PSNR", "MAE"} <= set(scores)


def test_the_toys_pass_the_tests_of_every_reader_and_module(copy):
    pytest_of = "-m pytest -p no:cacheprovider -k toy tests/data/test_readers.py tests/test_layers.py"
    said = run(copy, *pytest_of.split())
    assert int(re.search(r"(\d+) passed", said)[1]) > 12
