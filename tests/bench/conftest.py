"""A small benchmark whose jobs are never really run."""

import json
from dataclasses import replace

import pytest

from unified_lift.bench.grid import Grid, expand
from unified_lift.bench.run import run_job
from unified_lift.bench.tables import KINDS, ROWS, TABLES, SceneFolder, chosen_rows, noisy_scene


@pytest.fixture
def grid(tmp_path):
    """Return a function that makes a grid over scenes `a` and `b`, both with both kinds of masks."""

    def make(table="rooms", *, rows=("unified_lift", "gaga"), scenes=("a", "b"), seeds=(0, 1), **changes):
        folders = []
        for name in scenes:
            for masks in TABLES[table].masks:
                (tmp_path / "data" / name / masks.folder).mkdir(parents=True, exist_ok=True)
            folders.append(SceneFolder(name=name, path=tmp_path / "data" / name))
        made = Grid(
            table=TABLES[table],
            out=tmp_path / "out",
            scenes=tuple(folders),
            rows=tuple(ROWS[key] for key in rows),
            seeds=seeds,
            iterations=30,
        )
        return replace(made, **changes)

    return make


@pytest.fixture
def robustness(grid, monkeypatch):
    """Return a function that makes a grid of robustness, half of the masks lost or three views left at the worst."""
    monkeypatch.setitem(KINDS, "drop", ("drop", (0, 0.5)))
    monkeypatch.setitem(KINDS, "views", ("views", (48, 3)))
    scenes = tuple(noisy_scene(kind, amount) for kind in ("drop", "views") for amount in KINDS[kind][1])
    return lambda *rows: replace(grid("robustness", rows=rows, scenes=()), scenes=scenes)


@pytest.fixture
def timeline(grid):
    """Return a grid that scores a joint and a staged preset after 4 and 8 iterations."""
    rows = tuple(chosen_rows(TABLES["presets"], ["released", "unified_lift"]))
    return replace(grid("presets", rows=(), scenes=("a",), seeds=(0,), timeline=(4, 8)), rows=rows)


def finish(job):
    """Write the files that a job is to leave."""
    for path in job.artefacts:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def run_all(grid, *, scores=None, seconds=None):
    """Run every job of a grid with a stand-in for its commands; `scores`: job -> scores of its results.json."""
    jobs = expand(grid)
    manifest = {"seconds": seconds or {"load": 1, "geometry": 40.0, "lift": 5.0}, "torch": "2.0", "device": "cpu"}
    for job in jobs:

        def execute(command, log, job=job):
            finish(job)
            if job.row != "room":
                (job.model / "manifest.json").write_text(json.dumps(manifest))
            if scores and job.row not in ("geometry", "room"):
                (job.model / "results.json").write_text(json.dumps({"ours_0": scores(job)}))
            return 0

        run_job(job, execute)
    return jobs


def job_named(grid, key):
    return next(job for job in expand(grid) if job.key == key)
