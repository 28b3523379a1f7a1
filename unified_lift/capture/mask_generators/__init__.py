"""Ways to find masks in photos, one file each; a file with a `GENERATOR` is one."""

from unified_lift.capture.masks import GeneratorEntry
from unified_lift.registry import members

GENERATORS: dict[str, GeneratorEntry] = {entry.name: entry for entry in members(__name__, "GENERATOR")}
"""All mask generators by name."""
