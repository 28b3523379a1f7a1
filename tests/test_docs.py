"""The documentation holds: links lead somewhere, commands exist with these flags, those of the README run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_surface import SURFACE, flags_of
from unified_lift.cli.main import COMMANDS
from unified_lift.synthetic.scene import SyntheticSettings, write_synthetic

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("submodules/*/README.md")])
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
DOORS = {"train.py": "train", "render.py": "render", "eval.py": "eval"}


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


@each_page
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target} leads nowhere"
        if anchor:
            headings = {slug(line.lstrip("#")) for line in file.read_text().splitlines() if line.startswith("#")}
            assert anchor in headings, f"{page.name}: {target}: no such heading"


def commands_of(page):
    """The words of every command in the fenced blocks of a page, comments left out, lines joined."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        if language not in ("", "bash", "sh"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" #")[0].split("&&"):
                try:
                    words = shlex.split(part)
                except ValueError:
                    continue
                while words and (re.fullmatch(r"[A-Z_]+=\S*", words[0]) or re.fullmatch(r"python3?", words[0])):
                    words = words[1:]
                if words:
                    yield words


def called(words):
    """The command of unified-lift that the words call and its arguments, or None."""
    if words[0] in DOORS:
        return DOORS[words[0]], words[1:]
    if words[0] == "unified-lift" and len(words) > 1 and not words[1].startswith("-"):
        return words[1], words[2:]
    if words[:2] == ["-m", "unified_lift"] and len(words) > 2:
        return words[2], words[3:]
    return None


def flags_in(words):
    return [word.split("=")[0] for word in words if re.match(r"--[a-zA-Z][\w-]*(=|$)", word)]


@each_page
def test_commands_exist_with_these_flags(page):
    for words in commands_of(page):
        call = called(words)
        if call is not None:
            command, arguments = call
            if not re.fullmatch(r"[a-z-]+", command):
                continue  # `train|render|eval`
            assert command in COMMANDS, f"{page.name}: no command {command}"
            known = flags_of(command) | flags_of("train") if "--" in arguments else flags_of(command)
            gone = {flag.replace("_", "-") for flag in flags_in(arguments)} - known
            assert not gone, f"{page.name}: {command} has no {gone}"
        elif words[0].startswith("scripts/"):
            script = ROOT / words[0]
            assert script.is_file(), f"{page.name}: {words[0]} is not there"
            for flag in flags_in(words[1 : words.index("--")] if "--" in words else words[1:]):
                assert flag in script.read_text(), f"{page.name}: {words[0]} has no {flag}"


def test_the_three_commands_of_the_readme_run(tmp_path):
    """Verbatim, but for the two names to fill in and a length for tests."""
    wanted = {}
    for words in commands_of(ROOT / "README.md"):
        if words[0] in DOORS:
            wanted.setdefault(words[0], words)
    assert set(wanted) == set(DOORS)
    scene, model = tmp_path / "scene", tmp_path / "model"
    write_synthetic(scene, SyntheticSettings(num_views=6, width=48, height=36, num_points=300))
    short = ["--iterations", "40", "--lift_iterations", "30", "--sh_degree", "0", "--logger", "none", "--quiet"]
    for door, extra in (("train.py", short), ("render.py", ["--video_seconds", "0.1"]), ("eval.py", [])):
        words = [{"SCENE": str(scene), "output/MODEL": str(model)}.get(word, word) for word in wanted[door][1:]]
        command = [sys.executable, str(ROOT / door), *words, *extra]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    written = {plain(path.relative_to(model).as_posix()) for path in model.rglob("*") if path.is_file()}
    gone = {plain(path) for path in SURFACE["model_files"]} - written
    assert not gone, f"the model folder has lost {', '.join(sorted(gone))}"


def plain(path):
    """A path in a model folder without what differs from run to run: names of views, numbers of iterations."""
    return re.sub(r"\d+", "N", re.sub(r"/\d+\.png$", "/<view>.png", path))
