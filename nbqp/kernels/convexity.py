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

# H may be indefinite by this multiple of its largest entry.
TOLERANCE = 1e-10


@kernel
def _decoupled(like, pattern, factor):
    """A system whose matrix is that of H + TOLERANCE I, all rows decoupled."""
    system = new_system(like, pattern, factor)
    system.rho[0] = TOLERANCE
    system.mu_e[:] = DECOUPLED
    system.w[:] = np.inf
    return system


@kernel
def _scale(H, scaled):
    """Fill `scaled` with H / max|H|, or 0 where H is."""
    size = largest(H)
    for p in range(len(scaled)):
        scaled[p] = H[p] / size if size > 0.0 else 0.0


@entry
def mark_nonconvex(pattern_values, factor_values, entries_values, H, begin, end, nonconvex):
    """nonconvex[k] = whether H[k] + TOLERANCE max|H[k]| I has a pivot that is not positive.

    The KKT matrix with all its rows decoupled is factorised, on its own pattern.
    H (batch, nnz): not modified. nonconvex (batch): rows begin..end-1 are overwritten.
    """
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    system = _decoupled(0.0, pattern, factor)
    A = np.zeros(len(pattern.Ai))
    C = np.zeros(len(pattern.Ci))
    scaled = np.empty(len(pattern.Hi))
    for k in range(begin, end):
        _scale(H[k], scaled)
        nonconvex[k] = factor_system(pattern, factor, entries, scaled, A, C, system) > 0


@entry
def mark_nonconvex_lanes(pattern_values, factor_values, entries_values, H, begin, end, nonconvex):
    """`mark_nonconvex` for eight matrices at a time."""
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    system = _decoupled(splat(0.0), pattern, factor)
    A = zeros(splat(0.0), len(pattern.Ai))
    C = zeros(splat(0.0), len(pattern.Ci))
    wide = zeros(splat(0.0), len(pattern.Hi))
    scaled = np.empty(len(pattern.Hi))
    replaced = np.empty(WIDTH)
    for first in range(begin, end, WIDTH):
        count = min(end - first, WIDTH)
        for lane in range(count):
            _scale(H[first + lane], scaled)
            put(scaled, wide, lane)
        store(replaced, 0, factor_system(pattern, factor, entries, wide, A, C, system))
        for lane in range(count):
            nonconvex[first + lane] = replaced[lane] > 0.0
