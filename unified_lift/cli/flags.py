"""Flags as 3DGS, Gaussian Grouping and Unified-Lift users type them."""

import sys
from collections.abc import Collection

_SAME = {
    "-s": "--source-path",
    "-m": "--model-path",
    "-i": "--images",
    "-r": "--resolution",
    "-w": "--white-background",
    "--num-classes": "--num-codes",
    "--method": "--method-name",
    "--config-file": "--config",
}
_WITHOUT_MEANING = ("--ip", "--port", "--debug-from")


def canonical(argv: list[str], *, keep: Collection[str] = ()) -> list[str]:
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
