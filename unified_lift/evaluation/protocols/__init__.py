"""Benchmarks: which truth is compared with what, at which size, under which rules.

Adding a protocol is one file with a `PROTOCOL`.
"""

from __future__ import annotations

import sys

from unified_lift.evaluation.protocols.base import Protocol, ProtocolResult, Subject
from unified_lift.registry import members

__all__ = ["PROTOCOLS", "Protocol", "ProtocolResult", "Subject"]

PROTOCOLS: dict[str, Protocol] = {entry.name: entry for entry in members(sys.modules[__name__], "PROTOCOL")}
"""All protocols by name; a reader names its own, eval.py takes another with --protocol."""
