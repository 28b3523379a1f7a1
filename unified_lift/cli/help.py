"""One style of help for all commands: pages that fit a screen, by what people need, and whole ones."""

import itertools
import re
import shutil
import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from unified_lift.cli.names import addressed, program

SCREEN = 40  # lines
_NOTHING = ("", "None", "''", ".", "False")  # defaults not worth a word
SHORT_FLAGS = {
    "-s": "--source-path",
    "-m": "--model-path",
    "-i": "--images",
    "-r": "--resolution",
    "-w": "--white-background",
    "-h": "--help",
}
OTHER_SPELLINGS = {"--num-classes": "--num-codes", "--method": "--method-name", "--config-file": "--config"}
_BETTER = ("--method",)  # of these, what a page of one screen says
# What a page of one screen shows, by command: title -> flags. Others come after it, in as far as they fit.
GROUPS = {
    "train": {
        "scene and result": "source-path model-path images object-path resolution eval",
        "what is trained": "preset method-name strategy exposure antialiased init-ply config",
        "how long, how large": "iterations cpu-minutes lift-iterations max-gaussians",
        "running": "resume overwrite seed device data-device quiet",
        "objects and masks": "num-codes zero-id void-id levels",
    },
    "masks": {
        "scene and result": "source-path images out granularity overwrite",
        "how": "provider device jobs quiet",
    },
    "edit": {
        "model and result": "model-path out overwrite script",
        "which objects": "remove isolate merge rename clean recolour move duplicate",
        "how": "translate rotate-axis rotate-degrees scale color strength min-confidence outliers",
    },
    "bench": {
        "table and result": "table data out report",
        "what is run": "scenes methods masks seeds iterations device",
        "where": "jobs launcher slurm",
    },
}


class Flag(NamedTuple):
    """A flag as help shows it."""

    names: tuple[str, ...]  # --name, and --no-name after it if it is a switch
    value: str  # what follows it, such as PATH; "" = nothing
    text: str
    default: str
    group: str  # of the settings that it belongs to
    is_required: bool

    @property
    def short(self) -> str:
        """The short spelling, if it has one."""
        return next((short for short, name in SHORT_FLAGS.items() if name in self.names), "")

    @property
    def others(self) -> list[str]:
        """Older or shorter long spellings."""
        return [other for other, name in OTHER_SPELLINGS.items() if name in self.names]

    @property
    def shown(self) -> str:
        """The spellings and the value."""
        is_off = self.default in _NOTHING
        names = [self.short, *([name for name in self.others if name in _BETTER] or self.names[: 1 if is_off else 2])]
        return ", ".join(filter(None, names)) + f" {self.value}".rstrip()


def flags_of(parser: Any) -> list[Flag]:
    """Return the flags of an argparse parser in their order."""
    found = []
    for group in parser._action_groups:
        for action in group._group_actions:
            names = tuple(name for name in action.option_strings if name.startswith("--"))
            if names[:1] == ("--help",):
                continue
            names = names or (str(action.metavar or action.dest).upper(),)
            text, _, default = " ".join((action.help or "").replace("%%", "%").split()).partition(" (default: ")
            text = re.sub(r" ?\((?:3DGS )?-\w\)", "", text.removesuffix(" (required)"))
            default = default.removesuffix(")")
            title = (group.title or "").removesuffix("options").strip().rpartition(".")[2]
            value = "" if action.nargs == 0 or not action.option_strings else _value(str(action.metavar or ""))
            found.append(Flag(names, value, addressed(text), default, title, action.required))
    return found


def _value(metavar: str) -> str:
    """Return what a flag takes, without brackets of brackets and what leaving it out means."""
    metavar = re.sub(r"\{None\}\||(?<=\{)None,", "", metavar)
    metavar = re.sub(r"\[(.+?) \[(?:\1 )?\.\.\.\]\]", r"\1 ...", metavar)
    return metavar.strip("{}") if " " in metavar and "," not in metavar else metavar


def page(parser: Any, command: str, *, whole: bool = False, shown: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the help of a command: on one screen, with whole texts if they fit; or all of it.

    Groups of settings that the command line chose are always on it: `shown` has group -> title.
    """
    flags, width = flags_of(parser), max(60, min(shutil.get_terminal_size((100, 40)).columns, 110))
    head = _head(parser, command, width)
    if whole:
        groups: dict[str, list[Flag]] = {}
        for flag in flags:
            groups.setdefault(flag.group or "flags", []).append(flag)
        return "\n".join([*head, *_listed(groups, width, detail=3)])
    by_name = {flag.names[0].removeprefix("--"): flag for flag in flags}
    table = GROUPS.get(command, {"flags": " ".join(by_name)})
    chosen = {title: [by_name[name] for name in names.split() if name in by_name] for title, names in table.items()}
    own = {title: [flag for flag in flags if flag.group == name] for name, title in shown.items()}
    listed = {flag for group in (chosen | own).values() for flag in group}
    rest = [flag for flag in flags if flag not in listed]
    own_lines = _listed(own, width, detail=0)
    for more, detail in itertools.product(({"more": rest}, {}), (2, 1, 0)):
        what = f"{len(rest)} more flags" if rest and not more else "" if detail == 2 else "whole texts"
        last = [f"{what}: {program(command)} --help-all"] if what else []
        lines = [*head, *_listed(chosen | more, width, detail=detail)]
        if len(lines + own_lines + last) <= SCREEN:
            break
    return "\n".join([*lines, *own_lines, *last])


def _head(parser: Any, command: str, width: int) -> list[str]:
    """Return usage, description and examples, each example on a line of its own."""
    must = [flag for flag in flags_of(parser) if flag.is_required or flag.default == "."]
    must.sort(key=lambda flag: flag.short != "-s")
    needed = [f"{flag.short or flag.names[0]} {flag.value}".strip() for flag in must]
    lines = [f"usage: {' '.join([program(command), *needed])} [flags] [-h | --help | --help-all]", ""]
    for paragraph in (parser.description or "").split("\n\n"):
        text = addressed(" ".join(paragraph.split()))
        is_example = re.match(r"[A-Z][\w ]*: (unified-lift|\w+\.py) ", text) is not None
        lines += [text] if is_example else textwrap.wrap(text, width, break_on_hyphens=False)
    return [*lines, ""]


def _listed(groups: dict[str, list[Flag]], width: int, *, detail: int) -> list[str]:
    """Return lines of flags by group. Detail 0: one line each; 1: first sentences; 2: whole texts; 3: spellings too."""
    lines = []
    for title, flags in groups.items():
        if not flags:
            continue
        lines.append(f"{title}:")
        for flag in flags:
            lines += _lines_of(flag, width, detail)
    return lines


def _lines_of(flag: Flag, width: int, detail: int) -> list[str]:
    left, text, default, column = flag.shown, flag.text, flag.default, 30
    if detail == 3:
        left = " ".join([", ".join(filter(None, (flag.short, *flag.names, *flag.others))), flag.value]).rstrip()
    if detail < 2:
        text = re.sub(r" \[[^]]+\]$", "", re.split(r"(?<=[^. ]{2}[.;]) ", text)[0].rstrip(".;"))
        text += f" ({default})" if default not in _NOTHING and len(default) < 20 else ""
    elif default not in _NOTHING:
        text += f" (default: {default})"
    room = max(20, width - max(column, len(left) + 4))
    if detail == 0 and len(left) > column - 4 and " {" in left:
        left, _, choices = left.partition(" {")
        text, room = f"{choices.rstrip('}').replace(',', ', ')}: {text}", width - column
    if detail == 0:
        return [f"  {left:<{column - 4}}  {_cut(text, room)}"]
    wrapped = textwrap.wrap(text, width - column, break_on_hyphens=False) or [""]
    first = [] if len(left) > column - 4 else [f"  {left:<{column - 4}}  {wrapped.pop(0)}"]
    return [*(first or [f"  {left}"]), *(" " * column + line for line in wrapped)]


def _cut(text: str, room: int) -> str:
    """Return a text of one line: to its last clause that fits, or to its last word and an ellipsis."""
    if len(text) <= room:
        return text
    clauses = [
        match.start() for match in re.finditer(r"[;:] | \(|, (?:which|that|of which|so that) ", text[: room + 1])
    ]
    return text[: clauses[-1]] if clauses and clauses[-1] > 12 else textwrap.shorten(text, room, placeholder=" ...")
