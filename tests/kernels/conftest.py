"""The fixtures that run a test on each implementation."""

from tests.rasterizer.conftest import cuda, cuda_device, implementation, instruction_set, kernels, two_threads

__all__ = ["cuda", "cuda_device", "implementation", "instruction_set", "kernels", "two_threads"]
