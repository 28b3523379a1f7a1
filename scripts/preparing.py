"""What the prepare scripts share: one argument, what was found printed, an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from unified_lift.data.downloads import check_download
from unified_lift.data.issues import issue_lines
from unified_lift.errors import UserError


def run(benchmark: str, argv: Sequence[str] | None, *, description: str | None) -> int:
    """Print what is found in the folder of the command line. Return 0 = complete, 1 = not, 2 = no such folder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder that holds the scenes")
    try:
        issues = check_download(benchmark, parser.parse_args(argv).root)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    missing = len(issues.errors)
    lines = issue_lines(issues, {"ok": "found", "note": "note", "error": "missing"})
    print("\n".join([*lines, f"{missing} things are missing" if missing else "complete"]))
    return 1 if missing else 0
