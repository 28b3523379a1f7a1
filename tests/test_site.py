"""The site of docs/: it builds without a warning, every page is in it, and none asks another server for anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("mkdocs")
FETCHED = re.compile(
    r"""<(?:script|img|iframe)[^>]+src=["']?(?:https?:)?//|<link[^>]+href=["']?(?:https?:)?//|url\(["']?(?:https?:)?//"""
)


def test_the_site_has_every_page_and_needs_no_other_server(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "-f",
        str(ROOT / ".docs/mkdocs.yml"),
        "-d",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pages = {path.stem for path in tmp_path.glob("*.html")} - {"404", "search"}
    assert pages == {path.stem for path in (ROOT / "docs").glob("*.md")}
    for path in (*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")):
        assert not FETCHED.search(path.read_text(encoding="utf-8")), path
    navigation = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{page}.html"' in navigation for page in pages - {"index"})
