"""Lifting methods, one file each; a file with a `METHOD` is a method."""

from unified_lift.errors import UserError
from unified_lift.methods.base import MethodEntry
from unified_lift.registry import members

METHODS: dict[str, MethodEntry] = {entry.name: entry for entry in members(__name__, "METHOD")}
"""All methods by name."""


def method_entry(name: str) -> MethodEntry:
    """Return a method's entry; a UserError where there is no such method."""
    if name not in METHODS:
        raise UserError(f"--method {name}: no such method; there are {', '.join(sorted(METHODS))}")
    return METHODS[name]
