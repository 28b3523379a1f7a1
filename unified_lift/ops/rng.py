"""Random numbers that depend on a seed and a step alone, on whatever device needs them."""

import hashlib

import torch


class StepRng:
    """Random generators that start anew at every step: there is no state to save, and no copy between devices.

    A run that goes on on another kind of device draws other numbers there, but the same ones each time.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def at(self, step: int, device: torch.device) -> torch.Generator:
        """Return the generator of `device`, seeded for a step."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        return self._generators[device].manual_seed(self.number(step))

    def number(self, step: int) -> int:
        """Return the seed of a step, of 32 bits, also for kernels with random numbers of their own."""
        digest = hashlib.blake2b(f"{self.seed} {step}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little")
