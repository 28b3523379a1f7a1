"""One camera's Gaussians as the CUDA kernels see them: the structs, their working memory, and the lists of its tiles.

The structs mirror csrc/cuda/dgr_cuda.h field by field.
"""

from __future__ import annotations

import functools
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from ..native import CUDA

TILE = 16  # pixels, kTile of csrc/cuda/splat.cuh
SPLAT_FLOATS = 12
MOMENTS = 16
MOST_PAIRS = 2**32 - 1  # that 32 bits number; room for more would have no working memory for the sort
ABSOLUTE = slice(10, 12)  # of the moments: sums over pixels of absolute derivatives by position, if these are asked for


class Scene(Structure):
    """One camera and the Gaussians."""

    _fields_ = [
        ("n", c_int64),
        *((name, c_void_p) for name in ("means", "quats", "scales", "opacities", "colors", "sh_rest", "features")),
        *((name, c_void_p) for name in ("viewmat", "intrinsics", "background", "means2d")),
        ("near_z", c_float),
        *((name, c_int32) for name in ("sh_coeffs", "sh_degree", "feature_dim", "width", "height")),
        *((name, c_int32) for name in ("features_move_geometry", "device", "raw", "antialiased")),
        ("stream", c_void_p),
    ]


class Frame(Structure):
    """What forward leaves behind for backward and for pixel weights."""

    _fields_ = [
        *((name, c_void_p) for name in ("splats", "radii", "centres", "tile_begin", "list", "last", "moments")),
        *((name, c_void_p) for name in ("chunk_begin", "chunk_tile", "states", "partials")),
        ("chunks", c_int64),
    ]


class Images(Structure):
    """The maps of one camera."""

    _fields_ = [(name, c_void_p) for name in ("image", "features", "alpha", "depth")]


class Gradients(Structure):
    """What comes in and goes out of backward."""

    _fields_ = [
        *((name, c_void_p) for name in ("image", "features", "alpha", "depth")),
        *((name, c_void_p) for name in ("out_image", "out_features", "out_alpha", "out_depth")),
        *((name, c_void_p) for name in ("moments", "feature_rows")),
        *((name, c_void_p) for name in ("means", "quats", "scales", "opacities", "colors", "means2d")),
        *((name, c_int32) for name in ("accumulate", "absolute")),
    ]


class Workspace:
    """Working memory by name. A part is given again until more is asked of it, then it is replaced by a larger one."""

    def __init__(self, device: torch.device, *, slack: float = 1.0) -> None:
        """Start empty; `slack` > 1 asks for more than needed, where the need changes from call to call."""
        self.device, self.slack = device, slack
        self.parts: dict[str, Tensor] = {}
        self.num_pairs = -1  # for which tile lists have room

    def take(self, name: str, num_bytes: int) -> int:
        """Return the address of at least `num_bytes` bytes, aligned to 256."""
        part = self.parts.get(name)
        if part is None or part.numel() < num_bytes:
            self.parts.pop(name, None)  # before the new one is asked for
            part = torch.empty(max(int(num_bytes * self.slack), 1), dtype=torch.uint8, device=self.device)
            self.parts[name] = part
        return part.data_ptr()


_SCENE, _FRAME, _SIZE = POINTER(Scene), POINTER(Frame), POINTER(c_int64)
CUDA.declare(
    {
        "dgr_cuda_order": [_SCENE, _FRAME, c_void_p, c_int64, c_void_p, _SIZE],
        "dgr_cuda_lists": [_SCENE, _FRAME, c_void_p, c_int64, c_void_p],
        "dgr_cuda_forward": [_SCENE, _FRAME, POINTER(Images)],
        "dgr_cuda_backward_blend": [_SCENE, _FRAME, POINTER(Gradients)],
        "dgr_cuda_backward_project": [_SCENE, _FRAME, POINTER(Gradients)],
    }
)
CUDA.declare(
    {
        "dgr_cuda_order_bytes": [c_int64, _SIZE],
        "dgr_cuda_lists_bytes": [_SCENE, c_int64, _SIZE],
        "dgr_cuda_chunk_sizes": [c_void_p],
    },
    returns=None,
)


@functools.cache
def chunk_sizes() -> tuple[int, int, int]:
    """Return list entries of a chunk, and floats of a tile kept for each: of its state and of its partial result."""
    sizes = (c_int32 * 3)()
    CUDA.dgr_cuda_chunk_sizes(sizes)
    return tuple(sizes)


def build_frame(scene: Scene, frame: Frame, workspace: Workspace, *, for_backward: bool) -> int:
    """Project, sort and list the Gaussians of one camera; fill in the rest of `frame` and return the number of pairs.

    The workspace serves what `frame` does not hold; `for_backward` also prepares what backward needs of forward.

    Raises:
        MemoryError: More pairs than 32 bits can number.
    """
    tiles = -(-scene.width // TILE) * -(-scene.height // TILE)
    frame.splats = workspace.take("splats", scene.n * SPLAT_FLOATS * 4)
    frame.tile_begin = workspace.take("tile_begin", (tiles + 1) * 8)
    pairs, order, lists = c_int64(0), None, None
    if workspace.num_pairs >= 0:
        lists = _make_room(scene, frame, workspace, tiles, for_backward=for_backward)
    if scene.n:
        size = c_int64()
        CUDA.dgr_cuda_order_bytes(scene.n, byref(size))
        order = workspace.take("order", size.value)
        arguments = (byref(scene), byref(frame), order, workspace.num_pairs, lists)
        CUDA.dgr_cuda_order(*arguments, byref(pairs))
    if pairs.value > MOST_PAIRS:
        raise MemoryError(f"{pairs.value} (tile, Gaussian) pairs in one view; the Gaussians are far too large for it")
    if pairs.value > workspace.num_pairs or not scene.n:
        workspace.num_pairs = min(int(pairs.value * workspace.slack), MOST_PAIRS)
        lists = _make_room(scene, frame, workspace, tiles, for_backward=for_backward)
        CUDA.dgr_cuda_lists(byref(scene), byref(frame), order, pairs.value, lists)
    return pairs.value


def _make_room(scene: Scene, frame: Frame, workspace: Workspace, tiles: int, *, for_backward: bool) -> int | None:
    """Give the frame lists for `workspace.num_pairs` pairs; return the address of the workspace that fills them."""
    pairs, size = workspace.num_pairs, c_int64()
    frame.list = workspace.take("list", pairs * 4)
    if for_backward:
        chunk, state_floats, partial_floats = chunk_sizes()
        frame.chunks = pairs // chunk + tiles
        frame.chunk_begin = workspace.take("chunk_begin", (tiles + 1) * 4)
        frame.chunk_tile = workspace.take("chunk_tile", frame.chunks * 4)
        frame.states = workspace.take("states", pairs // chunk * state_floats * 4)
        if scene.feature_dim == 0:
            frame.partials = workspace.take("partials", 2 * (pairs // chunk) * partial_floats * 4)
    if pairs == 0:
        return None
    CUDA.dgr_cuda_lists_bytes(byref(scene), pairs, byref(size))
    return workspace.take("lists", size.value)
