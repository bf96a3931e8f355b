"""Solves with the panels of an LDL' factor, four columns and eight rows at a time.

A panel works on its own copy of the rows that it meets, so that vectors need no indices; for a single column
the copy would take longer than the work. Vectors may reach beyond a column: what they read there, finite
numbers, is multiplied by 0 or not used.
"""

from __future__ import annotations

from nbqp.kernels.jit import kernel
from nbqp.kernels.vector import WIDTH, fma, load, negative_fma, splat, store, total


@kernel
def _eliminate(L, at, size, width, t):
    """Solve with the unit lower block of a panel, and update its rows below; t is overwritten."""
    k = 0
    while k + 4 <= width:
        a0 = at + k * size
        a1 = a0 + size
        a2 = a1 + size
        a3 = a2 + size
        t0 = t[k]
        t1 = t[k + 1] - L[a0 + k + 1] * t0
        t2 = t[k + 2] - L[a0 + k + 2] * t0 - L[a1 + k + 2] * t1
        t3 = t[k + 3] - L[a0 + k + 3] * t0 - L[a1 + k + 3] * t1 - L[a2 + k + 3] * t2
        t[k + 1] = t1
        t[k + 2] = t2
        t[k + 3] = t3
        for i in range(k + 4, size, WIDTH):
            c = negative_fma(load(L, a0 + i), t0, load(t, i))
            c = negative_fma(load(L, a1 + i), t1, c)
            c = negative_fma(load(L, a2 + i), t2, c)
            store(t, i, negative_fma(load(L, a3 + i), t3, c))
        k += 4
    while k < width:
        column = at + k * size
        for i in range(k + 1, size, WIDTH):
            store(t, i, negative_fma(load(L, column + i), t[k], load(t, i)))
        k += 1


@kernel
def _substitute(L, at, size, width, t):
    """Solve with the unit upper block of a panel, given its rows below; t is overwritten."""
    k = width
    while k % 4 != 0:
        k -= 1
        column = at + k * size
        s = splat(0.0)
        for i in range(k + 1, size, WIDTH):
            s = fma(load(L, column + i), load(t, i), s)
        t[k] -= total(s)
    while k > 0:
        k -= 4
        a0 = at + k * size
        a1 = a0 + size
        a2 = a1 + size
        a3 = a2 + size
        s0 = splat(0.0)
        s1 = splat(0.0)
        s2 = splat(0.0)
        s3 = splat(0.0)
        for i in range(k + 4, size, WIDTH):
            c = load(t, i)
            s0 = fma(load(L, a0 + i), c, s0)
            s1 = fma(load(L, a1 + i), c, s1)
            s2 = fma(load(L, a2 + i), c, s2)
            s3 = fma(load(L, a3 + i), c, s3)
        t3 = t[k + 3] - total(s3)
        t2 = t[k + 2] - total(s2) - L[a2 + k + 3] * t3
        t1 = t[k + 1] - total(s1) - L[a1 + k + 2] * t2 - L[a1 + k + 3] * t3
        t[k] -= total(s0) + L[a0 + k + 1] * t1 + L[a0 + k + 2] * t2 + L[a0 + k + 3] * t3
        t[k + 1] = t1
        t[k + 2] = t2
        t[k + 3] = t3


@kernel
def _eliminate_one(L, at, size, rows, r0, x):
    """Update x by the only column of a panel, whose rows begin at rows[r0]."""
    xk = x[rows[r0]]
    for i in range(1, size):
        x[rows[r0 + i]] -= L[at + i] * xk


@kernel
def _substitute_one(L, at, size, rows, r0, x):
    """Solve for the only column of a panel, whose rows begin at rows[r0]."""
    xk = x[rows[r0]]
    for i in range(1, size):
        xk -= L[at + i] * x[rows[r0 + i]]
    x[rows[r0]] = xk


@kernel
def solve_permuted(factor, L, D, x, t):
    """Solve L D L' x = x in pivot order.

    L (nnz + WIDTH), D (N): from `factorise`, not modified. x (N): overwritten. t (N + WIDTH):
    workspace.
    """
    first = factor.first
    row_ptr = factor.row_ptr
    rows = factor.rows
    val_ptr = factor.val_ptr
    panels = len(first) - 1
    for J in range(panels):
        r0 = row_ptr[J]
        size = row_ptr[J + 1] - r0
        width = first[J + 1] - first[J]
        if width == 1:
            _eliminate_one(L, val_ptr[J], size, rows, r0, x)
            continue
        for i in range(size):
            t[i] = x[rows[r0 + i]]
        store(t, size, splat(0.0))
        _eliminate(L, val_ptr[J], size, width, t)
        for i in range(size):
            x[rows[r0 + i]] = t[i]
    for j in range(len(x)):
        x[j] /= D[j]
    for J in range(panels - 1, -1, -1):
        r0 = row_ptr[J]
        size = row_ptr[J + 1] - r0
        j0 = first[J]
        width = first[J + 1] - j0
        if width == 1:
            _substitute_one(L, val_ptr[J], size, rows, r0, x)
            continue
        for i in range(size):
            t[i] = x[rows[r0 + i]]
        store(t, size, splat(0.0))
        _substitute(L, val_ptr[J], size, width, t)
        for i in range(width):
            x[j0 + i] = t[i]
