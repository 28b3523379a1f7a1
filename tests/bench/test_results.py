"""From finished jobs to numbers, tables, figures and the page."""

import csv
import json
import re

import numpy as np
import pytest

from tests.bench.conftest import job_named, run_all
from unified_lift.bench.grid import expand
from unified_lift.bench.report import all_figures, matched_colors, write_report
from unified_lift.bench.results import all_tables, latex, markdown, measure, score
from unified_lift.bench.run import read_records
from unified_lift.bench.tables import TABLES
from unified_lift.evaluation.pictures import BACKGROUND_COLOR, UNMATCHED_COLOR, object_colors, write_picture


def table_3(grid, **changes):
    """Scene a scores 0.8 and 0.9 with seeds 0 and 1, scene b 0.5 and 0.6; gaga is 0.4 everywhere."""
    made, base = grid("3", **changes), {"a": 0.8, "b": 0.5}

    def scores(job):
        _, scene, row, seed = job.key.split("/")[:4]
        return {"PQ_scene": base[scene] + int(seed[4:]) / 10 if row == "unified_lift" else 0.4}

    run_all(made, scores=scores)
    return made


def frame_of(grid):
    return measure(grid, read_records(expand(grid)))


def tables_of(grid):
    return all_tables(grid, frame_of(grid))


def cells_of(table):
    return table.cells.values.tolist()


def fail(grid, key, message="error: out of memory"):
    record = job_named(grid, key).record
    record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "failed", "message": message}))


def test_mean_and_standard_deviation_over_seeds_and_scenes(grid):
    frame = frame_of(table_3(grid))
    ours = frame[frame.method == "unified_lift"]
    of_a = score(ours[ours.scene == "a"], "PQ_scene")  # 0.8 and 0.9: 0.05 to either side, sqrt(2 * 0.05^2 / 1)
    assert of_a == (pytest.approx(0.85), pytest.approx(0.0707, abs=1e-4), 2, 2, "")
    overall = score(ours, "PQ_scene")  # seeds: (0.8 + 0.5) / 2 and (0.9 + 0.6) / 2
    assert overall == (pytest.approx(0.70), pytest.approx(0.0707, abs=1e-4), 4, 4, "")
    assert (ours.geometry_s == 40).all()
    assert (ours.lift_s == 5).all()
    run_all(grid("3"), seconds={"load": 9, "geometry": 0.0, "associate": 30.0, "lift": 5.0, "finish": 2})
    assert (frame_of(grid("3")).lift_s == 35).all()  # stages before the lift belong to its time


def test_a_failed_job_is_named_and_not_zero_and_a_scene_without_any_result_leaves_no_mean(grid):
    made = table_3(grid)
    fail(made, "detic_instance/b/unified_lift/seed1")
    tables = tables_of(made)
    assert cells_of(tables[0])[0][1] == "67.5 [3 of 4, rest failed]"  # (0.85 + 0.5) / 2; one whole seed: no deviation
    assert cells_of(tables[-1]) == [["detic_instance", "b", "unified_lift", "1", "failed", "error: out of memory"]]
    for seed in (0, 1):
        fail(made, f"geometry/b/seed{seed}")
        for row in ("unified_lift", "gaga"):
            job_named(made, f"detic_instance/b/{row}/seed{seed}").record.unlink()
    tables = tables_of(made)
    assert cells_of(tables[1])[0] == ["Unified-Lift (ours)", "85.0 ± 7.1", "failed", "failed"]
    why = "geometry/b/seed0 failed: error: out of memory"
    assert ["detic_instance", "b", "gaga", "0", "blocked", why] in cells_of(tables[-1])


def test_objects_are_counted_beside_those_annotated_and_gagas_groups(grid):
    made = grid("3")

    def scores(job):
        _, scene, row, seed = job.key.split("/")
        count = {"unified_lift": 20, "gaga": 30}[row] + 2 * int(seed[4:])
        manifest = {"method": {"num_groups": 100 + 10 * int(seed[4:])}} if row == "gaga" else {}
        (job.model / "manifest.json").write_text(json.dumps(manifest))
        return {"PQ_scene": 0.5, "num_objects_pred": count, "num_objects_true": 25 if scene == "a" else 60}

    run_all(made, scores=scores)
    (table,) = [table for table in tables_of(made) if table.title.startswith("Objects")]
    assert cells_of(table) == [
        ["annotated", "25", "60"], ["Unified-Lift (ours)", "21", "21"], ["Gaga", "31", "31"],
        ["Gaga: groups", "105", "105"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "text"), [('{"ours_0": {"mIoU": 0.5}}', "no score"), ('{"ours', "failed"), (None, "not run")]
)
def test_a_score_that_is_not_there_says_why(grid, content, text):
    made = grid("4", rows=("5_filter",), scenes=("a",), seeds=(0,))
    if content:
        run_all(made, scores=lambda job: {})
        job = expand(made)[1]
        (job.model / "results.json").write_text(content)
        job.record.write_text(json.dumps(json.loads(job.record.read_text()) | {"figures": {}}))  # an older record
    line = tables_of(made)[0].cells.iloc[0]
    assert line["F1"] == text
    assert line["F1 paper, its scenes"] == "43.9"
    assert line["mIoU"] == ("50.0" if content and "0.5" in content else text)
    assert (frame_of(made).state == "not run").all() == (content is None)


ODD = [[], {}, -1, None, float("nan"), 10**400, {"a": [1]}, "../.."]


def leaves(tree, path=()):
    yield path
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield from leaves(tree[key], (*path, key))


def changed(tree, path, value):
    if not path:
        return value
    copy = tree.copy()
    copy[path[0]] = changed(tree[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize("name", ["cell.json", "results.json", "manifest.json", "oracle.json"])
def test_whatever_is_in_the_files_of_a_job_becomes_a_line_that_names_the_file(grid, name):
    made = grid("3", rows=("omniseg3d_gs", "omniseg3d_gs_oracle"), scenes=("a",), seeds=(0,))
    run_all(made, scores=lambda job: {"PQ_scene": 0.5, "mIoU": 0.25})
    _, trained, oracle = expand(made)
    manifest = {"seconds": {"lift": 5.0}, "peak_gpu_bytes": {"lift": {"reserved": 1, "allocated": 1}}, "torch": "2.0"}
    manifest |= {"method": {"num_groups": 3}, "num_gaussians": 9}
    (trained.model / "manifest.json").write_text(json.dumps(manifest))
    oracle.artefacts[0].write_text(json.dumps({"best": "10", "candidates": {"10": {"PQ_scene": 0.75}}}))
    job = oracle if name == "oracle.json" else trained
    path = job.record if name == "cell.json" else job.model / name
    for each in (trained, oracle):  # older records: what was measured is read from the model folder
        each.record.write_text(json.dumps(json.loads(each.record.read_text()) | {"figures": {}}))
    figures = {"results": "ours_0", "scores": {"PQ_scene": 0.5}, "manifest": manifest, "candidates": {}}
    whole = json.loads(path.read_text()) | ({"figures": figures} if name == "cell.json" else {})
    named = 0
    places = [place for place in leaves(whole) if place[:1] != ("commands",) or len(place) == 1]
    for place in places:
        for value in ODD:
            path.write_text(json.dumps(changed(whole, place, value)))
            frame = frame_of(made)
            all_tables(made, frame)
            messages = [text for text in frame.message if isinstance(text, str) and str(path) in text]
            assert all("\n" not in text and "is done again" in text for text in messages)
            named += bool(messages)
            if "candidates" in place and not messages:
                all_figures(made, frame)
    assert named > 2 * len(places)


def test_scenes_without_masks_are_left_out_of_the_mean_and_listed(grid, tmp_path):
    made = grid("4", rows=("5_filter",), seeds=(0,))
    (tmp_path / "data/b/object_mask").rmdir()
    run_all(made, scores=lambda job: {"mIoU": 0.5, "F1": 0.25})
    tables = tables_of(made)
    assert tables[0].cells["mIoU"].tolist()[0] == "50.0"
    assert "No masks object_mask: b." in tables[0].notes
    why = "no folder object_mask/ in the scene"
    assert cells_of(tables[-1]) == [["object_mask", "b", "all", "all", "no masks", why]]


def test_the_papers_numbers_are_printed_beside_ours_and_on_its_scenes_scene_by_scene(grid):
    table = tables_of(table_3(grid, rows=("unified_lift", "gaga", "omniseg3d_gs_oracle")))[0]
    shown = table.cells.set_index("method")["PQ_scene paper, its scenes"]
    assert shown[["Unified-Lift (ours)", "Gaga"]].tolist() == ["69.0", "-"]
    assert shown["OmniSeg3D-GS + HDBSCAN (oracle)"] == "66.0"
    assert shown["Panoptic Lifting (NeRF) (cited)"] == "63.2"
    assert any("for reference only" in note for note in table.notes)
    made = grid("3", rows=("unified_lift",), scenes=TABLES["3"].scenes, seeds=(0,))
    run_all(made, scores=lambda job: {"PQ_scene": 0.5})
    tables = tables_of(made)
    assert "PQ_scene paper" in tables[0].cells
    paper = ("79.1", "72.2", "65.9", "53.9", "77.0", "78.9", "70.7", "54.1")
    assert cells_of(tables[1])[0][1:] == [*(f"50.0 ({value})" for value in paper), "50.0"]


def test_the_oracle_shows_its_best_candidate_and_is_never_bold(grid):
    made = grid("3", rows=("omniseg3d_gs", "omniseg3d_gs_oracle", "gaga"), scenes=("a",), seeds=(0,))
    run_all(made, scores=lambda job: {"PQ_scene": 0.5 if job.row == "gaga" else 0.4})
    oracle = job_named(made, "detic_instance/a/omniseg3d_gs/seed0/oracle")
    candidates = {"10": {"PQ_scene": 0.4}, "50": {"PQ_scene": 0.7}}
    oracle.artefacts[0].write_text(json.dumps({"candidates": candidates, "best": "50", "chosen": "10"}))
    oracle.record.write_text(json.dumps(json.loads(oracle.record.read_text()) | {"figures": {}}))
    table = tables_of(made)[0]
    assert table.cells["PQ_scene"].tolist()[:3] == ["40.0", "70.0", "50.0"]
    assert table.best == {(2, "PQ_scene")}
    figures = all_figures(made, frame_of(made))
    curve = figures["HDBSCAN: score over the smallest cluster, masks detic_instance"].axes[0].lines
    assert curve[0].get_xydata().tolist() == [[10, 40], [50, 70]]


def test_markdown_and_latex_hold_the_same_cells_which_names_cannot_break(grid):
    made = table_3(grid)
    fail(made, "detic_instance/a/gaga/seed0", message="50% of | C:\\x_{1} & <b> lost")
    tables = tables_of(made)
    lines = [line for line in markdown(tables).splitlines() if line.startswith("| Unified-Lift (ours)")]
    assert lines[0] == "| Unified-Lift (ours) | **70.0 ± 7.1** | 69.0 | 40.0 | 5.0 | about 1 |"
    assert r"50% of \| C:\x_{1} & <b> lost |" in markdown(tables)
    text = latex(tables)
    assert r"Unified-Lift (ours) & \textbf{70.0 $\pm$ 7.1} & 69.0 & 40.0 & 5.0 & about 1 \\" in text
    assert r"50\% of | C:\textbackslash x\_\{1\} \& $<$b$>$ lost \\" in text
    assert r"method & PQ\_scene & PQ\_scene paper, its scenes" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == len(tables)


def test_csv_and_summary_hold_every_place_of_the_grid(grid):
    made = table_3(grid)
    fail(made, "detic_instance/b/unified_lift/seed1")
    write_report(made, read_records(expand(made)))
    lines = (made.out / "results.csv").read_text().splitlines()
    by_place = {(r["scene"], r["method"], r["seed"]): r for r in csv.DictReader(lines)}
    assert len(by_place) == 2 * 2 * 2
    assert by_place["a", "unified_lift", "1"]["PQ_scene"] == "0.9"
    lost = by_place["b", "unified_lift", "1"]
    assert (lost["state"], lost["PQ_scene"], lost["message"]) == ("failed", "", "error: out of memory")
    content = json.loads((made.out / "summary.json").read_text(), parse_constant=pytest.fail)
    assert content["states"] == {"done": 7, "failed": 1}
    ours = content["rows"][0]["metrics"]["PQ_scene"]
    assert (ours["mean"], ours["paper"], ours["known"]) == (pytest.approx(0.675), 0.69, 3)
    assert ours["scenes"]["a"]["mean"] == pytest.approx(0.85)
    assert content["ran_on"] == ["2.0, cpu"]


def test_bars_have_a_diamond_for_the_paper(grid):
    made = table_3(grid)
    figures = all_figures(made, frame_of(made))
    axis = figures["Mean over the scenes, masks detic_instance"].axes[0]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([70, 40])
    (diamond,) = [line for line in axis.lines if line.get_marker() == "D"]
    assert diamond.get_xdata() == pytest.approx([69])
    assert figures["Scene by scene, masks detic_instance"].axes[0].lines[0].get_ydata() == pytest.approx([85, 55])


def test_robustness_has_a_table_and_a_panel_for_each_kind_of_noise(robustness):
    made = robustness("unified_lift", "gaga")
    run_all(made, scores=lambda job: {"mIoU": (0.5 if "drop_0.5" in job.key else 0.9) + int(job.key[-1]) / 100})
    fail(made, "object_mask/views_3/gaga/seed0")
    drop, views, problems = tables_of(made)
    assert list(drop.cells) == ["method", "0", "0.5"]
    assert cells_of(drop)[0] == ["Unified-Lift (ours)", "90.5 ± 0.7", "50.5 ± 0.7"]
    assert list(views.cells) == ["method", "48", "3"]
    assert cells_of(views)[1] == ["Gaga", "90.5 ± 0.7", "91.0 [1 of 2, rest failed]"]
    assert len(problems.cells) == 1
    (figure,) = all_figures(made, frame_of(made)).values()
    assert [axis.get_title("left") for axis in figure.axes] == ["drop", "views"]
    assert [axis.xaxis_inverted() for axis in figure.axes] == [False, True]  # noise grows to the right
    ours, gaga = figure.axes[0].lines[:2]
    assert ours.get_xydata() == pytest.approx(np.array([[0, 90.5], [0.5, 50.5]]))
    assert ours.get_linewidth() > gaga.get_linewidth()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Unified-Lift (ours)", "Gaga"]


def test_presets_have_scores_times_and_sizes_at_every_point_of_the_timeline(timeline):
    run_all(timeline, scores=lambda job: {"PQ_scene": int(job.key[-1]) / 10, "PSNR": 20.0 + int(job.key[-1])})
    table = tables_of(timeline)[0]
    columns = ["method", "iterations", "seeds", "PQ_scene", "PSNR", "geometry s", "lift s", "all s"]
    assert table.cells[columns].values.tolist() == [
        [preset, count, "1", score, psnr, "40.0", "5.0", "46.0"]
        for preset in ("released", "unified_lift")
        for count, score, psnr in (("4", "40.0", "24.0"), ("8", "80.0", "28.0"))
    ]
    (figure,) = all_figures(timeline, frame_of(timeline)).values()
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[45, 0.4], [45, 0.8]]


def test_a_true_object_has_one_colour_under_every_method():
    ids = np.array([[0, 3], [5, 9]])
    entries = [{"true_id": 7, "pred_id": 0}, {"true_id": 2, "pred_id": 5}, {"true_id": 4, "pred_id": None}]
    colors = matched_colors(ids, {"objects": entries, "background_id": 9})
    assert colors[0, 0].tolist() == object_colors(np.array(7)).tolist()
    assert colors[1, 0].tolist() == object_colors(np.array(2)).tolist()
    assert colors[0, 1].tolist() == list(UNMATCHED_COLOR)
    assert colors[1, 1].tolist() == list(BACKGROUND_COLOR)
    assert (matched_colors(ids, {}) == object_colors(ids)).all()


def test_the_page_shows_tables_plots_failures_and_pictures_and_loads_nothing(grid, monkeypatch):
    truth = {"7": np.full((6, 8), 2, dtype=np.int32)}
    monkeypatch.setattr("unified_lift.bench.report.load_annotations", lambda settings, names: truth)
    made = table_3(grid)
    for job in expand(made):
        if job.key.startswith("detic_instance/a"):
            for name in ("7", "10", "11"):
                photo = np.full((6, 8, 3), 90, dtype=np.uint8)
                write_picture(job.model / f"test/ours_0/gt/{name}.png", photo)
                write_picture(job.model / f"test/ours_0/objects_pred/{name}.png", np.full((6, 8), 1))
    fail(made, "detic_instance/b/gaga/seed0", message="error: <b> broke")
    write_report(made, read_records(expand(made)))
    page = (made.out / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert not re.findall(r"https?://|@import|url\(|<script|<link", page)
    assert "<b>70.0 ± 7.1</b>" in page
    assert "error: &lt;b&gt; broke" in page
    assert "2 scenes, 2 methods, 2 seeds; 7 of 8 results are there; 30 geometry iterations" in page
    assert page.index("a, masks detic_instance, view 7") < page.index("a, masks detic_instance, view 11")
    assert "view 10" not in page
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", page)
    own = ["Unified-Lift (ours)", "Gaga"]
    assert captions == ["photo", "ground truth", *own, "photo", *own]
