"""Every sub-command tells what it does, with an example, and has a page."""

from pathlib import Path

import pytest

from unified_lift.cli.main import COMMANDS, main

DOCS = Path(__file__).parents[2] / "docs"
PAGES = dict.fromkeys(("render", "eval", "demo"), "train") | {"import-edit": "export", "check-data": "check_data"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_docs_have_a_page(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Example: " in text
    page = (DOCS / f"{PAGES.get(command, command)}.md").read_text()
    assert any(f"{start}{command}" in page for start in ("unified-lift ", "-m unified_lift ", "")), command
    assert len(page) > 500
