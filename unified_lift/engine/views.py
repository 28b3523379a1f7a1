"""Which training view comes next: drawn without replacement, refilled when empty [3DGS]."""

from __future__ import annotations

import torch


class ViewOrder:
    """An endless shuffled order over `count` views with its own generator."""

    def __init__(self, count: int, *, seed: int) -> None:
        """Start with an empty stack."""
        self.count = count
        self.generator = torch.Generator().manual_seed(seed)
        self.stack: list[int] = []

    def next_index(self) -> int:
        """Return the index of the next view."""
        if not self.stack:
            self.stack = torch.randperm(self.count, generator=self.generator).tolist()
        return self.stack.pop()

    def state_dict(self) -> dict:
        """Return stack and generator."""
        return {"stack": list(self.stack), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` returned."""
        self.stack = list(state["stack"])
        self.generator.set_state(state["generator"])
