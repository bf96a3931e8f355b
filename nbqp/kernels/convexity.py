"""Whether H is positive semidefinite, by the signs of the pivots of its LDL' factor."""

from __future__ import annotations

import numpy as np

from nbqp.kernels.dense import largest
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.kkt import DECOUPLED, factor_system
from nbqp.kernels.lanes import put
from nbqp.kernels.number import zeros
from nbqp.kernels.state import new_system
from nbqp.kernels.structure import EntriesReference, FactorReference, PatternReference
from nbqp.kernels.vector import WIDTH, splat, store

# H may be indefinite by TOLERANCE D, D_ii = max(|H_ii|, LEAST_DIAGONAL max|H|): products such as L'L are
# rounded relative to the diagonal, others relative to the largest entry.
TOLERANCE = 1e-10
LEAST_DIAGONAL = 1e-3


@kernel
def _decoupled(like, pattern, factor, abort):
    """A system whose matrix is that of H + TOLERANCE I, all rows decoupled; abort (1) is watched."""
    system = new_system(like, pattern, factor, abort)
    system.rho[0] = TOLERANCE
    system.mu_e[:] = DECOUPLED
    system.w[:] = np.inf
    return system


@kernel
def _scale(pattern, H, root, scaled):
    """Fill `scaled` with D^-1/2 H D^-1/2, D = max(|diag H|, LEAST_DIAGONAL max|H|), or 0 where H is.

    H: not modified. root (n): overwritten by D^-1/2.
    """
    Hp = pattern.Hp
    Hi = pattern.Hi
    size = largest(H)
    if size == 0.0:
        scaled[:] = 0.0
        return
    n = pattern.n
    for j in range(n):
        p = Hp[j]
        if Hp[j + 1] - p == n:
            p += j
        while p < Hp[j + 1] and Hi[p] < j:
            p += 1
        own = abs(H[p]) if p < Hp[j + 1] and Hi[p] == j else 0.0
        # One after the other: the product may overflow.
        root[j] = 1.0 / np.sqrt(max(own / size, LEAST_DIAGONAL)) / np.sqrt(size)
    for j in range(n):
        begin = Hp[j]
        if Hp[j + 1] - begin == n:
            # Without indices, which takes a third of the time.
            for i in range(n):
                scaled[begin + i] = H[begin + i] * root[i] * root[j]
        else:
            for p in range(begin, Hp[j + 1]):
                scaled[p] = H[p] * root[Hi[p]] * root[j]


@entry
def mark_nonconvex(pattern_values, factor_values, entries_values, H, abort, begin, end, nonconvex):
    """nonconvex[k] = whether H[k] + TOLERANCE D, D of `_scale`, has a pivot that is not positive.

    The KKT matrix with all its rows decoupled is factorised, on its own pattern.
    H (batch, nnz): not modified. nonconvex (batch): rows begin..end-1 are overwritten, those that are
    left where abort (1) is not 0 any more excepted.
    """
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    system = _decoupled(0.0, pattern, factor, abort)
    A = np.zeros(len(pattern.Ai))
    C = np.zeros(len(pattern.Ci))
    root = np.empty(pattern.n)
    scaled = np.empty(len(pattern.Hi))
    for k in range(begin, end):
        _scale(pattern, H[k], root, scaled)
        replaced = factor_system(pattern, factor, entries, scaled, A, C, system)
        if abort[0] != 0:
            return
        nonconvex[k] = replaced > 0


@entry
def mark_nonconvex_lanes(
    pattern_values, factor_values, entries_values, H, abort, begin, end, nonconvex
):
    """`mark_nonconvex` for eight matrices at a time."""
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    system = _decoupled(splat(0.0), pattern, factor, abort)
    A = zeros(splat(0.0), len(pattern.Ai))
    C = zeros(splat(0.0), len(pattern.Ci))
    wide = zeros(splat(0.0), len(pattern.Hi))
    root = np.empty(pattern.n)
    scaled = np.empty(len(pattern.Hi))
    replaced = np.empty(WIDTH)
    for first in range(begin, end, WIDTH):
        if abort[0] != 0:
            return
        count = min(end - first, WIDTH)
        for lane in range(count):
            _scale(pattern, H[first + lane], root, scaled)
            put(scaled, wide, lane)
        store(replaced, 0, factor_system(pattern, factor, entries, wide, A, C, system))
        for lane in range(count):
            nonconvex[first + lane] = replaced[lane] > 0.0
