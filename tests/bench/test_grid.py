"""Which cells there are, what they run, and when one is done."""

import json
from collections import Counter
from dataclasses import replace

from tests.bench.cells_of import run_all
from unified_lift.bench.cells import run_cell
from unified_lift.bench.grid import (
    expand,
    is_done,
    read_record,
    recorded_commands,
    steps_to_run,
    without_masks,
    write_commands,
)
from unified_lift.cli.train import parse


def cell_of(plan, key):
    return next(cell for cell in expand(plan) if cell.key == key)


def test_the_grid_is_scenes_by_masks_by_rows_by_seeds_with_one_geometry_for_all_rows(plan):
    kinds = Counter(cell.kind for cell in expand(plan(seeds=(0, 1, 2))))
    assert kinds == {"geometry": 2 * 3, "method": 2 * 2 * 2 * 3}


def test_every_cell_comes_after_the_one_it_needs(plan):
    seen = set()
    for cell in expand(plan(rows=("omniseg3d_gs", "omniseg3d_gs_oracle", "gaga"))):
        assert not cell.needs or cell.needs in seen
        seen.add(cell.key)
    assert len(seen) == 4 + 2 * 2 * 2 * 3


def test_the_oracle_row_scores_the_model_of_the_honest_one(plan):
    alone = expand(plan("3", rows=("omniseg3d_gs_oracle",), scenes=("a",), seeds=(0,)))
    assert [cell.kind for cell in alone] == ["geometry", "method", "oracle"]
    oracle = alone[2]
    assert oracle.needs == alone[1].key
    assert [step[0] for step in oracle.steps] == ["eval"]
    assert "--oracle_codebooks" in oracle.steps[0]
    assert oracle.steps[0][2] == str(alone[1].model)
    assert oracle.record != alone[1].record


def test_commands_parse_and_start_from_the_shared_geometry(plan, tmp_path):
    p = plan("3", rows=("unified_lift", "released"), scenes=("a",), seeds=(4,), iterations=70, device="cpu")
    geometry, ours, released = expand(p)
    g = parse(list(geometry.steps[0][1:])).settings
    assert (g.geometry.iterations, g.lift.lift_iterations, g.seed, g.run.device, g.data.eval) == (70, 0, 4, "cpu", True)
    assert geometry.products[0] == tmp_path / "out/geometry/a/seed4/point_cloud/iteration_70/point_cloud.ply"
    for cell, preset in ((ours, "unified_lift"), (released, "released_staged")):
        m = parse(list(cell.steps[0][1:])).settings
        assert (m.geometry.iterations, m.init_ply, m.schedule) == (0, geometry.products[0], "staged")
        assert (m.seed, m.preset, m.data.object_path) == (4, preset, "detic_instance")
        assert m.lift.lift_iterations != 0


def test_masks_bring_the_protocol_that_fits_them(plan):
    cells = expand(plan(rows=("gaga",), scenes=("a",), seeds=(0,)))
    found = {cell.masks: cell.steps[1][cell.steps[1].index("--protocol") + 1] for cell in cells if cell.masks}
    assert found == {"detic_instance": "auto", "object_mask": "replica"}


def test_prompts_are_grounded_scene_by_scene(plan):
    cells = expand(plan("1", rows=("gaga",), seeds=(0,), grounding="masks/{scene}"))
    found = [cell.steps[1][cell.steps[1].index("--grounding") + 1] for cell in cells if cell.kind == "method"]
    assert found == ["masks/a", "masks/b"]


def test_further_flags_go_to_all_or_to_one_row(plan):
    extra = ("--sh_degree", "2", "geometry:--max_gaussians=9", "gaga:--lift_iterations=7", "--images", "a:b")
    cells = expand(plan(scenes=("a",), seeds=(0,), extra=extra))
    for cell in cells:
        words = cell.steps[0]
        assert {"--sh_degree", "a:b"} <= set(words)
        assert ("--max_gaussians=9" in words) == (cell.kind == "geometry")
        assert ("--lift_iterations=7" in words) == (cell.row == "gaga")


def test_scenes_without_the_masks_are_listed_and_have_no_cells(plan, tmp_path):
    p = plan()
    (tmp_path / "data/b/object_mask").rmdir()
    assert without_masks(p) == [("b", "object_mask")]
    assert {(cell.scene, cell.masks) for cell in expand(p) if cell.kind == "method"} == {
        ("a", "detic_instance"), ("a", "object_mask"), ("b", "detic_instance"),
    }  # fmt: skip
    (tmp_path / "data/b/detic_instance").rmdir()
    assert {cell.scene for cell in expand(p)} == {"a"}  # nor is geometry trained that nobody needs


def test_a_cell_is_done_with_its_commands_and_products_only(plan):
    p = plan(scenes=("a",), seeds=(0,))
    cells = run_all(p)
    assert all(is_done(cell, p) for cell in cells)
    cells[1].products[0].unlink()
    assert [is_done(cell, p) for cell in cells] == [True, False, True, True, True]
    cells[0].record.write_text('{"commands": [')
    assert not is_done(cells[0], p)


def test_other_flags_make_a_cell_be_done_again_and_so_does_another_geometry(plan):
    p = plan(scenes=("a",), seeds=(0,), rows=("gaga",))
    run_all(p)
    for extra in ("--sh_degree=1", "geometry:--sh_degree=1"):
        changed = replace(p, extra=(extra,))
        assert not any(is_done(cell, changed) for cell in expand(changed))
    changed = replace(p, extra=("gaga:--feature_dim=8",))
    assert [is_done(cell, changed) for cell in expand(changed)] == [True, False, False]


def test_results_and_scenes_may_be_moved(plan, tmp_path):
    p = plan(scenes=("a",), seeds=(0,), rows=("gaga",))
    run_all(p)
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    (tmp_path / "data/a").rename(tmp_path / "a")
    moved = replace(p, out=tmp_path / "elsewhere", scenes=(replace(p.scenes[0], path=tmp_path / "a"),))
    assert all(is_done(cell, moved) for cell in expand(moved))
    assert str(tmp_path) not in json.dumps(recorded_commands(expand(moved)[1], moved))


def test_an_interrupted_cell_goes_on_from_its_checkpoint_and_a_failed_one_begins_anew(plan):
    p = plan(scenes=("a",), seeds=(0,), rows=("gaga",))
    cell = cell_of(p, "detic_instance/a/gaga/seed0")
    assert steps_to_run(cell, p) == ([list(step) for step in cell.steps], 0)
    for code, goes_on in ((130, True), (2, False)):
        run_cell(cell, p, lambda step, log, code=code: code)
        assert steps_to_run(cell, p) == ([list(step) for step in cell.steps], 0)  # no checkpoint yet
        (cell.model / "chkpnt7.pth").write_text("")
        steps, finished = steps_to_run(cell, p)
        assert (("--resume" in steps[0]), ("--overwrite" in steps[0]), finished) == (goes_on, not goes_on, 0)
    changed = replace(p, extra=("--sh_degree=1",))
    assert "--resume" not in steps_to_run(cell_of(changed, cell.key), changed)[0][0]


def test_a_cell_interrupted_while_scoring_does_not_train_again(plan):
    p = plan(scenes=("a",), seeds=(0,), rows=("gaga",))
    cell = cell_of(p, "object_mask/a/gaga/seed0")
    run_cell(cell, p, lambda step, log: 0 if step[0] == "train" else 130)
    steps, finished = steps_to_run(cell, p)
    assert ([step[0] for step in steps], finished) == (["eval"], 1)
    assert read_record(cell).status == "interrupted"


def test_commands_can_be_copied_from_a_file_in_running_order(plan, tmp_path):
    p = plan(scenes=("a",), seeds=(0,), rows=("gaga",), extra=("--images", "my photos"))
    write_commands(expand(p), tmp_path / "commands.txt")
    lines = (tmp_path / "commands.txt").read_text().splitlines()
    assert lines[0] == "# geometry/a/seed0"
    assert lines[1].startswith("python -m unified_lift train -s ")
    assert "--images 'my photos'" in lines[1]
    assert [line.split()[3] for line in lines if line.startswith("python")] == ["train", *["train", "eval"] * 2]
