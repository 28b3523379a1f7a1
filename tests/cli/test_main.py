"""The console command itself: what it answers without loading anything, and what it says of a missing package."""

import os
import subprocess
import sys

import pytest

import unified_lift
from unified_lift.cli.main import COMMANDS, main

HEAVY = "{'torch', 'numpy', 'scipy', 'cv2', 'PIL', 'tyro'}"


def python(code, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "PYTORCH"))}
    done = subprocess.run([sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("argv", ["[]", "['--help']", "['--version']", "['no-such-command']"])
def test_it_answers_without_importing_anything_heavy(argv):
    code = f"import sys; from unified_lift.cli.main import main; main({argv}); print({HEAVY} & set(sys.modules))"
    assert python(code)[1].endswith("set()\n")


def test_importing_the_package_is_light_and_leaves_the_environment_alone():
    code = "import os, sys; before = dict(os.environ); import unified_lift"
    assert python(f"{code}; print({HEAVY} & set(sys.modules), before == dict(os.environ))")[1] == "set() True\n"


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
