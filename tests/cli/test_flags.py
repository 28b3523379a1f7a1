from unified_lift.cli.flags import canonical


def test_short_and_historic_flags_become_ours():
    assert canonical(["-s", "a", "-m", "b", "-r", "2", "--num_classes", "256", "--source_path=x"]) == [
        "--source-path", "a", "--model-path", "b", "--resolution", "2", "--num-codes", "256", "--source-path=x",
    ]  # fmt: skip


def test_flags_without_meaning_go_with_their_value_and_a_note(capsys):
    assert canonical(["--port", "6009", "--eval", "--ip=0.0.0.0", "--quiet"]) == ["--eval", "--quiet"]
    assert "--port has no meaning here" in capsys.readouterr().err
    assert canonical(["--port", "9", "--ip=x"], keep=("--port",)) == ["--port", "9"]  # as the viewer does


def test_values_that_look_like_words_stay_as_they_are():
    assert canonical(["--images", "my_images"]) == ["--images", "my_images"]
