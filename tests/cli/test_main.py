"""The console command itself: what it answers without loading anything, flags and help of all commands, demo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import unified_lift
from tests.data.fixtures import write_dataset
from unified_lift.cli.flags import canonical
from unified_lift.cli.main import COMMANDS, main

DOCS = Path(__file__).parents[2] / "docs"
PAGES = dict.fromkeys(("render", "eval", "demo"), "train") | {"import-edit": "export", "check-data": "check_data"}
HEAVY = "{'torch', 'numpy', 'scipy', 'cv2', 'PIL', 'tyro'}"


def python(code, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "PYTORCH"))}
    done = subprocess.run([sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_it_answers_without_importing_anything_heavy_and_the_package_leaves_the_environment_alone():
    argv = "[], ['--help'], ['--version'], ['no-such-command']"
    code = (
        "import os, sys; before = dict(os.environ); import unified_lift; print(before == dict(os.environ)); "
        f"from unified_lift.cli.main import main; print([main(argv) for argv in ({argv})], {HEAVY} & set(sys.modules))"
    )
    out = python(code)[1]
    assert out.startswith("True\n")
    assert out.endswith("[0, 0, 0, 2] set()\n")


def test_version_and_overview(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"unified-lift {unified_lift.__version__}\n"
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert all(len(line.split()) > 4 for line in lines)  # and says what each does


@pytest.mark.parametrize(("environment", "expected"), [({}, "PASSIVE True"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_the_program_sets_what_torch_reads_but_not_over_the_user(environment, expected):
    code = (
        "import os; from unified_lift.cli.main import main; main(['train', '-s', 'none', '-m', 'none']); "
        "print(os.environ['OMP_WAIT_POLICY'], 'expandable_segments:True' in os.environ.values())"
    )
    assert python(code, **environment)[1].startswith(expected)


@pytest.mark.parametrize("module", ["diff_gaussian_rasterization", "simple_knn"])
def test_without_our_native_packages_one_line_says_how_to_install_them(module):
    code = (
        f"import sys; sys.modules[{module!r}] = None; from unified_lift.cli.main import main; "
        "print([main([command]) for command in ('train', 'doctor', 'render', 'eval', 'view', 'demo')])"
    )
    _, out, error = python(code)
    assert out == "[2, 2, 2, 2, 2, 2]\n"
    package = module.replace("_", "-")
    assert len(error.splitlines()) == 6
    for line in error.splitlines():
        assert line.startswith(f"error: the package {package} is missing; install it from this repository")
        assert f"pip install --no-build-isolation ./submodules/{package} " in line


def test_public_names_are_listed_and_load_on_demand():
    assert set(unified_lift.__all__) <= set(dir(unified_lift))
    for name in unified_lift.__all__:
        assert getattr(unified_lift, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        unified_lift.no_such_name  # noqa: B018


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_docs_have_a_page(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "Example: " in " ".join(capsys.readouterr().out.split())
    page = (DOCS / f"{PAGES.get(command, command)}.md").read_text()
    assert any(f"{start}{command}" in page for start in ("unified-lift ", "-m unified_lift ", "")), command
    assert len(page) > 500


def test_short_and_historic_flags_become_ours_and_values_stay():
    given = "-s a -m b -r 2 --num_classes 256 --source_path=x --images my_images"
    ours = "--source-path a --model-path b --resolution 2 --num-codes 256 --source-path=x --images my_images"
    assert canonical(given.split()) == ours.split()


def test_flags_without_meaning_go_with_their_value_and_a_note(capsys):
    assert canonical(["--port", "6009", "--eval", "--ip=0.0.0.0", "--quiet"]) == ["--eval", "--quiet"]
    assert "--port has no meaning here" in capsys.readouterr().err
    assert canonical(["--port", "9", "--ip=x"], keep=("--port",)) == ["--port", "9"]  # as the viewer does


@pytest.mark.parametrize("precious", ["mine/config.yaml", "mine/point_cloud/a.ply", "mine_scene/a.txt"])
def test_demo_never_replaces_what_is_no_demo(precious, tmp_path, capsys):
    path = tmp_path / precious
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert main(["demo", "--out", str(tmp_path / "mine")]) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert path.read_text() == "{}"


def test_names_that_are_no_text_are_printed_where_a_terminal_knows_ascii_only(tmp_path):
    write_dataset("colmap", tmp_path)
    path = tmp_path / "sparse/0/images.bin"
    path.write_bytes(path.read_bytes().replace(b"cam1/0001.png", b"cam1/0\xea01.png"))
    code = f"from unified_lift.cli.main import main; print(main(['check-data', '-s', {str(tmp_path)!r}, '--quiet']))"
    status, out, error = python(code, PYTHONIOENCODING="ascii")
    assert (status, error) == (0, "")
    assert out.endswith("\n0\n")
    assert "cam1/0\\udcea01.png: the file is missing" in out or "0\\udcea01.png" in out
