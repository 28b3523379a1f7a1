"""How messages name commands and places, and what word was meant."""

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

DOORS = {"train": "train.py", "render": "render.py", "eval": "eval.py"}  # files of a checkout that are commands too


def program(command: str) -> str:
    """Return how the user calls a command: `unified-lift CMD`, or as a file where such a file was started."""
    is_file = Path(sys.argv[0]).name in DOORS.values()
    return DOORS[command] if is_file and command in DOORS else f"unified-lift {command}"


def addressed(text: str) -> str:
    """Return a text that names commands in either way with the names by which the user calls them."""
    for command, door in DOORS.items():
        text = re.sub(rf"(?<![\w/.-])(?:{re.escape(door)}|unified-lift {command})(?![\w/-])", program(command), text)
    return text


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` with at most three of the known words, those that begin so first, or nothing."""
    words = list(dict.fromkeys(known))
    begun = [each for each in words if len(word.strip("-")) > 1 and each.startswith(word)]
    near = list(dict.fromkeys((*begun, *difflib.get_close_matches(word, words, n=3, cutoff=0.65))))[:3]
    return f"; did you mean {', '.join(near[:-1])}{' or ' if near[:-1] else ''}{near[-1]}?" if near else ""


def near_path(path: Path) -> Path:
    """Return a path as seen from the working folder if that is shorter and has a name, else as it is."""
    with contextlib.suppress(OSError, ValueError):  # no working folder, or another drive
        near = Path(os.path.relpath(path))
        if path.is_absolute() and ".." not in path.parts and near.name not in ("", ".."):
            return near if len(str(near)) < len(str(path)) else path
    return path


def near_text(text: str) -> str:
    """Return a text in which what lies in the working folder is named as seen from there."""
    with contextlib.suppress(OSError):
        here = os.getcwd().rstrip(os.sep)
        return re.sub(rf"(?<![\w./~-]){re.escape(here)}/(?=[^\s/])", "", text) if here else text
    return text
