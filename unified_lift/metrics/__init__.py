"""Scores as pure functions on arrays. Equations in the docs.

Adding a metric of a view is one file with a `METRIC`; what protocols compute is declared beside it as `METRICS`.
"""

from __future__ import annotations

import sys

from unified_lift.metrics.base import Metric, ViewBundle
from unified_lift.registry import members

__all__ = ["METRICS", "VIEW_METRICS", "Metric", "ViewBundle"]

_OF_VIEWS: tuple[Metric, ...] = tuple(members(sys.modules[__name__], "METRIC"))
VIEW_METRICS = {metric.name: metric.function for metric in _OF_VIEWS if metric.function is not None}
"""All metrics of single views; eval.py computes every one of them."""
METRICS: dict[str, Metric] = {
    metric.name: metric for group in (*members(sys.modules[__name__], "METRICS"), _OF_VIEWS) for metric in group
}
"""All that is declared, by name."""
