"""Replaying a part of a training step as a CUDA graph: one launch instead of some fifty, and no Python in between."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor


class GradientGraph:
    """Terms and gradients of a step whose tensors keep shape and place; captured again when its program changes.

    The first step of a phase runs as it is, which lets kernels load and memory settle; the second is captured.
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
        self._phase: Hashable = None
        self._is_warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._terms: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}

    def run(self, phase: Hashable, progress: float) -> dict[str, Tensor]:
        """Return the terms; afterwards the leaves have their gradients. The next run overwrites both."""
        if phase != self._phase:
            self._phase, self._is_warm, self._graph = phase, False, None
        if self._graph is None and not self._is_warm:
            self._is_warm = True
            self._forget()
            return self._compute(progress)
        if self._graph is None:
            self._capture(progress)
        self._graph.replay()
        for name, leaf in self._leaves().items():
            leaf.grad = self._gradients.get(name)
        return self._terms

    def _capture(self, progress: float) -> None:
        self._forget()
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads, which write checkpoints or read photos, may go on calling CUDA
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._terms = self._compute(progress)
        self._graph = graph
        self._gradients = {name: leaf.grad for name, leaf in self._leaves().items() if leaf.grad is not None}

    def _forget(self) -> None:
        """Let backward make the gradients anew, in memory that a graph can keep."""
        for leaf in self._leaves().values():
            leaf.grad = None
