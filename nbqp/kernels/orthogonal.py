"""Dense least squares of least norm, by Householder reflections: K p = r of any shape and rank.

    K Pi = Q [ R1  R2 ]        [ R1  R2 ] = [ T  0 ] Z
             [ 0   ~0 ]

with column pivoting, then p = Pi Z'(T^-1 (Q'r)_1; 0): the complete orthogonal decomposition (Golub and
Van Loan 2013, section 5.4.7). LAPACK's own is as fast on one thread; but its BLAS starts threads for each
reflection, which in a process that has other busy threads made it a hundred times slower.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.dense import axpy, dot
from nbqp.kernels.jit import kernel

# A column whose norm has fallen by this factor has it computed afresh.
CANCELLED = 1e-6


@kernel
def _reflector(x):
    """Turn x into (beta, v[1:]), v[0] = 1, with (I - tau v v') x = beta e1; returns tau."""
    tail = dot(x[1:], x[1:])
    if tail == 0.0:
        return 0.0
    alpha = x[0]
    beta = -np.copysign(np.sqrt(alpha * alpha + tail), alpha)
    for i in range(1, len(x)):
        x[i] /= alpha - beta
    x[0] = beta
    return (beta - alpha) / beta


@kernel
def _reflect(v, tau, y):
    """Apply I - tau v v', v[0] = 1, to y."""
    step = -tau * (y[0] + dot(v[1:], y[1:]))
    y[0] += step
    axpy(y[1:], step, v[1:])


@kernel
def triangularise(columns, order, rhs, rcond, abort):
    """Householder QR with column pivoting; returns the rank.

    columns (n, m), a row for each column of K: overwritten by R and the reflections. order (n):
    overwritten by the pivoting. rhs (m): overwritten by Q'rhs. Diagonal entries of R below rcond
    times the first count as zero. abort (1), not modified: once it is not 0 the rest is left undone.
    """
    n, m = columns.shape
    norms = np.empty(n)
    start = np.empty(n)
    for j in range(n):
        order[j] = j
        norms[j] = dot(columns[j], columns[j])
        start[j] = norms[j]
    first = 0.0
    for k in range(min(m, n)):
        if abort[0] != 0:
            return k
        best = k
        for j in range(k + 1, n):
            if norms[j] > norms[best]:
                best = j
        if best != k:
            order[k], order[best] = order[best], order[k]
            norms[best] = norms[k]
            start[best] = start[k]
            for i in range(m):
                columns[k, i], columns[best, i] = columns[best, i], columns[k, i]
        v = columns[k, k:]
        tau = _reflector(v)
        if k == 0:
            first = abs(v[0])
        if not abs(v[0]) > rcond * first:
            return k
        if tau != 0.0:
            _reflect(v, tau, rhs[k:])
        for j in range(k + 1, n):
            column = columns[j]
            if tau != 0.0:
                _reflect(v, tau, column[k:])
            norms[j] -= column[k] * column[k]
            if not norms[j] > CANCELLED * start[j]:
                norms[j] = dot(column[k + 1 :], column[k + 1 :])
                start[j] = norms[j]
    return min(m, n)


@kernel
def least_norm(columns, order, rank, rhs, p):
    """The solution p (n) of least norm, from what `triangularise` left; columns are overwritten."""
    n = len(columns)
    free = n - rank
    row = np.empty(free + 1)
    reflections = np.empty((rank, free + 1))
    taus = np.zeros(rank)
    # Rows of [R1 R2] from the last: each reflection clears R2 in its row.
    for k in range(rank - 1, -1, -1):
        if free == 0:
            break
        row[0] = columns[k, k]
        for j in range(free):
            row[1 + j] = columns[rank + j, k]
        taus[k] = _reflector(row)
        columns[k, k] = row[0]
        for j in range(free + 1):
            reflections[k, j] = row[j]
        for i in range(k):
            row[0] = columns[k, i]
            for j in range(free):
                row[1 + j] = columns[rank + j, i]
            _reflect(reflections[k], taus[k], row)
            columns[k, i] = row[0]
            for j in range(free):
                columns[rank + j, i] = row[1 + j]
    solution = np.zeros(n)
    for k in range(rank):
        solution[k] = rhs[k]
    for k in range(rank - 1, -1, -1):
        solution[k] /= columns[k, k]
        axpy(solution[:k], -solution[k], columns[k, :k])
    for k in range(rank):
        if free == 0:
            break
        row[0] = solution[k]
        for j in range(free):
            row[1 + j] = solution[rank + j]
        _reflect(reflections[k], taus[k], row)
        solution[k] = row[0]
        for j in range(free):
            solution[rank + j] = row[1 + j]
    for k in range(n):
        p[order[k]] = solution[k]
