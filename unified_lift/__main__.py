"""`python -m unified_lift`: the console command without an installed script."""

import sys

from unified_lift.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
