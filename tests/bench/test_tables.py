import pytest

from tests.data.fixtures import write_dataset
from unified_lift.bench.grid import Plan, expand, method_key
from unified_lift.bench.paper import PUBLISHED
from unified_lift.bench.tables import ROWS, TABLES, SceneEntry, chosen_rows, chosen_scenes
from unified_lift.cli.train import parse
from unified_lift.errors import UserError
from unified_lift.methods import METHODS
from unified_lift.settings.presets import PRESET_DIR


def make_scenes(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        write_dataset("messy_rooms", root / name)


def test_the_means_of_table_3_are_those_of_its_scenes():
    for row in PUBLISHED["3"].values():
        mean = sum(scores["PQ_scene"] for scores in row.scenes.values()) / 8
        assert mean == pytest.approx(row.mean["PQ_scene"], abs=0.0011)  # one digit is printed, and 58.57 became 58.6


def test_every_number_of_the_paper_that_is_not_cited_alone_belongs_to_a_row_of_its_table():
    only_cited = {"lerf", "langsplat", "panoptic_lifting", "contrastive_lift"}
    for table, published in PUBLISHED.items():
        own = {ROWS[key].citation for key in TABLES[table].rows}
        assert published.keys() - own <= only_cited


def test_every_row_trains_something_that_exists():
    for row in ROWS.values():
        words = dict(zip(row.train[::2], row.train[1::2], strict=True))
        assert row.model in ROWS if row.model else words
        if "--method" in words:
            assert words["--method"] in METHODS
        if "--preset" in words:
            assert (PRESET_DIR / f"{words['--preset']}.yaml").is_file()


def test_table_4_has_the_five_rows_of_the_paper_in_its_order():
    scores = [PUBLISHED["4"][key].mean["mIoU"] for key in TABLES["4"].rows]
    assert scores == [0.253, 0.295, 0.363, 0.392, 0.416]


def test_omniseg_brings_its_oracle_reading_along():
    table = TABLES["3"]
    assert [row.key for row in chosen_rows(table, ["omniseg3d_gs"])] == ["omniseg3d_gs", "omniseg3d_gs_oracle"]
    assert [row.key for row in chosen_rows(table, ["gaga", "released", "gaga"])] == ["gaga", "released"]
    assert [row.key for row in chosen_rows(table, None)] == list(table.rows)


def test_rows_of_the_ablation_that_are_methods_share_their_cells(tmp_path):
    (tmp_path / "room" / "object_mask").mkdir(parents=True)
    scene = SceneEntry(name="room", path=tmp_path / "room")
    rows = [ROWS[key] for key in ("released", "5_filter", "panoptic_lifting_gs", "1_end_to_end")]
    plan = Plan(table=TABLES["4"], out=tmp_path, scenes=(scene,), rows=tuple(rows), seeds=(0,), iterations=10)
    assert [cell.row for cell in expand(plan)] == ["", "released", "panoptic_lifting_gs"]
    keys = [method_key("room", "object_mask", row, 0) for row in rows]
    assert keys[0] == keys[1]
    assert keys[2] == keys[3]
    whole, filtered = (parse(["-s", "a", "-m", "b", *row.train]).settings for row in rows[:2])
    assert whole.method == filtered.method
    assert whole.lift == filtered.lift


def test_a_settings_file_is_a_row(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1\n")
    (row,) = chosen_rows(TABLES["rooms"], [str(path)])
    assert (row.key, row.train) == ("mine", ("--preset", str(path)))
    with pytest.raises(UserError, match="gone.yaml: no such settings file"):
        chosen_rows(TABLES["rooms"], [str(tmp_path / "gone.yaml")])


def test_an_unknown_method_is_named_with_those_there_are():
    with pytest.raises(UserError, match="--methods gagga: no such method; there are .*gaga"):
        chosen_rows(TABLES["3"], ["gagga"])


def test_rooms_takes_every_scene_found(tmp_path):
    make_scenes(tmp_path, "kitchen", "attic")
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("")
    assert [scene.name for scene in chosen_scenes(TABLES["rooms"], tmp_path, None)] == ["attic", "kitchen"]
    with pytest.raises(UserError, match="no sub-folder there is a scene of a known layout"):
        chosen_scenes(TABLES["rooms"], tmp_path / "notes", None)


def test_a_missing_scene_of_a_table_is_named_with_its_checking_script(tmp_path):
    make_scenes(tmp_path, "old_room_25")
    with pytest.raises(UserError, match=r"no scene old_room_50, .*prepare_messy_rooms.py .* --scenes restricts"):
        chosen_scenes(TABLES["3"], tmp_path, None)
    assert [scene.name for scene in chosen_scenes(TABLES["3"], tmp_path, ["old_room_25"])] == ["old_room_25"]
    with pytest.raises(UserError, match="no scene old_room_100"):
        chosen_scenes(TABLES["3"], tmp_path, ["old_room_100"])
    with pytest.raises(UserError, match="give the folder that holds the scenes"):
        chosen_scenes(TABLES["3"], tmp_path / "gone", None)


def test_a_table_takes_scenes_that_are_not_its_own(tmp_path):
    make_scenes(tmp_path, "kitchen")
    assert [scene.name for scene in chosen_scenes(TABLES["3"], tmp_path, ["kitchen"])] == ["kitchen"]


def test_replica_scenes_may_be_spelled_with_an_underscore(tmp_path):
    make_scenes(tmp_path, "room_0")
    (scene,) = chosen_scenes(TABLES["2"], tmp_path, ["room0"])
    assert (scene.name, scene.path.name) == ("room0", "room_0")
