"""Ways to find masks in photos, one file each; a file with a `GENERATOR` is one."""

from collections.abc import Callable
from functools import partial

from unified_lift.capture.masks import GeneratorEntry
from unified_lift.capture.networks import tried
from unified_lift.registry import members

GENERATORS: dict[str, GeneratorEntry] = {entry.name: entry for entry in members(__name__, "GENERATOR")}
"""All mask generators by name."""


def package_trials() -> dict[str, Callable[[], str]]:
    """Return for every package that a generator needs what runs it with a small random network and says how it went."""
    trials = [trial for entry in GENERATORS.values() for trial in entry.trials.items()]
    return {module: partial(tried, make) for module, make in trials}
