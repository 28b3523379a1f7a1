"""Scores as pure functions on arrays. Equations in the docs.

Adding a metric of a view is one file with a `METRIC`; what protocols compute is declared beside it as `METRICS`.
"""

from __future__ import annotations

import sys

from unified_lift.metrics.base import Metric, ViewBundle
from unified_lift.registry import members

__all__ = ["METRICS", "VIEW_METRICS", "Metric", "ViewBundle"]

VIEW_METRICS: tuple[Metric, ...] = tuple(members(sys.modules[__name__], "METRIC"))
"""All metrics of single views; eval.py computes every one of them."""
METRICS: dict[str, Metric] = {
    metric.name: metric for group in (*members(sys.modules[__name__], "METRICS"), VIEW_METRICS) for metric in group
}
"""All that is declared, by name."""
