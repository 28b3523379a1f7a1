"""Named-dimension checks: one call at a public door binds letters across tensors."""

from collections.abc import Mapping

from torch import Tensor


def check_shapes(tensors: Mapping[str, tuple[Tensor, str]]) -> dict[str, int]:
    """Return the size bound to every letter of the shapes of name -> (tensor, shape), such as `"P D"` or `"N 3"`.

    A ValueError: a tensor disagrees with its shape or with a letter bound before.
    """
    bound: dict[str, int] = {}
    for name, (tensor, spec) in tensors.items():
        dims, sizes = spec.split(), list(tensor.shape)
        if len(dims) != len(sizes):
            raise ValueError(f"{name} must be [{spec}], received {sizes}")
        for dim, size in zip(dims, sizes, strict=True):
            expected = int(dim) if dim.isdigit() else bound.setdefault(dim, size)
            if size != expected:
                raise ValueError(f"{name} must be [{spec}] with {dim} = {expected}, received {sizes}")
    return bound
