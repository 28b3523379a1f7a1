"""Scores as pure functions on arrays. Equations in the docs.

Adding a metric of a view is one file with a `METRIC`; what protocols compute is declared beside it as `METRICS`.
"""

from unified_lift.metrics.base import Metric, ViewBundle
from unified_lift.registry import members

__all__ = ["METRICS", "VIEW_METRICS", "Metric", "ViewBundle"]

_GROUPS = (*members(__name__, "METRICS"), members(__name__, "METRIC"))
METRICS: dict[str, Metric] = {metric.name: metric for group in _GROUPS for metric in group}
"""All that is declared, by name."""
VIEW_METRICS = {name: metric.function for name, metric in METRICS.items() if metric.function is not None}
"""All metrics of single views; eval.py computes every one of them."""
