"""Check a download of the eight Messy Rooms scenes and say exactly what is missing, and where to get or how to make it.

    python scripts/prepare_messy_rooms.py ROOT

Nothing is written. Exit code 0: complete, 1: something is missing, 2: there is no such folder. See docs/datasets.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from preparing import run


def main(argv: Sequence[str] | None = None) -> int:
    return run("messy_rooms", argv, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
