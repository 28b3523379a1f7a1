import pytest

from unified_lift.cli.main import main


@pytest.mark.parametrize("precious", ["mine/config.yaml", "mine/point_cloud/a.ply", "mine_scene/a.txt"])
def test_demo_never_replaces_what_is_no_demo(precious, tmp_path, capsys):
    path = tmp_path / precious
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert main(["demo", "--out", str(tmp_path / "mine")]) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert path.read_text() == "{}"
