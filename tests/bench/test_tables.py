import pytest

from tests.data.fixtures import write_dataset
from unified_lift.bench.tables import ROWS, TABLES, chosen_rows, chosen_scenes
from unified_lift.errors import UserError
from unified_lift.methods import METHODS
from unified_lift.settings.presets import PRESET_DIR


def make_scenes(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        write_dataset("messy_rooms", root / name)


def test_the_means_of_table_3_are_those_of_its_scenes():
    for row in TABLES["3"].paper.values():
        mean = sum(row.scenes["PQ_scene"]) / len(TABLES["3"].scenes)
        assert mean == pytest.approx(row.mean["PQ_scene"], abs=0.0011)  # one digit is printed, and 58.57 became 58.6


def test_every_number_of_the_paper_that_is_not_cited_alone_belongs_to_a_row_of_its_table():
    only_cited = {"lerf", "langsplat", "panoptic_lifting", "contrastive_lift"}
    for table in TABLES.values():
        assert table.paper.keys() - {ROWS[key].citation for key in table.rows} <= only_cited


def test_every_row_trains_something_that_exists():
    for row in ROWS.values():
        words = dict(zip(row.train[::2], row.train[1::2], strict=True))
        assert row.model in ROWS if row.model else words
        if "--method" in words:
            assert words["--method"] in METHODS
        if "--preset" in words:
            assert (PRESET_DIR / f"{words['--preset']}.yaml").is_file()


def test_table_4_has_the_five_rows_of_the_paper_in_its_order():
    scores = [TABLES["4"].paper[key].mean["mIoU"] for key in TABLES["4"].rows]
    assert scores == [0.253, 0.295, 0.363, 0.392, 0.416]


def test_omniseg_brings_its_oracle_reading_along():
    table = TABLES["3"]
    assert [row.key for row in chosen_rows(table, ["omniseg3d_gs"])] == ["omniseg3d_gs", "omniseg3d_gs_oracle"]
    assert [row.key for row in chosen_rows(table, ["gaga", "released", "gaga"])] == ["gaga", "released"]
    assert [row.key for row in chosen_rows(table, None)] == list(table.rows)
    assert [row.key for row in chosen_rows(TABLES["robustness"], ["omniseg3d_gs"])] == ["omniseg3d_gs"]


def test_rows_of_the_presets_table_are_presets():
    assert chosen_rows(TABLES["presets"], ["released"])[0].train == ("--preset", "released")  # elsewhere a staged one
    with pytest.raises(UserError, match="no such preset"):
        chosen_rows(TABLES["presets"], ["gagga"])


def test_robustness_has_a_row_for_every_method_and_the_released_settings():
    assert set(TABLES["robustness"].rows) == {*METHODS, "released"}
    assert TABLES["robustness"].rows[0] == "unified_lift"


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
