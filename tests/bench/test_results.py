"""From finished cells to numbers, tables and the page."""

import csv
import io
import json
import re

import numpy as np
import pytest

from tests.bench.cells_of import run_all, write_scores
from unified_lift.bench.collect import collect
from unified_lift.bench.figures import all_figures
from unified_lift.bench.grid import expand
from unified_lift.bench.page import matched_colors, write_page
from unified_lift.bench.sheets import (
    all_sheets,
    count_sheet,
    csv_text,
    latex,
    markdown,
    mean_sheet,
    scene_sheet,
    summary,
)
from unified_lift.evaluation.pictures import BACKGROUND_COLOR, UNMATCHED_COLOR, object_colors, write_picture


def table_3(plan, **changes):
    """Scene a scores 0.8 and 0.9 with seeds 0 and 1, scene b 0.5 and 0.6; gaga is 0.4 everywhere."""
    p = plan("3", **changes)
    base = {"a": 0.8, "b": 0.5}
    write_scores(
        p, lambda masks, scene, row, seed: {"PQ_scene": base[scene] + seed / 10 if row == "unified_lift" else 0.4}
    )
    return p


def results_of(plan):
    return collect(plan, expand(plan))


def cell_of(plan, key):
    return next(cell for cell in expand(plan) if cell.key == key)


def fail(plan, key, message="error: out of memory"):
    record = cell_of(plan, key).record
    content = json.loads(record.read_text()) | {"status": "failed", "message": message}
    record.write_text(json.dumps(content))


def test_mean_and_spread_over_seeds_and_scenes(plan):
    p = table_3(plan)
    results, (masks,), ours = results_of(p), p.table.masks, p.rows[0]
    of_a = results.over_seeds(masks, ours, "a", "PQ_scene")
    assert (of_a.mean, of_a.spread, of_a.count, of_a.expected) == (pytest.approx(0.85), pytest.approx(0.05), 2, 2)
    overall = results.over_scenes(masks, ours, "PQ_scene")  # seeds: (0.8 + 0.5) / 2 and (0.9 + 0.6) / 2
    assert (overall.mean, overall.spread) == (pytest.approx(0.70), pytest.approx(0.05))
    assert results.seconds(masks, ours, "geometry").mean == 40
    assert results.seconds(masks, ours, "lift").mean == 5


def test_stages_before_the_lift_belong_to_its_time(plan):
    p = plan("3", rows=("gaga",), scenes=("a",), seeds=(0,))
    seconds = {"load": 9, "geometry": 0.0, "associate": 30.0, "lift": 5.0, "finish": 2}
    write_scores(p, lambda *_: {"PQ_scene": 0.5}, seconds=seconds)
    assert results_of(p).seconds(p.table.masks[0], p.rows[0], "lift").mean == 35


def test_a_failed_cell_is_named_and_is_not_zero(plan):
    p = table_3(plan)
    fail(p, "detic_instance/b/unified_lift/seed1")
    results, (masks,) = results_of(p), p.table.masks
    of_b = results.over_seeds(masks, p.rows[0], "b", "PQ_scene")
    assert (of_b.mean, of_b.spread, of_b.problem) == (0.5, None, "failed")
    sheet = mean_sheet(results, masks)
    assert sheet.rows[0][1] == "67.5 [3 of 4, rest failed]"  # (0.85 + 0.5) / 2, and one whole seed has no spread
    assert all_sheets(results)[-1].rows == (
        ("detic_instance", "b", "unified_lift", "1", "failed", "error: out of memory"),
    )


def test_a_scene_without_any_result_leaves_no_mean(plan):
    p = table_3(plan)
    for seed in (0, 1):
        fail(p, f"geometry/b/seed{seed}")
        for row in ("unified_lift", "gaga"):
            cell_of(p, f"detic_instance/b/{row}/seed{seed}").record.unlink()
    sheet = scene_sheet(results_of(p), p.table.masks[0], "PQ_scene")
    assert sheet.rows[0] == ("Unified-Lift (ours)", "85.0 ± 5.0", "failed", "failed")
    problems = all_sheets(results_of(p))[-1].rows
    assert ("detic_instance", "b", "gaga", "0", "blocked", "geometry/b/seed0 failed: error: out of memory") in problems


def test_objects_are_counted_beside_those_annotated_and_gagas_groups(plan):
    p = plan("3", rows=("unified_lift", "gaga"), seeds=(0, 1))
    pred = {"unified_lift": 20, "gaga": 30}
    write_scores(
        p,
        lambda masks, scene, row, seed: {
            "PQ_scene": 0.5, "num_objects_pred": pred[row] + 2 * seed, "num_objects_true": 25 if scene == "a" else 60
        },
    )  # fmt: skip
    for seed in (0, 1):
        path = cell_of(p, f"detic_instance/a/gaga/seed{seed}").model / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"method": {"num_groups": 100 + 10 * seed}}))
    sheet = count_sheet(results_of(p), p.table.masks[0])
    assert sheet.rows == (
        ("annotated", "25", "60"), ("Unified-Lift (ours)", "21", "21"), ("Gaga", "31 of 105 groups", "31"),
    )  # fmt: skip
    assert sheet in all_sheets(results_of(p))
    write_scores(p, lambda *_: {"PQ_scene": 0.5})
    assert count_sheet(results_of(p), p.table.masks[0]) is None


def test_what_was_not_run_says_so(plan):
    p = plan("3")
    assert mean_sheet(results_of(p), p.table.masks[0]).rows[0][1] == "not run"
    assert {row["state"] for row in csv.DictReader(io.StringIO(csv_text(results_of(p))))} == {"not run"}


def test_a_score_that_the_protocol_does_not_give_says_so(plan):
    p = plan("4", rows=("5_filter",), scenes=("a",), seeds=(0,))
    write_scores(p, lambda *_: {"mIoU": 0.5})
    assert mean_sheet(results_of(p), p.table.masks[0]).rows[0][1:5] == ("50.0", "41.6", "no score", "43.9")


def test_scenes_without_masks_are_left_out_of_the_mean_and_listed(plan, tmp_path):
    p = plan("4", rows=("5_filter",), seeds=(0,))
    (tmp_path / "data/b/object_mask").rmdir()
    write_scores(p, lambda *_: {"mIoU": 0.5, "F1": 0.25})
    sheets = all_sheets(results_of(p))
    assert sheets[0].rows[0][1] == "50.0"
    assert "No masks object_mask: b." in sheets[0].notes
    assert sheets[-1].rows == (
        ("object_mask", "b", "5_filter", "0", "no masks", "no folder object_mask/ in the scene"),
    )


def test_the_papers_numbers_stand_beside_ours(plan):
    p = table_3(plan, rows=("unified_lift", "gaga", "omniseg3d_gs_oracle"))
    sheet = mean_sheet(results_of(p), p.table.masks[0])
    column = sheet.header.index("paper, its scenes")
    shown = {row[0]: row[column] for row in sheet.rows}
    assert shown["Unified-Lift (ours)"] == "69.0"
    assert shown["Gaga"] == "-"
    assert shown["OmniSeg3D-GS + HDBSCAN (oracle)"] == "66.0"
    assert shown["Panoptic Lifting (NeRF) (cited)"] == "63.2"
    assert any("for reference only" in note for note in sheet.notes)


def test_on_the_papers_scenes_its_number_of_each_is_quoted(plan):
    scenes = tuple(f"{room}_{count}" for room in ("old_room", "large_corridor") for count in (25, 50, 100, 500))
    p = plan("3", rows=("unified_lift",), scenes=scenes, seeds=(0,))
    write_scores(p, lambda *_: {"PQ_scene": 0.5})
    assert "paper" in mean_sheet(results_of(p), p.table.masks[0]).header
    (row,) = scene_sheet(results_of(p), p.table.masks[0], "PQ_scene").rows
    assert row[1:] == (
        "50.0 (79.1)", "50.0 (72.2)", "50.0 (65.9)", "50.0 (53.9)", "50.0 (77.0)", "50.0 (78.9)", "50.0 (70.7)",
        "50.0 (54.1)", "50.0",
    )  # fmt: skip


def test_the_oracle_shows_its_best_candidate_and_is_never_bold(plan):
    p = plan("3", rows=("omniseg3d_gs", "omniseg3d_gs_oracle", "gaga"), scenes=("a",), seeds=(0,))
    write_scores(p, lambda masks, scene, row, seed: {"PQ_scene": 0.5 if row == "gaga" else 0.4})
    sweep = {"candidates": {"10": {"PQ_scene": 0.4}, "50": {"PQ_scene": 0.7}}, "best": "50", "chosen": "10"}
    (cell_of(p, "detic_instance/a/omniseg3d_gs/seed0").model / "oracle.json").write_text(json.dumps(sweep))
    sheet = mean_sheet(results_of(p), p.table.masks[0])
    assert [row[1] for row in sheet.rows[:3]] == ["40.0", "70.0", "50.0"]
    assert sheet.best == {(2, 1)}
    curve = all_figures(results_of(p))["HDBSCAN: score over the smallest cluster, masks detic_instance"].axes[0].lines
    assert curve[0].get_xydata().tolist() == [[10, 40], [50, 70]]


def test_markdown_and_latex_hold_the_same_cells(plan):
    sheets = all_sheets(results_of(table_3(plan)))
    lines = [line for line in markdown(sheets).splitlines() if line.startswith("| Unified-Lift (ours)")]
    assert lines[0] == "| Unified-Lift (ours) | **70.0 ± 5.0** | 69.0 | 40.0 | 5.0 | about 1 |"
    text = latex(sheets)
    assert r"Unified-Lift (ours) & \textbf{70.0 $\pm$ 5.0} & 69.0 & 40.0 & 5.0 & about 1 \\" in text
    assert r"method & PQ\_scene & paper, its scenes" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == len(sheets)


def test_names_cannot_break_a_table(plan):
    p = table_3(plan)
    fail(p, "detic_instance/a/gaga/seed0", message="50% of | C:\\x_{1} & <b> lost")
    assert r"50% of \| C:\x_{1} & <b> lost |" in markdown(all_sheets(results_of(p)))
    assert r"50\% of | C:\textbackslash{}x\_\{1\} \& $<$b$>$ lost \\" in latex(all_sheets(results_of(p)))


def test_csv_and_summary_hold_every_place_of_the_grid(plan):
    p = table_3(plan)
    fail(p, "detic_instance/b/unified_lift/seed1")
    rows = list(csv.DictReader(io.StringIO(csv_text(results_of(p)))))
    assert len(rows) == 2 * 2 * 2
    by_place = {(row["scene"], row["method"], row["seed"]): row for row in rows}
    assert by_place[("a", "unified_lift", "1")]["PQ_scene"] == "0.9"
    lost = by_place[("b", "unified_lift", "1")]
    assert (lost["state"], lost["PQ_scene"], lost["message"]) == ("failed", "", "error: out of memory")
    content = json.loads(json.dumps(summary(results_of(p))))
    assert content["states"] == {"done": 7, "failed": 1}
    ours = content["rows"][0]["metrics"]["PQ_scene"]
    assert (ours["mean"], ours["paper"], ours["count"]) == (pytest.approx(0.675), 0.69, 3)
    assert ours["scenes"]["a"]["mean"] == pytest.approx(0.85)
    assert content["ran_on"] == ["2.0, cpu"]


def test_bars_have_the_spread_and_a_diamond_for_the_paper(plan):
    figures = all_figures(results_of(table_3(plan)))
    axis = figures["Mean over the scenes, masks detic_instance"].axes[0]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([70, 40])
    diamonds = [line for line in axis.lines if line.get_marker() == "D"]
    assert [line.get_xdata()[0] for line in diamonds] == pytest.approx([69])
    assert "Scene by scene, masks detic_instance" in figures


def test_a_true_object_has_one_colour_under_every_method():
    ids = np.array([[0, 3], [5, 9]])
    entries = [{"true_id": 7, "pred_id": 0}, {"true_id": 2, "pred_id": 5}, {"true_id": 4, "pred_id": None}]
    colors = matched_colors(ids, {"objects": entries, "background_id": 9})
    assert colors[0, 0].tolist() == object_colors(np.array(7)).tolist()
    assert colors[1, 0].tolist() == object_colors(np.array(2)).tolist()
    assert colors[0, 1].tolist() == list(UNMATCHED_COLOR)
    assert colors[1, 1].tolist() == list(BACKGROUND_COLOR)
    assert (matched_colors(ids, {}) == object_colors(ids)).all()


@pytest.fixture
def page(plan, tmp_path, monkeypatch):
    truth = {"7": np.full((6, 8), 2, dtype=np.int32)}
    monkeypatch.setattr("unified_lift.bench.page.load_annotations", lambda settings, names: truth)
    p = table_3(plan)
    for cell in expand(p):
        folder = cell.model / "test" / "ours_0"
        if cell.kind == "method" and cell.scene == "a":
            for name in ("7", "10", "11"):
                write_picture(folder / "gt" / f"{name}.png", np.full((6, 8, 3), 90, dtype=np.uint8))
                write_picture(folder / "objects_pred" / f"{name}.png", np.full((6, 8), 1))
    fail(p, "detic_instance/b/gaga/seed0", message="error: <b> broke")
    results = results_of(p)
    write_page(tmp_path / "report.html", results, all_sheets(results))
    return (tmp_path / "report.html").read_text()


def test_the_page_loads_nothing_from_anywhere(page):
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert not re.findall(r"https?://|@import|url\(|<script|<link", page)


def test_the_page_shows_tables_plots_failures_and_pictures_side_by_side(page):
    assert "<b>70.0 ± 5.0</b>" in page
    assert "error: &lt;b&gt; broke" in page
    assert "2 scenes, 2 methods, 2 seeds; 7 of 8 results are there; 30 geometry iterations" in page
    first, last = page.index("a, masks detic_instance, view 7"), page.index("a, masks detic_instance, view 11")
    assert "view 10" not in page
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", page)
    assert captions == ["photo", "truth", "Unified-Lift (ours)", "Gaga", "photo", "Unified-Lift (ours)", "Gaga"]
    assert first < last


def test_a_page_without_any_result_is_still_a_page(plan, tmp_path):
    p = plan("rooms")
    results = results_of(p)
    write_page(tmp_path / "report.html", results, all_sheets(results))
    assert "0 of 16 results are there" in (tmp_path / "report.html").read_text()


def test_a_damaged_results_file_is_a_missing_score_not_a_crash(plan):
    p = plan("3", rows=("gaga",), scenes=("a",), seeds=(0,))
    run_all(p)
    (cell_of(p, "detic_instance/a/gaga/seed0").model / "results.json").write_text('{"ours')
    assert mean_sheet(results_of(p), p.table.masks[0]).rows[0][1] == "no score"
