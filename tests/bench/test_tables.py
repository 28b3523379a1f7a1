from dataclasses import replace

import pytest

from tests.data.fixtures import write_dataset
from unified_lift.bench import tables
from unified_lift.bench.tables import KINDS, ROWS, TABLES, chosen_rows, chosen_scenes
from unified_lift.data import DataSettings, load_scene
from unified_lift.errors import UserError
from unified_lift.methods import METHODS
from unified_lift.settings.yaml import PRESET_DIR
from unified_lift.synthetic.scene import SyntheticSettings, build_cameras, synthetic_room


def make_scenes(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        write_dataset("messy_rooms", root / name)


def test_the_papers_numbers_are_means_of_their_scenes_and_belong_to_rows_in_its_order():
    for row in TABLES["3"].paper.values():
        mean = sum(row.scenes["PQ_scene"]) / len(TABLES["3"].scenes)
        assert mean == pytest.approx(row.mean["PQ_scene"], abs=0.0011)  # one digit is printed, and 58.57 became 58.6
    only_cited = {"lerf", "langsplat", "panoptic_lifting", "contrastive_lift"}
    for table in TABLES.values():
        assert table.paper.keys() - {ROWS[key].citation for key in table.rows} <= only_cited
    assert [TABLES["4"].paper[key].mean["mIoU"] for key in TABLES["4"].rows] == [0.253, 0.295, 0.363, 0.392, 0.416]


def test_every_row_trains_something_that_exists():
    for row in ROWS.values():
        words = dict(zip(row.train[::2], row.train[1::2], strict=True))
        assert row.model in ROWS if row.model else words
        assert words.get("--method", "gaga") in METHODS
        assert (PRESET_DIR / f"{words.get('--preset', 'released')}.yaml").is_file()


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
        ("3", "gone", None, "give the folder that holds the scene folders"),
    ],
)
def test_missing_scenes_are_named_with_what_to_do(tmp_path, table, folder, scenes, message):
    make_scenes(tmp_path, "old_room_25")
    with pytest.raises(UserError, match=message):
        chosen_scenes(TABLES[table], tmp_path / folder, scenes)


TINY = SyntheticSettings(num_objects=3, num_views=10, width=32, height=24, num_points=300)  # 8 training views


@pytest.fixture
def room(monkeypatch, tmp_path):
    """Return a function that writes a tiny room and returns its folder."""
    monkeypatch.setattr(tables, "BASE", TINY)

    def write(kind, amount):
        tables.write_room(tmp_path / f"{kind}_{amount}", kind, amount, seed=1)
        return tmp_path / f"{kind}_{amount}"

    return write


def test_amounts_of_noise_are_settings_and_start_at_the_easiest():
    for kind, (_, amounts) in KINDS.items():
        assert len(set(amounts)) == len(amounts)
        assert list(amounts) == sorted(amounts, reverse=kind == "views")
        assert amounts[0] == (tables.BASE.num_train if kind == "views" else 0)
        for amount in amounts if kind != "views" else ():
            assert getattr(replace(tables.BASE, **{kind: amount}), kind) == amount


def test_noise_changes_masks_and_nothing_else(room):
    clean, noisy = room("drop", "0"), room("drop", "0.5")
    files = {path.relative_to(clean): path.read_bytes() for path in clean.rglob("*") if path.is_file()}
    changed = {path for path, content in files.items() if (noisy / path).read_bytes() != content}
    assert {path.parts[0] for path in changed} == {"object_mask", "scene.json"}
    assert {path.parts[0] for path in files} >= {"images", "annotations", "transforms.json", "points3D.ply"}


@pytest.mark.parametrize(
    ("kind", "amount", "message"),
    [
        ("drop", "2", "--room drop 2: .*drop.* up to 1"),
        ("views", "0", "--room views 0: a synthetic scene needs a training view"),
        ("drp", "0", "--room drp: no such kind of noise; there are drop"),
        ("rooms", "0", "--room rooms 0: .*rooms must be at least 1"),
    ],
)
def test_a_room_that_cannot_be_is_refused_and_leaves_nothing(room, tmp_path, kind, amount, message):
    with pytest.raises(UserError, match=message):
        room(kind, amount)
    assert not list(tmp_path.iterdir())


def test_fewer_views_are_the_first_ones_and_initial_points_come_from_these_alone(room):
    whole, three, one = (
        load_scene(DataSettings(source_path=room("views", count), eval=True)) for count in ("8", "3", "1")
    )
    assert [view.name for view in three.train] == sorted(view.name for view in whole.train)[:3]
    assert [view.name for view in three.test] == [view.name for view in whole.test]
    assert len(three.test) == 2
    settings = replace(TINY, seed=1)
    camera = build_cameras(synthetic_room(settings), settings)[0]

    def seen(points):
        x, y, z = (points @ camera.cam_from_world[:3, :3].T + camera.cam_from_world[:3, 3]).T
        column, row = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
        return (z > 0) & (column > 0) & (column < camera.width) & (row > 0) & (row < camera.height)

    assert len(one.points.positions) == TINY.num_points
    assert seen(one.points.positions).all()
    assert not seen(whole.points.positions).all()
