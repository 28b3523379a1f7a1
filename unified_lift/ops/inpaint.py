"""Continuing a picture into a hole."""

import numpy as np
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import spsolve


def harmonic(values: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Return values [H, W, C] whose `unknown` pixels, bool [H, W], are the mean of their four neighbours.

    Source: the Laplace equation with the known pixels as boundary and none across the edge of the picture. Planes of
    inverse depth are continued exactly. Where no pixel is known, 0.
    """
    index = np.full(unknown.shape, -1)
    index[unknown] = np.arange(count := int(unknown.sum()))
    rows, columns = [], []
    known_sum, degree = np.zeros((count, values.shape[2])), np.full(count, 1e-12)
    for axis in (0, 1):
        for here, there in ((np.s_[:-1], np.s_[1:]), (np.s_[1:], np.s_[:-1])):
            own, near = (np.moveaxis(index, axis, 0)[part].ravel() for part in (here, there))
            value = np.moveaxis(values, axis, 0)[there].reshape(-1, values.shape[2])
            linked, bound = (own >= 0) & (near >= 0), (own >= 0) & (near < 0)
            np.add.at(degree, own[own >= 0], 1)
            np.add.at(known_sum, own[bound], value[bound])
            rows.append(own[linked])
            columns.append(near[linked])
    pairs = np.concatenate(rows), np.concatenate(columns)
    links = coo_matrix((np.ones(len(pairs[0])), pairs), shape=(count, count))
    found = values.astype(np.float64)
    if count:
        found[unknown] = spsolve((diags(degree) - links).tocsc(), known_sum).reshape(count, -1)
    return found
