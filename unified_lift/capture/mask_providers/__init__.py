"""Ways to find masks in photos, one file each; a file with a `PROVIDER` is a provider."""

from __future__ import annotations

import sys

from unified_lift.capture.masks import Provider
from unified_lift.registry import members

PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in members(sys.modules[__name__], "PROVIDER")}
"""All providers by name."""
