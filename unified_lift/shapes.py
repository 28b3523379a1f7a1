"""Named-dimension checks: one call at a public door binds letters across tensors."""

from collections.abc import Mapping

from torch import Tensor


def check_shapes(tensors: Mapping[str, tuple[Tensor, str]]) -> dict[str, int]:
    """Return the size bound to every letter of the given shape strings.

    Args:
        tensors: name -> (tensor, shape), shape being space-separated letters or numbers, e.g. `"P D"` or `"N 3"`.
    Raises:
        ValueError: A tensor disagrees with its shape string or with a letter bound before.
    """
    bound: dict[str, int] = {}
    for name, (tensor, spec) in tensors.items():
        dims = spec.split()
        sizes = list(tensor.shape)
        if len(dims) != len(sizes):
            raise ValueError(f"{name} must be [{spec}], received {list(tensor.shape)}")
        for dim, size in zip(dims, sizes, strict=True):
            expected = int(dim) if dim.isdigit() else bound.setdefault(dim, size)
            if size != expected:
                raise ValueError(f"{name} must be [{spec}] with {dim} = {expected}, received {list(tensor.shape)}")
    return bound
