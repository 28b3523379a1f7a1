"""Replaying a part of a training step as a CUDA graph: one launch instead of some fifty, and no Python in between."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor


class GradientGraph:
    """Terms and gradients of a step whose tensors keep shape and place; captured again when its program changes.

    The first step with a key runs as it is, which lets kernels load and memory settle; the second is captured.
    """

    def __init__(
        self, compute: Callable[[float], dict[str, Tensor]], leaves: Callable[[], Mapping[str, Tensor]]
    ) -> None:
        """Prepare to run `compute`.

        Args:
            compute: Of the progress; does forward and backward and returns detached terms. It must not make the host
                wait, draw numbers from a generator, or read what changes from step to step except out of tensors.
            leaves: What it leaves gradients at.
        """
        self._compute, self._leaves = compute, leaves
        self._key: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._terms: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor | None] = {}

    def run(self, key: Hashable, progress: float) -> dict[str, Tensor]:
        """Return the terms; afterwards the leaves have their gradients. The next run overwrites both."""
        if key != self._key:
            self._key, self._graph = key, None
            self._forget_gradients()
            return self._compute(progress)
        if self._graph is None:
            self._forget_gradients()
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads, which write checkpoints or read photos, may go on calling CUDA
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._terms = self._compute(progress)
            self._graph, self._gradients = graph, {name: leaf.grad for name, leaf in self._leaves().items()}
        self._graph.replay()
        for name, leaf in self._leaves().items():
            leaf.grad = self._gradients.get(name)
        return self._terms

    def _forget_gradients(self) -> None:
        """Let backward make the gradients anew, in memory that a graph can keep."""
        for leaf in self._leaves().values():
            leaf.grad = None
