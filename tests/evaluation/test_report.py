"""The HTML page and its plots."""

import re

import cv2
import numpy as np
import pytest

from unified_lift.evaluation.plots import loss_figure, metric_figure, write_plots
from unified_lift.evaluation.protocols import metric_of
from unified_lift.evaluation.report import MAX_WIDTH, REPORT, chosen_views, write_html

LOG = [
    *({"stage": "geometry", "step": s, "photometric": 1 / s, "total": 1, "num_gaussians": s} for s in (50, 100, 150)),
    {"stage": "test", "step": 150, "psnr": 21.0},
    *({"stage": "lift", "step": s, "contrastive": 2.0, "num_gaussians": 9, "objects_used": 3.0} for s in (50, 100)),
]
PER_VIEW = {"PSNR": {"a": 20.0, "b": 24.0}, "SSIM": {"a": 0.5, "b": 0.9}, "mIoU": {"a": 1.0}, "num_objects": {"a": 2}}
DETAILS = {
    "protocol": "generic",
    "background_id": 0,
    "warnings": ["1 views have no annotation and were left out"],
    "objects": [
        {"true_id": 4, "pred_id": 2, "iou": 0.75, "area": 10},
        {"true_id": 9, "pred_id": None, "iou": 0.0, "area": 3},
    ],
}
MANIFEST = {
    "program": "unified-lift 0.1.0",
    "command": "train.py -s <scene>",
    "dataset": "transforms",
    "train_views": 8,
    "notes": ["8 random initial points"],
    "seconds": {"geometry": 90.0, "lift": 30.0},
    "rasterizer": {"implementation": "cpu"},
}


@pytest.fixture
def page(tmp_path):
    def write(**changes):
        shot = np.full((30, 2 * MAX_WIDTH, 3), 90, dtype=np.uint8)
        arguments = {
            "title": "desk & chair",
            "shown": "ours_30",
            "results": {"ours_7": {"PSNR": 18.0}, "ours_30": {"PQ_scene": 0.912, "PSNR": 22.0, "num_gaussians": 12345}},
            "per_view": PER_VIEW,
            "plots": write_plots(tmp_path / "plots", per_view=PER_VIEW, log_lines=LOG),
            "pictures": {"cam1/<b>": {"photo": shot, "true objects": shot}},
            "num_views": 5,
            "manifest": MANIFEST,
            "settings": {"data.eval": (False, True), "run.save_iterations": ((), (7, 30))},
            "details": DETAILS,
        }
        write_html(tmp_path / "out" / "report.html", REPORT, **(arguments | changes))
        return (tmp_path / "out" / "report.html").read_text()

    return write


def test_the_page_tells_everything_and_loads_nothing_from_anywhere(page):
    text = page()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert not re.findall(r"https?://|@import|url\(|<script|<link", text)
    scores = ("91.2 %", "22.00 dB", "12,345", "ours_7", "1 of 5 are shown", "1 views have no annotation")
    origin = ("data.eval", "7, 30", "unified-lift 0.1.0", "2.0 min", "8 random initial points")
    escaped = ("desk &amp; chair", "<b>cam1/&lt;b&gt;</b>", "train.py -s &lt;scene&gt;")
    assert [words for words in (*scores, *origin, *escaped) if words not in text] == []
    assert len(text) < 400_000  # pictures are reduced


def test_a_name_that_looks_like_code_stays_a_name(page, tmp_path):
    name = "{{ 7 * 7 }}{# $\\frac{$ <script>"
    per_view = {"PSNR": {name: 20.0, "b": 24.0}}  # the bars are labelled with the names of the views
    shown = {"title": name, "per_view": per_view, "plots": write_plots(tmp_path, per_view=per_view, log_lines=LOG)}
    text = page(**shown, pictures={name: {}}, manifest=MANIFEST | {"notes": [name]})
    assert text.count("{{ 7 * 7 }}{# $\\frac{$ &lt;script&gt;") >= 5
    assert "<script" not in text


def test_objects_come_worst_first_with_unmatched_ones_grey(page):
    text = page()
    assert text.index("true id 9, predicted id None") < text.index("true id 4, predicted id 2")
    assert "background: #d6d6d6" in text
    assert "75.0 %" in text


def test_a_page_without_objects_annotations_and_log_is_still_a_page(page):
    text = page(results={"ours_30": {"PSNR": 22.0}}, details={}, manifest={}, settings={}, plots={}, pictures={})
    assert "22.00 dB" in text
    assert "Objects</h2>" not in text
    assert "None." in text


def test_shown_views_are_evenly_spread():
    names = [str(index) for index in range(100)]
    assert chosen_views(names, count=4) == ["0", "33", "66", "99"]
    assert chosen_views(names[:3], count=4) == ["0", "1", "2"]


def test_values_are_written_as_people_read_them():
    values = {"PSNR": 27.126, "SSIM": 0.98765, "mIoU": 0.5, "num_gaussians": 1234567}
    texts = [metric_of(name).text(value) for name, value in values.items()]
    assert texts == ["27.13 dB", "0.9877", "50.0 %", "1,234,567"]


def test_every_term_of_every_stage_has_a_panel():
    titles = [axis.get_title(loc="left") for axis in loss_figure(LOG).axes if axis.get_visible()]
    assert titles[:3] == ["photometric loss", "number of Gaussians", "held-out PSNR [dB]"]
    assert titles[3:] == ["contrastive loss (Eq. 1)", "objects in use"]


def test_of_repeated_steps_the_last_counts():
    values = ((1, 5.0), (2, 9.0), (1, 4.0), (2, 3.0))
    log = [{"stage": "lift", "step": step, "contrastive": value} for step, value in values]
    (line,) = loss_figure(log).axes[0].lines
    assert line.get_xydata().tolist() == [[1, 4.0], [2, 3.0]]


def test_every_score_of_views_has_bars_with_its_mean():
    figure = metric_figure(PER_VIEW)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["PSNR [dB], mean 22", "SSIM, mean 0.7", "mIoU, mean 1"]
    assert [bar.get_height() for bar in figure.axes[1].patches] == [0.5, 0.9]


def test_plots_without_data_are_left_out(tmp_path):
    assert write_plots(tmp_path / "a", per_view={}, log_lines=[]) == {}
    written = write_plots(tmp_path / "b", per_view=PER_VIEW, log_lines=LOG)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["losses.png", "metrics.png"]
    assert all(cv2.imread(str(path)) is not None for path in written.values())
