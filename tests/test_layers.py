"""Imports go one way; a test walks them and names the offending edge."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "unified_lift"
# Each layer may import those before it; packages of one layer do not import each other.
LAYERS = [
    {"errors", "types", "shapes", "registry"},
    {"memory", "provenance"},
    {"reading", "progress", "ops", "ranks"},
    {"fileio", "device", "settings"},
    {"plyio"},
    {"kernels"},
    {"metrics", "model", "data"},
    {"density", "synthetic"},
    {"methods"},
    {"modelfolder"},
    {"train", "evaluation"},
    {"bench", "editing", "capture", "doctor"},
    {"viewer", "api"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FORBIDDEN = {"data": {"settings"}}  # readers see only types and ops
FILES = sorted(ROOT.rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("unified_lift"):
            if node.module == "unified_lift":
                yield from (alias.name for alias in node.names)
            else:
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("unified_lift."))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way_and_nothing_below_training_prints_or_touches_global_random_state(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    assert own in RANK, f"{own} has no layer"
    for name in imported(path):
        if name == own:
            continue
        assert name in RANK, f"{path}: imports {name}, which has no layer"
        assert RANK[name] < RANK[own], f"{path}: {own} must not import {name}"
        assert name not in FORBIDDEN.get(own, ()), f"{path}: {own} must not import {name}"
    if RANK[own] < RANK["train"]:
        called = {
            ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        }
        forbidden = {"print", "torch.manual_seed", "np.random.seed", "time.time", "time.perf_counter"} & called
        forbidden -= {"time.time"} if path.name == "fileio.py" else set()  # the age of scratch files left behind
        assert not forbidden, f"{path}: calls {forbidden}"


def test_the_rasterizer_does_not_know_the_package():
    for path in (ROOT.parent / "submodules").rglob("*.py"):
        assert "unified_lift" not in path.read_text(), path
