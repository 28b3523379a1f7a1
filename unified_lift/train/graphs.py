"""Replaying a part of a training step as a CUDA graph: one launch instead of some fifty, and no Python in between."""

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor


class GradientGraph:
    """Terms and gradients of a step whose tensors keep shape and place; captured again when its program changes.

    The first step with a key runs as it is, which lets kernels load and memory settle; the second is captured.

    Args:
        compute: Of the progress; does forward and backward and returns detached terms. It must not make the host
            wait, draw numbers from a generator, or read what changes from step to step except out of tensors.
        leaves: What it leaves gradients at.
    """

    def __init__(
        self, compute: Callable[[float], dict[str, Tensor]], leaves: Callable[[], Mapping[str, Tensor]]
    ) -> None:
        self._compute, self._leaves = compute, leaves
        self._key: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._terms: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor | None] = {}

    def run(self, key: Hashable, progress: float) -> dict[str, Tensor]:
        """Return the terms; afterwards the leaves have their gradients. The next run overwrites both."""
        is_new = key != self._key
        if is_new or self._graph is None:
            for leaf in self._leaves().values():
                leaf.grad = None  # backward makes it anew, in memory that a graph can keep
        if is_new:
            self._key, self._graph = key, None
            return self._compute(progress)
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads, which write checkpoints or read photos, may go on calling CUDA
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._terms = self._compute(progress)
            self._graph, self._gradients = graph, {name: leaf.grad for name, leaf in self._leaves().items()}
        self._graph.replay()
        for name, leaf in self._leaves().items():
            leaf.grad = self._gradients.get(name)
        return self._terms
