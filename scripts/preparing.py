"""What the prepare scripts share: one argument, the findings printed, an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from unified_lift.data.findings import Finding, is_complete, report_lines
from unified_lift.errors import UserError


def run(check: Callable[[Path], list[Finding]], argv: Sequence[str] | None, *, description: str | None) -> int:
    """Print what `check` finds in the folder of the command line. Return 0 = complete, 1 = not, 2 = no such folder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder that holds the scenes")
    args = parser.parse_args(argv)
    try:
        findings = check(args.root)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(report_lines(findings)))
    return 0 if is_complete(findings) else 1
