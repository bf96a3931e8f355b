"""Plain NumPy factorisations of dense symmetric matrices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.core.oracles import Array, Mask


def dense_ldl(K: Array) -> tuple[Array, Array]:
    """Unit lower L and d with K = L diag(d) L', without pivoting."""
    n = len(K)
    L, d = np.eye(n), np.zeros(n)
    for j in range(n):
        d[j] = K[j, j] - (L[j, :j] ** 2) @ d[:j]
        L[j + 1 :, j] = (K[j + 1 :, j] - L[j + 1 :, :j] @ (d[:j] * L[j, :j])) / d[j]
    return L, d


class Symbolic(NamedTuple):
    """Strictly lower pattern of L, its elimination tree (-1: root) and its column counts."""

    pattern: Mask
    etree: NDArray[np.intp]
    counts: NDArray[np.intp]


def symbolic_ldl(pattern: Mask) -> Symbolic:
    """Pattern of L by boolean elimination on a dense symmetric pattern (either triangle)."""
    F = np.asarray(pattern, bool)
    F = F | F.T
    for j in range(len(F)):
        below = np.flatnonzero(F[j + 1 :, j]) + j + 1
        F[np.ix_(below, below)] = True
    L = np.tril(F, -1)
    etree = np.where(L.any(axis=0), L.argmax(axis=0), -1)
    return Symbolic(L, etree, L.sum(axis=0))
