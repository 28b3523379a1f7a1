"""Which jobs there are, what they run, and what they depend on."""

from collections import Counter
from dataclasses import replace

import pytest

from unified_lift.bench.grid import expand, lift_steps, places
from unified_lift.bench.tables import ROWS
from unified_lift.cli.train import parse


def kinds_of(jobs):
    return Counter(job.row if job.row in ("geometry", "room") else "method" for job in jobs)


def value_of(command, flag):
    return command[command.index(flag) + 1]


def test_the_grid_is_scenes_by_masks_by_rows_by_seeds_each_job_after_those_it_depends_on(grid):
    assert kinds_of(expand(grid(seeds=(0, 1, 2)))) == {"geometry": 2 * 3, "method": 2 * 2 * 2 * 3}  # one for all rows
    jobs = expand(grid(rows=("omniseg3d_gs", "omniseg3d_gs_oracle", "gaga")))
    for index, job in enumerate(jobs):
        assert {other.key for other in job.depends_on} <= {other.key for other in jobs[:index]}
    assert len(jobs) == 4 + 2 * 2 * 2 * 3


def test_the_oracle_row_scores_the_model_of_the_honest_one(grid):
    geometry, honest, oracle = expand(grid("3", rows=("omniseg3d_gs_oracle",), scenes=("a",), seeds=(0,)))
    assert (oracle.depends_on, honest.depends_on, oracle.geometry) == ((honest,), (geometry,), geometry)
    (command,) = oracle.commands
    assert (command[0], command[2]) == ("eval", str(honest.model))
    assert "--oracle_codebooks" in command
    assert oracle.record != honest.record


def test_commands_parse_and_start_from_the_shared_geometry(grid, tmp_path):
    device = ("--device", "cpu")
    made = grid("3", rows=("unified_lift", "released"), scenes=("a",), seeds=(4,), iterations=70, device_flags=device)
    geometry, ours, released = expand(made)
    g = parse(geometry.commands[0][1:]).settings
    assert (g.geometry.iterations, g.lift.lift_iterations, g.seed, g.run.device, g.data.eval) == (70, 0, 4, "cpu", True)
    assert geometry.artefacts[0] == tmp_path / "out/geometry/a/seed4/point_cloud/iteration_70/point_cloud.ply"
    for job, preset in ((ours, "unified_lift"), (released, "released_staged")):
        m = parse(job.commands[0][1:]).settings
        assert (m.geometry.iterations, m.init_ply, m.schedule) == (0, geometry.artefacts[0], "staged")
        assert (m.seed, m.preset, m.data.object_path) == (4, preset, "detic_instance")
        assert m.lift.lift_iterations != 0


def test_masks_bring_the_protocol_that_fits_them_and_prompts_are_grounded_scene_by_scene(grid):
    jobs = [job for job in expand(grid(rows=("gaga",), scenes=("a",), seeds=(0,))) if job.row == "gaga"]
    assert [value_of(job.commands[1], "--protocol") for job in jobs] == ["auto", "replica"]
    jobs = expand(grid("1", rows=("gaga",), seeds=(0,), grounding="masks/{scene}"))
    found = [value_of(job.commands[1], "--grounding") for job in jobs if job.row == "gaga"]
    assert found == ["masks/a", "masks/b"]


def test_further_flags_go_to_all_or_to_one_row(grid):
    extra = ("--sh_degree", "2", "geometry:--max_gaussians=9", "gaga:--lift_iterations=7", "--images", "a:b")
    for job in expand(grid(scenes=("a",), seeds=(0,), extra=extra)):
        words = job.commands[0]
        assert {"--sh_degree", "a:b"} <= set(words)
        assert ("--max_gaussians=9" in words) == (job.row == "geometry")
        assert ("--lift_iterations=7" in words) == (job.row == "gaga")


def test_scenes_without_the_masks_have_no_jobs(grid, tmp_path):
    made = grid()
    (tmp_path / "data/b/object_mask").rmdir()
    assert {(p.scene.name, p.masks.folder) for p in places(made) if not p.has_masks} == {("b", "object_mask")}
    assert {job.key.rpartition("/")[0] for job in expand(made) if job.row == "gaga"} == {
        "detic_instance/a/gaga", "object_mask/a/gaga", "detic_instance/b/gaga",
    }  # fmt: skip
    (tmp_path / "data/b/detic_instance").rmdir()
    assert not [job for job in expand(made) if "/b/" in job.key]  # nor a geometry that nothing needs


def test_named_masks_say_what_id_0_is_to_rows_that_leave_it_to_the_data_and_old_jobs_stay(grid, tmp_path):
    rows, names = ("unified_lift", "released"), ("simulated", "net", "edges", "sam")
    for name in names[1:]:
        (tmp_path / f"data/a/object_mask_{name}").mkdir(parents=True)
    old = grid(rows=rows, scenes=("a",), seeds=(0,))
    new = {job.key: job for job in expand(replace(old, table=old.table.on(names)))}
    assert [new[job.key].recorded for job in expand(old)] == [job.recorded for job in expand(old)]
    found = {key: [w for w in job.commands[0] if w in ("segment", "ignore")] for key, job in new.items()}
    assert {key.split("/")[0]: zero for key, zero in found.items() if zero} == {
        "object_mask_net": ["segment"], "object_mask_edges": ["ignore"], "object_mask_sam": ["ignore"],
    }  # fmt: skip
    assert not any(found[key] for key in found if "released" in key)  # its preset says it


def test_rows_of_the_ablation_that_are_methods_share_their_jobs(grid):
    rows = ("released", "5_filter", "panoptic_lifting_gs", "1_end_to_end")
    made = grid("4", rows=rows, scenes=("a",), seeds=(0,))
    assert [job.row for job in expand(made)] == ["geometry", "released", "panoptic_lifting_gs"]
    whole, filtered = (parse(["-s", "a", "-m", "b", *row.train]).settings for row in made.rows[:2])
    assert whole.method == filtered.method
    assert whole.lift == filtered.lift


def test_rooms_share_the_geometry_of_their_seed_and_number_of_views(robustness):
    jobs = expand(robustness("gaga", "released"))
    assert kinds_of(jobs) == {"room": 2 * 4, "geometry": 2 * 2, "method": 2 * 4 * 2}
    for job in jobs:
        if job.row in ROWS:
            seed = value_of(job.commands[0], "--seed")
            views = "views_3" if "views_3" in job.key else "views_48"
            assert f"geometry/{views}/seed{seed}/point_cloud" in value_of(job.commands[0], "--init_ply")
            assert value_of(job.commands[0], "-s").endswith(f"rooms/{job.key.split('/')[1]}/seed{seed}/room")
            assert value_of(job.commands[0], "--lift_iterations") == "2000"
            assert parse(job.commands[0][1:]).settings.data.object_path == "object_mask"
    geometry = next(job for job in jobs if job.row == "geometry")
    assert parse(geometry.commands[0][1:]).settings.preset == "demo"


@pytest.mark.parametrize(
    ("method", "most", "steps"),
    [
        ("unified_lift", None, 600), ("unified_lift", 1000, 600), ("gaga", 50, 50),
        ("gaga", None, 2000), ("released", None, 2000),  # their presets: 4,000 and 5,000
    ],
)  # fmt: skip
def test_lift_steps_of_the_robustness_table_are_limited(method, most, steps):
    assert lift_steps(ROWS[method], most) == steps


def test_presets_are_trained_whole_each_by_its_own_flags(timeline):
    released, ours = expand(replace(timeline, timeline=(), iterations=None, extra=("released:--iterations=5",)))
    assert (released.key, ours.key) == ("a/released/seed0", "a/unified_lift/seed0")
    settings = [parse(job.commands[0][1:]).settings for job in (released, ours)]
    assert [s.geometry.iterations for s in settings] == [5, -1]  # chosen by the device
    assert [s.schedule for s in settings] == ["joint", "staged"]


def test_on_a_timeline_a_joint_preset_is_one_run_and_a_staged_one_trains_anew(timeline):
    jobs = early, late, first, second = expand(timeline)
    assert early.model == late.model
    assert late.depends_on == (early,)
    assert first.model != second.model
    assert ["--resume" in job.commands[0] for job in jobs] == [False, True, False, False]
    assert [value_of(job.commands[0], "--iterations") for job in jobs] == ["4", "8", "4", "8"]
    assert [bool(job.discard) for job in jobs] == [False, False, True, True]  # it goes on from its checkpoint
