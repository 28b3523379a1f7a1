"""How files say where things are. One function decides how a path is written, and another finds it again.

Models and reports are sent round and published. So nothing that is written holds the home folder, the name of the user
or of the machine, or an absolute path, unless `--provenance full` asks for it.
"""

import functools
import getpass
import hashlib
import os
import re
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

Provenance = Literal["relative", "full"]
# Absolute: not the end of another word. Later words of a path with spaces are known only below the home folder or base.
_BEGINS, _WORD = r"(?:^|(?<=[\s\"'`=:,;(\[{|])|(?<=file://))", r"[^\s\"'`,;:()<>|=\[\]{}]*"


def told(path: Path, base: Path, how: Provenance = "relative") -> str:
    """Return how a file in the folder `base` names a path, for `found`; no path stays none.

    `relative`: to that folder, so that both can be moved together; or, where only the path lies in the home folder, as
    `~/...`. The user's name becomes `$USER` and, where they have no folder in common, that of the machine `$HOSTNAME`.
    `full`: absolute.
    """
    if path == Path():
        return ""
    place, start = Path(os.path.abspath(path)), Path(os.path.abspath(base))
    if how == "full":
        return str(place)
    pairs = ((place, start), (_resolved(place), _resolved(start)))
    return min((_told(*pair) for pair in pairs), key=lambda text: (text[0] == "~", "$" in text, text.count(os.sep)))


def _told(place: Path, start: Path) -> str:
    home = next((home for home in _homes() if place.is_relative_to(home) and not start.is_relative_to(home)), None)
    text = os.path.relpath(place, start) if home is None else str("~" / place.relative_to(home))
    return _without_names(text, with_host=os.path.commonpath([place, start]) == os.sep)


def _without_names(text: str, *, with_host: bool) -> str:
    """Return a path without the user's name and, if asked, that of the machine: a scene may be called like it."""
    for name, word in _names().items():
        if with_host or not name.startswith("$HOST"):
            text = name.join(re.split(rf"(?<![$]|[^\W_]){re.escape(word)}(?![^\W_])", text))
    return text


def found(text: str, *bases: Path) -> Path:
    """Return the path that `told` wrote in a folder, absolute; of several folders the first from which it is there.

    If the folder alone was moved, the path may be below a folder above the new place or above the working folder.
    """
    if not text:
        return Path()
    path = Path(spelled_out(text))
    starts = [start for base in bases for start in (Path(os.path.abspath(base)), _resolved(base))]
    places = [Path(os.path.normpath(start / path)) for start in starts]
    rest = Path(*(part for part in path.parts if part != os.pardir))
    if path.parts[:1] == (os.pardir,) and rest != Path():
        above = [*starts[0].parents, Path.cwd(), *Path.cwd().parents]
        places += [start / rest for start in above if start != start.parent]
    return next((place for place in places if place.exists()), places[0])


def spelled_out(text: str) -> str:
    """Return a written path with the home folder and the names of user and machine as they are here and now."""
    for name, word in sorted(_names().items(), reverse=True):  # $HOSTNAME before $HOST
        text = text.replace(name, word)
    home = next(iter(_homes()), None)
    return os.path.join(home, text[2:]) if home is not None and (text + os.sep).startswith("~" + os.sep) else text


def told_text(text: str, base: Path, how: Provenance = "relative") -> str:
    """Return a text in which absolute paths are as `told` writes them into a file in the folder `base`.

    In paths that are relative already only the user's name is replaced.
    """
    if how == "full":
        return text
    text = _with_paths(text, lambda path: told(path, base), known=base)
    return re.sub(r"\S*/\S*", lambda word: _without_names(word[0], with_host=False), text)


def told_tree(tree: Any, base: Path, how: Provenance = "relative") -> Any:
    """Return a tree of JSON values with all its texts as `told_text` writes them."""
    if isinstance(tree, dict):
        return {key: told_tree(value, base, how) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [told_tree(value, base, how) for value in tree]
    return told_text(tree, base, how) if isinstance(tree, str) else tree


def told_command(words: Sequence[str], base: Path, how: Provenance = "relative") -> list[str]:
    """Return the words of a command, given in the working folder, with paths as `told` writes them for another."""
    is_here = base.resolve() == Path.cwd()

    def of(word: str) -> str:
        flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        is_path = os.path.isabs(value) or (os.sep in value and not is_here and os.path.exists(value))
        is_path |= os.sep in value and told_text(value, base) == value and any(w in value for w in _names().values())
        return flag + equals + (told(Path(value), base) if is_path else told_text(value, base))

    return list(words) if how == "full" else [of(word) for word in words]


def near(folder: Path) -> Path:
    """Return the working folder, or `folder` where they have nothing in common: then paths from one tell all of it."""
    here, there = Path.cwd(), Path(os.path.abspath(folder))
    return there if os.path.commonpath([here, there]) == os.sep else here


def comparable(word: str) -> str:
    """Return a word that is equal wherever it is read, if its paths are: `~/...`, or their names with digests."""

    def of(path: Path) -> str:
        home = next((home for home in _homes() if path.is_relative_to(home)), None)
        digest = hashlib.sha256(str(path).encode(errors="replace")).hexdigest()[:8]
        return f"<{told(path, path.parent)} {digest}>" if home is None else str("~" / path.relative_to(home))

    return of(Path(os.path.normpath(word))) if os.path.isabs(word) else _with_paths(word, of)


def _with_paths(text: str, write: Callable[[Path], str], known: Path | None = None) -> str:
    """Return a text with its absolute paths as a function writes them; those below a `known` folder may hold spaces."""
    folders = [*_homes(), *((Path(os.path.abspath(known)), _resolved(known)) if known is not None else ())]
    starts = sorted({str(folder) for folder in folders} - {os.sep}, key=len, reverse=True)

    def of(match: re.Match[str]) -> str:
        path = match[0]
        with suppress(ValueError):  # a zero byte
            is_path = path.count(os.sep) > 1 or match[1] is not None or os.path.exists(path)
            return write(Path(path)) if is_path else path
        return path

    begins = "|".join(map(re.escape, starts)) or "(?!)"
    return re.sub(rf"{_BEGINS}(?:({begins})(?=/|\W|$)|/(?=[^/\s])){_WORD}", of, text)


def _homes() -> list[Path]:
    """Return the home folder, as it is named and with links followed; none where there is none."""
    return _known(_environment())[0]


def _names() -> dict[str, str]:
    """Return what is written -> the word that is not: names of the user, of the home folder and of the machine."""
    return _known(_environment())[1]


def _environment() -> tuple[str | None, ...]:
    return socket.gethostname(), *map(os.environ.get, ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"))


@functools.lru_cache(maxsize=8)
def _known(environment: tuple[str | None, ...]) -> tuple[list[Path], dict[str, str]]:
    """Return homes and names in an environment: texts have many paths, and each would ask the system."""
    homes, host = list[Path](), environment[0] or ""
    with suppress(RuntimeError, OSError):
        homes = list(dict.fromkeys((Path(os.path.abspath(Path.home())), Path.home().resolve())))
    names = {"$USER": "", "$HOMENAME": homes[0].name if homes else "", "$HOSTNAME": host}
    names["$HOST"] = host.partition(".")[0]
    with suppress(KeyError, OSError, ImportError):  # an id without a name
        names["$USER"] = getpass.getuser()
    first = {word: name for name, word in reversed(names.items()) if word not in ("", "root")}  # nobody's name
    return homes, {first[word]: word for word in sorted(first, key=len, reverse=True)}


def _resolved(path: Path) -> Path:
    with suppress(OSError, RuntimeError):  # links in a circle
        return path.resolve()
    return Path(os.path.abspath(path))
