"""Help of one style that fits a screen, errors of one line with what is nearest, names as the user calls things."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from unified_lift.cli.help import GROUPS, SCREEN
from unified_lift.cli.main import COMMANDS, main
from unified_lift.cli.names import DOORS, addressed, near_path, near_text, nearest

ROOT = Path(__file__).parents[2]


def said(call, capsys):
    """Return exit code, output and errors of a call that need not come back."""
    try:
        code = main(call.split())
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_fits_a_screen_and_shows_what_it_is_to_show(command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, page, _ = said(f"{command} --help", capsys)
    lines = page.splitlines()
    assert code == 0
    assert lines[0].startswith(f"usage: unified-lift {command} ")
    assert len(lines) <= SCREEN
    examples = [line for line in lines if line.startswith("Example: ")]
    assert [line.split()[1:3] for line in examples] == [["unified-lift", command]]
    assert max(len(line) for line in lines[3:] if "unified-lift" not in line) <= columns
    flags = [line for line in lines if line.startswith("  -")]
    for name in " ".join(GROUPS.get(command, {}).values()).split():
        assert sum(f"--{name.removesuffix('-name')} " in f"{line} " for line in flags), name


def test_the_rest_is_on_the_whole_page(capsys):
    short, whole = (said(f"train {flag}", capsys)[1] for flag in ("--help", "--help-all"))
    assert "--opacity-lr" not in short
    count = int(short.splitlines()[-1].split()[0])
    assert short.splitlines()[-1] == f"{count} more flags: unified-lift train --help-all"
    flags = [line for line in whole.splitlines() if line.startswith("  -")]
    assert len(flags) == count + sum(len(names.split()) for names in GROUPS["train"].values())
    starts = ("-m, --model-path PATH ", "--method-name, --method STR", "--opacity-lr FLOAT ", "--eval, --no-eval ")
    assert all(any(line.startswith(f"  {start}") for line in flags) for start in starts)


def test_flags_of_a_chosen_method_and_strategy_are_on_the_page(capsys):
    page = said("train --method gaga --strategy mcmc --help", capsys)[1]
    assert "\nmethod gaga:\n" in page
    assert "\nstrategy mcmc:\n" in page
    assert "  --bank-grid INT " in page
    assert "--num-codes" not in page  # another method's


@pytest.mark.parametrize("door", DOORS.values())
def test_files_of_the_checkout_say_their_own_name(door, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(ROOT / door), "--no_such_flag", "3"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / door), run_name="__main__")
    assert (stop.value.code, capsys.readouterr().err) == (2, f"error: no flag --no-such-flag; see {door} --help\n")


def test_texts_name_commands_as_they_are_called(monkeypatch):
    text = "train.py -m x, then unified-lift eval -m x; unified-lift masks, retrain.py, x/train.py, train.pyc"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/unified-lift", "train"])
    assert addressed(text).startswith("unified-lift train -m x, then unified-lift eval -m x; unified-lift masks, retr")
    monkeypatch.setattr(sys, "argv", ["../train.py"])
    assert addressed(text) == "train.py -m x, then eval.py -m x; unified-lift masks, retrain.py, x/train.py, train.pyc"


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ("trian", "no command 'trian'; did you mean train?"),
        ("evaluate -m x", "no command 'evaluate'; did you mean eval?"),
        ("train --itrations 5", "no flag --itrations; did you mean --iterations, "),
        ("train --iter 5", "no flag --iter; did you mean --iterations? "),
        ("export -m x --min_cnf=3", "no flag --min-cnf; did you mean --min-conf? "),
        ("bench --tabel 3 --out x", "no flag --tabel; did you mean --table? "),
        ("train --method gaga --codebook_lr 1", "no flag --codebook-lr with method gaga; "),
        ("sfm photos", "-s, --source-path is missing; "),
        ("bench", "--table and --out are missing; "),
        ("bench --table 9 --out x", "--table 9: there are 1, 2, 3, 4, rooms, "),
        ("train --iterations many", "--iterations: must be a whole number, received 'many'; "),
        ("edit -m a --remove 1 x --out z", "--remove: takes INT|{scene} ..., received 1 x; "),
        ("query -m a --like=x", "--like: takes INT, received x; "),
        ("export -m x --min-conf high", "--min-conf: must be a number, received 'high'; "),
        ("export -m", "--model-path needs a value; "),
        ("edit -m a --out b --translate 1 2", "--translate needs 3 values; "),
        ("render -m x --quiet yes", "yes: no flag takes this word; "),
    ],
)
def test_what_is_wrong_and_what_was_meant_is_one_line(call, problem, capsys):
    code, out, err = said(call, capsys)
    assert (code, out) == (2, "")
    first, *rest = err.splitlines()
    assert first.startswith(f"error: {problem}")
    assert rest == ([] if call.split()[0] in COMMANDS else ["unified-lift --help lists them"])


def test_version_and_help_are_answered_wherever_they_are_asked(capsys):
    assert said("train --version", capsys) == said("--version", capsys)
    assert said("help eval", capsys) == said("eval -h", capsys)
    assert said("help", capsys) == said("--help", capsys)


def test_nearest_prefers_what_begins_so_and_is_silent_about_what_is_far():
    assert nearest("--cpu", ["--seed", "--cpu-minutes", "--gpu"]) == "; did you mean --cpu-minutes or --gpu?"
    assert nearest("--zzz", ["--seed", "--cpu-minutes"]) == ""


def test_places_are_named_as_seen_from_here_where_that_is_shorter(tmp_path, monkeypatch):
    here = tmp_path / "a/b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    kept = (Path("/etc"), here, here.parent, Path("c/d"), here / "../c", Path())
    assert [near_path(path) for path in kept] == list(kept)
    assert near_path(here / "c/d") == Path("c/d")
    assert near_path(here.parent / "c") == Path("../c")
    text = f"{here}/c: no such file; {here} and x{here}/c, {here.parent}/c, -o={here}/e"
    assert near_text(text) == f"c: no such file; {here} and x{here}/c, {here.parent}/c, -o=e"


def test_messages_of_commands_use_these_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert said(f"eval -m {tmp_path}/none", capsys)[2].startswith("error: none: no config.yaml there")
    assert said(f"check-data -s {tmp_path}/none", capsys)[2].startswith("error: none: ")
    assert said(f"export -m {tmp_path}/none.SPZ", capsys)[2].startswith("error: none.SPZ: no such file; ")


def test_bash_completes_commands_flags_and_choices(tmp_path, capsys):
    assert said("--completion ksh", capsys)[2].startswith("error: --completion takes one of bash, zsh, fish")
    code, script, _ = said("--completion bash", capsys)
    assert code == 0
    (tmp_path / "script").write_text(script)
    lines = ["", "tr", "train --iter", "train --schedule s", "bench --table ro"]
    words = 'COMP_WORDS=(unified-lift $1 "$2")\nCOMP_CWORD=$((${#COMP_WORDS[@]}-1))'
    body = [words, "_tyro_unified_lift", "echo ${COMPREPLY[*]}"]
    calls = [f'ask "{" ".join(line.split()[:-1])}" "{(line.split() or [""])[-1]}"' for line in lines]
    shell = "\n".join([f"source {tmp_path}/script", "ask() {", *body, "}", *calls])
    found = subprocess.run(["bash", "-c", shell], capture_output=True, text=True).stdout.splitlines()
    assert set(COMMANDS) <= set(found[0].split())
    assert found[1:] == ["train", "--iterations", "staged", "rooms robustness"]
