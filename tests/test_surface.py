"""Nothing that a user could call, pass or read has gone: commands, flags and files of commit 09a19e3.

surface.json was written by that commit's own `--help-all` pages and demo; entries may be added to it, never removed.
"""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from unified_lift.cli.main import COMMANDS, main

SURFACE = json.loads(Path(__file__).with_name("surface.json").read_text())


def flags_of(command):
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main([command, "--help-all"])
    return {flag.replace("_", "-") for flag in re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", shown.getvalue())}


def test_every_command_is_still_there():
    assert set(SURFACE["flags"]) <= set(COMMANDS)


@pytest.mark.parametrize("command", sorted(SURFACE["flags"]))
def test_every_flag_is_still_there(command):
    gone = {flag.replace("_", "-") for flag in SURFACE["flags"][command].split()} - flags_of(command)
    assert not gone, f"{command} has lost {', '.join(sorted(gone))}"
