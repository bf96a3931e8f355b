"""The symmetric part of matrices, and how far they are from it."""

from __future__ import annotations

import numpy as np

from nbqp.kernels.jit import entry


@entry
def symmetrise(mirror, H, size, skew):
    """Replace H[k] by its symmetric part.

    H (batch, nnz): overwritten. mirror (nnz): where each entry's mirror image stands. size and skew (batch):
    overwritten by the largest |H_ij| and |H_ij - H_ji|, entries that are not finite counting as 0.
    """
    for k in range(len(H)):
        values = H[k]
        largest = 0.0
        worst = 0.0
        for p in range(len(mirror)):
            q = mirror[p]
            if q < p:
                continue
            one = values[p]
            other = values[q]
            mean = 0.5 * (one + other)
            values[p] = mean
            values[q] = mean
            one = one if abs(one) < np.inf else 0.0
            other = other if abs(other) < np.inf else 0.0
            largest = max(largest, max(abs(one), abs(other)))
            worst = max(worst, abs(one - other))
        size[k] = largest
        skew[k] = worst


@entry
def find_mirror(p, i, mirror):
    """Where the mirror image of each entry stands; False if the pattern (p, i) is not symmetric.

    Rows ascend within columns. mirror (nnz), int64: overwritten.
    """
    following = p[:-1].copy()
    for j in range(len(p) - 1):
        for k in range(p[j], p[j + 1]):
            row = i[k]
            at = following[row]
            if at == p[row + 1] or i[at] != j:
                return False
            mirror[k] = at
            following[row] = at + 1
    return True
