"""train.py: the same as `unified-lift train`."""

import sys

from unified_lift.cli.main import run

if __name__ == "__main__":
    sys.exit(run("train"))
