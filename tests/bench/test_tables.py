import pytest

from tests.data.fixtures import write_dataset
from unified_lift.bench.tables import ROWS, TABLES, chosen_rows, chosen_scenes
from unified_lift.errors import UserError
from unified_lift.methods import METHODS
from unified_lift.settings.yaml import PRESET_DIR


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


@pytest.mark.parametrize(
    ("table", "words", "keys"),
    [
        ("3", ["omniseg3d_gs"], ["omniseg3d_gs", "omniseg3d_gs_oracle"]),
        ("3", ["gaga", "released", "gaga"], ["gaga", "released"]),
        ("3", None, TABLES["3"].rows),
        ("robustness", ["omniseg3d_gs"], ["omniseg3d_gs"]),
        ("robustness", None, [*dict.fromkeys(["unified_lift", *sorted(METHODS)]), "released"]),
        ("presets", ["released"], ["released"]),
    ],
)
def test_rows_of_a_table_are_its_own_or_those_named(table, words, keys):
    assert [row.key for row in chosen_rows(TABLES[table], words)] == list(keys)


def test_a_settings_file_or_a_preset_is_a_row(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1\n")
    (row,) = chosen_rows(TABLES["rooms"], [str(path)])
    assert (row.key, row.train) == ("mine", ("--preset", str(path)))
    assert chosen_rows(TABLES["presets"], ["released"])[0].train == ("--preset", "released")  # elsewhere a staged one


@pytest.mark.parametrize(
    ("table", "word", "message"),
    [
        ("3", "gagga", "--methods gagga: no such method; there are .*gaga"),
        ("rooms", "gone.yaml", "gone.yaml: no such settings file"),
        ("presets", "gagga", "no such preset"),
    ],
)
def test_unknown_rows_are_named(table, word, message):
    with pytest.raises(UserError, match=message):
        chosen_rows(TABLES[table], [word])


def names(scenes):
    return [(scene.name, scene.path.name) for scene in scenes]


def test_rooms_takes_every_scene_found_and_other_tables_what_is_named(tmp_path):
    make_scenes(tmp_path, "kitchen", "attic", "room_0")
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("")
    assert [name for name, _ in names(chosen_scenes(TABLES["rooms"], tmp_path, None))] == ["attic", "kitchen", "room_0"]
    assert names(chosen_scenes(TABLES["3"], tmp_path, ["kitchen", "kitchen"])) == [("kitchen", "kitchen")]
    assert names(chosen_scenes(TABLES["2"], tmp_path, ["room0"])) == [("room0", "room_0")]  # Replica has both spellings


@pytest.mark.parametrize(
    ("table", "folder", "scenes", "message"),
    [
        ("rooms", "old_room_25", None, "no sub-folder there is a scene of a known layout"),
        ("3", ".", None, r"no scene old_room_50, .*prepare_messy_rooms.py .* --scenes restricts"),
        ("3", ".", ["old_room_100"], "no scene old_room_100"),
        ("3", "gone", None, "give the folder that holds the scenes"),
    ],
)
def test_missing_scenes_are_named_with_what_to_do(tmp_path, table, folder, scenes, message):
    make_scenes(tmp_path, "old_room_25")
    with pytest.raises(UserError, match=message):
        chosen_scenes(TABLES[table], tmp_path / folder, scenes)
