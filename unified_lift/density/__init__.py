"""Density strategies, one file each; a file with a `STRATEGY` is a strategy."""

from unified_lift.density.base import StrategyEntry
from unified_lift.errors import UserError
from unified_lift.registry import members

STRATEGIES: dict[str, StrategyEntry] = {entry.name: entry for entry in members(__name__, "STRATEGY")}
"""All strategies by name."""


def strategy_entry(name: str) -> StrategyEntry:
    """Return a strategy's entry; a UserError lists those there are."""
    if name not in STRATEGIES:
        raise UserError(f"--strategy {name}: no such density strategy; there are {', '.join(sorted(STRATEGIES))}")
    return STRATEGIES[name]
