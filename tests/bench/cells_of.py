"""Stand-ins for the command line: what a cell would have left behind."""

import json

from unified_lift.bench.cells import run_cell
from unified_lift.bench.grid import expand


def finished(cell):
    """Write the files that a cell is to leave."""
    for path in cell.products:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def run_all(plan, *, execute=None):
    """Run every cell of a plan with a stand-in for the command line; return the cells."""
    cells = expand(plan)
    for cell in cells:

        def done(step, log, cell=cell):
            finished(cell)
            return 0

        run_cell(cell, plan, execute or done)
    return cells


def write_scores(plan, scores, *, seconds=None):
    """Run every cell; `scores`: (masks, scene, row, seed) -> scores of results.json."""
    for cell in run_all(plan):
        manifest = {"seconds": seconds or {"load": 1, "geometry": 40.0, "lift": 5.0}, "torch": "2.0", "device": "cpu"}
        (cell.model / "manifest.json").write_text(json.dumps(manifest))
        if cell.kind == "method":
            own = scores(cell.masks, cell.scene, cell.row, cell.seed)
            (cell.model / "results.json").write_text(json.dumps({"ours_0": own}))
