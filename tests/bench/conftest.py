"""A small benchmark whose cells are never really run."""

from dataclasses import replace

import pytest

from unified_lift.bench.grid import Plan
from unified_lift.bench.tables import ROWS, TABLES, SceneEntry


@pytest.fixture
def plan(tmp_path):
    """Return a function that makes a plan over scenes `a` and `b`, both with both kinds of masks."""

    def make(table="rooms", *, rows=("unified_lift", "gaga"), scenes=("a", "b"), seeds=(0, 1), **changes):
        entries = []
        for name in scenes:
            for masks in TABLES[table].masks:
                (tmp_path / "data" / name / masks.folder).mkdir(parents=True, exist_ok=True)
            entries.append(SceneEntry(name=name, path=tmp_path / "data" / name))
        made = Plan(
            table=TABLES[table],
            out=tmp_path / "out",
            scenes=tuple(entries),
            rows=tuple(ROWS[key] for key in rows),
            seeds=seeds,
            iterations=30,
        )
        return replace(made, **changes)

    return make
