"""Whether H is positive semidefinite, by the signs of the pivots of its LDL' factor."""

from __future__ import annotations

import numpy as np

from nbqp.kernels.dense import largest
from nbqp.kernels.jit import entry
from nbqp.kernels.kkt import DECOUPLED, factor_system
from nbqp.kernels.state import new_system
from nbqp.kernels.structure import EntriesReference, FactorReference, PatternReference

# H may be indefinite by this multiple of its largest entry.
TOLERANCE = 1e-10


@entry
def mark_nonconvex(pattern_values, factor_values, entries_values, H, begin, end, nonconvex):
    """nonconvex[k] = whether H[k] + TOLERANCE max|H[k]| I has a pivot that is not positive.

    The KKT matrix with all its rows decoupled is factorised, on its own pattern.
    H (batch, nnz): not modified. nonconvex (batch): rows begin..end-1 are overwritten.
    """
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    system = new_system(0.0, pattern, factor)
    system.rho[0] = TOLERANCE
    system.mu_e[:] = DECOUPLED
    system.w[:] = np.inf
    A = np.zeros(len(pattern.Ai))
    C = np.zeros(len(pattern.Ci))
    scaled = np.empty(len(pattern.Hi))
    for k in range(begin, end):
        size = largest(H[k])
        nonconvex[k] = False
        if size == 0.0:
            continue
        for p in range(len(scaled)):
            scaled[p] = H[k, p] / size
        nonconvex[k] = factor_system(pattern, factor, entries, scaled, A, C, system) > 0
