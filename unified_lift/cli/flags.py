"""Flags as 3DGS, Gaussian Grouping and Unified-Lift users type them, read into the settings of a command."""

import contextlib
import dataclasses
import io
import re
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

import unified_lift
from unified_lift.cli.help import OTHER_SPELLINGS, SHORT_FLAGS, flags_of, page
from unified_lift.cli.names import near_path, nearest, program

T = TypeVar("T")
_WITHOUT_MEANING = ("--ip", "--port", "--debug-from")
_SAME = SHORT_FLAGS | OTHER_SPELLINGS
_WORDS = {  # what tyro says -> what we do
    r"^Error parsing ": "",
    r"invalid literal for int\(\) with base 10: (.*)": r"must be a whole number, received \1",
    r"could not convert string to float: (.*)": r"must be a number, received \1",
    r"^invalid choice '(.*?)' for argument '(.*?)'\. Expected one of (.*)": r"\2 \1: there are \3",
    r"^Missing value for argument '(.*?)'\. Expected 1 values": r"\1 needs a value",
    r"^Missing value for argument '(.*?)'\. Expected (\d+) values": r"\1 needs \2 values",
    r"^Unrecognized options: (.*)": r"\1: no flag takes this word",
}


class FormAsked(Exception):  # noqa: N818 (not an error: completion asks every command for its form)
    """What a command is read into, raised instead of reading it."""

    FLAG = "--completion-form"


def canonical(argv: Sequence[str], *, keep: Collection[str] = ()) -> list[str]:
    """Return `argv` with short and old spellings replaced, without the flags of no meaning here unless in `keep`."""
    result: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-") if flag.startswith("--") else flag
        if flag in _WITHOUT_MEANING and flag not in keep:
            print(f"note: {flag} has no meaning here and is ignored", file=sys.stderr)
            if not equals:
                next(words, None)  # its value
        else:
            result.append(_SAME.get(flag, flag) + equals + value)
    return result


def parsed(
    kind: type[T],
    argv: Sequence[str],
    *,
    command: str,
    default: Any = tyro.MISSING_NONPROP,
    keep: Collection[str] = (),
    shown: Mapping[str, str] | None = None,
) -> T:
    """Return the flags of a command as its dataclass, paths as seen from here where that is shorter.

    All commands go through here, so that they have one help (`shown` as in `page`), one kind of error and one
    spelling of flags (`keep` as in `canonical`). SystemExit: 0 after --help, --help-all and --version; 2 after one line
    that says what is wrong.
    """
    words, form = canonical(argv, keep=keep), {"default": default, "config": (tyro.conf.OmitArgPrefixes,)}
    if FormAsked.FLAG in words:
        raise FormAsked(kind, default)
    if "--version" in words:
        print(f"unified-lift {unified_lift.__version__}")
        raise SystemExit(0)
    if whole := {"--help", "--help-all"} & set(words):
        print(page(_parser(kind, form), command, whole="--help-all" in whole, shown=shown or {}))
        raise SystemExit(0)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return _near(tyro.cli(kind, args=words, prog=program(command), **form))
    except SystemExit:
        _refuse(_parser(kind, form), words, said.getvalue(), command, shown or {})


def _parser(kind: Any, form: dict[str, Any]) -> Any:
    """Return the argparse parser of a dataclass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the way to a list of all flags and their texts
        return tyro.extras.get_parser(kind, **form)


def _refuse(parser: Any, words: Sequence[str], said: str, command: str, shown: Mapping[str, str]) -> NoReturn:
    """Say in one line why words are no command line, and end."""
    flags = flags_of(parser)
    known = [name for flag in flags for name in flag.names]
    given = [word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
    unknown = next((flag for flag in given if flag not in known), None)
    lines = [line.strip("│ ") for line in said.splitlines()]
    missing = [flag for flag in flags if flag.is_required and any(line.startswith(flag.names[0]) for line in lines)]
    if unknown is not None:
        spellings = [*known, *(flag for flag, name in _SAME.items() if name in known)]
        chosen = f" with {' and '.join(shown.values())}" if shown else ""
        problem = f"no flag {unknown}{nearest(unknown, spellings) or chosen}"
    elif missing:
        listed = " and ".join(", ".join(filter(None, (flag.short, flag.names[0]))) for flag in missing)
        problem = f"{listed} {'is' if len(missing) == 1 else 'are'} missing"
    else:
        problem = _one_line(said)
        odd = re.match(r"(--[\w-]+): (Could not|no type matching)", problem)
        if odd and (flag := next((flag for flag in flags if odd[1] in flag.names), None)):
            values = [word.partition("=")[2] or word for word in _of_flag(words, odd[1])]
            problem = f"{odd[1]}: takes {flag.value}, received {' '.join(values)}"
    print(f"error: {problem}{'' if problem.endswith('?') else ';'} see {program(command)} --help", file=sys.stderr)
    raise SystemExit(2)


def _of_flag(words: Sequence[str], name: str) -> list[str]:
    """Return the words that a flag was given."""
    start = next((at for at, word in enumerate(words) if word.partition("=")[0] == name), len(words) - 1)
    end = next((at for at, word in enumerate(words) if at > start and word.startswith("--")), len(words))
    return list(words[start if "=" in words[start] else start + 1 : end])


def _one_line(said: str) -> str:
    """Return what the box of tyro says, without its title and what comes after the first rule."""
    _, *lines = filter(None, (line.strip("│╭╮╰╯ ") for line in said.splitlines()))
    parts = ["\n".join(part) for is_rule, part in groupby(lines, lambda line: set(line) <= set("─-")) if not is_rule]
    text = " ".join(parts[0].split()) if parts else said
    for theirs, ours in _WORDS.items():
        text = re.sub(theirs, ours, text)
    if " there are (" in text:
        head, _, choices = text.partition("(")
        text = head + ", ".join(word for word in re.findall(r"'(.*?)'", choices) if word != "None")
    return text.rstrip(". ")


def _near(value: Any) -> Any:
    """Return a tree of settings whose absolute paths are seen from the working folder, where that is shorter."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        changed = {name: near for name, old in fields.items() if (near := _near(old)) is not old}
        return dataclasses.replace(value, **changed) if changed else value
    return near_path(value) if isinstance(value, Path) else value
