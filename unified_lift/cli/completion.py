"""unified-lift --completion: what completes commands, flags and their choices in a shell, as tyro writes it."""

import contextlib
import importlib
import io
import re
from collections.abc import Callable
from typing import Annotated, Any, Union

import tyro

from unified_lift.cli.flags import FormAsked
from unified_lift.cli.main import COMMANDS
from unified_lift.errors import UserError

SHELLS = ("bash", "zsh", "fish", "tcsh")


def completion_main(argv: list[str]) -> int:
    """Print the script of one shell. Return the exit code; a UserError: no such shell."""
    if len(argv) != 1 or argv[0] not in SHELLS:
        example = "unified-lift --completion bash > ~/.unified-lift.bash"
        raise UserError(f"--completion takes one of {', '.join(SHELLS)}, as in: {example}")
    forms: Any = Union[tuple(_form(command) for command in COMMANDS)]  # noqa: UP007
    wanted, said = ["--tyro-print-completion", argv[0]], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        tyro.cli(forms, args=wanted, prog="unified-lift", config=(tyro.conf.OmitArgPrefixes,))
    # Texts of several lines would be completed as if each line were a word.
    print(re.sub(r"(?m)^COMPLETION_SPEC = .*$", lambda line: line[0].replace(r"\n", " "), said.getvalue()), end="")
    return 0


def _form(command: str) -> Any:
    """Return the dataclass of a command as one of several commands."""
    module, function, told = COMMANDS[command]
    start: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    try:
        start([FormAsked.FLAG])
    except FormAsked as asked:
        kind, default = asked.args
    return Annotated[kind, tyro.conf.subcommand(name=command, default=default, description=told)]
