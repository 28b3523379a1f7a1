"""Vertices of PLY files, through plyfile: the only place that reads or writes the format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyElement, PlyListProperty, PlyParseError

from unified_lift.errors import UserError
from unified_lift.fileio import replacing


def read_vertices(path: Path) -> np.ndarray:
    """Return the vertices of an ASCII or binary PLY as a structured array, one field per property, [N].

    Raises:
        UserError: No such file, no PLY, cut short, no vertices element, or a vertex property that is a list.
    """
    try:
        vertex = PlyData.read(str(path))["vertex"]  # maps the file; without that it reads number by number
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it or correct the path") from None
    except KeyError:
        raise UserError(f"{path}: holds no vertices; export the points or Gaussians again") from None
    except (PlyParseError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable PLY ({error}); fetch or export it again") from None
    lists = [item.name for item in vertex.properties if isinstance(item, PlyListProperty)]
    if lists:
        raise UserError(f"{path}: vertex property {lists[0]!r} is a list, not a number; export without it")
    return np.array(vertex.data)  # a copy, so that the file can be replaced


def write_vertices(path: Path, rows: np.ndarray) -> None:
    """Write a structured array as the vertices of a little-endian binary PLY, without comments, whole or not at all."""
    with replacing(path) as partial:
        PlyData([PlyElement.describe(rows, "vertex")], byte_order="<").write(str(partial))
