"""Benchmarks: what is compared with what, at which size, under which rules; a file with a `PROTOCOL` each."""

from unified_lift.evaluation.protocols.base import GroundTruth, PredictionBundle, Protocol, ProtocolResult
from unified_lift.metrics import METRICS, Metric
from unified_lift.registry import members

__all__ = ["PROTOCOLS", "GroundTruth", "PredictionBundle", "Protocol", "ProtocolResult", "metric_of"]

PROTOCOLS: dict[str, Protocol] = {entry.name: entry for entry in members(__name__, "PROTOCOL")}
"""All protocols by name; a reader names its own, eval.py takes another with --protocol."""
_DECLARED = METRICS | {metric.name: metric for protocol in PROTOCOLS.values() for metric in protocol.metrics}


def metric_of(name: str) -> Metric:
    """Return what is declared of a score; undeclared ones are counts if called num_..., else fractions."""
    is_count = name.startswith("num_")
    undeclared = Metric(name=name, unit="count" if is_count else "%", higher_is_better=None if is_count else True)
    return _DECLARED.get(name, undeclared)
